"""A file system that is full in the middle of a selection: what to do is said, and what was done is kept."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.errors import UserError

pytestmark = [pytest.mark.ray, pytest.mark.slow]


LARGE = 10_000
"""KiB: more than everything takes."""


class Disk:
    """A file system in memory whose size can be changed while it is in use."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)

    def leave(self, kib: int) -> None:
        """Have so much space free."""
        used = shutil.disk_usage(self.place).used // 1024
        options = f"remount,size={used + kib}k"
        subprocess.run(["mount", "-o", options, str(self.place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid():
        pytest.skip("mounting a file system needs root")
    found = Disk(tmp_path / "disk")
    yield found
    subprocess.run(["umount", "--lazy", str(found.place)], check=True)


def _fault(selection: Any) -> str | None:
    """What its user is told, or None if it ends well."""
    told = None
    try:
        selection.execute()
    except UserError as error:
        told = str(error)
    gc.collect()  # the traceback has Ray Data's actors, whose CPUs the next attempt needs
    return told


def test_each_stage_stops_and_goes_on(
    selections: Any, ray_here: None, tmp_path: Path, disk: Disk
) -> None:
    pool = selections.pool(tmp_path / "pool", 20_000, 2_500)
    settings = ("rows=[lcs-km]", "cluster.sample_rows=2000", "cluster.restarts=2")
    whole = selections.selection(tmp_path / "store", pool, *settings)
    whole.execute()
    cut = selections.selection(disk.place / "store", pool, *settings)
    stages = ("cluster", "score", "select")
    expected = {stage: _tables(whole.folder("lcs-km", stage)) for stage in stages}
    assert all(len(tables) == n for tables, n in zip(expected.values(), (1, 8, 2), strict=True))
    for stage, spare in zip(stages, (700, 300, 50), strict=True):
        for later in stages[stages.index(stage) :]:
            shutil.rmtree(cut.folder("lcs-km", later), ignore_errors=True)
        disk.leave(spare)
        told = _fault(cut)
        assert told is not None and f"/{stage}/" in told
        assert re.search("no space left on the disk of .* same command to continue", told)
        assert cut.record("lcs-km", stage) is None
        disk.leave(LARGE)
        assert _fault(cut) is None
        assert {s: _tables(cut.folder("lcs-km", s)) for s in stages} == expected


def _tables(folder: Path) -> dict[str, bytes]:
    """The files of an artefact that hold its numbers."""
    kinds = (".safetensors", ".parquet")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in kinds}
