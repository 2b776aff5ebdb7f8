"""Robust evaluation in float32: per-image flags on clean images and under PGD, and signs of masked gradients."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssat_ray.adversarial.attacks import RANDOM_NOISE, NoiseKind, Norm, frozen, pgd, random_start

_KEYS = ("clean", "pgd", "apgd-ce", "autoattack")


def device_of(model: nn.Module, x: Tensor) -> torch.device:
    """The model's, or that of the images if it has no parameters."""
    return next((parameter.device for parameter in model.parameters()), x.device)


def check_images(x: Tensor, y: Tensor, batch_size: int) -> None:
    """ValueError unless these are images in [0, 1] with a label each."""
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
def evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Frozen eval mode in float32, whatever autocast the caller is in; ValueError for other parameters."""
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


def batched_correct(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """(N,) bool on the CPU, batch by batch on the model's device."""
    device = device_of(model, x)
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
    check_images(x, y, batch_size)
    with evaluating(model, device_of(model, x)):
        return batched_correct(model, x, y, batch_size)


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
    check_images(x, y, batch_size)
    if restarts < 1 or seed < 0:
        raise ValueError(f"restarts={restarts}, seed={seed}: allowed restarts >= 1 and seed >= 0")
    ids = torch.arange(first_id, first_id + len(x)) if ids is None else ids.cpu()
    if ids.shape != y.shape or (len(ids) and int(ids.min()) < 0):
        raise ValueError(f"ids have shape {tuple(ids.shape)}; must be {tuple(y.shape)}, 0 or more")
    device = device_of(model, x)
    with evaluating(model, device):
        flags = batched_correct(model, x, y, batch_size)
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


def class_accuracies(flags: np.ndarray, labels: np.ndarray, num_classes: int) -> list[float | None]:
    """The share of each class's images that stay correct; None for a class without an image.

    Args:
        flags: (N,) bool. labels: (N,) integers below `num_classes`.

    Returns:
        `num_classes` fractions in [0, 1].
    """
    total = np.bincount(labels, minlength=num_classes)
    correct = np.bincount(labels[flags], minlength=num_classes)
    return [int(c) / int(n) if n else None for c, n in zip(correct, total, strict=True)]


def worst_class(accuracies: list[float | None]) -> int:
    """The class with the lowest accuracy, the first of several; classes without one are left out."""
    known = [(value, label) for label, value in enumerate(accuracies) if value is not None]
    return min(known)[1]


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
