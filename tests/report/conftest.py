"""Synthetic but realistic results and figure data, on scikit-learn's digits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ssat_ray.report.figures import FigureData, GuidedData
from ssat_ray.report.words import STAGES

ROWS = ("none", "random", "pcs", "lcs-km", "lcs-gmm", "easy", "full")
GUIDED_ROW = "lcg-km"
KNOWN = (*ROWS, GUIDED_ROW)
PGD = dict(zip(KNOWN, (79.1, 82.6, 82.1, 83.3, 82.9, 81.6, 84.4, 83.0), strict=True))
POOL = {"none": 0, "full": 10000}
NUM_STEPS = dict(zip(KNOWN, (900, 1310, 1270, 1390, 1350, 1210, 1800, 1400), strict=True))


def around(mean: float, half: float, **more: Any) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, **more}


def make_quality() -> dict[str, Any]:
    """What guide and judge say of a guided row's images, as stages/quality.py writes it."""

    keys = ("agreement", "coverage", "density", "confidence", "frechet")
    of_classes = {"base": [30] * 10, "guided": [*[14] * 5, *[26] * 5], "real": [100] * 10}
    medians = {"base": 2.0, "guided": 1.54, "real": 2.5}

    def seen(near: float) -> dict[str, Any]:
        sets = {"base": (0.985, 0.81, 1.21, 0.97, 1.5), "guided": (0.962, 0.72, 1.1, 0.94, 2.5)}
        figures = {name: dict(zip(keys, values, strict=True)) for name, values in sets.items()}
        by_set = {
            name: {"score": {"0.5": median}, "classes": of_classes[name], **figures.get(name, {})}
            for name, median in medians.items()
        }
        return {"near": near, "median_ratio": 0.77, **by_set}

    nearest = {"guided": 1.125, "base": 0.75, "validation": 1.5}
    return {
        "guide": seen(0.517),
        "judge": seen(0.413),
        "nearest_training_image": {
            name: {"0.05": low / 2, "0.25": low, "0.5": 2 * low} for name, low in nearest.items()
        },
    }


def make_row(name: str, rows: tuple[str, ...], seeds: list[int], autoattack: bool) -> dict:
    rng = np.random.default_rng(KNOWN.index(name))
    names = {"clean": ("clean", 12.4), "pgd": ("PGD-40", 0.0), "apgd-ce": ("APGD-CE", -0.6)}
    if autoattack:
        names["autoattack"] = ("AutoAttack", -1.9)
    accuracy = {}
    for key, (display, shift) in names.items():
        covered = seeds[:1] if key == "autoattack" else seeds
        by_seed = [PGD[name] + shift + d for d in rng.normal(scale=0.6, size=len(covered))]
        by_class = [PGD[name] + shift + 2 * label - 9 for label in range(10)]
        by_class[3] = PGD[name] + shift - 20
        accuracy[key] = around(
            float(np.mean(by_seed)),
            2.3,
            name=display,
            by_seed=by_seed,
            seeds=covered,
            by_class=by_class,
            worst_class=3,
            signs=[[] for _ in covered],
        )
    differences = {
        other: around(PGD[name] - PGD[other], 1.4, paired=True)
        for other in ("random", "full", "none")
        if other != name and other in rows
    }
    steps = NUM_STEPS[name]
    seconds: dict[str, float] = {"train": steps * 0.055}
    if name != "none":
        seconds |= {"pretrain": 96.0, "generate": 41.5}
    if name not in ("none", "full", "random"):
        seconds |= {"intermediate": 14.2, "cluster": 5.1, "score": 0.9}
    if name not in ("none", "full"):
        seconds["select"] = 0.4
    history = []
    for _ in seeds:
        grid = np.arange(50, steps + 1, 50)
        curve = PGD[name] - 55 * np.exp(-grid / 180) + rng.normal(scale=0.4, size=len(grid))
        history.append([[int(s), s * 0.055, float(v)] for s, v in zip(grid, curve, strict=True)])
    reached: list[int | None] = [int(steps * 0.7) + 10 * seed for seed in seeds]
    if name != "full":
        reached[-1] = None
    if name == GUIDED_ROW:
        seconds["finetune"] = 38.5
    pool = POOL.get(name, 2000)
    return {
        **({"quality": [make_quality() for _ in seeds]} if name == GUIDED_ROW else {}),
        "row": name,
        "seeds": seeds,
        "images": {"labelled": 300, "pool": pool},
        "recipe": ["lr 0.1, weight decay 5e-4", "lr 0.05, weight decay 5e-4"][: len(seeds)]
        if name == "none"
        else [],
        "accuracy": accuracy,
        "differences": differences,
        "seconds": seconds | {"total": sum(seconds.values())},
        "steps": {
            "total": [steps for _ in seeds],
            "plateau": [int(steps * 0.8) for _ in seeds],
            "hit_max_steps": [False for _ in seeds],
        },
        "world_size": [2 for _ in seeds],
        "seconds_train": [steps * 0.055 for _ in seeds],
        "seconds_all_recipes": steps * 0.055,
        "reach_full_minus_half": None
        if name == "none"
        else {"steps": reached, "seconds": [s and s * 0.055 for s in reached]},
        "flops": 3.1e12 * steps / 1000,
        "peak_memory_bytes": {"pretrain": 1.1e9, "train": 1.4e9, "max": 1.4e9},
        "train_rise_bytes": [None for _ in seeds],
        "bytes": {"read": pool * 64.0 * 5, "stored": 640000.0},
        "history": history,
    }


