"""generate against a plain diffusers loop: the same U-Net and sampler, images made and thrown away.

Ours is the command `ssat generate` from its start to its end: Python, Ray, actors, noise by image id, writing
shards. The plain loop gets the best of its threads, batch sizes and memory formats, and no start-up.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ssat_ray.bench.measure import Comparison, between, in_process, ssat
from ssat_ray.diffusion.files import PLAIN
from ssat_ray.loading import load_config

PRESET = "digits"
BAR = 0.9
BARE_IMAGES, SWEEP_IMAGES = 5_000, 1_000
"""Made in a measurement of the plain loop, and in the search for its threads, batch size and memory format."""
SEARCHED: dict[str, list[Any]] = {
    "threads": [1, 2],
    "batches": [64, 250, 1000],
    "formats": ["contiguous_format", "channels_last"],
}


def run(rows: int | None = None, repeats: int = 5, folder: Path | None = None) -> list[Comparison]:
    """One line: the preset `digits`, 20 steps of DPM-Solver++ in float32.

    Seconds of the plain loop are for `rows` images, extrapolated from `BARE_IMAGES`. Noted are the seconds of ours that
    make no image, and the ratio that follows from them for as many images as the preset makes.

    Args:
        rows: images; 40,000 if None. Fewer are harder on us: the start of Ray and its actors counts.
        repeats: runs of ours, with the plain loop before, between and after.
        folder: of the store; removed afterwards if None.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="ssat-bench-") as scratch:
            return run(rows, repeats, Path(scratch))
    rows = rows or 40_000
    # how well the DDPM is trained does not change what sampling takes
    overrides = [f"generate.num_images={rows}", "pretrain.num_steps=20", "rows=[full]"]
    ssat("pretrain", PRESET, folder, overrides)
    best = _plain(folder, overrides, SEARCHED, SWEEP_IMAGES)
    found = {"threads": [best["threads"]], "batches": [best["batch"]], "formats": [best["format"]]}

    def bare_seconds() -> float:
        return float(_plain(folder, overrides, found, BARE_IMAGES)["seconds"] * rows)

    sampling: list[float] = []

    def ours_again() -> None:
        shutil.rmtree(folder / "store" / "generate", ignore_errors=True)
        ssat("generate", PRESET, folder, overrides)
        (record,) = (folder / "store" / "generate").glob("*/stage.json")
        sampling.append(json.loads(record.read_text())["seconds"])

    ours, bare = between(ours_again, bare_seconds, repeats)
    start = statistics.median(whole - made for whole, made in zip(ours, sampling, strict=True))
    of_preset = load_config(PRESET).generate.num_images
    ratio = with_start(of_preset / rows, start, statistics.median(ours), statistics.median(bare))
    notes = {
        "images/s": f"{rows / statistics.median(ours):,.0f} against {rows / statistics.median(bare):,.0f}",
        "bare": f"{best['threads']} threads, batches of {best['batch']}, {best['format']}",
        "of ours": f"{start:.3g} s make no image: Python, Ray and actors start, the pool is published",
        f"at the preset's {of_preset:,} images": f"about {ratio:.2f}",
    }
    return [Comparison(f"generate {rows:,} images, digits, 20 steps", ours, bare, BAR, notes)]


def with_start(share: float, start: float, ours: float, bare: float) -> float:
    """Bare / ours for `share` of the images that took these seconds, of which `start` stay with any number."""
    return share * bare / (start + share * (ours - start))


def _plain(
    folder: Path, overrides: list[str], searched: dict[str, list[Any]], images: int
) -> dict[str, Any]:
    """The best plain loop of a fresh process: seconds an image, its threads, batch size and memory format."""
    settings = json.dumps({**searched, "num_images": images})
    return in_process("ssat_ray.bench.generate", [str(folder), settings, *overrides])


def plain_loop(
    folder: Path,
    overrides: list[str],
    threads: list[int],
    batches: list[int],
    formats: list[str],
    num_images: int,
) -> dict[str, Any]:
    """Time the plain loop with every number of threads, batch size and memory format; the fastest counts."""
    import torch
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel

    from ssat_ray.plan import build_plan
    from ssat_ray.store import Store

    config = load_config(PRESET, overrides)
    pipeline = Store(folder / "store").folder(build_plan(config).jobs["full", 0, "pretrain"])
    unet = UNet2DModel.from_pretrained(pipeline / "unet", **PLAIN).eval()
    schedule = DDPMScheduler.from_pretrained(pipeline / "scheduler").config

    @torch.inference_mode()
    def loop(batch: int, kind: torch.memory_format, limit: int) -> float:
        start = time.perf_counter()
        for _ in range(0, limit, batch):
            solver = DPMSolverMultistepScheduler.from_config(schedule)
            solver.set_timesteps(config.generate.num_inference_steps)
            x = torch.randn(batch, 1, 8, 8).contiguous(memory_format=kind)
            labels = torch.arange(batch) % 10
            for t in solver.timesteps:
                x = solver.step(unet(x, t, class_labels=labels).sample, t, x).prev_sample
            _ = ((x + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
        return (time.perf_counter() - start) / (-(-limit // batch) * batch)

    best: dict[str, Any] = {"seconds": float("inf")}
    for num_threads, batch, name in itertools.product(threads, batches, formats):
        torch.set_num_threads(num_threads)
        kind = getattr(torch, name)
        unet.to(memory_format=kind)
        loop(batch, kind, batch)
        seconds = loop(batch, kind, num_images)
        if seconds < best["seconds"]:
            best = {"seconds": seconds, "threads": num_threads, "batch": batch, "format": name}
    return best


if __name__ == "__main__":
    place, options, *given = sys.argv[1:]
    print(json.dumps(plain_loop(Path(place), given, **json.loads(options))))
