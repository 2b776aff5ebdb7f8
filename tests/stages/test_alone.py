"""Sampling and fine-tuning an adopted DDPM in this process: labels, batches, guidance with and without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ssat_ray.config import RuntimeConfig
from ssat_ray.data.pool import Pool
from ssat_ray.data.shard import Shard
from ssat_ray.diffusion.files import load_ddpm
from ssat_ray.errors import UserError
from ssat_ray.loading import load_config
from ssat_ray.models.files import load_classifier
from ssat_ray.plan import STAGES, Plan, build_plan
from ssat_ray.stages.base import Session, StageContext, Task
from ssat_ray.stages.generate import SampleActor, finish
from ssat_ray.stages.quality import QUALITY, look
from ssat_ray.store import Job, Store
from tests.unets import save_pipeline, tiny_unet

SMALL = "generate={num_images: 50, shard_rows: 30, num_inference_steps: 3}"
PCG = ("rows=[none, pcg]", "generate.num_images=200", "select={ratio: 0.5, boundary_fraction: 0.4}")


class Alone(SampleActor):
    """The actor without a board to tell its progress."""

    def __init__(self) -> None:
        self.cache = {}


@dataclass
class Work:
    """A plan and its store, with labelled set, DDPM and intermediate model."""

    plan: Plan
    store: Store
    context: StageContext

    def job(self, name: str) -> Job:
        (found,) = {
            job.digest: job for (_, _, n), job in self.plan.jobs.items() if n == name
        }.values()
        return found

    def folder(self, name: str) -> Path:
        return self.store.folder(self.job(name))

    def train(self, name: str) -> dict[str, float]:
        return self.trained(self.job(name))

    def trained(self, job: Job) -> dict[str, float]:
        task, stage = Task.of(job, self.store), STAGES[job.stage]
        assert stage.train is not None
        files, record = stage.train(task, Session.alone(task.folder))
        task.write(files)
        task.publish(record)
        return record

    def make(self, name: str) -> dict[str, float]:
        task, actor = Task.of(self.job(name), self.store), Alone()
        config = self.job(name).config["generate"]
        parts = range(-(-config["num_images"] // config["shard_rows"]))
        record = finish(task, [actor.process(task, part) for part in parts], self.context)
        task.publish(record)
        return record

    def images(self, name: str) -> Shard:
        return Pool(self.folder(name)).load()

    def predicted(self, images: np.ndarray, by: Job | None = None) -> np.ndarray:
        """(N, K) probabilities, by the intermediate model if no other is named."""
        x = torch.from_numpy(images / 255).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            model = load_classifier(self.store.folder(by or self.job("intermediate")))
            return model(x).softmax(1).numpy()


Prepare = Callable[..., Work]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """(classes of the DDPM or None, settings) -> the work; with attention, as on the hub, if asked."""

    def work(classes: int | None, *settings: str, from_hub: bool = False) -> Work:
        if from_hub:
            save_pipeline(tmp_path / "ddpm", tiny_unet(), "top")
        else:
            unet = tiny_unet(
                block_out_channels=(8,),
                down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",),
                num_class_embeds=classes,
            )
            save_pipeline(tmp_path / "ddpm", unet)
        adopted = (f"pretrain.checkpoint={tmp_path / 'ddpm'}", "intermediate.num_steps=5", SMALL)
        plan = build_plan(load_config("digits", [*adopted, *settings]))
        store = Store(tmp_path / "store")
        found = Work(plan, store, StageContext(store, RuntimeConfig()))
        for name in ("labelled", "pretrain"):
            if store.record(found.job(name)) is None:
                STAGES[found.job(name).stage].run([found.job(name)], found.context)
        if store.record(found.job("intermediate")) is None:
            found.train("intermediate")
        return found

    return work


@pytest.mark.parametrize("classes", [10, None])
def test_labels_by_the_intermediate_model(prepare: Prepare, classes: int | None) -> None:
    """And how many of them are the classes asked for; an unconditional DDPM was asked for none."""
    work = prepare(classes, "rows=[random]", "generate.labels=intermediate")
    record, shard = work.make("pool"), work.images("pool")
    predicted = work.predicted(shard.images).argmax(1)
    assert shard.labels.tolist() == predicted.tolist()
    agreed = float((predicted == shard.ids % 10).mean())
    assert record.get("label_agreement") == (None if classes is None else pytest.approx(agreed))


def test_the_size_of_a_batch_changes_no_byte(prepare: Prepare) -> None:
    found = []
    for size in (1000, 7):
        work = prepare(10, "rows=[none, pcs]", f"generate.batch_size={size}")
        work.make("pool")
        found.append(work.images("pool"))
    assert len(found[0].ids) == 50 and np.array_equal(found[0].labels, found[0].ids % 10)
    assert np.array_equal(found[0].images, found[1].images)


def scored(work: Work, confidence: np.ndarray) -> None:
    """Publish the score table of the row's base images."""
    task = Task.of(work.job("score"), work.store)
    task.folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"confidence": confidence}), task.folder / "scores-00000.parquet")
    task.publish({"rows": len(confidence), "seconds": 1.0})


