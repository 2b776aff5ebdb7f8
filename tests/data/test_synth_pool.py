"""Synthetic pools: the bytes of the `synth` stage for the same ids, whatever interrupts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ssat_ray.config import DataConfig, SynthConfig
from ssat_ray.data.folder import Folder
from ssat_ray.data.ingest import append_pool, copy_pool, import_pool
from ssat_ray.data.labelled import LabelledSet, read_labelled
from ssat_ray.data.pool import MANIFEST
from ssat_ray.data.synth_pool import synth_pool
from ssat_ray.errors import UserError
from ssat_ray.stages.synth import SynthActor


@pytest.fixture(scope="module")
def labelled() -> LabelledSet:
    return read_labelled(DataConfig())


CONFIG = SynthConfig(num_images=2500, shard_rows=400, noise=3.0)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_shards_are_those_of_the_stage(
    labelled: LabelledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = synth_pool(labelled, str(tmp_path / "pool"), CONFIG, seed=5)
    (tmp_path / "labelled").mkdir()
    for name, data in labelled.save(tmp_path / "labelled").items():
        (tmp_path / "labelled" / name).write_bytes(data)
    monkeypatch.setattr(
        "ssat_ray.stages.synth.record_of", lambda task, name: {"image_shape": labelled.image_shape}
    )
    job = SimpleNamespace(config={"synth": CONFIG.model_dump()})
    inputs, folder = {"labelled": tmp_path / "labelled"}, tmp_path / "stage"
    task: Any = SimpleNamespace(job=job, seed=5, inputs=inputs, folder=folder)
    actor: Any = SimpleNamespace(cached=lambda key, make: make())
    notes = [SynthActor.process(actor, task, part) for part in range(len(made.shards))]
    assert [note["shard"] for note in notes] == made.shards


@pytest.mark.parametrize("block", [1, 300 * 64, 2**22])
def test_images_depend_on_their_ids_alone(
    labelled: LabelledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    whole = synth_pool(labelled, str(tmp_path / "whole"), CONFIG)[0].load()
    monkeypatch.setattr("ssat_ray.data.synth_pool.BLOCK_BYTES", block)
    some = CONFIG.model_copy(update={"num_images": 70, "shard_rows": 33})
    part = synth_pool(labelled, str(tmp_path / "part"), some, first_id=1500)[0].load()
    rows = slice(1500, 1570)
    np.testing.assert_array_equal(part.ids, whole.ids[rows])
    np.testing.assert_array_equal(part.images, whole.images[rows])
    np.testing.assert_array_equal(part.labels, whole.labels[rows])


class Killed(BaseException):
    """Ends the process in the middle, as far as the pool can tell."""


class KilledAt(Folder):
    """A folder in which a shard of this number is written and never noted."""

    def __init__(self, location: Path, number: int) -> None:
        super().__init__(location)
        self.number, self.written = number, 0

    def write(self, name: str, data: bytes | str) -> None:
        super().write(name, data)
        self.written += name.endswith(".parquet")
        if name == f"shard-{self.number:05d}.parquet":
            raise Killed


@pytest.mark.parametrize("number", [0, 3, 6])
def test_a_killed_command_goes_on(labelled: LabelledSet, tmp_path: Path, number: int) -> None:
    synth_pool(labelled, str(tmp_path / "whole"), CONFIG)
    target = tmp_path / "pool"
    with pytest.raises(Killed):
        synth_pool(labelled, KilledAt(target, number), CONFIG)
    assert not (target / MANIFEST).exists()
    with pytest.raises(UserError, match=r"unfinished command with seed 0 \(now 1\)"):
        synth_pool(labelled, str(target), CONFIG, seed=1)
    rest = KilledAt(target, 99)
    assert synth_pool(labelled, rest, CONFIG)[1] is True
    assert rest.written == 7 - number
    assert contents(target) == contents(tmp_path / "whole")
    assert synth_pool(labelled, KilledAt(target, 0), CONFIG)[1] is False


def test_what_is_there_already(labelled: LabelledSet, tmp_path: Path) -> None:
    target = str(tmp_path / "pool")
    synth_pool(labelled, target, CONFIG)
    for change in ({"num_images": 2501}, {"noise": 4.0}, {"shard_rows": 401}):
        with pytest.raises(UserError, match=rf"holds a pool with {next(iter(change))} .* \(now"):
            synth_pool(labelled, target, CONFIG.model_copy(update=change))
    other = read_labelled(DataConfig(split_seed=1))
    with pytest.raises(UserError, match="holds a pool with labelled images"):
        synth_pool(other, target, CONFIG)
    images, labels = labelled.splits["labelled"]
    np.savez(tmp_path / "a.npz", image=images, label=labels)
    grown, _ = append_pool([tmp_path / "a.npz"], target)
    assert len(grown) == 2800 and synth_pool(labelled, target, CONFIG)[1] is False
    assert len(copy_pool(target, str(tmp_path / "copy"))[0]) == 2800
    import_pool([tmp_path / "a.npz"], str(tmp_path / "imported"))
    with pytest.raises(UserError, match="imported holds another pool"):
        synth_pool(labelled, str(tmp_path / "imported"), CONFIG)
