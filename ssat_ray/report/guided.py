"""What guide and judge say of guided images, as the page, the Markdown tables and the terminal show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ssat_ray.report.words import MOST_CLASSES, Row, mean, number, share

JUDGES = {"guide": "the guide", "judge": "a judge it never saw"}
"""Who looks at guided images, for tables."""
HEADS = (
    "near the boundary % [20]",
    "median score / base",
    "real images' median / base",
    "label agreement %",
    "coverage",
    "density",
    "mean confidence",
    "Fréchet distance, its features",
)
"""Of `guided_cells`; in brackets, the base model's images."""
NEAREST = {"0.05": "5 %", "0.25": "25 %", "0.5": "median"}
"""Quantiles of the distance to the nearest training image that tables have a column for."""


def guided_images(rows: list[Row]) -> list[dict[str, Any]]:
    """What guide and judge say of each guided row's images, means over seeds; `base_…` of the base model's.

    agreement is None where the images have no labels, or the judge's own. real_ratio is the real images' median score
    over the base images'. nearest is the median distance to the nearest training image, whoever judges.
    """
    found = []
    for row in rows:
        for judge, name in JUDGES.items() if "quality" in row else ():
            seen = [quality[judge] for quality in row["quality"]]
            near = [quality["nearest_training_image"] for quality in row["quality"]]
            entry: dict[str, Any] = {
                "row": row["row"],
                "judge": judge,
                "name": name,
                "near": mean(one["near"] for one in seen),
                "median_ratio": mean(one["median_ratio"] for one in seen),
                "real_ratio": mean(map(_real_ratio, seen)),
                "nearest": mean(one["guided"]["0.5"] for one in near),
                "base_nearest": mean(one["base"]["0.5"] for one in near),
            }
            for key in ("agreement", "coverage", "density", "confidence", "frechet"):
                entry[key] = mean(one["guided"][key] for one in seen)
                entry[f"base_{key}"] = mean(one["base"][key] for one in seen)
            found.append(entry)
    return found


def _real_ratio(seen: dict[str, Any]) -> float | None:
    real, base = (float(seen[name]["score"]["0.5"]) for name in ("real", "base"))
    return real / base if base else None


def guided_cells(entry: dict[str, Any]) -> list[str]:
    """The figures of `guided_images` under `HEADS`."""
    return [
        share(entry["near"]),
        f"{entry['median_ratio']:.2f}",
        "–" if entry["real_ratio"] is None else f"{entry['real_ratio']:.2f}",
        beside_base(entry, "agreement", share),
        beside_base(entry, "coverage", "{:.3f}".format),
        beside_base(entry, "density", "{:.2f}".format),
        beside_base(entry, "confidence", "{:.3f}".format),
        beside_base(entry, "frechet", number),
    ]


def beside_base(entry: dict[str, Any], key: str, form: Callable[[float], str]) -> str:
    """A figure and, in brackets, the base model's: 96.2 [98.5]; – where there is none."""
    value, base = entry[key], entry[f"base_{key}"]
    return "–" if value is None else f"{form(value)} [{form(base)}]"


def nearest_images(rows: list[Row]) -> list[tuple[str, list[str]]]:
    """How far images are from the nearest training image: whose, and their quantiles under `NEAREST`, means over seeds.

    Of guided rows, then of the base model and of validation images, which are the same for all rows.
    """
    found = []
    for title, row, images in _guided_sets(
        rows, {"base": "base model", "validation": "validation images"}
    ):
        quantiles = [quality["nearest_training_image"][images] for quality in row["quality"]]
        means = [mean(one[key] for one in quantiles) for key in NEAREST]
        found.append((title, [number(value) for value in means]))
    return found


def guided_classes(rows: list[Row]) -> list[tuple[str, str, list[str]]]:
    """Images by most probable class: whose, seen by whom, and the share of each class in percent, means over seeds.

    Of guided rows, then of the base model and of real images. Nothing where classes are more than `MOST_CLASSES`.
    """
    found = []
    for judge, name in JUDGES.items():
        for title, row, images in _guided_sets(rows, {"base": "base model", "real": "real images"}):
            counts = [quality[judge][images]["classes"] for quality in row["quality"]]
            shares = [
                mean(one[label] / sum(one) for one in counts) for label in range(len(counts[0]))
            ]
            if len(shares) <= MOST_CLASSES:
                found.append((title, name, [share(value) for value in shares]))
    return found


def _guided_sets(rows: list[Row], others: dict[str, str]) -> list[tuple[str, Row, str]]:
    """A title, a row and a key of its `quality`: for each guided row its images, then `others` of the first."""
    guided = [row for row in rows if "quality" in row]
    own = [(row["row"], row, "guided") for row in guided]
    return own + [(title, guided[0], key) for key, title in others.items() if guided]
