"""A DDPM without classes, from the hub's first layout, through a whole comparison: its images have no label, or a
classifier's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssat_ray.data.pool import Pool
from ssat_ray.store import Store
from tests.unets import save_pipeline, tiny_unet

if TYPE_CHECKING:
    from tests.stages.conftest import StageRun

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PRESET = """\
rows: [random, lcg-km]
model: {widths: [8, 16], strides: [2, 2]}
intermediate: {num_steps: 60, batch_size: 64, bn_group: 32, warmup_steps: 5}
pretrain: {checkpoint: THEIRS}
finetune: {num_steps: 6, batch_size: 32, warmup_steps: 2, weight_warmup_steps: 2}
generate: {num_images: 400, num_inference_steps: 4, shard_rows: 100, labels: LABELS}
objective: {num_steps: 2, step_size: 0.1}
select: {ratio: 0.25}
train: {max_steps: 20, eval_every: 10, batch_size: 32, bn_group: 16, warmup_steps: 5}
evaluate: {pgd_steps: 3, apgd_steps: 3, batch_size: 200}
"""


def finished(run: StageRun, labels: str) -> StageRun:
    theirs = save_pipeline(run.cwd / "theirs", tiny_unet(), "top")
    preset = PRESET.replace("THEIRS", str(theirs)).replace("LABELS", labels)
    (run.cwd / "preset.yaml").write_text(preset)
    run.finish(run.start())
    return run


def test_images_without_labels_are_clustered_judged_trained_on_and_reported(
    stage_run: type[StageRun], tmp_path: Path
) -> None:
    run = finished(stage_run(tmp_path, "run", "lcg-km"), "condition")
    for name, images in {"base": 60, "guided": 40}.items():
        assert Pool(run.job(name)).load().labels.tolist() == [-1] * images
    trained = Store.read_record(run.job("train"))
    assert trained is not None and trained["images"] == {"labelled": 300, "pool": 100}
    assert all(math.isfinite(value) for value in trained["history"][-1].values())
    (folder,) = (tmp_path / "runs").iterdir()
    rows = {row["row"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}
    (quality,) = rows["lcg-km"]["quality"]
    for judge in ("guide", "judge"):
        assert quality[judge]["guided"]["agreement"] is quality[judge]["base"]["agreement"] is None
        assert quality[judge]["near"] >= 0 and quality[judge]["real"]["agreement"] > 0
    assert "Images made near the boundary" in (folder / "report.html").read_text()
    table = (folder / "results.md").read_text().splitlines()
    line = next(text for text in table if text.startswith("| `lcg-km` | a judge it never saw |"))
    assert "| – |" in line


def test_the_judge_alone_is_asked_about_labels_of_the_intermediate_model(
    stage_run: type[StageRun], tmp_path: Path
) -> None:
    run = finished(stage_run(tmp_path, "quality", "lcg-km"), "intermediate")
    assert set(Pool(run.job("guided")).load().labels.tolist()) <= set(range(10))
    quality = json.loads((run.folder / "quality.json").read_text())
    assert quality["guide"]["guided"]["agreement"] is None
    assert 0 <= quality["judge"]["guided"]["agreement"] <= 1
    printed = run.output()
    assert f"lcg-km seed 0: {run.folder / 'quality.json'}" in printed
    for judge in ("guide", "judge"):
        (line,) = [text for text in printed.splitlines() if text.startswith(f"lcg-km  {judge}  ")]
        assert (" – " in line) == (judge == "guide")
        assert f" {100 * quality[judge]['near']:.1f} " in line
