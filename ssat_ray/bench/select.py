"""`ssat bench select`: the streaming choice against all scores in memory, each in a process of its own.

Linux only: peak memory is VmHWM of /proc, which, unlike `ru_maxrss`, leaves out the parent's pages.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ssat_ray.bench.measure import Comparison, alternate
from ssat_ray.selection.choose import Ranking, choose
from ssat_ray.selection.scores import Array, Int64
from ssat_ray.selection.table import ScoreTable, encode, score_file, score_files

RATIO, BOUNDARY_FRACTION, SEED = 0.1, 0.5, 0
SHARD_ROWS = 1_000_000
NUM_CLASSES = 10
CASES = ("plain", "per class", "without copies")


def run(rows: int = 100_000_000, repeats: int = 5, folder: Path | None = None) -> list[Comparison]:
    """Times the choice of a tenth of `rows`: plain, with per-class quotas, and without copies.

    Seconds are those of whole processes: start of Python, imports and file reading included. The
    files have just been written or read, so they come from the page cache.

    Args:
        rows: of the synthetic score table, 13 bytes each on disk.
        repeats: processes of each side, in alternation.
        folder: where the table is written and removed; a temporary one if None.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="scores-") as name:
        table = Path(name)
        write_table(table, rows)
        return [_compare(case, table, rows, repeats) for case in CASES]


def write_table(folder: Path, rows: int) -> None:
    """A score table of `id`, `label`, `score` and `hash`; one row in 100 is a copy; deterministic."""
    for i, start in enumerate(range(0, rows, SHARD_ROWS)):
        size = min(SHARD_ROWS, rows - start)
        rng = np.random.default_rng(i)
        hashes = rng.integers(0, 2**64, size, dtype=np.uint64)
        hashes[rng.integers(0, size, size // 100)] = hashes[rng.integers(0, size, size // 100)]
        columns = {
            "id": 2 * start + np.arange(size) + np.arange(size) // 2,
            "label": rng.integers(0, NUM_CLASSES, size),
            "score": rng.standard_gamma(2, size, np.float32),
            "hash": hashes,
        }
        (folder / score_file(i)).write_bytes(encode(columns))


def _compare(case: str, table: Path, rows: int, repeats: int) -> Comparison:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}

    def child(side: str) -> Callable[[], None]:
        command = [sys.executable, "-m", "ssat_ray.bench.select", side, case, str(table)]
        return lambda: found[side].append(
            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        )

    seconds = alternate({side: child(side) for side in found}, repeats)
    _check(case, found["ours"][0], found["bare"][0])
    peak = {side: max(r["peak_bytes"] for r in found[side]) / 2**30 for side in found}
    return Comparison(
        f"{rows:,} scores, {case}",
        seconds["ours"],
        seconds["bare"],
        notes={
            "rows/s": f"{rows / statistics.median(seconds['ours']):,.0f}",
            "peak GiB": f"{peak['ours']:.2f}, bare {peak['bare']:.2f}",
            "page cache": "warm",
        },
    )


def _check(case: str, ours: dict[str, Any], bare: dict[str, Any]) -> None:
    """Both sides did the same work: per class, the bare one rounds each class on its own."""
    rows, cut = (NUM_CLASSES, 0.05) if case == "per class" else (0, 0.0)
    assert abs(ours["rows"] - bare["rows"]) <= rows, f"{case}: rows {ours} and {bare}"
    assert abs(ours["cut"] - bare["cut"]) <= cut * bare["cut"], f"{case}: cuts {ours} and {bare}"


def _ours(files: list[Path], per_class: bool, dedup: bool) -> tuple[Int64, float]:
    table = ScoreTable(files)
    choice = choose(
        table.read,
        num_rows=table.num_rows,
        ratio=RATIO,
        boundary_fraction=BOUNDARY_FRACTION,
        seed=SEED,
        ranking=Ranking(),
        per_class=per_class,
        dedup=dedup,
    )
    return choice.ids, choice.cut


def _bare(files: list[Path], per_class: bool, dedup: bool) -> tuple[Int64, float]:
    """The same kind of choice with whole columns in memory; ties fall anyhow, the draw is NumPy's."""
    names = ["id", "score", *(["label"] if per_class else []), *(["hash"] if dedup else [])]
    table = pq.read_table(files, columns=names, use_threads=False)
    columns: dict[str, Array] = {name: table[name].to_numpy() for name in names}
    del table
    if per_class:
        groups = [np.flatnonzero(columns["label"] == label) for label in range(NUM_CLASSES)]
    elif dedup:
        groups = [np.sort(np.unique(columns["hash"], return_index=True)[1])]
    else:
        groups = [np.arange(len(columns["id"]))]
    rng = np.random.default_rng(SEED)
    chosen, cut = [], 0.0
    for rows in groups:
        num_chosen = round(RATIO * len(rows))
        num_boundary = round(BOUNDARY_FRACTION * num_chosen)
        score = columns["score"][rows]
        order = np.argpartition(score, num_boundary)
        cut = max(cut, float(score[order[:num_boundary]].max()))
        drawn = rng.permutation(len(rows) - num_boundary)[: num_chosen - num_boundary]
        chosen += [rows[order[:num_boundary]], rows[order[num_boundary:][drawn]]]
    return columns["id"][np.sort(np.concatenate(chosen))], cut


def _peak_bytes() -> int:
    """Largest resident set of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _main(side: str, case: str, folder: str) -> None:
    """A measured process: chooses, and prints what it found as JSON."""
    options = {"per_class": case == "per class", "dedup": case == "without copies"}
    ids, cut = SIDES[side](score_files(Path(folder)), **options)
    print(json.dumps({"rows": len(ids), "cut": cut, "peak_bytes": _peak_bytes()}))


SIDES: dict[str, Callable[..., tuple[Int64, float]]] = {"ours": _ours, "bare": _bare}

if __name__ == "__main__":
    _main(*sys.argv[1:])
