"""20 steps of DPM-Solver++ against the DDPM's own 1,000: seconds, and what the intermediate model says of the images."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import numpy as np

from ssat_ray.bench.measure import Comparison, ssat
from ssat_ray.loading import load_config

PRESET = "digits"
BAR = 30.0
MOST_DEVIATION = 0.03
"""Of a figure of the short way's images from the long way's, as a share of it."""


def run(
    rows: int | None = None,
    repeats: int = 5,
    folder: Path | None = None,
    overrides: tuple[str, ...] = (),
) -> list[Comparison]:
    """One line: seconds of both on this process's threads, in alternation, of the preset's DDPM.

    Noted of the images, the long way's second, and which differ by more than `MOST_DEVIATION`: label agreement,
    coverage (of the labelled and validation images) and median margin by the intermediate model, which has no part in
    making them. Coverage is the mean over repeats, each of at most as many images as are to be covered: more would cover
    nearly all of them, however they were made. The clusters have seen none of the images: their ids follow the pool's.

    Args:
        rows: images of a repeat; 1,000 if None, as many as there are real ones.
        repeats: of each side; every repeat makes other images.
        folder: of the store; removed afterwards if None.
        overrides: further settings over the preset.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="ssat-bench-") as scratch:
            return run(rows, repeats, Path(scratch), overrides)
    rows = rows or 1_000
    settings = ["rows=[lcs-km]", "generate.num_images=2000", *overrides]
    ssat("cluster", PRESET, folder, settings)
    sides = Sides(folder, settings)
    seconds: dict[str, list[float]] = {"short": [], "long": []}
    images: dict[str, list[np.ndarray]] = {"short": [], "long": []}
    ids = [sides.ids(repeat, rows) for repeat in range(repeats)]
    sides.make("short", ids[0][:1])  # imports, for both ways
    for own in ids:
        for side in seconds:
            start = time.perf_counter()
            images[side].append(sides.make(side, own))
            seconds[side].append(time.perf_counter() - start)
    found = {side: sides.seen(made, ids) for side, made in images.items()}
    notes = deviations(found["short"], found["long"])
    what = f"{rows:,} images, {sides.steps['short']} steps of dpmsolver++ against {sides.steps['long']:,} ancestral"
    return [Comparison(what, seconds["short"], seconds["long"], BAR, notes)]


def deviations(short: dict[str, float], long: dict[str, float]) -> dict[str, str]:
    """Each figure of both ways and how far the short way's is off, then which are off by more than `MOST_DEVIATION`."""
    off = {name: short[name] / long[name] - 1 if long[name] else math.inf for name in short}
    notes = {
        name: f"{short[name]:.4g} against {long[name]:.4g} ({off[name]:+.1%})" for name in short
    }
    far = [name for name in off if abs(off[name]) > MOST_DEVIATION]
    return notes | {f"above {MOST_DEVIATION:.0%}:": ", ".join(far) or "none"}


class Sides:
    """Both ways to sample the DDPM of a store, and what its intermediate model says of their images."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        from ssat_ray.data.labelled import LabelledSet
        from ssat_ray.diffusion.files import load_ddpm
        from ssat_ray.models.embedding import Embedder
        from ssat_ray.models.files import load_classifier
        from ssat_ray.plan import build_plan
        from ssat_ray.selection.clusters import load_clusters
        from ssat_ray.store import Store

        config = load_config(PRESET, overrides)
        jobs, store = build_plan(config).jobs, Store(folder / "store")
        where = {
            name: store.folder(jobs["lcs-km", 0, name])
            for name in ("labelled", "pretrain", "intermediate", "cluster")
        }
        self.unet, self.scheduler = load_ddpm(where["pretrain"])
        self.labelled = LabelledSet.load(where["labelled"])
        self.embedder = Embedder(load_classifier(where["intermediate"]), config.embed.layer)
        self.clusters = load_clusters(where["cluster"])
        timesteps = self.scheduler.config["num_train_timesteps"]
        short = config.generate.model_copy(update={"sampler": "dpmsolver++"})
        long = {"sampler": "ancestral", "num_inference_steps": timesteps}
        self.configs = {"short": short, "long": short.model_copy(update=long)}
        self.steps = {side: c.num_inference_steps for side, c in self.configs.items()}

    def ids(self, repeat: int, rows: int) -> np.ndarray:
        """(rows,) of the images of a repeat; the pool that the clusters were fitted on has those before."""
        first = self.configs["short"].num_images + repeat * rows
        return np.arange(first, first + rows)

    def make(self, side: str, ids: np.ndarray) -> np.ndarray:
        """Images (n, H, W, C) uint8."""
        import torch

        from ssat_ray.diffusion.sampling import (
            balanced_labels,
            initial_noise,
            sample,
            step_generators,
        )

        config = self.configs[side]
        images = sample(
            self.unet,
            self.scheduler,
            initial_noise(ids, self.labelled.image_shape, 0),
            torch.from_numpy(balanced_labels(ids, self.labelled.num_classes)),
            config,
            generators=step_generators(ids, 0, config),
        )
        return images.permute(0, 2, 3, 1).numpy()

    def seen(self, images: list[np.ndarray], ids: list[np.ndarray]) -> dict[str, float]:
        """What the intermediate model says of the images of each repeat."""
        from ssat_ray.diffusion.quality import Seen, coverage_density
        from ssat_ray.diffusion.sampling import balanced_labels

        splits = [self.labelled.splits[name][0] for name in ("labelled", "validation")]
        real, _ = self.embedder(np.concatenate(splits))
        seen = [Seen.by(self.embedder, self.clusters, made) for made in images]
        asked = balanced_labels(np.concatenate(ids), self.labelled.num_classes)
        predicted = np.concatenate([one.logits.argmax(1) for one in seen])
        return {
            "label agreement": float((predicted == asked).mean()),
            "coverage": float(np.mean([coverage_density(real, s.h[: len(real)])[0] for s in seen])),
            "median margin": float(np.median(np.concatenate([one.score for one in seen]))),
        }
