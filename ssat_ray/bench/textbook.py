"""The TRADES step as textbooks and most public code have it: what `ssat bench step` compares with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def trades_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    *,
    eps: float,
    step_size: float,
    num_steps: int,
    beta: float,
) -> float:
    """One step in float32; the clean logits are computed in every attack step, parameters keep gradients.

    Args:
        x: (B, C, H, W) contiguous, in [0, 1]. y: (B,). noise: (B, C, H, W) standard normal.

    Returns:
        The loss.

    Source: the reference code of Zhang et al. 2019 (TRADES), whose start is not clamped to [0, 1].
    """
    kl = nn.KLDivLoss(reduction="sum")
    model.eval()
    x_adv = (x + 0.001 * noise).clamp(0, 1)
    for _ in range(num_steps):
        x_adv.requires_grad_()
        loss = kl(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1))
        (grad,) = torch.autograd.grad(loss, [x_adv])
        x_adv = x_adv.detach() + step_size * torch.sign(grad.detach())
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    model.train()
    optimiser.zero_grad()
    logits = model(x)
    robust = kl(F.log_softmax(model(x_adv), dim=1), F.softmax(logits, dim=1)) / len(x)
    total = F.cross_entropy(logits, y) + beta * robust
    total.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return float(total.detach())
