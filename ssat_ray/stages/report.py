"""report: every row's records and flags become results.json and a self-contained report.html (Ray task)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
from safetensors.numpy import load_file

from ssat_ray.data.labelled import LabelledSet
from ssat_ray.data.pool import Pool
from ssat_ray.diffusion.quality import nearest_distances
from ssat_ray.models.embedding import Embedder
from ssat_ray.models.files import load_classifier
from ssat_ray.places import Place, local_copy, write_atomic
from ssat_ray.report.figures import FigureData, GuidedData
from ssat_ray.report.html import render
from ssat_ray.runtime import Meter, use_threads
from ssat_ray.selection.choose import REASONS
from ssat_ray.selection.clusters import load_clusters, score_columns, score_of, score_reads
from ssat_ray.selection.table import ScoreTable
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.quality import JUDGES, PAIRS, SCORES
from ssat_ray.stages.results import Artefacts, build_results
from ssat_ray.stages.score import SCORERS
from ssat_ray.stages.select import TABLE
from ssat_ray.store import Job

RESULTS, REPORT = "results.json", "report.html"
SHOWN_IMAGES = 20_000
"""Most images of the pool that the figures show: the first ones."""
SHOW_FIRST = ("lcs-km", "lcs-gmm", "pcs", "easy", "gmm-ll")


@ray.remote(num_cpus=1, max_retries=3)
def _report(task: Task) -> None:
    use_threads(1)
    with Meter() as meter:
        artefacts = Artefacts(task)
        results = build_results(artefacts)
        write_atomic(task.folder / RESULTS, json.dumps(results, indent=1))
        write_atomic(task.folder / REPORT, render(results, figure_data(artefacts)))
    task.publish({"seconds": meter.seconds, "peak_pss_bytes": meter.peak_pss})


def figure_data(artefacts: Artefacts) -> FigureData:
    """What the figures show, from the first seed's artefacts."""
    seed = artefacts.seeds[0]
    pooled = [row for row in artefacts.rows if artefacts.job(row, seed, "pool") is not None]
    labelled = LabelledSet.load(artefacts.folder(artefacts.rows[0], seed, "labelled"))
    pool = Pool(_pool_folder(artefacts, seed)).first(SHOWN_IMAGES)
    real_images, real_labels = labelled.splits["validation"]
    labelled_images = labelled.splits["labelled"][0]
    methods = [row for row in pooled if row in SCORERS]
    scores, real_scores, reasons = {}, {}, {}
    embeddings, real_embeddings = np.zeros((len(pool.ids), 2)), np.zeros((len(real_images), 2))
    top, top_p = np.zeros((len(pool.ids), 2), np.int64), np.zeros((len(pool.ids), 2))
    for row in pooled:
        if artefacts.job(row, seed, "select") is not None:
            reasons[row] = _reasons(artefacts.folder(row, seed, "select"), pool.ids)
    if methods:
        model = load_classifier(artefacts.folder(methods[0], seed, "intermediate"))
        embedder = Embedder(model, **artefacts.config["embed"])
        embeddings, logits = embedder(pool.images)
        real_embeddings, real_logits = embedder(real_images)
        top, top_p = _top_two(logits)
        for row in methods:
            scores[row] = _first_scores(artefacts.folder(row, seed, "score"), row, len(pool.ids))
            clusters = None
            if artefacts.job(row, seed, "cluster") is not None:
                clusters = load_clusters(artefacts.folder(row, seed, "cluster"))
            real_scores[row] = score_of(row, score_columns(real_embeddings, real_logits, clusters))
    return FigureData(
        images=pool.images,
        labels=pool.labels,
        scores=scores,
        reasons=reasons,
        embeddings=embeddings,
        top_classes=top,
        top_probabilities=top_p,
        real_images=real_images,
        real_labels=real_labels,
        real_embeddings=real_embeddings,
        real_scores=real_scores,
        neighbour_generated=nearest_distances(pool.images, labelled_images),
        neighbour_real=nearest_distances(real_images, labelled_images),
        show_method=next((m for m in SHOW_FIRST if m in methods), None),
        guided={
            row: _guided(artefacts.folder(row, seed, "quality"))
            for row in artefacts.rows
            if artefacts.job(row, seed, "quality") is not None
        },
    )


def _guided(folder: Place) -> GuidedData:
    """What the figures show of a row's quality artefact."""
    images, scores = load_file(local_copy(folder / PAIRS)), load_file(local_copy(folder / SCORES))
    seen = {judge: (scores[f"{judge}.base"], scores[f"{judge}.guided"]) for judge in JUDGES}
    return GuidedData(images["before"], images["after"], seen)


def _pool_folder(artefacts: Artefacts, seed: int) -> Place:
    """The pool that rows select from; the first guided row's images of the base model if there is none."""
    stages = ("pool", "base")
    rows = [(row, stage) for stage in stages for row in artefacts.rows]
    row, stage = next(r for r in rows if artefacts.job(r[0], seed, r[1]) is not None)
    return artefacts.folder(row, seed, stage)


def _first_scores(folder: Place, row: str, count: int) -> np.ndarray:
    """Scores of the first `count` images of the table, which is in the pool's order."""
    parts, num_rows = [], 0
    for chunk in ScoreTable.of_folders([folder]).read(score_reads(row)):
        parts.append(score_of(row, chunk)[: count - num_rows])
        num_rows += len(parts[-1])
        if num_rows == count:
            break
    return np.concatenate(parts)


def _reasons(folder: Place, ids: np.ndarray) -> np.ndarray:
    """(N,) int8: 0 = not selected, 1 = boundary, 2 = random remainder."""
    table = pq.read_table(local_copy(folder / TABLE))
    chosen = table["id"].to_numpy()
    shown = chosen <= ids[-1]
    names = np.array(table["reason"].to_pylist())[shown]
    codes = np.array([REASONS.index(name) + 1 for name in names], np.int8)
    reasons = np.zeros(len(ids), np.int8)
    reasons[np.searchsorted(ids, chosen[shown])] = codes
    return reasons


def _top_two(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two most probable classes and their probabilities, (N, 2) each."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    p = shifted / shifted.sum(1, keepdims=True)
    top = np.argsort(-p, axis=1)[:, :2]
    return top, np.take_along_axis(p, top, 1)


def run(jobs: list[Job], context: StageContext) -> None:
    for job in jobs:
        ray.get(_report.remote(Task.of(job, context.store)))


def read_results(folder: Place) -> dict[str, Any]:
    """The finished report's results."""
    results: dict[str, Any] = json.loads((folder / RESULTS).read_text())
    return results


STAGE = Stage("report", 4, run)
