"""What the stage tests share: the real run's folders and embeddings, and selections in one Ray session."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ssat_ray import pipeline, runtime
from ssat_ray.board import start_board
from ssat_ray.config import Config, RuntimeConfig
from ssat_ray.data.labelled import LabelledSet
from ssat_ray.data.pool import MANIFEST, Pool, manifest
from ssat_ray.data.shard import Shard, write_shards
from ssat_ray.data.synth import SynthSource, synth
from ssat_ray.loading import load_config
from ssat_ray.models.files import load_classifier
from ssat_ray.places import Place, write_atomic
from ssat_ray.plan import STAGES, Plan, build_plan
from ssat_ray.stages.base import STATE, Session, StageContext, Task
from ssat_ray.store import Store
from tests.artefacts import files

SMALL_MODEL = (
    "model={name: preact-small, widths: [8, 16], strides: [2, 2], blocks: 1}",
    "intermediate.num_steps=60",
)


def _folder(run: Any, row: str, stage: str) -> Path:
    return run.store.folder(run.plan.jobs[row, 0, stage])


@pytest.fixture(scope="session")
def folder() -> Callable[[Any, str, str], Path]:
    """(run, row, stage) -> the artefact's folder, seed 0."""
    return _folder


@pytest.fixture(scope="session")
def scores() -> Callable[[Path], dict[str, np.ndarray]]:
    """folder of a score artefact -> its whole table, read by pyarrow alone."""

    def read(where: Path) -> dict[str, np.ndarray]:
        table = pa.concat_tables([pq.read_table(p) for p in sorted(where.glob("scores-*.parquet"))])
        return {name: table[name].to_numpy() for name in table.column_names}

    return read


@pytest.fixture(scope="session")
def embeddings(tiny_run: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, pooled embeddings and logits of the pool, computed here in one batch."""
    shard = Pool(_folder(tiny_run, "full", "pool")).load()
    model = load_classifier(_folder(tiny_run, "lcs-km", "intermediate"))
    x = torch.from_numpy(shard.images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.no_grad():
        h, logits = model.embed_with_logits(x, "pooled")
    return shard.ids, h.numpy(), logits.numpy()


@dataclass(frozen=True)
class Selection:
    """Jobs that end with a selection, and the store they are computed in."""

    config: Config
    store: Store

    @property
    def plan(self) -> Plan:
        return build_plan(self.config)

    def folder(self, row: str, stage: str) -> Place:
        return self.store.folder(self.plan.jobs[row, 0, stage])

    def record(self, row: str, stage: str) -> dict[str, Any] | None:
        return self.store.record(self.plan.jobs[row, 0, stage])

    def execute(self) -> None:
        context = StageContext(self.store, self.config.runtime)
        pipeline.execute(self.plan.unique, context, pipeline.Watcher())


class Selections:
    """Small pools as folders, and selections from them that share a labelled set and a model.

    The model is trained here, in a world of one: only what comes after it needs Ray.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        config = load_config("scale-100m", [*SMALL_MODEL, "synth.num_images=10000"])
        self.shared = Selection(config, Store(root / "shared"))
        plan, store = self.shared.plan, self.shared.store
        context = StageContext(store, RuntimeConfig())
        labelled = plan.jobs["lcs-km", 0, "labelled"]
        STAGES["labelled"].run([labelled], context)
        task = Task.of(plan.jobs["lcs-km", 0, "intermediate"], store)
        assert STAGES["intermediate"].train is not None
        files, record = STAGES["intermediate"].train(task, Session.alone(task.folder))
        task.write(files)
        task.publish(record)
        splits = LabelledSet.load(store.folder(labelled)).splits
        self.source = SynthSource(*splits["labelled"])

    def pool(self, folder: Path, num_images: int, shard_rows: int) -> Path:
        """The first `num_images` of the synthetic pool, in shards of `shard_rows`."""
        pieces = (
            np.arange(first, min(first + shard_rows, num_images))
            for first in range(0, num_images, shard_rows)
        )
        shards = (Shard(ids, *synth(self.source, ids, 0)) for ids in pieces)
        entries = write_shards(folder, shards, shard_rows)
        (folder / MANIFEST).write_text(manifest([entries], (1, 8, 8), 10))
        return folder

    def selection(self, root: Path | str, pool: Path | str, *settings: str) -> Selection:
        """A selection from a pool, in a store of its own; nothing is computed yet."""
        external = ("pool.source=external", f"pool.path='{pool}'")
        found = Selection(
            load_config("scale-100m", [*SMALL_MODEL, *external, *settings]), Store(root)
        )
        for stage in ("labelled", "intermediate"):
            job = self.shared.plan.jobs["lcs-km", 0, stage]
            assert job.digest in {one.digest for one in found.plan.unique}
            source, target = self.shared.store.folder(job), found.store.folder(job)
            if isinstance(target, Path):
                target.parent.mkdir(parents=True)
                target.symlink_to(source)
                continue
            for path in source.iterdir():
                write_atomic(target / path.name, path.read_bytes())
        return found


@pytest.fixture(scope="session")
def selections(tmp_path_factory: pytest.TempPathFactory) -> Selections:
    return Selections(tmp_path_factory.mktemp("selections"))


@dataclass(frozen=True)
class StageRun:
    """`ssat <verb> preset.yaml` in a folder of its own, watched at the stage `verb` of one row."""

    cwd: Path
    verb: str = "train"
    row: str = "full"
    name: str | None = None
    """Of the job in the plan, if it is not the verb's."""

    def start(self, address: str | None = None) -> subprocess.Popen[bytes]:
        """The command, in a process group of its own; `address` is of the cluster, if not this machine's."""
        ssat = str(Path(sys.executable).with_name("ssat"))
        with open(self.cwd / "output.txt", "ab") as output:
            return subprocess.Popen(
                [ssat, self.verb, "preset.yaml"],
                cwd=self.cwd,
                env=os.environ | ({"RAY_ADDRESS": address} if address else {}),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        assert process.wait(timeout=900) == 0, self.output()

    def output(self) -> str:
        """The end of what the command printed."""
        return (self.cwd / "output.txt").read_text()[-3000:]

    def job(self, name: str) -> Path:
        """The folder of an artefact of the row."""
        plan = build_plan(load_config(str(self.cwd / "preset.yaml"), []))
        return Store(self.cwd / "store").folder(plan.jobs[self.row, 0, name])

    @cached_property
    def folder(self) -> Path:
        return self.job(self.name or self.verb)

    @property
    def record(self) -> dict[str, Any]:
        record = Store.read_record(self.folder)
        assert record is not None
        return record

    def files(self) -> dict[str, bytes]:
        """Path within the artefact -> content."""
        return files(self.folder)

    def history(self) -> list[dict[str, float]]:
        """Of a training, without its seconds."""
        return [{k: v for k, v in row.items() if k != "seconds"} for row in self.record["history"]]

    @property
    def saved_step(self) -> int:
        """Steps in the newest saved state; 0 without one."""
        return max((int(path.stem) for path in (self.folder / STATE).glob("*.pt")), default=0)

    def wait_for(self, process: subprocess.Popen[bytes], done: Callable[[], bool]) -> None:
        """Until something is true of the run, which must not end before."""
        while not done():
            assert process.poll() is None, self.output()
            time.sleep(0.01)


@pytest.fixture(scope="session")
def stage_run() -> type[StageRun]:
    return StageRun


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """Ray in this process, with more CPUs than there may be: four actors fit."""
    with runtime.ray_session(RuntimeConfig(num_cpus=5)):
        board = start_board()  # it lives as long as this handle
        yield
        del board
