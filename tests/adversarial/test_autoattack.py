"""APGD-CE and AutoAttack against pyautoattack itself and closed forms of linear models."""

import logging
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssat_ray.adversarial import autoattack
from ssat_ray.adversarial.autoattack import apgd_ce_flags, autoattack_flags
from ssat_ray.adversarial.evaluation import clean_flags

NORMS = {"linf": "Linf", "l2": "L2"}


def shorten(adversary: Any) -> Any:
    """Fewer iterations and queries."""
    for attack in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
        attack.n_iter = 12
    adversary.square.n_queries = 30
    return adversary


@pytest.fixture
def short_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real adversaries, shortened."""
    build = autoattack._full_adversary

    def short(*arguments: Any) -> tuple[Any, str]:
        adversary, name = build(*arguments)
        return shorten(adversary), name

    monkeypatch.setattr(autoattack, "_full_adversary", short)


def direct(model: nn.Module, norm: str, eps: float, **settings: Any) -> Any:
    """pyautoattack as its own documentation calls it."""
    from pyautoattack import AutoAttack  # type: ignore[import-untyped]

    adversary = AutoAttack(model, norm=NORMS[norm], eps=eps, seed=7, device="cpu", **settings)
    adversary.verbose = False
    return adversary


@pytest.mark.parametrize(
    ("norm", "eps", "short"),
    [
        pytest.param("linf", 0.03, True, id="linf, shortened"),
        pytest.param("l2", 0.2, True, id="l2, shortened", marks=pytest.mark.slow),
        pytest.param("linf", 0.03, False, id="linf", marks=pytest.mark.slow),
        pytest.param("l2", 0.2, False, id="l2", marks=pytest.mark.slow),
    ],
)
def test_autoattack_equals_pyautoattack_called_directly(
    norm: Any, eps: float, short: bool, request: pytest.FixtureRequest, curved: Any, data: Any
) -> None:
    """On one chunk, with the same seed and the chunk as the batch: the same flag for every image."""
    model = curved(10, side=6)
    x, y = data(model, 40, 10, side=6)
    adversary = direct(model, norm, eps, version="standard")
    if short:
        request.getfixturevalue("short_attacks")
        shorten(adversary)
    found = autoattack_flags(model, x, y, eps=eps, seed=7, norm=norm, batch_size=40)
    _, y_adv = adversary.run_standard_evaluation(x, y, batch_size=40)
    assert found.flags.tolist() == (y_adv == y).tolist()
    assert 3 < int(found.flags.sum()) < 37 and found.name == "AutoAttack"
    if not short:
        other = autoattack_flags(model, x, y, eps=2 * eps, seed=7, norm=norm, batch_size=40)
        assert not torch.equal(found.flags, other.flags)


class Quantised(nn.Module):
    """A classifier whose gradient is zero almost everywhere: masked gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model((x * 4).round() / 4)
        return logits


@pytest.mark.usefixtures("short_attacks")
def test_masked_gradients_show_in_the_signs_and_in_what_square_broke(
    curved: Any, data: Any
) -> None:
    model = Quantised(curved(10))
    x, y = data(model, 40, 10)
    found = autoattack_flags(model, x, y, eps=0.1, seed=7, batch_size=40)
    assert found.signs == ("the loss has no gradient at some images",)
    gradients = ["apgd-ce", "apgd-t", "fab-t"]
    adversary = shorten(direct(model, "linf", 0.1, version="custom", attacks=gradients))
    adversary.fab.n_restarts = adversary.apgd.n_restarts = 1
    _, y_adv = adversary.run_standard_evaluation(x, y, batch_size=40)
    left = int((y_adv == y).sum())
    assert found.by_square == left - int(found.flags.sum()) > 0


