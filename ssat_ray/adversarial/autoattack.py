"""APGD-CE and AutoAttack by pyautoattack, in float32: per-image flags, checked images, signs of masking."""

import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssat_ray.adversarial.attacks import Norm
from ssat_ray.adversarial.evaluation import batched_correct, check_images, device_of, evaluating

APGD_CE = "APGD-CE"
AUTOATTACK = "AutoAttack"
ENSEMBLE = "ensemble (not standard AutoAttack)"
_BALL_TOLERANCE = 1e-6
_NORMS: dict[Norm, Any] = {"linf": "Linf", "l2": "L2"}
_SIGNS = {
    "randomized defense": "the classifier answers the same image differently each time",
    "probability distribution": "the classifier returns probabilities instead of logits",
    "zero gradient": "the loss has no gradient at some images",
    "dynamic defense": "the classifier computes gradients while it answers",
}
"""What pyautoattack's warnings contain, and what they say."""


class Attacked(NamedTuple):
    """What an attack leaves of a set of images.

    Args:
        flags: (N,) bool on the CPU, which images stay correct.
        name: what the attack may be called.
        signs: sentences on what makes the attack's own checks doubt the result, sorted.
        by_square: images that Square broke, which runs last, after all gradient attacks.
    """

    flags: Tensor
    name: str
    signs: tuple[str, ...] = ()
    by_square: int = 0


class _Messages(logging.Handler):
    """Keeps what is logged as a warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


@contextmanager
def _isolated(device: torch.device) -> Iterator[_Messages]:
    """Keep pyautoattack's seeding, logging and `sys.settrace(None)` from leaking out; yields its warnings."""
    from pyautoattack import checks  # type: ignore[import-untyped]

    checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # or one dynamic model marks all after it
    logger, messages = logging.getLogger("auto-attack"), _Messages()
    trace, handlers = sys.gettrace(), logger.handlers
    before = logger.level, logger.propagate, logger.disabled
    cuda = {torch.cuda.current_device()} if torch.cuda.is_available() else set()
    if device.type == "cuda" and device.index is not None:
        cuda.add(device.index)
    with torch.random.fork_rng(devices=sorted(cuda)):
        logger.handlers = [messages]
        logger.propagate = logger.disabled = False
        logger.setLevel(logging.WARNING)
        try:
            yield messages
        finally:
            logger.handlers = handlers
            logger.setLevel(before[0])
            logger.propagate, logger.disabled = before[1:]
            sys.settrace(trace)


