"""Projected gradient ascent in L-infinity and L2 balls, its starts, and freezing a model during it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["linf", "l2"]
NoiseKind = Literal["normal", "uniform"]
RANDOM_NOISE: dict[Norm, NoiseKind] = {"linf": "uniform", "l2": "normal"}
"""Which noise `random_start` expects: uniform in [-1, 1], or standard normal."""
AutocastFactory = Callable[[], AbstractContextManager[object]]


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` in eval mode with no parameter requiring a gradient, and restore it exactly.

    The flags are kept per module and per parameter, so a partly frozen model (one BatchNorm in
    eval mode, one layer without gradients) comes back as it was, also after an exception.
    Parameter gradients and buffers are not touched.
    """
    training = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _ in gradients:
        parameter.requires_grad_(False)
    try:
        yield model
    finally:
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)
        for module, flag in training:
            module.training = flag


def random_start(x: Tensor, noise: Tensor, eps: float, norm: Norm = "linf") -> Tensor:
    """Start of PGD-AT and of the PGD evaluation, in [0, 1].

    `linf`: x + eps * noise, uniform in the ball. `l2`: x + eps * noise / |noise|, uniform on its sphere.

    Args:
        x: (B, C, H, W) float in [0, 1].
        noise: (B, C, H, W) of the kind that `RANDOM_NOISE` says, drawn by the caller for the whole
            global batch.
        eps: radius on the image scale [0, 1].

    Source: Madry et al. 2018, section 2.1 (random start in the ball); Croce and Hein 2020 (L2).
    """
    if norm == "l2":
        noise = _unit(noise)
    return (x + eps * noise).clamp(0.0, 1.0)


def gaussian_start(x: Tensor, n: Tensor, scale: float = 1e-3) -> Tensor:
    """Start of the TRADES attack: `clamp(x + scale * n, 0, 1)`.

    The KL term has a zero gradient at x itself, hence the noise.

    Args:
        x: (B, C, H, W) float in [0, 1].
        n: (B, C, H, W) standard normal, drawn by the caller for the whole global batch.
        scale: standard deviation in pixel units of [0, 1].

    Source: TRADES reference code (Zhang et al. 2019), `perturb_init` 0.001; the clamp is ours.
    """
    return (x + scale * n).clamp(0.0, 1.0)


def pgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    eps: float,
    step_size: float,
    num_steps: int,
    start: Tensor,
    norm: Norm = "linf",
    autocast: AutocastFactory | None = None,
) -> Tensor:
    """Maximise `loss(model(x'))` over `|x' - x| <= eps`, x' in [0, 1], by gradient steps of one length.

    The step is along the gradient's sign (`linf`) or the gradient itself (`l2`). Only the gradient with respect to the input is computed; freeze the model (`frozen`) so that
    autograd does not save what the parameters' gradients need. A component whose gradient is
    NaN or zero does not move. The loop never waits for the device.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K).
        x: (B, C, H, W) float in [0, 1], centre of the ball.
        loss: float32 logits (B, K) to a scalar **sum** over rows (a mean would also work, as
            only signs are used, but underflows earlier).
        eps: radius of the ball, on the image scale [0, 1].
        step_size: length of one step in the norm, on the same scale.
        num_steps: number of steps; 0 returns the projected start.
        start: (B, C, H, W) first iterate, projected before use.
        norm: of the ball.
        autocast: makes the context in which the model runs, for instance
            `lambda: torch.autocast("cuda", dtype=torch.bfloat16)`; None for the caller's.

    Returns:
        (B, C, H, W) the last iterate, detached, in the dtype and memory format of `x`.

    Raises:
        ValueError: shapes differ, or eps, step_size or num_steps is negative.

    Source: Madry et al. 2018, equation 2; TRADES reference code, `trades_loss`.
    """
    if start.shape != x.shape:
        raise ValueError(
            f"start has shape {tuple(start.shape)}, x has {tuple(x.shape)}; must match"
        )
    if eps < 0 or step_size < 0 or num_steps < 0:
        raise ValueError(
            f"eps={eps}, step_size={step_size}, num_steps={num_steps}: none may be negative"
        )
    x = x.detach()
    project = _projection(x, eps, norm)
    x_adv = project(torch.empty_like(x).copy_(start.detach()))
    for _ in range(num_steps):
        with torch.enable_grad():
            leaf = x_adv.detach().requires_grad_(True)
            with nullcontext() if autocast is None else autocast():
                logits = model(leaf)
            (gradient,) = torch.autograd.grad(loss(logits.float()), leaf)
        gradient = gradient.nan_to_num(nan=0.0)
        direction = gradient.sign_() if norm == "linf" else _unit(gradient)
        x_adv = project(x_adv.add_(direction, alpha=step_size))
    return x_adv


def _projection(x: Tensor, eps: float, norm: Norm) -> Callable[[Tensor], Tensor]:
    """In place onto the ball around x, within [0, 1]."""
    lower, upper = (x - eps).clamp_(min=0.0), (x + eps).clamp_(max=1.0)
    if norm == "linf":
        return lambda x_adv: x_adv.clamp_(lower, upper)

    def onto_l2(x_adv: Tensor) -> Tensor:
        # The box comes second: it holds x, so cutting to it brings no point farther from x.
        difference = x_adv.sub_(x)
        length = _length(difference).clamp_(min=torch.finfo(x.dtype).tiny)
        return difference.mul_((eps / length).clamp_(max=1.0)).add_(x).clamp_(0.0, 1.0)

    return onto_l2


def _length(x: Tensor) -> Tensor:
    """(B, 1, 1, 1) Euclidean length of each image."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


def _unit(x: Tensor) -> Tensor:
    """Each image divided by its length, however small it is; 0 stays 0."""
    tiny = torch.finfo(x.dtype).tiny
    scaled = x / x.abs().amax(dim=tuple(range(1, x.ndim)), keepdim=True).clamp_(min=tiny)
    return scaled / _length(scaled).clamp_(min=tiny)
