"""score against a bare loop: a uint8 array in memory, the same model, assignment and margin, nothing else.

Ours is the command `ssat score` from its start to its end: Python, Ray, reading and checking shards, hashing,
writing the score table. The bare loop gets the best of its threads and batch sizes, and no start-up.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssat_ray.bench.measure import Comparison, between, in_process, ssat
from ssat_ray.config import Config
from ssat_ray.loading import load_config

PRESET = "scale-100m"


@dataclass(frozen=True)
class Case:
    """A model to score with.

    Args:
        settings: its configuration, over the preset's.
        bar: least share of the bare loop's rate that the project promises.
        rows: images of the pool. Fewer are harder on us: the start of Ray and its actors counts.
    """

    settings: dict[str, Any]
    bar: float
    rows: int


MODELS = {
    "digits": Case({}, 0.85, 20_000_000),
    "308,000 parameters": Case(
        {"model.widths": [32, 64, 128], "model.strides": [1, 2, 2]}, 0.85, 5_000_000
    ),
    "3-layer CNN": Case({"model.name": "ssat_ray.bench.models:cnn3"}, 0.6, 20_000_000),
}
"""`digits` is the preset's net; the second one is the net whose bare rate the promise was made for."""
BARE_IMAGES, SWEEP_IMAGES = 1_000_000, 200_000
"""In memory in a measurement of the bare loop, and in the search for its threads and batch size."""
AGREEMENT_IMAGES = 500_000
"""Of which the preset's share of boundary images is taken twice, by float32 and by bf16 embeddings."""
THREADS, BATCHES = [1, 2], [2048, 4096, 16384]


def run(
    rows: int | None = None,
    repeats: int = 5,
    models: list[str] | None = None,
    folder: Path | None = None,
) -> list[Comparison]:
    """One line a model.

    Seconds of the bare loop are for `rows` images, extrapolated from `BARE_IMAGES` or the whole pool.
    Noted too: the share of the boundary images (lowest scores) of float32 embeddings that bf16 finds as
    well, with the same clusters, among the pool's first `AGREEMENT_IMAGES`.

    Args:
        rows: images of the pool; the case's own if None.
        repeats: runs of ours, with the bare loop before, between and after.
        models: names in `MODELS`; all if None.
        folder: of the store; removed afterwards if None.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="ssat-bench-") as scratch:
            return run(rows, repeats, models, Path(scratch))
    return [_compare(name, rows, repeats, folder) for name in models or MODELS]


def _compare(name: str, rows: int | None, repeats: int, folder: Path) -> Comparison:
    case = MODELS[name]
    rows = rows or case.rows
    overrides = [f"{key}={json.dumps(value)}" for key, value in case.settings.items()]
    overrides += [
        f"synth.num_images={rows}",
        f"cluster.refine_rows={min(rows, 500_000)}",
        f"cluster.sample_rows={min(rows, 100_000)}",
    ]
    ssat("cluster", PRESET, folder, overrides)
    about = _bare(folder, overrides, THREADS, BATCHES, SWEEP_IMAGES)

    def bare_seconds() -> float:
        found = _bare(folder, overrides, [about["threads"]], [about["batch"]], BARE_IMAGES)
        return float(found["seconds"] * rows)

    def ours_again() -> None:
        shutil.rmtree(folder / "store" / "score", ignore_errors=True)
        ssat("score", PRESET, folder, overrides)

    ours, bare = between(ours_again, bare_seconds, repeats)
    notes = {
        "images/s": f"{rows / statistics.median(ours):,.0f} against {rows / statistics.median(bare):,.0f}",
        "bare": f"{about['threads']} threads, batches of {about['batch']}",
        "boundary images common to float32 and bf16": f"{_in_process('agreement', folder, overrides)['share']:.1%}",
    }
    return Comparison(f"score {rows:,} images, {name}", ours, bare, case.bar, notes)


def _bare(
    folder: Path, overrides: list[str], threads: list[int], batches: list[int], images: int
) -> dict[str, Any]:
    """The best bare loop: seconds an image, its threads and batch size."""
    settings = {"threads": threads, "batches": batches, "num_images": images}
    return _in_process("bare_loop", folder, overrides, **settings)


def _in_process(
    function: str, folder: Path, overrides: list[str], **settings: Any
) -> dict[str, Any]:
    """What a function of this module returns in a fresh process."""
    return in_process(
        "ssat_ray.bench.score", [function, str(folder), json.dumps(settings), *overrides]
    )


@dataclass(frozen=True)
class _Setup:
    """What both loops of this module need of a run: its first images, model and centroids."""

    config: Config
    images: np.ndarray
    model: Any
    centroids: np.ndarray


def _setup(folder: Path, overrides: list[str], num_images: int) -> _Setup:
    from ssat_ray.data.pool import Pool
    from ssat_ray.data.shard import Shard
    from ssat_ray.models.files import load_classifier
    from ssat_ray.plan import build_plan
    from ssat_ray.selection.clusters import load_clusters
    from ssat_ray.store import Store

    config = load_config(PRESET, overrides)
    jobs, store = build_plan(config).jobs, Store(folder / "store")
    parts, count = [], 0
    for shard in Pool(store.folder(jobs["lcs-km", 0, "pool"])):
        parts.append(shard)
        count += len(shard.ids)
        if count >= num_images:
            break
    images = np.ascontiguousarray(Shard.concatenate(parts).images[:num_images])
    model = load_classifier(store.folder(jobs["lcs-km", 0, "intermediate"]))
    centroids = load_clusters(store.folder(jobs["lcs-km", 0, "cluster"]))
    assert isinstance(centroids, np.ndarray)
    return _Setup(config, images, model, centroids)


def agreement(
    folder: Path, overrides: list[str], num_images: int = AGREEMENT_IMAGES
) -> dict[str, Any]:
    """Share of the lowest scores' images that float32 and bf16 embeddings have in common."""
    from ssat_ray.models.embedding import Embedder
    from ssat_ray.selection.clusters import score_columns

    setup = _setup(folder, overrides, num_images)
    select = setup.config.select
    count = round(select.ratio * select.boundary_fraction * len(setup.images))
    chosen = []
    for precision in ("float32", "bf16"):
        embedder = Embedder(setup.model, setup.config.embed.layer, precision)
        scores = [
            score_columns(h, logits, setup.centroids)["score"]
            for _, h, logits in embedder.blocks(setup.images)
        ]
        chosen.append(np.argsort(np.concatenate(scores), kind="stable")[:count])
    return {"share": len(np.intersect1d(chosen[0], chosen[1])) / count}