def make_results(
    rows: tuple[str, ...] = ROWS, seeds: tuple[int, ...] = (0, 1, 2), autoattack: bool = True
) -> dict[str, Any]:
    stages = []
    for i, stage in enumerate(STAGES):
        entry: dict[str, Any] = {
            "stage": stage,
            "label": f"{stage} seed 0",
            "digest": f"{i}f3a9c" * 10,
            "seconds": 12.5 * (i + 1),
            "startup_seconds": 31.0 if i < 2 else 0.4,
            "peak_pss_bytes": 9e8 + 1e8 * i,
            "bytes_written": 640000,
        }
        if stage in ("intermediate", "pretrain", "train"):
            entry |= {"world_size": 2, "backend": "gloo", "worker_pids": [4711, 4712]}
        if stage in ("generate", "cluster"):
            entry |= {"actor_pids": [5201, 5202], "blocks": 20}
        stages.append(entry)
    return {
        "name": "digits",
        "preset": "digits",
        "created": "2026-05-04T10:20:00Z",
        "git_commit": "0123abcd4567",
        "config": {"seeds": list(seeds), "select": {"ratio": 0.2, "boundary_fraction": 0.4}},
        "machine": {
            "cpu": "AMD EPYC",
            "cores": 2,
            "memory_gib": 7.7,
            "python": "3.11.9",
            "versions": {"torch": "2.14.1", "ray": "2.60.0"},
        },
        "made_by": {"commits": ["0123abcd4567"], "machines": ["AMD EPYC, 2 cores, 7.7 GiB"]},
        "data": {
            "dataset": "digits",
            "num_test": 797,
            "num_labelled": 300,
            "num_validation": 700,
            "num_classes": 10,
            "image_shape": [1, 8, 8],
            "pool_images": 10000,
        },
        "seeds": list(seeds),
        "norm": "linf",
        "eps": 0.15,
        "warnings": [],
        "rows": [make_row(row, rows, list(seeds), autoattack) for row in rows],
        "stages": stages,
        "total_wall_seconds": 911.0,
    }


