"""Adversarial losses as functions of logits: TRADES and PGD-AT, weighted, with two labels a row, in parts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssat_ray.data.augment import Mix

LossParts = dict[str, Tensor]
Totals = tuple[Tensor, Tensor]
"""Denominators of the means over labelled rows and over all rows: sums of row weights, scalars."""


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def totals(y: Tensor, weights: Tensor | None = None) -> Totals:
    """The denominators of a batch (B,) of labels and row weights (None for ones), in float32.

    A rank or a micro-batch that holds a part of the rows gives its losses these of the whole batch: the
    parts' losses then add up to the whole batch's.
    """
    rows = torch.ones_like(y, dtype=torch.float32) if weights is None else weights.float()
    return (rows * (y >= 0)).sum(), rows.sum()


def _weighted_mean(values: Tensor, weights: Tensor, total: Tensor | None) -> Tensor:
    """Sum of weights * values over `total` (None: the sum of weights); 0 where that is 0."""
    if total is None:
        total = weights.sum()
    return (weights * values).sum() / torch.where(total > 0, total, torch.ones_like(total))


def _row_weights(logits: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
    if y.shape != logits.shape[:1]:
        raise ValueError(f"y has shape {tuple(y.shape)}, logits have {tuple(logits.shape)}")
    if weights is None:
        return logits.new_ones(logits.shape[0])
    if weights.shape != y.shape:
        raise ValueError(f"weights have shape {tuple(weights.shape)}, y has {tuple(y.shape)}")
    return weights.to(logits.dtype)


def _labelled_cross_entropy(
    logits: Tensor,
    y: Tensor,
    weights: Tensor,
    label_smoothing: float,
    of: Totals | None,
    mix: Mix | None,
) -> Tensor:
    rows = cross_entropies(logits, y, mix, label_smoothing)
    return _weighted_mean(rows, weights * (y >= 0), None if of is None else of[0])


def cross_entropies(
    logits: Tensor, y: Tensor, mix: Mix | None, label_smoothing: float = 0.0
) -> Tensor:
    """(B,) of each row; of a mixed one those of both labels by share. Without meaning where y is -1."""

    def plain(labels: Tensor) -> Tensor:
        return F.cross_entropy(
            logits, labels.clamp(min=0).long(), reduction="none", label_smoothing=label_smoothing
        )

    if mix is None:
        return plain(y)
    return mix.share * plain(y) + (1 - mix.share) * plain(mix.labels)


def trades_loss(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
    of: Totals | None = None,
    mix: Mix | None = None,
) -> tuple[Tensor, LossParts]:
    """Mean over labelled rows of CE(z, y) + beta * mean over all rows of KL(f(x) || f(x')).

    The gradient flows through both arguments of the KL, as in the reference code.

    Args:
        logits: (B, K) of the clean images, z.
        logits_adv: (B, K) of the adversarial images, z'.
        y: (B,) integer labels; -1 skips the CE of that row and keeps its KL.
        beta: weight of the KL term.
        label_smoothing: share of the target spread over all classes, for the CE only.
        weights: (B,) non-negative per-sample weights (coresets): both means become
            sum(w * l) / sum(w). None for ones.
        mix: CutMix's second labels and shares: a row's CE is then share * CE(z, y) + (1 - share) *
            CE(z, y2). A row has both labels or neither.
        of: `totals` of the batch that these rows are a part of; None: they are all of it.

    Returns:
        The scalar loss and detached scalars `loss`, `ce` and `kl` (nats; `kl` without beta).
        Without labelled rows `ce` is 0.

    Raises:
        ValueError: shapes do not match.

    Source: Zhang et al. 2019 (TRADES), equation 5 and reference code; method.md section 4.
    """
    if logits.shape != logits_adv.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, logits_adv {tuple(logits_adv.shape)}"
        )
    logits, logits_adv = _at_least_float32(logits), _at_least_float32(logits_adv)
    row_weights = _row_weights(logits, y, weights)
    ce = _labelled_cross_entropy(logits, y, row_weights, label_smoothing, of, mix)
    log_p, log_q = logits.log_softmax(dim=1), logits_adv.log_softmax(dim=1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=1)
    kl = _weighted_mean(divergence, row_weights, None if of is None else of[1])
    loss = ce + beta * kl
    return loss, {"loss": loss.detach(), "ce": ce.detach(), "kl": kl.detach()}


def pgd_at_loss(
    logits_adv: Tensor,
    y: Tensor,
    *,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
    of: Totals | None = None,
    mix: Mix | None = None,
) -> tuple[Tensor, LossParts]:
    """Mean over labelled rows of CE(z', y), the loss of PGD adversarial training; of clean logits, the
    standard one.

    Args:
        logits_adv: (B, K) of the adversarial images.
        y: (B,) integer labels; rows with -1 are ignored.
        label_smoothing: share of the target spread over all classes.
        weights: (B,) non-negative per-sample weights; the mean becomes sum(w * l) / sum(w).
        mix: as in `trades_loss`.
        of: as in `trades_loss`.

    Returns:
        The scalar loss and detached scalars `loss` and `ce`; 0 without labelled rows.

    Raises:
        ValueError: shapes do not match.

    Source: Madry et al. 2018, equation 2.1; method.md section 4.
    """
    logits_adv = _at_least_float32(logits_adv)
    row_weights = _row_weights(logits_adv, y, weights)
    loss = _labelled_cross_entropy(logits_adv, y, row_weights, label_smoothing, of, mix)
    return loss, {"loss": loss.detach(), "ce": loss.detach()}
