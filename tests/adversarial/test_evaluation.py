"""Evaluation flags against linear closed forms, pyautoattack itself, and other batchings."""

import logging
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssat_ray.adversarial import autoattack
from ssat_ray.adversarial.autoattack import apgd_ce_flags, autoattack_flags
from ssat_ray.adversarial.evaluation import clean_flags, masking_warnings, pgd_flags

PGD: dict[str, Any] = {"eps": 0.05, "step_size": 0.02, "num_steps": 5, "seed": 0}


def _linear(num_classes: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))


def _data(model: nn.Module, num_images: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Images labelled by the model, one of them wrongly."""
    x = torch.rand(num_images, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    y[0] = (y[0] + 1) % num_classes
    return x, y


def _linear_truth(model: nn.Sequential, x: Tensor, y: Tensor, eps: float) -> list[bool]:
    """A linear model is robust where its worst point against each other class is correct."""
    weight, truth = next(model.parameters()).detach(), []
    for image, label in zip(x, y.tolist(), strict=True):
        robust = True
        for other in set(range(len(weight))) - {label}:
            direction = (weight[other] - weight[label]).sign().view(1, 4, 4)
            worst = (image + eps * direction).clamp(0, 1)
            logits = model(worst[None])[0]
            robust &= bool(logits[label] > logits[other])
        truth.append(robust)
    return truth


def test_clean_flags_and_restored_mode() -> None:
    norm = nn.BatchNorm2d(1)
    model = nn.Sequential(norm, nn.Dropout(0.9), _linear(3))
    x, y = _data(model.eval(), 10, 3)
    model.train()
    flags = clean_flags(model, x, y, 4)
    assert flags.tolist() == [False] + [True] * 9
    assert flags.dtype == torch.bool and model.training and norm.training
    assert norm.state_dict()["num_batches_tracked"].item() == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(flags, clean_flags(model, x, y))


def test_logits_that_are_not_finite_count_as_wrong() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2] * float("nan")

    assert not clean_flags(Broken(), torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)).any()


def test_pgd_flags_of_a_linear_model_are_exact() -> None:
    model = _linear(2, seed=3)
    x, y = _data(model, 60, 2)
    truth = _linear_truth(model, x, y, 0.05)
    assert 5 < sum(truth) < 55
    flags = pgd_flags(model, x, y, eps=0.05, step_size=0.05, num_steps=3, seed=0)
    assert flags.tolist() == truth


@pytest.mark.usefixtures("short_attacks")
def test_flags_of_a_linear_model_are_exact_in_the_l2_ball() -> None:
    """Off the borders of [0, 1] an image stays correct exactly if the boundary is farther than eps."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).requires_grad_(False)
    model[1].bias.copy_(-0.5 * model[1].weight.sum(1))
    x = 0.4 + 0.2 * torch.rand(60, 1, 6, 6)  # Square's L2 version wants more than 4 x 4
    logits, weight = model(x), model[1].weight
    y = logits.argmax(1)
    distance = (logits[:, 0] - logits[:, 1]).abs() / (weight[0] - weight[1]).norm()
    eps = float(distance.sort().values[29:31].mean())
    assert eps < 0.4
    truth = (distance > eps).tolist()
    assert sum(truth) == 30
    settings: dict[str, Any] = {"eps": eps, "norm": "l2", "seed": 0}
    assert pgd_flags(model, x, y, step_size=0.04, num_steps=60, **settings).tolist() == truth
    assert apgd_ce_flags(model, x, y, num_steps=30, **settings).tolist() == truth
    assert autoattack_flags(model, x, y, **settings)[0].tolist() == truth


def test_pgd_flags_do_not_depend_on_batches_shards_or_order() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), _linear_head())
    x, y = _data(model, 60, 4)
    weak: dict[str, Any] = {"eps": 0.3, "step_size": 0.01, "num_steps": 1, "batch_size": 60}
    flags = pgd_flags(model, x, y, **weak, seed=0)
    assert 10 < int(flags.sum()) < 59
    for batch_size in (1, 7, 32):
        assert torch.equal(
            flags, pgd_flags(model, x, y, **weak | {"batch_size": batch_size}, seed=0)
        )
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        flags[order], pgd_flags(model, x[order], y[order], **weak, seed=0, ids=order)
    )
    shard = pgd_flags(model, x[20:], y[20:], **weak, seed=0, first_id=20)
    assert torch.equal(flags[20:], shard)
    # The random start matters here, so the equalities above are not empty.
    others = [pgd_flags(model, x, y, **weak, seed=seed) for seed in (1, 2)]
    assert not all(torch.equal(flags, other) for other in others)
    assert not torch.equal(flags[20:], pgd_flags(model, x[20:], y[20:], **weak, seed=0))


