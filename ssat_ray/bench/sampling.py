"""20 steps of DPM-Solver++ against the DDPM's own 1,000: seconds, and what the intermediate model says of the images."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ssat_ray.bench.measure import Comparison, ssat
from ssat_ray.loading import load_config

PRESET = "digits"
BAR = 30.0


def run(
    rows: int | None = None,
    repeats: int = 5,
    folder: Path | None = None,
    overrides: tuple[str, ...] = (),
) -> list[Comparison]:
    """One line: seconds of both on this process's threads, in alternation, of the preset's DDPM.

    Noted of all repeats' images together, the long way's second: label agreement, coverage (against the labelled and
    validation images) and median margin by the intermediate model, which has no part in making them.

    Args:
        rows: images of a repeat; 1,000 if None.
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
    sides = _Sides(folder, settings)
    seconds: dict[str, list[float]] = {"short": [], "long": []}
    images: dict[str, list[np.ndarray]] = {"short": [], "long": []}
    for repeat in range(repeats):
        ids = np.arange(repeat * rows, (repeat + 1) * rows)
        for side in seconds:
            start = time.perf_counter()
            images[side].append(sides.make(side, ids))
            seconds[side].append(time.perf_counter() - start)
    found = {side: sides.seen(np.concatenate(made)) for side, made in images.items()}
    notes = {
        name: f"{found['short'][name]:.4g} against {found['long'][name]:.4g} "
        f"({found['short'][name] / found['long'][name] - 1:+.1%})"
        for name in found["short"]
    }
    what = f"{rows:,} images, {sides.steps['short']} steps of dpmsolver++ against {sides.steps['long']:,} ancestral"
    return [Comparison(what, seconds["short"], seconds["long"], BAR, notes)]


class _Sides:
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

    def seen(self, images: np.ndarray) -> dict[str, Any]:
        """What the intermediate model says of images with ids 0, 1, …."""
        from ssat_ray.diffusion.quality import Seen, agreement, coverage_density
        from ssat_ray.diffusion.sampling import balanced_labels

        splits = [self.labelled.splits[name][0] for name in ("labelled", "validation")]
        real, _ = self.embedder(np.concatenate(splits))
        seen = Seen.by(self.embedder, self.clusters, images)
        asked = balanced_labels(np.arange(len(images)), self.labelled.num_classes)
        return {
            "label agreement": agreement(seen.logits.argmax(1), asked),
            "coverage": coverage_density(real, seen.h)[0],
            "median margin": float(np.median(seen.score)),
        }