def _margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) largest wrong logit minus the logit of y; defined from 2 classes on, unlike DLR."""
    own = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(own, -math.inf).amax(dim=1) - logits[own]


def _apgd_ce(
    model: nn.Module, device: torch.device, eps: float, norm: Norm, num_steps: int, seed: int
) -> Any:
    from pyautoattack import AutoAttack  # type: ignore[import-untyped]
    from pyautoattack.autopgd_base import APGDAttack  # type: ignore[import-untyped]

    adversary = AutoAttack(
        model,
        attacks=["apgd-ce"],
        device=device,
        eps=eps,
        norm=_NORMS[norm],
        seed=seed,
        version="custom",
    )
    # Built anew, as the attack derives its step-size checkpoints from n_iter when it is made.
    adversary.apgd = APGDAttack(
        model,
        n_iter=num_steps,
        n_restarts=1,
        eps=eps,
        norm=_NORMS[norm],
        seed=seed,
        device=device,
        logger=adversary.logger,
    )
    return adversary


def _full_adversary(
    model: nn.Module, device: torch.device, eps: float, norm: Norm, num_classes: int, seed: int
) -> tuple[Any, str]:
    from pyautoattack import AutoAttack

    settings: dict[str, Any] = {
        "device": device,
        "eps": eps,
        "norm": _NORMS[norm],
        "seed": seed,
    }
    if num_classes >= 4:
        adversary = AutoAttack(model, version="standard", **settings)
        num_targets = min(9, num_classes - 1)
        adversary.apgd_targeted.n_target_classes = num_targets
        adversary.fab.n_target_classes = num_targets
        return adversary, AUTOATTACK if num_classes >= 10 else ENSEMBLE
    attacks = ["apgd-ce", "apgd-dlr", "fab", "square"]
    adversary = AutoAttack(model, attacks=attacks, version="custom", **settings)
    # DLR needs three classes and targeted DLR four: APGD's second loss becomes the margin.
    adversary.apgd.dlr_loss = _margin_loss
    return adversary, ENSEMBLE


def _count_square(square: Any, model: nn.Module) -> list[int]:
    """From now on, how many images each call of Square breaks; it gets correct ones only."""
    broken: list[int] = []
    perturb = square.perturb

    def counting(x: Tensor, y: Tensor) -> Tensor:
        x_adv: Tensor = perturb(x, y)
        with torch.no_grad():
            broken.append(int((model(x_adv).argmax(dim=1) != y).sum()))
        return x_adv

    square.perturb = counting
    return broken


def _attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    norm: Norm,
    batch_size: int,
    build: Callable[[torch.device], Any],
) -> tuple[Tensor, tuple[str, ...]]:
    """Run one adversary; flags come from its images, evaluated again and checked. Also its signs."""
    device = device_of(model, x)
    x, y = x.float().contiguous(), y.long().to(x.device)
    with _isolated(device) as messages, evaluating(model, device):
        adversary = build(device)
        adversary.verbose = False
        x_adv, _ = adversary.run_standard_evaluation(x, y, batch_size=batch_size)
        order = math.inf if norm == "linf" else 2
        distance = float(torch.linalg.vector_norm((x_adv - x).flatten(1), order, dim=1).max())
        low, high = float(x_adv.min()), float(x_adv.max())
        allowed = eps + _BALL_TOLERANCE * max(1.0, eps)
        if not (distance <= allowed and low >= 0.0 and high <= 1.0):
            raise RuntimeError(
                f"pyautoattack returned images at distance {distance:.8g} in [{low:.8g}, "
                f"{high:.8g}]; allowed: distance <= eps = {eps:.8g} and pixels in [0, 1]"
            )
        clean = batched_correct(model, x, y, batch_size)
        flags = clean & batched_correct(model, x_adv, y, batch_size)
    said = " ".join(messages.found)
    return flags, tuple(sorted(text for key, text in _SIGNS.items() if key in said))


def apgd_ce_flags(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    num_steps: int = 100,
    seed: int,
    norm: Norm = "linf",
    batch_size: int = 256,
) -> Attacked:
    """Which images stay correct under APGD on the cross-entropy, one restart.

    pyautoattack seeds every batch alike, so flags depend on the batch size (and on the order of
    the images). The global random state is left as it was.

    Args:
        model, x, y, batch_size: as in `clean_flags`.
        eps: radius, on the image scale [0, 1].
        num_steps: APGD iterations, at least 1.
        seed: of the random starts.
        norm: of the ball.

    Returns:
        Flags, name and signs.

    Raises:
        ValueError: as in `clean_flags`, or num_steps is less than 1.
        RuntimeError: the attack left the eps ball or [0, 1].

    Source: Croce and Hein 2020 (AutoAttack), section 3.
    """
    check_images(x, y, batch_size)
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; must be 1 or more")
    if not len(x):
        return Attacked(torch.zeros(0, dtype=torch.bool), APGD_CE)

    def build(device: torch.device) -> Any:
        return _apgd_ce(model, device, eps, norm, num_steps, seed)

    flags, signs = _attack(model, x, y, eps, norm, batch_size, build)
    return Attacked(flags, APGD_CE, signs)


def autoattack_flags(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    seed: int,
    norm: Norm = "linf",
    batch_size: int = 256,
) -> Attacked:
    """Which images stay correct under AutoAttack, and what the attack may be called.

    From 10 classes on: the standard version. 4 to 9: the same attacks with C - 1 target classes.
    2 and 3: APGD-CE, APGD on the margin, untargeted FAB, and Square; these have no targeted DLR
    loss. Below 10 classes the name is "ensemble (not standard AutoAttack)". The batch size
    matters as in `apgd_ce_flags`. The global random state is left as it was.

    Args:
        model, x, y, batch_size: as in `clean_flags`.
        eps: radius, on the image scale [0, 1].
        seed: of every attack.
        norm: of the ball.

    Returns:
        Flags, name, signs, and how many images Square broke.

    Raises:
        ValueError: as in `clean_flags`, no images, or fewer than 2 classes.
        RuntimeError: an attack left the eps ball or [0, 1].

    Source: Croce and Hein 2020 (AutoAttack); method.md section 4.
    """
    check_images(x, y, batch_size)
    if not len(x):
        raise ValueError("x holds no images; AutoAttack needs one to count the classes")
    device = device_of(model, x)
    with evaluating(model, device), torch.no_grad():
        num_classes = model(x[:1].to(device).float()).shape[1]
    if num_classes < 2:
        raise ValueError(f"the model has {num_classes} class; AutoAttack needs 2 or more")
    name, by_square = "", [0]

    def build(device: torch.device) -> Any:
        nonlocal name, by_square
        adversary, name = _full_adversary(model, device, eps, norm, num_classes, seed)
        by_square = _count_square(adversary.square, model)
        return adversary

    flags, signs = _attack(model, x, y, eps, norm, batch_size, build)
    return Attacked(flags, name, signs, sum(by_square))