def _linear_head() -> nn.Linear:
    torch.manual_seed(5)
    head = nn.Linear(32, 4)
    nn.init.normal_(head.weight)
    return head


def test_restarts_combine_and_their_starts_are_keyed_by_seed_restart_and_id() -> None:
    model = _linear(3, seed=2)
    x, y = _data(model, 40, 3)
    ids = torch.arange(100, 140)
    starts: dict[str, Any] = {"eps": 0.4, "step_size": 0.0, "num_steps": 0}
    expected = clean_flags(model, x, y)
    counts = [int(expected.sum())]
    for restart in range(3):
        noise = np.stack(
            [
                np.random.Generator(
                    np.random.Philox(
                        key=np.array([9, i], dtype=np.uint64),
                        counter=np.array([0, 0, 0, restart], dtype=np.uint64),
                    )
                ).random((1, 4, 4), dtype=np.float32)
                for i in ids.tolist()
            ]
        )
        start = (x + 0.4 * (2 * torch.from_numpy(noise) - 1)).clamp(0, 1)
        expected &= clean_flags(model, start, y)
        found = pgd_flags(model, x, y, **starts, seed=9, restarts=restart + 1, ids=ids)
        assert torch.equal(found, expected)
        counts.append(int(expected.sum()))
    assert counts[0] > counts[1] > counts[3]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.2)])
def test_apgd_ce_equals_pyautoattack_called_directly(norm: Any, eps: float) -> None:
    from pyautoattack.autopgd_base import APGDAttack  # type: ignore[import-untyped]

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), _linear_head())
    x, y = _data(model, 40, 4)
    flags = apgd_ce_flags(model, x, y, eps=eps, num_steps=10, seed=7, norm=norm, batch_size=40)
    clean = clean_flags(model, x, y)
    name = {"linf": "Linf", "l2": "L2"}[norm]
    attack = APGDAttack(model, n_iter=10, n_restarts=1, eps=eps, norm=name, seed=7, device="cpu")
    x_adv = attack.perturb(x[clean], y[clean])
    with torch.no_grad():
        expected = clean.clone()
        expected[clean] = model(x_adv).argmax(dim=1) == y[clean]
    assert torch.equal(flags, expected)
    assert 0 < int(flags.sum()) < int(clean.sum())
    built = autoattack._apgd_ce(model, torch.device("cpu"), eps, norm, 10, 7).apgd
    checkpoints = (
        "norm",
        "n_iter",
        "n_iter_2",
        "n_iter_min",
        "size_decr",
        "n_restarts",
        "eps",
        "seed",
    )
    assert [getattr(built, k) for k in checkpoints] == [getattr(attack, k) for k in checkpoints]


