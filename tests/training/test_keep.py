"""Which model is kept: the best of the evaluations, of equals the earlier; copies that survive a save."""

import io

import pytest
import torch
from torch import nn

from ssat_ray.config import IntermediateConfig, TrainConfig
from ssat_ray.training.keep import Keeper


def _model(value: float) -> nn.Module:
    model = nn.BatchNorm1d(2)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    return model


def _watched(keep: str, accuracies: list[float]) -> Keeper:
    """What has seen one model an evaluation; all its weights and buffers are the step."""
    keeper, model = Keeper(keep), _model(0)
    for i, accuracy in enumerate(accuracies):
        model.load_state_dict(_model(10 * (i + 1)).state_dict())
        keeper.observe(10 * (i + 1), accuracy, model)
    return keeper


def _history(accuracies: list[float]) -> list[dict[str, float]]:
    return [{"step": 10 * (i + 1), "val_pgd": a} for i, a in enumerate(accuracies)]


@pytest.mark.parametrize(
    ("accuracies", "step"),
    [([1, 3, 2], 20), ([3, 3, 3], 10), ([1, 2, 3], 30), ([1, 3, 2, 3], 20), ([0, 0], 10)],
)
def test_the_best_is_kept_and_of_equals_the_earlier(accuracies: list[float], step: int) -> None:
    keeper, model = _watched("best", accuracies), _model(-1)
    keeper.put_into(model)
    assert {float(v.max()) for v in model.state_dict().values()} == {step}
    assert keeper.kept(_history(accuracies)) == {"step": step, "val_pgd": max(accuracies)}


def test_the_last_needs_no_copy() -> None:
    keeper, model = _watched("last", [3, 1]), _model(-1)
    keeper.put_into(model)
    assert float(model.running_mean.max()) == -1 and keeper.weights is None
    assert keeper.kept(_history([3, 1])) == {"step": 20, "val_pgd": 1}


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_restored_one_goes_on_as_if_nothing_had_happened(keep: str) -> None:
    """Through a file that no code can hide in, as the training state is."""
    file = io.BytesIO()
    torch.save(_watched(keep, [1, 5]).state(), file)
    file.seek(0)
    again, model = Keeper(keep), _model(-1)
    again.restore(torch.load(file, weights_only=True))
    again.observe(30, 4, _model(30))
    again.put_into(model)
    assert float(model.running_mean.max()) == (20 if keep == "best" else -1)
    assert again.kept(_history([1, 5, 4]))["step"] == (20 if keep == "best" else 30)
    again.observe(40, 6, _model(40))
    assert again.kept(_history([1, 5, 4, 6]))["step"] == 40


def test_a_schedule_with_an_end_keeps_the_best_unless_told_otherwise() -> None:
    assert Keeper.of(TrainConfig()).keep == "last"
    assert Keeper.of(TrainConfig(keep="best")).keep == "best"
    assert Keeper.of(TrainConfig(schedule="cosine", num_steps=9)).keep == "best"
    assert Keeper.of(TrainConfig(schedule="onecycle", num_epochs=9, keep="last")).keep == "last"
    assert Keeper.of(IntermediateConfig()).keep == "last"