class Dynamic(nn.Module):
    """A classifier that takes a gradient to answer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            torch.autograd.grad(self.model(leaf).sum(), leaf)
        logits: Tensor = self.model(x)
        return logits


def test_signs_of_other_doubtful_classifiers(curved: Any, data: Any) -> None:
    plain = curved(4)
    x, y = data(plain, 8, 4)

    def signs(model: nn.Module) -> tuple[str, ...]:
        return apgd_ce_flags(model, x, y, eps=0.01, num_steps=1, seed=0).signs

    class Noisy(Dynamic):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.model(x + 0.1 * torch.rand_like(x))
            return logits

    assert signs(plain) == ()
    assert signs(nn.Sequential(plain, nn.Softmax(1))) == (
        "the classifier returns probabilities instead of logits",
    )
    assert signs(Noisy(plain)) == ("the classifier answers the same image differently each time",)
    assert signs(Dynamic(plain)) == ("the classifier computes gradients while it answers",)
    assert signs(plain) == ()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.2)])
def test_apgd_ce_equals_pyautoattack_called_directly(
    norm: Any, eps: float, curved: Any, data: Any
) -> None:
    from pyautoattack.autopgd_base import APGDAttack  # type: ignore[import-untyped]

    model = curved()
    x, y = data(model, 40, 4)
    found = apgd_ce_flags(model, x, y, eps=eps, num_steps=10, seed=7, norm=norm, batch_size=40)
    flags, clean = found.flags, clean_flags(model, x, y)
    settings: dict[str, Any] = {"n_iter": 10, "n_restarts": 1, "eps": eps, "seed": 7}
    attack = APGDAttack(model, norm=NORMS[norm], device="cpu", **settings)
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


@pytest.mark.usefixtures("short_attacks")
def test_flags_of_a_linear_model_are_exact_in_the_l2_ball(l2_case: Any) -> None:
    model, x, y, eps, truth = l2_case
    settings: dict[str, Any] = {"eps": eps, "norm": "l2", "seed": 0}
    assert apgd_ce_flags(model, x, y, num_steps=30, **settings).flags.tolist() == truth
    assert autoattack_flags(model, x, y, **settings).flags.tolist() == truth


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5, 9, 10, 12])
@pytest.mark.usefixtures("short_attacks")
def test_autoattack_is_exact_on_linear_models(
    num_classes: int, linear: Any, data: Any, linear_truth: Any
) -> None:
    model = linear(num_classes, seed=num_classes)
    x, y = data(model, 14, num_classes)
    truth = linear_truth(model, x, y, 0.06)
    flags, name, signs, _ = autoattack_flags(model, x, y, eps=0.06, seed=0, batch_size=5)
    assert signs == ()
    assert flags.tolist() == truth
    assert 0 < sum(truth) < 13
    assert name == ("AutoAttack" if num_classes >= 10 else "ensemble (not standard AutoAttack)")
    assert bool((flags <= clean_flags(model, x, y)).all())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l2", "L2")])
@pytest.mark.parametrize("num_classes", [2, 3, 4, 9, 10, 100])
def test_settings_of_the_full_adversary(
    num_classes: int, norm: Any, name: str, linear: Any
) -> None:
    device = torch.device("cpu")
    adversary, _ = autoattack._full_adversary(linear(2), device, 0.1, norm, num_classes, 3)
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
def test_global_state_is_left_alone(
    caplog: pytest.LogCaptureFixture, linear: Any, data: Any
) -> None:
    model = linear(2)
    x, y = data(model, 6, 2)
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
    logger = logging.getLogger("auto-attack")
    assert (logger.disabled, logger.propagate, logger.handlers, logger.level) == (
        False,
        True,
        [],
        0,
    )


@pytest.mark.parametrize("value", [0.52, float("nan")])
def test_images_outside_the_ball_are_refused(
    monkeypatch: pytest.MonkeyPatch, value: float, linear: Any
) -> None:
    class Cheat:
        def run_standard_evaluation(self, x: Tensor, y: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
            return torch.full_like(x, value), y

    monkeypatch.setattr(autoattack, "_apgd_ce", lambda *_: Cheat())
    x = torch.full((3, 1, 4, 4), 0.5)
    with pytest.raises(RuntimeError, match="distance"):
        apgd_ce_flags(linear(2), x, torch.zeros(3, dtype=torch.long), eps=0.01, seed=0)


def test_bad_input_is_named(linear: Any, data: Any) -> None:
    x, y = data(linear(2), 4, 2)
    with pytest.raises(ValueError, match="1 class"):
        autoattack_flags(linear(1), x, y, eps=0.1, seed=0)
    with pytest.raises(ValueError, match="num_steps"):
        apgd_ce_flags(linear(2), x, y, eps=0.1, num_steps=0, seed=0)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        autoattack_flags(linear(2), 255 * x, y, eps=0.1, seed=0)


def test_empty_sets(linear: Any) -> None:
    x, y = torch.rand(0, 1, 4, 4), torch.zeros(0, dtype=torch.long)
    assert apgd_ce_flags(linear(2), x, y, eps=0.1, seed=0).flags.shape == (0,)
    with pytest.raises(ValueError, match="no images"):
        autoattack_flags(linear(2), x, y, eps=0.1, seed=0)
