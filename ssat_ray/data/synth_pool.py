"""A pool of synthetic images in any folder, made in one process; `stages/synth.py` makes one with actors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from ssat_ray.config import SynthConfig
from ssat_ray.data.claim import claim
from ssat_ray.data.folder import Folder
from ssat_ray.data.importers.base import BLOCK_BYTES, Block, Joined, Source
from ssat_ray.data.ingest import choose_shard_rows, refuse_unknown_shards
from ssat_ray.data.journal import difference
from ssat_ray.data.labelled import LabelledSet
from ssat_ray.data.pool import MANIFEST, Pool, manifest
from ssat_ray.data.pool_writer import PoolWriter, Report, quiet
from ssat_ray.data.synth import SynthSettings, SynthSource, synth
from ssat_ray.errors import UserError

SYNTH_JOURNAL = "synth.json"
END_ID = 2**62


def source_of(labelled: LabelledSet) -> SynthSource:
    """The labelled training images; those of validation and test stay unseen."""
    return SynthSource(*labelled.splits["labelled"])


def settings_of(config: SynthConfig) -> SynthSettings:
    """All of the section but the numbers of images."""
    return SynthSettings(**config.model_dump(exclude={"num_images", "shard_rows"}))


def check_numbers(num_images: int, seed: int, first_id: int) -> None:
    """UserError if one is out of range."""
    for option, value, low, high in (
        ("--num-images", num_images, 1, END_ID),
        ("--seed", seed, 0, 2**63 - 1),
        ("--first-id", first_id, 0, END_ID - num_images),
    ):
        if not low <= value <= high:
            raise UserError(f"{option} {value}: allowed are {low} to {high}.")


def synth_pool(
    labelled: LabelledSet,
    target: str | Folder,
    config: SynthConfig,
    *,
    seed: int = 0,
    first_id: int = 0,
    restart: bool = False,
    report: Report = quiet,
) -> tuple[Pool, bool]:
    """Make a pool of the images of ids `first_id`, `first_id + 1`, …, as the `synth` stage makes them.

    Resumable and idempotent like `import_pool`: an image is a function of the labelled images, the settings,
    the seed and its id.

    Returns: the pool, and whether anything was written.

    Raises:
        UserError: a number is out of range, the target holds another pool or an unfinished command, or cannot
            be written. Finished shards are kept.
    """
    check_numbers(config.num_images, seed, first_id)
    folder = target if isinstance(target, Folder) else Folder(target)
    source = _SynthRows(source_of(labelled), settings_of(config), config.num_images, seed, first_id)
    shard_rows = choose_shard_rows(config.shard_rows, source.shape)
    with claim(folder):
        return _make(source, folder, labelled.num_classes, shard_rows, restart, report)


def _make(
    source: _SynthRows,
    folder: Folder,
    num_classes: int,
    shard_rows: int,
    restart: bool,
    report: Report,
) -> tuple[Pool, bool]:
    job = {"options": {**source.options, "shard_rows": shard_rows}}
    if folder.exists(MANIFEST):
        pool = Pool(folder)
        if "synth" not in pool.manifest:
            raise UserError(f"{folder} holds another pool; choose another folder.")
        changed = difference(job["options"], pool.manifest["synth"])
        if changed:
            raise UserError(f"{folder} holds a pool with {changed}; choose another folder.")
        pool.check_present()
        folder.delete(SYNTH_JOURNAL)
        return pool, False
    refuse_unknown_shards(folder, SYNTH_JOURNAL, restart)
    writing = PoolWriter(folder, SYNTH_JOURNAL, job, restart, 0, shard_rows)
    writing.take_source(Joined([source]), source.first_id, num_classes, report)
    height, width, channels = source.shape
    text = manifest(
        writing.generations(1), (channels, height, width), num_classes, synth=job["options"]
    )
    return writing.finish(text), True


class _SynthRows(Source):
    """Row r is the image of id `first_id` + r; `options` are all that determines it."""

    name = read_as = "synth"
    labels_from = "those of the labelled images"

    def __init__(
        self, base: SynthSource, settings: SynthSettings, rows: int, seed: int, first_id: int
    ) -> None:
        self._base, self._settings, self._seed, self.first_id = base, settings, seed, first_id
        self.shape, self.rows = base.shape, rows
        digest = hashlib.sha256(base.planes.tobytes())
        digest.update(np.stack([base.classes, base.counts]).astype("<i8").tobytes())
        self.options: dict[str, Any] = {
            "labelled images": digest.hexdigest()[:20],
            "num_images": rows,
            "seed": seed,
            "first_id": first_id,
            **asdict(settings),
        }

    def blocks(self, start: int = 0) -> Iterator[Block]:
        assert self.rows is not None
        stop = self.first_id + self.rows
        size = max(1, BLOCK_BYTES // int(np.prod(self.shape)))
        for first in range(self.first_id + start, stop, size):
            ids = np.arange(first, min(first + size, stop))
            yield Block(*synth(self._base, ids, self._seed, settings=self._settings))
