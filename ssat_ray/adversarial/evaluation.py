"""Robust evaluation in float32: per-image flags under clean images, PGD, APGD-CE and AutoAttack."""

import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssat_ray.adversarial.attacks import RANDOM_NOISE, NoiseKind, Norm, frozen, pgd, random_start

AUTOATTACK = "AutoAttack"
ENSEMBLE = "ensemble (not standard AutoAttack)"
_KEYS = ("clean", "pgd", "apgd-ce", "autoattack")
_BALL_TOLERANCE = 1e-6
_AUTOATTACK_NORMS: dict[Norm, Any] = {"linf": "Linf", "l2": "L2"}


def _device(model: nn.Module, x: Tensor) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), x.device)


def _check_images(x: Tensor, y: Tensor, batch_size: int) -> None:
    if x.ndim != 4 or y.shape != x.shape[:1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, y {tuple(y.shape)}; must be (N, C, H, W) and (N,)"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; must be 1 or more")
    if len(x) and not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(f"images lie in [{x.min():.4g}, {x.max():.4g}]; must lie in [0, 1]")
    if len(y) and bool((y < 0).any()):
        raise ValueError("y holds -1 (no label); evaluation needs a label for every image")


@contextmanager
def _evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Frozen eval mode in float32, whatever autocast the caller is in."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ValueError(f"parameter {name} is {parameter.dtype}; evaluate in float32")
    with frozen(model), torch.autocast(device.type, enabled=False):
        yield