def bare_loop(
    folder: Path, overrides: list[str], threads: list[int], batches: list[int], num_images: int
) -> dict[str, Any]:
    """Time the bare loop with every number of threads and batch size; the fastest counts."""
    import torch

    setup = _setup(folder, overrides, num_images)
    images, layer = setup.images, setup.config.embed.layer
    model = setup.model.to(torch.bfloat16)
    model.logits.float()  # as in the product, what follows the pooling is float32
    centroids = torch.from_numpy(setup.centroids)
    half = 0.5 * centroids.square().sum(1)

    @torch.inference_mode()
    def loop(batch: int, limit: int) -> float:
        start = time.perf_counter()
        for i in range(0, limit, batch):
            x = torch.from_numpy(images[i : i + batch]).permute(0, 3, 1, 2)
            x = (x.to(torch.bfloat16) / 255).contiguous(memory_format=torch.channels_last)
            h, _ = model.embed_with_logits(x, layer)
            h = h.float()
            near = torch.addmm(half, h, centroids.t(), beta=1, alpha=-1)
            top = (2 * near + h.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_()
            first = top.topk(2, dim=1, largest=False)
            _ = first.values[:, 1] - first.values[:, 0], first.indices[:, 0]
        return (time.perf_counter() - start) / limit

    best: dict[str, Any] = {"seconds": float("inf")}
    for num_threads in threads:
        torch.set_num_threads(num_threads)
        for batch in batches:
            loop(batch, min(len(images), 4 * batch))
            seconds = loop(batch, len(images) // batch * batch or len(images))
            if seconds < best["seconds"]:
                best = {"seconds": seconds, "threads": num_threads, "batch": batch}
    return best


if __name__ == "__main__":
    function, place, options, *given = sys.argv[1:]
    measure = bare_loop if function == bare_loop.__name__ else agreement
    print(json.dumps(measure(Path(place), given, **json.loads(options))))
