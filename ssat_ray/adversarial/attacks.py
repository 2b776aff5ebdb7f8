"""L-infinity projected gradient ascent, its starting points, and freezing a model during it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

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


def uniform_start(x: Tensor, u: Tensor, eps: float) -> Tensor:
    """Start of PGD-AT and of the PGD evaluation: `clamp(x + eps * u, 0, 1)`.

    Args:
        x: (B, C, H, W) float in [0, 1].
        u: (B, C, H, W) in [-1, 1], drawn by the caller for the whole global batch.
        eps: radius in pixel units of [0, 1].

    Source: Madry et al. 2018, section 2.1 (random start in the ball).
    """
    return (x + eps * u).clamp(0.0, 1.0)


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
    autocast: AutocastFactory | None = None,
) -> Tensor:
    """Maximise `loss(model(x'))` over `|x' - x| <= eps`, x' in [0, 1], by signed gradient steps.

    Only the gradient with respect to the input is computed; freeze the model (`frozen`) so that
    autograd does not save what the parameters' gradients need. A component whose gradient is
    NaN or zero does not move. The loop never waits for the device.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K).
        x: (B, C, H, W) float in [0, 1], centre of the ball.
        loss: float32 logits (B, K) to a scalar **sum** over rows (a mean would also work, as
            only signs are used, but underflows earlier).
        eps: radius, pixel units of [0, 1].
        step_size: length of one step, pixel units of [0, 1].
        num_steps: number of steps; 0 returns the projected start.
        start: (B, C, H, W) first iterate, projected before use.
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
    lower = (x - eps).clamp_(min=0.0)
    upper = (x + eps).clamp_(max=1.0)
    x_adv = torch.empty_like(x).copy_(start.detach()).clamp_(lower, upper)
    for _ in range(num_steps):
        with torch.enable_grad():
            leaf = x_adv.detach().requires_grad_(True)
            with nullcontext() if autocast is None else autocast():
                logits = model(leaf)
            (gradient,) = torch.autograd.grad(loss(logits.float()), leaf)
        direction = gradient.nan_to_num(nan=0.0).sign_()
        x_adv.add_(direction, alpha=step_size).clamp_(lower, upper)
    return x_adv