@torch.no_grad()
def _correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B,) bool; logits that are not finite count as wrong, whatever argmax makes of them."""
    logits = model(x)
    correct: Tensor = (logits.argmax(dim=1) == y) & logits.isfinite().all(dim=1)
    return correct


def _batched_correct(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    device = _device(model, x)
    flags = torch.zeros(len(x), dtype=torch.bool)
    for begin in range(0, len(x), batch_size):
        rows = slice(begin, begin + batch_size)
        flags[rows] = _correct(model, x[rows].to(device).float(), y[rows].to(device)).cpu()
    return flags


def clean_flags(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 256) -> Tensor:
    """Which images the model classifies correctly, unattacked.

    Args:
        model: (B, C, H, W) in [0, 1] to logits (B, K); its mode and flags are restored.
        x: (N, C, H, W) float in [0, 1], on any device; batches move to the model's.
        y: (N,) integer labels.
        batch_size: images a forward.

    Returns:
        (N,) bool on the CPU.

    Raises:
        ValueError: shapes, pixel range or labels are wrong, or the model is not float32.
    """
    _check_images(x, y, batch_size)
    with _evaluating(model, _device(model, x)):
        return _batched_correct(model, x, y, batch_size)


def _noise(kind: NoiseKind, shape: torch.Size, ids: Tensor, seed: int, restart: int) -> Tensor:
    """(B, C, H, W) float32, in [-1, 1) or normal; row i depends on (seed, restart, ids[i]) only."""
    counter = np.array([0, 0, 0, restart], dtype=np.uint64)
    noise = np.empty(tuple(shape), dtype=np.float32)
    for row, image_id in enumerate(ids.tolist()):
        key = np.array([seed, image_id], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        draw = generator.random if kind == "uniform" else generator.standard_normal
        noise[row] = draw(tuple(shape[1:]), dtype=np.float32)
    drawn = torch.from_numpy(noise)
    return drawn.mul_(2.0).sub_(1.0) if kind == "uniform" else drawn


def pgd_flags(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step_size: float,
    num_steps: int,
    restarts: int = 1,
    seed: int,
    first_id: int = 0,
    ids: Tensor | None = None,
    norm: Norm = "linf",
    batch_size: int = 256,
) -> Tensor:
    """Which images stay correct unattacked and at the end of every PGD-CE restart.

    The random start of an image depends on (seed, restart, image id) only, so flags do not
    depend on batching, sharding or order, as far as the model's own arithmetic does not.

    Args:
        model, x, y, batch_size: as in `clean_flags`.
        eps, step_size: radius and step, on the image scale [0, 1].
        num_steps: gradient steps a restart.
        restarts: independent uniform starts, at least 1.
        seed: of the starts, 0 or more.
        first_id: id of the first image where `ids` is None; the next ones count up.
        ids: (N,) non-negative integer image ids, or None.
        norm: of the ball.

    Returns:
        (N,) bool on the CPU.

    Raises:
        ValueError: as in `clean_flags`, or restarts, seed or ids are out of range.

    Source: Madry et al. 2018; method.md section 4 (PGD-40, step 0.01, eps 8/255).
    """
    _check_images(x, y, batch_size)
    if restarts < 1 or seed < 0:
        raise ValueError(f"restarts={restarts}, seed={seed}: allowed restarts >= 1 and seed >= 0")
    ids = torch.arange(first_id, first_id + len(x)) if ids is None else ids.cpu()
    if ids.shape != y.shape or (len(ids) and int(ids.min()) < 0):
        raise ValueError(f"ids have shape {tuple(ids.shape)}; must be {tuple(y.shape)}, 0 or more")
    device = _device(model, x)
    with _evaluating(model, device):
        flags = _batched_correct(model, x, y, batch_size)
        for restart in range(restarts):
            for rows in torch.split(flags.nonzero().squeeze(1), batch_size):
                at = rows.to(x.device)
                images, labels = x[at].to(device).float(), y[rows.to(y.device)].to(device).long()

                def ascent(logits: Tensor, labels: Tensor = labels) -> Tensor:
                    return F.cross_entropy(logits, labels, reduction="sum")

                kind = RANDOM_NOISE[norm]
                noise = _noise(kind, images.shape, ids[rows], seed, restart).to(device)
                x_adv = pgd(
                    model,
                    images,
                    ascent,
                    eps=eps,
                    step_size=step_size,
                    num_steps=num_steps,
                    start=random_start(images, noise, eps, norm),
                    norm=norm,
                )
                flags[rows] = _correct(model, x_adv, labels).cpu()
    return flags


@contextmanager
def _isolated(device: torch.device) -> Iterator[None]:
    """Keep pyautoattack's seeding, logging and `sys.settrace(None)` from leaking out."""
    logger = logging.getLogger("auto-attack")
    trace, disabled = sys.gettrace(), logger.disabled
    cuda = {torch.cuda.current_device()} if torch.cuda.is_available() else set()
    if device.type == "cuda" and device.index is not None:
        cuda.add(device.index)
    with torch.random.fork_rng(devices=sorted(cuda)):
        logger.disabled = True
        try:
            yield
        finally:
            logger.disabled = disabled
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
        norm=_AUTOATTACK_NORMS[norm],
        seed=seed,
        version="custom",
    )
    # Built anew, as the attack derives its step-size checkpoints from n_iter when it is made.
    adversary.apgd = APGDAttack(
        model,
        n_iter=num_steps,
        n_restarts=1,
        eps=eps,
        norm=_AUTOATTACK_NORMS[norm],
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
        "norm": _AUTOATTACK_NORMS[norm],
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


def _attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    norm: Norm,
    batch_size: int,
    build: Callable[[torch.device], Any],
) -> Tensor:
    """Run one adversary; flags come from its images, evaluated again and checked."""
    device = _device(model, x)
    x, y = x.float().contiguous(), y.long().to(x.device)
    with _isolated(device), _evaluating(model, device):
        adversary = build(device)
        adversary.verbose = False
        x_adv, _ = adversary.run_standard_evaluation(x, y, batch_size=batch_size)
        order = math.inf if norm == "linf" else 2
        distance = float(torch.linalg.vector_norm((x_adv - x).flatten(1), order, dim=1).max())
        low, high = float(x_adv.min()), float(x_adv.max())
        if not (
            distance <= eps * (1 + _BALL_TOLERANCE) + _BALL_TOLERANCE and low >= 0.0 and high <= 1.0
        ):
            raise RuntimeError(
                f"pyautoattack returned images at distance {distance:.8g} in [{low:.8g}, "
                f"{high:.8g}]; allowed: distance <= eps = {eps:.8g} and pixels in [0, 1]"
            )
        clean = _batched_correct(model, x, y, batch_size)
        return clean & _batched_correct(model, x_adv, y, batch_size)


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
) -> Tensor:
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
        (N,) bool on the CPU.

    Raises:
        ValueError: as in `clean_flags`, or num_steps is less than 1.
        RuntimeError: the attack left the eps ball or [0, 1].

    Source: Croce and Hein 2020 (AutoAttack), section 3.
    """
    _check_images(x, y, batch_size)
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; must be 1 or more")
    if not len(x):
        return torch.zeros(0, dtype=torch.bool)

    def build(device: torch.device) -> Any:
        return _apgd_ce(model, device, eps, norm, num_steps, seed)

    return _attack(model, x, y, eps, norm, batch_size, build)


def autoattack_flags(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    seed: int,
    norm: Norm = "linf",
    batch_size: int = 256,
) -> tuple[Tensor, str]:
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
        (N,) bool on the CPU, and the name.

    Raises:
        ValueError: as in `clean_flags`, no images, or fewer than 2 classes.
        RuntimeError: an attack left the eps ball or [0, 1].

    Source: Croce and Hein 2020 (AutoAttack); method.md section 4.
    """
    _check_images(x, y, batch_size)
    if not len(x):
        raise ValueError("x holds no images; AutoAttack needs one to count the classes")
    device = _device(model, x)
    with _evaluating(model, device), torch.no_grad():
        num_classes = model(x[:1].to(device).float()).shape[1]
    if num_classes < 2:
        raise ValueError(f"the model has {num_classes} class; AutoAttack needs 2 or more")
    name = ""

    def build(device: torch.device) -> Any:
        nonlocal name
        adversary, name = _full_adversary(model, device, eps, norm, num_classes, seed)
        return adversary

    flags = _attack(model, x, y, eps, norm, batch_size, build)
    return flags, name


