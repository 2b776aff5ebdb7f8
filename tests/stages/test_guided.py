"""The guided row of the real run: its images, what guided them, what judged them, and what it is charged for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.cluster import KMeans

from ssat_ray.config import FinetuneConfig
from ssat_ray.data.pool import Pool
from ssat_ray.diffusion.files import load_ddpm
from ssat_ray.diffusion.sampling import initial_noise, sample
from ssat_ray.errors import UserError
from ssat_ray.models.files import load_classifier
from ssat_ray.report.words import number
from ssat_ray.selection.clusters import load_clusters
from ssat_ray.stages.base import Task
from ssat_ray.stages.finetune import class_margin, median_score
from ssat_ray.stages.quality import PAIRS, QUALITY, SCORES
from ssat_ray.store import Job, Store

pytestmark = pytest.mark.ray
ROW = "lcg-km"


@pytest.fixture(scope="module")
def artefact(tiny_run: Any, folder: Any) -> Any:
    return lambda stage: folder(tiny_run, ROW, stage)


def record(where: Path) -> dict[str, Any]:
    found = Store.read_record(where)
    assert found is not None
    return found


def test_base_and_guided_images_are_one_sequence_and_the_row_trains_on_all(
    tiny_run: Any, artefact: Any
) -> None:
    """Of 400 images a quarter would be selected, 40 of them at the boundary."""
    base, guided = Pool(artefact("base")).load(), Pool(artefact("guided")).load()
    assert base.ids.tolist() == list(range(60)) and guided.ids.tolist() == list(range(60, 100))
    assert np.array_equal(guided.labels, guided.ids % 10)
    assert record(artefact("train"))["images"] == {"labelled": 300, "pool": 100}
    assert tiny_run.row(ROW)["images"]["pool"] == tiny_run.row("random")["images"]["pool"] == 100


def test_base_images_are_the_first_of_the_pool(tiny_run: Any, artefact: Any, folder: Any) -> None:
    """Same model, noise and conditions; and the same image in a shard of 15 as in one of 100."""
    pool = Pool(folder(tiny_run, "full", "pool")).load()
    assert np.array_equal(Pool(artefact("base")).load().images, pool.images[:60])


def test_guided_images_are_sampled_from_the_fine_tuned_model(tiny_run: Any, artefact: Any) -> None:
    guided = Pool(artefact("guided")).load()
    pairs = load_file(artefact("quality") / PAIRS)
    torch.set_num_threads(1)
    made = {}
    for name, stage in {"before": "pretrain", "after": "finetune"}.items():
        unet, scheduler = load_ddpm(artefact(stage))
        noise = initial_noise(guided.ids, (1, 8, 8), 0)
        labels = torch.from_numpy(guided.labels.astype(np.int64))
        images = sample(unet, scheduler, noise, labels, tiny_run.config.generate)
        made[name] = images.permute(0, 2, 3, 1).numpy()
        assert np.array_equal(made[name], pairs[name])
    assert np.array_equal(made["after"], guided.images)
    assert not np.array_equal(made["before"], made["after"])


def test_fine_tuning_is_guided_in_units_of_the_base_images_median(
    tiny_run: Any, artefact: Any, scores: Any
) -> None:
    found = record(artefact("finetune"))
    scores = scores(artefact("score"))["score"]
    assert len(scores) == 60 and found["median_score"] == pytest.approx(np.median(scores))
    config: FinetuneConfig = tiny_run.config.finetune
    assert found["steps"] == config.num_steps and found["world_size"] == 2
    assert found["guidance"] > 0 and np.isfinite(found["loss"])


def test_the_median_is_in_the_units_of_what_guidance_lowers(tiny_run: Any, folder: Any) -> None:
    """For `pcg` the highest probability, where the score table ranks by -log(1 - p)."""
    where = folder(tiny_run, "pcs", "score")
    job = Job("finetune", 1, {"guide": "pcg"}, {})
    files = sorted(where.glob("scores-*.parquet"))
    confidence = np.concatenate([pq.read_table(path)["confidence"] for path in files])
    found = median_score(Task(job, where, {"scores": where}, tiny_run.store.root))
    assert found == pytest.approx(np.median(confidence)) and 0 < found <= 1


def test_centroids_by_class_are_k_means_of_the_class(
    tiny_run: Any, artefact: Any, tmp_path: Path
) -> None:
    """Six base images a class: as good as scikit-learn's best of 50 starts, or a local optimum beside it."""
    job = Job("finetune", 1, {"guide": "lcg-km", "seed": 0}, {"finetune": {"k_per_class": 2}})
    inputs = {name: artefact(name) for name in ("base", "intermediate")}
    classifier = load_classifier(inputs["intermediate"])
    margin, median = class_margin(Task(job, tmp_path, inputs, tmp_path), classifier)
    base = Pool(inputs["base"]).load()
    with torch.no_grad():
        logits = classifier(torch.from_numpy(base.images / 255).permute(0, 3, 1, 2).float())
    margins = []
    for c in range(10):
        rows = logits[torch.from_numpy(base.labels == c)].double().numpy()
        expected = KMeans(2, n_init=50, random_state=0).fit(rows)
        found = margin.centroids[c].double().numpy()
        distances = np.sort(np.linalg.norm(rows[:, None] - found, axis=2), axis=1)
        inertia = np.square(distances[:, 0]).sum()
        assert 0.999 * expected.inertia_ < inertia < 1.05 * expected.inertia_
        margins += (distances[:, 1] - distances[:, 0]).tolist()
    assert median == pytest.approx(np.median(margins), rel=1e-3)
    many = Job("finetune", 1, job.params, {"finetune": {"k_per_class": 7}})
    with pytest.raises(UserError, match=r"k_per_class=7: class 0 has 6 of the 60 base images"):
        class_margin(Task(many, tmp_path, inputs, tmp_path), classifier)


