"""The progress board: what the driver reads of it, and what Prometheus does."""

from __future__ import annotations

import re
import time
import urllib.request

import pytest
import ray

from ssat_ray.board import board, read_board, start_board

pytestmark = pytest.mark.ray


def scraped() -> dict[str, float]:
    """Our metrics as this node serves them: name with sorted tags -> value."""
    port = ray.nodes()[0]["MetricsExportPort"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    address = ray.nodes()[0]["NodeManagerAddress"]
    text = opener.open(f"http://{address}:{port}/metrics", timeout=10).read().decode()
    found = {}
    for name, tags, value in re.findall(r"^ray_(ssat_\w+){(.*)} (\S+)$", text, re.MULTILINE):
        ours = re.findall(r'(stage|artefact|unit|attack|le)="([^"]*)"', tags)
        found[f"{name} {sorted(ours)}"] = float(value)
    return found


def test_the_driver_and_prometheus_see_the_same(ray_here: None) -> None:
    started, job = start_board(), "train full seed 7"
    assert board()._actor_id == started._actor_id
    posts = board()
    posts.post.remote(job, 10, 40, "steps", "loss 1")
    ray.get(posts.post.remote(job, 30, 40, "steps", "loss 0.5"))
    for _ in range(2):
        posts.add.remote("score kmeans seed 7", 500, 2000, "images")
    ray.get(posts.accuracy.remote("evaluate full seed 7 pgd", "pgd", 0.75))
    entry = read_board(started)[job]
    assert (entry["done"], entry["total"], entry["note"]) == (30, 40, "loss 0.5")
    assert read_board(started)["score kmeans seed 7"]["done"] == 1000
    train = [("artefact", job), ("stage", "train")]
    score = [("artefact", "score kmeans seed 7"), ("stage", "score")]
    expected = {
        f"ssat_stage_done {[*train, ('unit', 'steps')]}": 30,
        f"ssat_stage_total {[*train, ('unit', 'steps')]}": 40,
        f"ssat_stage_done {[*score, ('unit', 'images')]}": 1000,
        f"ssat_images_total {[('stage', 'score')]}": 1000,
        f"ssat_step_seconds_count {[('stage', 'train')]}": 1,
        f"ssat_accuracy {[('artefact', 'evaluate full seed 7 pgd'), ('attack', 'pgd')]}": 0.75,
    }
    for _ in range(60):
        found = scraped()
        if expected.items() <= found.items():
            return
        time.sleep(1)
    raise AssertionError({key: found.get(key) for key in expected})