def masking_warnings(accuracies: dict[str, float]) -> list[str]:
    """Signs that an attack failed or that gradients are masked; empty where there is none.

    Args:
        accuracies: fractions in [0, 1] under any of "clean", "pgd", "apgd-ce", "autoattack", all
            of the same images and radius.

    Returns:
        One sentence a sign. A stronger attack must not leave more images correct: above the
        clean accuracy or AutoAttack above its parts never happens in a sound evaluation;
        APGD-CE more than 2 points above PGD means that PGD's settings fit better; PGD more than
        10 points above AutoAttack means that gradients mislead it.

    Raises:
        ValueError: an unknown key or a value outside [0, 1].

    Source: Carlini et al. 2019, section 5; Croce and Hein 2020.
    """
    for key, value in accuracies.items():
        if key not in _KEYS:
            raise ValueError(f"accuracy {key!r} is unknown; allowed: {', '.join(_KEYS)}")
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"accuracy {key!r} is {value}; must be a fraction in [0, 1]")
    rules = (
        ("pgd", "clean", 0.0, "the attack is broken or the sets differ"),
        ("apgd-ce", "clean", 0.0, "the attack is broken or the sets differ"),
        ("autoattack", "clean", 0.0, "the attack is broken or the sets differ"),
        ("autoattack", "pgd", 0.0, "PGD breaks images that AutoAttack does not; report the lower"),
        ("autoattack", "apgd-ce", 0.0, "AutoAttack contains APGD-CE; settings or sets differ"),
        ("apgd-ce", "pgd", 0.02, "APGD-CE should not be weaker; use more steps or check its loss"),
        ("pgd", "autoattack", 0.10, "PGD is misled: masked gradients, or too few or small steps"),
    )
    found = []
    for higher, lower, tolerance, meaning in rules:
        if higher in accuracies and lower in accuracies:
            gap = accuracies[higher] - accuracies[lower]
            if gap > tolerance + 1e-9:
                found.append(
                    f"{higher} accuracy {accuracies[higher]:.4f} exceeds {lower} "
                    f"{accuracies[lower]:.4f} by {gap:.4f}: {meaning}"
                )
    return found