@pytest.fixture
def short_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real adversaries with fewer iterations and queries."""
    build = autoattack._full_adversary

    def short(*arguments: Any) -> tuple[Any, str]:
        adversary, name = build(*arguments)
        for attack in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
            attack.n_iter = 12
        adversary.square.n_queries = 30
        return adversary, name

    monkeypatch.setattr(autoattack, "_full_adversary", short)


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5, 9, 10, 12])
@pytest.mark.usefixtures("short_attacks")
def test_autoattack_is_exact_on_linear_models(num_classes: int) -> None:
    model = _linear(num_classes, seed=num_classes)
    x, y = _data(model, 14, num_classes)
    truth = _linear_truth(model, x, y, 0.06)
    flags, name = autoattack_flags(model, x, y, eps=0.06, seed=0, batch_size=5)
    assert flags.tolist() == truth
    assert 0 < sum(truth) < 13
    assert name == ("AutoAttack" if num_classes >= 10 else "ensemble (not standard AutoAttack)")
    assert bool((flags <= clean_flags(model, x, y)).all())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l2", "L2")])
@pytest.mark.parametrize("num_classes", [2, 3, 4, 9, 10, 100])
def test_settings_of_the_full_adversary(num_classes: int, norm: Any, name: str) -> None:
    device = torch.device("cpu")
    adversary, _ = autoattack._full_adversary(_linear(2), device, 0.1, norm, num_classes, 3)
    if num_classes < 4:
        assert adversary.attacks_to_run == ["apgd-ce", "apgd-dlr", "fab", "square"]
        assert adversary.apgd.dlr_loss is autoattack._margin_loss
    else:
        assert adversary.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
        targets = min(num_classes - 1, 9)
        assert adversary.apgd_targeted.n_target_classes == targets
        assert adversary.fab.n_target_classes == targets
        assert adversary.apgd.n_restarts == adversary.fab.n_restarts == 1
    assert (adversary.norm, adversary.epsilon, adversary.seed) == (name, 0.1, 3)
    assert (adversary.apgd.n_iter, adversary.fab.n_iter) == (100, 100)
    assert adversary.square.n_queries == 5000


def test_margin_loss() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [0.0, 0.0, 5.0]])
    found = autoattack._margin_loss(logits, torch.tensor([1, 2, 2]))
    assert found.tolist() == [-1.0, 1.0, -5.0]
    assert autoattack._margin_loss(logits[:, :2], torch.tensor([0, 1, 1])).tolist() == [2, -2, 0]


@pytest.mark.usefixtures("short_attacks")
def test_global_state_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = _linear(2)
    x, y = _data(model, 6, 2)
    state = torch.get_rng_state()
    trace = sys.gettrace()

    def previous(*_: Any) -> None:
        return None

    with caplog.at_level(logging.DEBUG):
        sys.settrace(previous)
        try:
            autoattack_flags(model, x, y, eps=0.05, seed=0)
            apgd_ce_flags(model, x, y, eps=0.05, num_steps=5, seed=0)
            kept = sys.gettrace()
        finally:
            sys.settrace(trace)
    assert kept is previous
    assert torch.equal(state, torch.get_rng_state())
    assert not caplog.records
    assert not logging.getLogger("auto-attack").disabled


@pytest.mark.parametrize("value", [0.52, float("nan")])
def test_images_outside_the_ball_are_refused(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    class Cheat:
        def run_standard_evaluation(self, x: Tensor, y: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
            return torch.full_like(x, value), y

    monkeypatch.setattr(autoattack, "_apgd_ce", lambda *_: Cheat())
    x = torch.full((3, 1, 4, 4), 0.5)
    with pytest.raises(RuntimeError, match="distance"):
        apgd_ce_flags(_linear(2), x, torch.zeros(3, dtype=torch.long), eps=0.01, seed=0)


def test_bad_input_is_named() -> None:
    model = _linear(2)
    x, y = _data(model, 4, 2)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        clean_flags(model, 255 * x, y)
    with pytest.raises(ValueError, match="no label"):
        clean_flags(model, x, y - 2)
    with pytest.raises(ValueError, match="batch_size"):
        clean_flags(model, x, y, 0)
    with pytest.raises(ValueError, match="restarts"):
        pgd_flags(model, x, y, **PGD, restarts=0)
    with pytest.raises(ValueError, match="ids"):
        pgd_flags(model, x, y, **PGD, ids=torch.arange(3))
    with pytest.raises(ValueError, match="float32"):
        clean_flags(_linear(2).double(), x, y)
    with pytest.raises(ValueError, match="1 class"):
        autoattack_flags(_linear(1), x, y, eps=0.1, seed=0)


def test_empty_sets_give_empty_flags() -> None:
    x, y = torch.rand(0, 1, 4, 4), torch.zeros(0, dtype=torch.long)
    assert clean_flags(_linear(2), x, y).shape == (0,)
    assert pgd_flags(_linear(2), x, y, **PGD).shape == (0,)
    assert apgd_ce_flags(_linear(2), x, y, eps=0.1, seed=0).shape == (0,)
    with pytest.raises(ValueError, match="no images"):
        autoattack_flags(_linear(2), x, y, eps=0.1, seed=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"clean": 0.6, "pgd": 0.62, "apgd-ce": 0.6}, ["pgd accuracy 0.6200 exceeds clean"]),
        ({"autoattack": 0.605}, ["autoattack accuracy 0.6050 exceeds pgd"]),
        ({"apgd-ce": 0.63}, ["apgd-ce accuracy 0.6300 exceeds pgd"]),
        ({"apgd-ce": 0.619}, []),
        ({"autoattack": 0.45, "apgd-ce": 0.55}, ["pgd accuracy 0.6000 exceeds autoattack"]),
        ({"apgd-ce": 0.56}, ["autoattack accuracy 0.5700 exceeds apgd-ce"]),
    ],
)
def test_masking_warnings(change: dict[str, float], words: list[str]) -> None:
    base = {"clean": 0.9, "pgd": 0.6, "apgd-ce": 0.61, "autoattack": 0.57}
    found = masking_warnings(base | change)
    assert len(found) == len(words)
    assert all(text.startswith(word) for text, word in zip(found, words, strict=True))


def test_masking_warnings_accepts_parts_and_checks_values() -> None:
    assert masking_warnings({"clean": 0.5}) == []
    with pytest.raises(ValueError, match="unknown"):
        masking_warnings({"fgsm": 0.5})
    with pytest.raises(ValueError, match="fraction"):
        masking_warnings({"pgd": 61.8})
    with pytest.raises(ValueError, match="fraction"):
        masking_warnings({"pgd": float("nan")})
