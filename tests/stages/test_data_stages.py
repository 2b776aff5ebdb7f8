"""generate, cluster, score, select and evaluate as Ray Data ran them, against independent oracles."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.cluster import KMeans as ScikitKMeans
from sklearn.metrics import pairwise_distances

from ssat_ray.adversarial.evaluation import apgd_ce_flags, clean_flags, pgd_flags
from ssat_ray.data.labelled import LabelledSet, unit_float
from ssat_ray.data.pool import Pool
from ssat_ray.diffusion.sampling import initial_noise, sample
from ssat_ray.models.files import load_classifier
from ssat_ray.stages.cluster import load_clusters
from ssat_ray.stages.evaluate import read_flags
from ssat_ray.stages.generate import load_ddpm
from ssat_ray.stages.score import read_scores
from ssat_ray.stages.select import TABLE

pytestmark = pytest.mark.ray


def folder(run: Any, row: str, stage: str) -> Any:
    return run.store.folder(run.plan.jobs[row, 0, stage])


def embeddings(run: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, pooled embeddings and logits of the pool, computed here in one batch."""
    shard = Pool(folder(run, "full", "generate")).load()
    model = load_classifier(folder(run, "lcs-km", "intermediate"))
    x = torch.from_numpy(shard.images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.no_grad():
        h, logits = model.embed_with_logits(x, "pooled")
    return shard.ids, h.numpy(), logits.numpy()


@pytest.mark.parametrize("stage", ["generate", "cluster", "score", "evaluate"])
def test_ray_data_stages_record_actors_and_blocks(tiny_run: Any, stage: str) -> None:
    for job in tiny_run.plan.unique:
        if job.stage == stage:
            record = tiny_run.store.record(job)
            assert 1 <= len(record["actor_pids"]) <= 2
            assert record["blocks"] == 4
            assert record["rows"] == (797 if stage == "evaluate" else 400)
            assert record["seconds"] > 0


def test_pool_is_balanced_and_depends_on_ids_only(tiny_run: Any) -> None:
    pool = Pool(folder(tiny_run, "full", "generate"))
    shard = pool.load()
    assert shard.ids.tolist() == list(range(400))
    assert np.bincount(shard.labels).tolist() == [40] * 10
    unet, scheduler = load_ddpm(folder(tiny_run, "full", "pretrain"))
    ids = np.arange(200, 300)
    torch.set_num_threads(1)
    images = sample(
        unet,
        scheduler,
        initial_noise(ids, (1, 8, 8), 0),
        torch.from_numpy(ids % 10),
        tiny_run.config.generate,
    )
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pool.read(2).images)


def test_kmeans_matches_scikit_learn(tiny_run: Any) -> None:
    _, h, _ = embeddings(tiny_run)
    where = folder(tiny_run, "lcs-km", "cluster")
    about = json.loads((where / "clusters.json").read_text())
    oracle = ScikitKMeans(10, n_init=20, random_state=1).fit(h.astype(np.float64))
    assert about["inertia"] <= 1.01 * oracle.inertia_
    distances = pairwise_distances(h.astype(np.float64), load_clusters(where))
    assert about["inertia"] == pytest.approx((distances.min(1) ** 2).sum(), rel=1e-4)


def test_kmeans_scores_match_float64_distances(tiny_run: Any) -> None:
    ids, h, logits = embeddings(tiny_run)
    columns = read_scores(folder(tiny_run, "lcs-km", "score"))
    assert np.array_equal(np.sort(columns["id"]), ids)
    ordered = {name: values[np.argsort(columns["id"])] for name, values in columns.items()}
    centroids = load_clusters(folder(tiny_run, "lcs-km", "cluster"))
    distances = np.sort(pairwise_distances(h.astype(np.float64), centroids), axis=1)
    np.testing.assert_allclose(ordered["d1"], distances[:, 0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ordered["score"], distances[:, 1] - distances[:, 0], atol=1e-3)
    p = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        ordered["confidence"], (p / p.sum(1, keepdims=True)).max(1), rtol=1e-4
    )


def test_mixture_scores_match_scipy(tiny_run: Any) -> None:
    _, h, _ = embeddings(tiny_run)
    columns = read_scores(folder(tiny_run, "lcs-gmm", "score"))
    mixture = load_clusters(folder(tiny_run, "lcs-gmm", "cluster"))
    joint = np.stack(
        [
            np.log(w) + multivariate_normal(m, np.diag(c), allow_singular=True).logpdf(h)
            for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
        ],
        axis=1,
    )
    top = -np.sort(-joint, axis=1)
    order = np.argsort(columns["id"])
    np.testing.assert_allclose(columns["l1"][order], top[:, 0], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(columns["score"][order], top[:, 0] - top[:, 1], rtol=1e-2, atol=5e-2)


@pytest.mark.parametrize("row", ["pcs", "lcs-km", "lcs-gmm", "gmm-ll", "easy"])
def test_selection_holds_the_lowest_scores(tiny_run: Any, row: str) -> None:
    columns = read_scores(folder(tiny_run, row, "score"))
    score = {
        "easy": lambda c: c["d1"] - c["d2"],
        "gmm-ll": lambda c: c["log_likelihood"],
    }.get(row, lambda c: c["score"])(columns)
    table = pq.read_table(folder(tiny_run, row, "select") / TABLE)
    reasons = np.array(table["reason"].to_pylist())
    boundary = table["id"].to_numpy()[reasons == "boundary"]
    assert (len(table), len(boundary)) == (100, 40)
    lowest = columns["id"][np.lexsort((columns["id"], score))[:40]]
    assert set(boundary) == set(lowest)


def test_random_has_only_random_reasons(tiny_run: Any) -> None:
    table = pq.read_table(folder(tiny_run, "random", "select") / TABLE)
    assert set(table["reason"].to_pylist()) == {"random"}
    assert len(set(table["id"].to_pylist())) == 100


def test_selection_is_a_pool_of_the_same_images(tiny_run: Any) -> None:
    full = Pool(folder(tiny_run, "full", "generate")).load()
    chosen = Pool(folder(tiny_run, "lcs-km", "select")).load()
    assert np.array_equal(chosen.images, full.images[chosen.ids])
    assert np.array_equal(chosen.labels, full.labels[chosen.ids])


@pytest.mark.parametrize("row", ["none", "full"])
def test_flags_equal_the_attack_called_directly(tiny_run: Any, row: str) -> None:
    labelled = LabelledSet.load(folder(tiny_run, row, "labelled"))
    images, y = labelled.tensors("test")
    x = unit_float(images).contiguous(memory_format=torch.channels_last)
    model = load_classifier(folder(tiny_run, row, "train"))
    options, eps = tiny_run.config.evaluate, tiny_run.config.threat.eps
    torch.set_num_threads(1)
    direct = {
        "clean": lambda x, y, _: clean_flags(model, x, y, 200),
        "pgd": lambda x, y, first: pgd_flags(
            model,
            x,
            y,
            eps=eps,
            step_size=options.pgd_step_size,
            num_steps=options.pgd_steps,
            seed=0,
            first_id=first,
            batch_size=200,
        ),
        "apgd-ce": lambda x, y, _: apgd_ce_flags(
            model, x, y, eps=eps, num_steps=options.apgd_steps, seed=0, batch_size=200
        ),
    }
    for attack, call in direct.items():
        flags = torch.cat([call(x[a : a + 200], y[a : a + 200], a) for a in range(0, len(y), 200)])
        found = read_flags(folder(tiny_run, row, f"evaluate:{attack}"))
        assert np.array_equal(found, flags.numpy()), attack
