"""The process group: slices, and two real gloo processes against a world of one.

Run as a script (`test_world.py RANK SIZE FOLDER`) this file is one of those processes.
"""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ssat_ray.config import (
    IntermediateConfig,
    ModelConfig,
    ObjectiveConfig,
    ThreatConfig,
    TrainConfig,
)
from ssat_ray.models.registry import build_classifier
from ssat_ray.training.classifier import ClassifierTask, ClassifierTrainer
from ssat_ray.training.world import World


class Plain(nn.Module):
    """A classifier without BatchNorm, so that ranks do not see each other's statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 3, 2, 1), nn.Linear(64, 3)

    def embed_with_logits(self, x: Tensor, layer: str = "pooled") -> tuple[Tensor, Tensor]:
        embedding = torch.tanh(self.conv(x)).flatten(1)
        return embedding, self.linear(embedding)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed_with_logits(x)[1]


def _images(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (rows, 1, 8, 8), generator=rng, dtype=torch.uint8)
    return images, torch.randint(0, 3, (rows,), generator=rng)


def _trainer(model: nn.Module, kind: str, world: World) -> ClassifierTrainer:
    shared = {"batch_size": 8, "lr": 0.05, "warmup_steps": 0, "precision": "float32"}
    pool, _ = _images(20, 1)
    return ClassifierTrainer(
        ClassifierTask(
            model=model,
            optimiser=IntermediateConfig(**shared)
            if kind == "clean"
            else TrainConfig(**shared, unsup_fraction=0.5),
            objective=ObjectiveConfig(name="trades" if kind == "clean" else kind, num_steps=3),
            threat=ThreatConfig(),
            labelled=_images(12, 0),
            validation=_images(7, 2),
            unlabelled=(pool, torch.full((20,), -1)),
            seed=0,
        ),
        world,
    )


def _all_results(world: World) -> dict[str, Tensor]:
    """What every rank computes; the keys say what the test expects of them."""
    value = torch.tensor([1.0, 10.0]) * (world.rank + 1)
    returned = world.sum(value)
    found = {"sum": value, "sum returned": returned}
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(float(world.rank))
    norm.running_var.copy_(torch.tensor([1.0, 4.0]) * (world.rank + 1))
    norm.num_batches_tracked.fill_(world.rank)
    world.average_buffers(norm)
    found |= {f"norm.{k}": v for k, v in norm.state_dict().items()}
    world.average_buffers(nn.Linear(1, 1))  # nothing to average must not hang
    world.barrier()
    small = ModelConfig(widths=(4, 8), strides=(1, 2))
    for kind in ("trades", "pgd-at", "clean"):
        torch.manual_seed(0)
        for name, model in (
            ("plain", Plain()),
            ("batchnorm", build_classifier(small, (1, 8, 8), 3, 0)),
        ):
            trainer = _trainer(model, kind, world)
            trainer.advance()
            state = {**trainer.model.state_dict(), **_prefixed(trainer.ema.model.state_dict())}
            found |= {f"{name} {kind} {k}": v.detach().clone() for k, v in state.items()}
            losses = trainer.mean_losses()
            found[f"{name} {kind} losses"] = torch.tensor([losses[k] for k in sorted(losses)])
            found[f"{name} {kind} validate"] = torch.tensor(trainer.validate())
            trainer.advance()
            found[f"{name} {kind} second"] = torch.cat([p.flatten() for p in model.parameters()])
    return {k: v.detach().clone() for k, v in found.items()}


def _prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"ema.{key}": value for key, value in state.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("world")
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), "2", str(folder)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = _all_results(World())
    torch.set_num_threads(threads)
    return found


@given(length=st.integers(0, 200), size=st.integers(1, 17))
def test_parts_cover_all_rows_once_and_differ_by_at_most_one(length: int, size: int) -> None:
    rows = list(range(length))
    parts = [rows[World(rank, size).part(length)] for rank in range(size)]
    assert [row for part in parts for row in part] == rows
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_world_of_one_needs_no_group() -> None:
    world, module, value = World.current(), nn.BatchNorm2d(2), torch.ones(2)
    assert world == World(0, 1) and world.wrap(module) is module
    assert world.sum(value) is value and value.tolist() == [1, 1]
    world.average_buffers(module)
    world.barrier()
    assert module.running_var.tolist() == [1, 1]


def test_sum_and_averaged_buffers(ranks: list[dict[str, Tensor]]) -> None:
    for rank, found in enumerate(ranks):
        assert found["sum"].tolist() == [3.0, 30.0] == found["sum returned"].tolist()
        assert found["norm.running_mean"].tolist() == [0.5, 0.5]
        assert found["norm.running_var"].tolist() == [1.5, 6.0]
        assert int(found["norm.num_batches_tracked"]) == rank, "integers are left alone"
        assert found["norm.weight"].tolist() == [1.0, 1.0], "parameters are left alone"


def test_all_ranks_hold_the_same_model_after_a_step(ranks: list[dict[str, Tensor]]) -> None:
    keys = [key for key in ranks[0] if not key.startswith("norm.")]
    assert len(keys) > 100
    for key in keys:
        assert torch.equal(ranks[0][key], ranks[1][key]), key


@pytest.mark.parametrize("kind", ["trades", "pgd-at", "clean"])
def test_without_batchnorm_two_ranks_equal_one(ranks, alone, kind: str) -> None:
    keys = [key for key in alone if key.startswith(f"plain {kind}")]
    assert len(keys) == 4 + 4 + 3
    for key in keys:
        torch.testing.assert_close(ranks[0][key], alone[key], rtol=0, atol=1e-5, msg=key)
    start = Plain().state_dict()
    assert any(not torch.equal(alone[f"plain {kind} {k}"], start[k]) for k in start)


def test_with_batchnorm_two_ranks_are_close_to_one(ranks, alone) -> None:
    """Statistics of half the batch: not equal, but a sum in place of a mean would be far off."""
    key = "batchnorm clean init_conv.weight"
    assert float((ranks[0][key] - alone[key]).norm() / alone[key].norm()) < 0.1
    key = "batchnorm clean batchnorm.running_mean"
    assert float((ranks[0][key] - alone[key]).norm() / alone[key].norm()) < 0.5


def _main(rank: int, size: int, folder: Path) -> None:
    warnings.simplefilter("error", FutureWarning)  # what torch calls deprecated
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'init'}", rank=rank, world_size=size
    )
    world = World.current()
    assert world == World(rank, size)
    torch.save(_all_results(world), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