@pytest.mark.parametrize("judge", ["guide", "judge"])
def test_both_judges_figures_follow_from_the_images(
    tiny_run: Any, artefact: Any, judge: str
) -> None:
    """Margins and agreement computed here in one batch, in float64."""
    job = tiny_run.plan.jobs[ROW, 0, "quality"]
    model = load_classifier(tiny_run.store.folder(job.inputs[judge])).double()
    centroids = load_clusters(tiny_run.store.folder(job.inputs[f"{judge}_clusters"]))
    margins, agreement, h = {}, {}, {}
    for name in ("base", "guided"):
        shard = Pool(artefact(name)).load()
        x = torch.from_numpy(shard.images / 255).permute(0, 3, 1, 2)
        with torch.no_grad():
            embedded, logits = model.embed_with_logits(x, "pooled")
        h[name] = embedded.numpy()
        distances = np.linalg.norm(h[name][:, None] - centroids[None], axis=2)
        two = np.sort(distances, axis=1)[:, :2]
        margins[name] = two[:, 1] - two[:, 0]
        agreement[name] = float((logits.argmax(1).numpy() == shard.labels).mean())
    found = json.loads((artefact("quality") / QUALITY).read_text())[judge]
    near = (margins["guided"] < np.quantile(margins["base"], 0.2)).mean()
    assert found["near"] == pytest.approx(near, abs=1 / 40)
    scores = load_file(artefact("quality") / SCORES)
    for name, expected in margins.items():
        np.testing.assert_allclose(scores[f"{judge}.{name}"], expected, rtol=1e-3, atol=1e-4)
    ratio = np.median(margins["guided"]) / np.median(margins["base"])
    assert found["median_ratio"] == pytest.approx(ratio, rel=1e-3)
    for name, value in agreement.items():
        assert found[name]["agreement"] == pytest.approx(value, abs=1 / 40)
        assert sum(found[name]["classes"]) == found[name]["images"] == len(margins[name])
    assert 0 <= found["base"]["coverage"] <= 1 and found["real"]["images"] == 1000


def test_guide_and_judge_are_two_models(tiny_run: Any) -> None:
    inputs = tiny_run.plan.jobs[ROW, 0, "quality"].inputs
    guide, judge = (load_classifier(tiny_run.store.folder(inputs[n])) for n in ("guide", "judge"))
    apart = [
        not torch.equal(a, b) for a, b in zip(guide.parameters(), judge.parameters(), strict=True)
    ]
    assert any(apart)


def test_the_row_is_charged_for_all_it_needs_but_the_judge(tiny_run: Any, artefact: Any) -> None:
    seconds = tiny_run.row(ROW)["seconds"]
    stages = {"intermediate", "pretrain", "generate", "cluster", "score", "finetune", "train"}
    assert set(seconds) == stages | {"total"}
    made = [record(artefact(name))["seconds"] for name in ("base", "guided")]
    assert seconds["generate"] == pytest.approx(sum(made))
    assert seconds["intermediate"] == pytest.approx(record(artefact("intermediate"))["seconds"])
    assert seconds["total"] == pytest.approx(sum(v for k, v in seconds.items() if k != "total"))


def test_results_and_report_show_the_images_quality(tiny_run: Any, artefact: Any) -> None:
    quality = json.loads((artefact("quality") / QUALITY).read_text())
    assert tiny_run.row(ROW)["quality"] == [quality]
    assert "quality" not in tiny_run.row("lcs-km")
    page = (tiny_run.folder / "report.html").read_text()
    assert "Images made near the boundary" in page
    table = (tiny_run.folder / "results.md").read_text()
    assert f"| `{ROW}` | a judge it never saw | {100 * quality['judge']['near']:.1f} |" in table
    assert quality["nearest_training_image"].keys() == {"base", "guided", "validation"}
    nearest = quality["nearest_training_image"]["guided"]
    assert f"| {ROW} | " + " | ".join(number(nearest[q]) for q in ("0.05", "0.25", "0.5")) in table
    real = quality["judge"]["real"]["score"]["0.5"] / quality["judge"]["base"]["score"]["0.5"]
    density = quality["judge"]["guided"]["density"]
    assert f" | {real:.2f} | " in table and f" | {density:.2f} [" in table


def test_the_command_prints_the_figures_and_where_they_are(
    tiny_run: Any, tiny_preset: Path, artefact: Any
) -> None:
    ssat = str(Path(sys.executable).with_name("ssat"))
    command = [ssat, "quality", str(tiny_preset), "--set", f"rows=[{ROW}]"]
    done = subprocess.run(command, cwd=tiny_run.cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    quality = json.loads((artefact("quality") / QUALITY).read_text())
    assert "everything is up to date" in done.stdout
    printed = " ".join(done.stdout.split())
    for judge in ("guide", "judge"):
        assert f"{ROW} {judge} {100 * quality[judge]['near']:.1f}" in printed
    assert f"{ROW} seed 0: {artefact('quality') / QUALITY}" in done.stdout
