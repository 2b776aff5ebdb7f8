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
from ssat_ray.training.step import Engine
from ssat_ray.training.world import World

NUM_STEPS = {"trades": 20, "pgd-at": 4, "clean": 4, "dropout": 4, "weighted": 4}
"""`dropout` is TRADES of a model that draws numbers itself, `weighted` TRADES with a pool of less weight."""
SMALL = ModelConfig(widths=(4, 8), strides=(1, 2))


def _images(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (rows, 1, 8, 8), generator=rng, dtype=torch.uint8)
    return images, torch.randint(0, 3, (rows,), generator=rng)


def _model(kind: str) -> nn.Module:
    model = build_classifier(SMALL, (1, 8, 8), 3, 0)
    if kind == "dropout":
        model.logits = nn.Sequential(nn.Dropout(0.3), model.logits)
    return model


def _trainer(
    model: nn.Module, kind: str, world: World, engine: Engine | None = None
) -> ClassifierTrainer:
    shared = {
        "batch_size": 8,
        "bn_group": 2,
        "lr": 0.05,
        "warmup_steps": 0,
        "precision": "float32",
    }
    pool, _ = _images(20, 1)
    return ClassifierTrainer(
        ClassifierTask(
            model=model,
            optimiser=IntermediateConfig(**shared)
            if kind == "clean"
            else TrainConfig(**shared, unsup_fraction=0.375 if kind == "weighted" else 0.5),
            objective=ObjectiveConfig(
                name="pgd-at" if kind == "pgd-at" else "trades",
                num_steps=3,
                pool_weight=0.3 if kind == "weighted" else 1.0,
            ),
            threat=ThreatConfig(),
            labelled=_images(12, 0),
            validation=_images(21, 2),
            unlabelled=(pool, torch.full((20,), -1)),
            seed=0,
        ),
        world,
        engine,
    )


def _all_results(world: World) -> dict[str, Tensor]:
    """What every rank computes; the keys say what the test expects of them."""
    value = torch.tensor([1.0, 10.0]) * (world.rank + 1)
    found = {"sum": value, "sum returned": world.sum(value)}
    lengths = [3, 1, 2, 0][: world.size]
    rows = torch.arange(24.0).view(-1, 2)
    first = sum(lengths[: world.rank])
    own = rows[first : first + lengths[world.rank]]
    found["rows"] = world.rows(own, lengths)
    found["rows expected"] = rows[: sum(lengths)]
    world.barrier()
    for kind, num_steps in NUM_STEPS.items():
        trainer = _trainer(_model(kind), kind, world)
        losses = []
        for _ in range(num_steps):
            trainer.advance()
            losses.append(trainer.mean_losses()["loss"])
        found[f"{kind} losses"] = torch.tensor(losses, dtype=torch.float64)
        found[f"{kind} validate"] = torch.tensor(trainer.validate())
        found |= {f"{kind} {key}": value for key, value in _state(trainer).items()}
    return {k: v.detach().clone() for k, v in found.items()}


def _state(trainer: ClassifierTrainer) -> dict[str, Tensor]:
    averaged = trainer.ema.model.state_dict()
    return {**trainer.model.state_dict(), **{f"ema.{key}": v for key, v in averaged.items()}}


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    size, folder = request.param, tmp_path_factory.mktemp("world")
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(size), str(folder)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = _all_results(World())
    torch.set_num_threads(threads)
    return found


@given(units=st.integers(0, 200), multiple=st.integers(1, 9), size=st.integers(1, 17))
def test_parts_cover_all_rows_once_in_whole_multiples(units: int, multiple: int, size: int) -> None:
    rows = list(range(units * multiple))
    parts = [rows[World(rank, size).part(len(rows), multiple)] for rank in range(size)]
    assert [row for part in parts for row in part] == rows
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= multiple and all(n % multiple == 0 for n in sizes)
    assert World(0, size).lengths(len(rows), multiple) == sizes


def test_rows_that_are_no_whole_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="10 rows are not whole groups of 4"):
        World().part(10, 4)


def test_a_world_of_one_needs_no_group() -> None:
    world, module, value = World.current(), nn.BatchNorm2d(2), torch.ones(2, 2)
    assert world == World(0, 1) and world.wrap(module) is module
    assert world.sum(value) is value and value.tolist() == [[1, 1], [1, 1]]
    assert world.rows(value, [2]) is value
    world.barrier()


def test_sums_and_rows_of_all_ranks(ranks: list[dict[str, Tensor]]) -> None:
    total = float(sum(range(1, len(ranks) + 1)))
    for found in ranks:
        assert found["sum"].tolist() == [total, 10 * total] == found["sum returned"].tolist()
        assert torch.equal(found["rows"], found["rows expected"]) and len(found["rows"]) >= 4


def test_all_ranks_hold_the_same_model(ranks: list[dict[str, Tensor]]) -> None:
    assert len(ranks[0]) > 100 and ranks[1:]
    for other in ranks[1:]:
        assert [key for key in ranks[0] if not torch.equal(ranks[0][key], other[key])] == []


@pytest.mark.parametrize("kind", NUM_STEPS)
def test_the_number_of_workers_changes_no_bit(ranks, alone, kind: str) -> None:
    """Weights, averages, BatchNorm statistics; losses are added up in another order, for the log only."""
    key = f"{kind} losses"
    assert len(alone[key]) == NUM_STEPS[kind] and float(alone[key].std()) > 0.001
    torch.testing.assert_close(ranks[0][key], alone[key], rtol=1e-6, atol=0)
    keys = [key for key in alone if key.startswith(kind) and "losses" not in key]
    assert len(keys) > 40 and any("running_var" in key for key in keys)
    assert [key for key in keys if not torch.equal(ranks[0][key], alone[key])] == []


def test_a_difference_of_rounding_does_not_stay_one() -> None:
    """Why the bits must be the same: one pass over the batch differs in the order of sums only."""
    losses: list[list[float]] = []
    for exact in (True, False):
        trainer = _trainer(_model("trades"), "trades", World(), Engine(exact=exact))
        losses.append([])
        for _ in range(20):
            trainer.advance()
            losses[-1].append(trainer.mean_losses()["loss"])
    apart = [abs(a - b) / a for a, b in zip(*losses, strict=True)]
    assert apart[0] < 1e-6 and max(apart) > 1000 * 1e-6, apart


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