@pytest.mark.parametrize(
    ("precision", "from_hub"), [("float32", False), ("bf16", False), ("float32", True)]
)
def test_an_unconditional_ddpm_is_fine_tuned_and_sampled(
    prepare: Prepare, precision: str, from_hub: bool
) -> None:
    settings = f"finetune={{num_steps: 4, batch_size: 16, anchor: 0.5, precision: {precision}}}"
    work = prepare(None, *PCG, settings, from_hub=from_hub)
    work.make("base")
    base = work.images("base")
    assert base.labels.tolist() == [-1] * 60
    scored(work, work.predicted(base.images).max(1))
    record = work.train("finetune")
    assert record["steps"] == 4 and record["guidance"] > 0 and np.isfinite(record["loss"])
    before, after = (load_ddpm(work.folder(n))[0].state_dict() for n in ("pretrain", "finetune"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert any(name.startswith("down_blocks.1.attentions") for name in after) == from_hub
    work.make("guided")
    guided = work.images("guided")
    assert guided.ids.tolist() == list(range(60, 100)) and set(guided.labels.tolist()) == {-1}


def test_steered_sampling_lowers_the_confidence(prepare: Prepare) -> None:
    """Nothing is fine-tuned; the same noise without guidance ends at other images."""
    confidence = {}
    for weight in (1e-9, 3.0):
        work = prepare(None, *PCG, f"generate.guidance={weight}")
        if work.store.record(work.job("score")) is None:
            work.make("base")
            scored(work, work.predicted(work.images("base").images).max(1))
        work.make("guided")
        confidence[weight] = work.predicted(work.images("guided").images).max(1).mean()
    assert confidence[3.0] < confidence[1e-9]


def test_the_guide_is_not_asked_about_labels_that_it_gave(prepare: Prepare) -> None:
    """It would agree with all of them; the judge, and the real images' labels, say something."""
    settings = ("generate.guidance=1.0", "generate.labels=intermediate")
    work = prepare(None, *PCG, *settings)
    work.make("base")
    base = work.images("base")
    scored(work, work.predicted(base.images).max(1))
    work.make("guided")
    assert base.labels.tolist() == work.predicted(base.images).argmax(1).tolist()
    quality = work.job("quality")
    judge = quality.inputs["judge"]
    work.trained(judge)
    found = json.loads(look(Task.of(quality, work.store))[QUALITY])
    for name in ("base", "guided"):
        shard = work.images(name)
        agreed = (work.predicted(shard.images, by=judge).argmax(1) == shard.labels).mean()
        assert found["judge"][name]["agreement"] == pytest.approx(agreed)
        assert found["guide"][name]["agreement"] is None
    assert found["guide"]["real"]["agreement"] is not None


def test_scores_without_a_spread_are_no_unit(prepare: Prepare) -> None:
    work = prepare(None, *PCG)
    work.make("base")
    scored(work, np.zeros(60))
    with pytest.raises(UserError, match=r"pcg: the median score of the base images is 0"):
        work.train("finetune")