def nearest(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    a, b = (x.reshape(len(x), -1) / 255.0 for x in (images, others))
    squared = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
    return np.sqrt(squared.clip(0).min(axis=1))


def make_figures(
    methods: tuple[str, ...] = ("pcs", "lcs-km", "lcs-gmm", "easy"),
    show_method: str | None = "lcs-km",
    num_pool: int = 2000,
    guided: dict[str, GuidedData] | None = None,
) -> FigureData:
    rng = np.random.default_rng(0)
    digits = load_digits()
    images = (digits.images[..., None] * 15.9375).astype(np.uint8)
    labelled, real = images[:300], images[300:1000]
    picked = rng.integers(0, 300, num_pool)
    noise = rng.normal(scale=22, size=(num_pool, 8, 8, 1))
    pool = np.clip(labelled[picked] + noise, 0, 255).astype(np.uint8)
    basis = rng.normal(size=(64, 32)) / 8

    def embed(x: np.ndarray) -> np.ndarray:
        return np.maximum(x.reshape(len(x), -1) / 64 @ basis, 0).astype(np.float32)

    pool_h, real_h = embed(pool), embed(real)
    labels = digits.target[:300][picked]
    centroids = np.stack([pool_h[labels == c].mean(axis=0) for c in range(10)])

    def distances(h: np.ndarray) -> np.ndarray:
        return np.linalg.norm(h[:, None] - centroids, axis=2)

    near = np.sort(distances(pool_h), axis=1)
    real_near = np.sort(distances(real_h), axis=1)
    margin, real_margin = near[:, 1] - near[:, 0], real_near[:, 1] - real_near[:, 0]
    logits = -distances(pool_h) * 6
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1)[:, :2]
    top = np.take_along_axis(probabilities, order, axis=1)
    table = {
        "pcs": (-np.log(1 - top[:, 0] + 1e-9), -np.log1p(-np.full(700, 0.7))),
        "lcs-km": (margin, real_margin),
        "lcs-gmm": (margin**2 * 40, real_margin**2 * 40),
        "easy": (-margin, -real_margin),
    }
    reasons = {"random": np.where(rng.permutation(num_pool) < num_pool // 5, 2, 0).astype(np.int8)}
    for method in methods:
        codes = np.zeros(num_pool, dtype=np.int8)
        ranked = np.argsort(table[method][0])
        codes[ranked[: num_pool * 8 // 100]] = 1
        codes[rng.choice(ranked[num_pool * 8 // 100 :], num_pool * 12 // 100, replace=False)] = 2
        reasons[method] = codes
    return FigureData(
        guided=guided or {},
        images=pool,
        labels=labels,
        scores={method: table[method][0] for method in methods},
        reasons=reasons,
        embeddings=pool_h,
        top_classes=order,
        top_probabilities=top.astype(np.float32),
        real_images=real,
        real_labels=digits.target[300:1000],
        real_embeddings=real_h,
        real_scores={method: table[method][1] for method in methods},
        neighbour_generated=nearest(pool, labelled),
        neighbour_real=nearest(real, labelled),
        show_method=show_method,
    )


@pytest.fixture(scope="session")
def quality() -> Callable[[], dict[str, Any]]:
    return make_quality


@pytest.fixture(scope="session")
def results() -> Callable[..., dict[str, Any]]:
    return make_results


@pytest.fixture(scope="session")
def figure_data() -> Callable[..., FigureData]:
    return make_figures


def make_session(started: str, plan: list[tuple[str, int]]) -> dict[str, Any]:
    """A session with `plan` stages of so many samples each, one every 5 s, growing by 1 MiB each."""
    stages = [stage for stage, num in plan for _ in range(num)]
    samples = [[5.0 * (i + 1), 3 * 2**30 + i * 2**20, stage] for i, stage in enumerate(stages)]
    return {"started": started, "samples": samples}


def make_selection(**changes: Any) -> dict[str, Any]:
    """Results of a run that ends with a selection; `changes` replace parts of them."""
    edges = np.linspace(0.0, 9.0, 31)
    heights = np.exp(-((edges[:-1] - 3.4) ** 2) / 4)
    names = ("synth", "intermediate", "cluster", "score", "select")
    stages = [
        {"stage": "labelled", "label": "labelled", "digest": "9" * 40, "seconds": 0.25},
        *(
            {
                "stage": name,
                "label": f"{name} 0",
                "digest": f"{i + 1}" * 40,
                "seconds": 100.0 * (i + 1),
                "startup_seconds": 20.0,
                "rows": 12_000_000 * (i + 1),
                "peak_pss_bytes": (i + 2) * 2**28,
                "bytes_read": (i + 3) * 2**30,
                "bytes_written": (i + 5) * 2**20,
            }
            for i, name in enumerate(names)
        ),
    ]
    sessions = [
        make_session("2026-05-04T10:00:00+00:00", [("", 2), ("synth", 20), ("cluster", 10)]),
        make_session("2026-05-04T12:30:00+00:00", [("", 1), ("score", 30), ("select", 8)]),
    ]
    return {
        "schema": 1,
        "kind": "selection",
        "name": "scale",
        "preset": "scale-100m",
        "created": "2026-05-04T13:00:00+00:00",
        "git_commit": "0123abcd4567",
        "machine": make_results()["machine"],
        "config": {"select": {"ratio": 0.1}},
        "seeds": [0],
        "pool": {
            "source": "synth",
            "images": 100_000_000,
            "image_shape": [1, 8, 8],
            "bytes": 6 * 2**30,
            "generations": [
                {"rows": 91_000_000, "bytes": 5 * 2**30},
                {"rows": 9_000_000, "bytes": 2**30},
            ],
        },
        "selections": [make_choice()],
        "clusters": [
            {
                "method": "kmeans",
                "seed": 0,
                "k": 10,
                "rows": 5_000_000,
                "history": [5e8, 4e8, 3.2071e8],
                "converged": True,
                "shares": [0.19, 0.01, *[0.1] * 8],
            }
        ],
        "scores": [
            {
                "row": "lcs-km",
                "seed": 0,
                "edges": edges.tolist(),
                "shares": (heights / heights.sum()).tolist(),
                "cut": 2.1412,
            }
        ],
        "stages": stages,
        "sessions": sessions,
        "memory": {
            "peak_bytes": 6 * 2**30,
            "second_quarter_bytes": 5 * 2**30,
            "last_quarter_bytes": int(5.1 * 2**30),
            "rise": 0.02,
        },
        "total_wall_seconds": 1384.0,
        "warnings": [],
    } | changes


def make_choice(row: str = "lcs-km", seed: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "row": row,
        "seed": seed,
        "images": 10_000_000,
        "of_images": 100_000_000,
        "boundary": 4_000_000,
        "cut": 2.1412,
        "tied_at_cut": 37,
        "duplicates": 1234,
        "bytes_written": 640 * 2**20,
        "quarantined": [],
        "example": None,
    } | changes


@pytest.fixture(scope="session")
def selection_results() -> Callable[..., dict[str, Any]]:
    return make_selection


@pytest.fixture(scope="session")
def choice() -> Callable[..., dict[str, Any]]:
    return make_choice
