"""Training objectives (TRADES, PGD-AT, clean) as modules with one forward, and their attack."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssat_ray.adversarial.attacks import (
    RANDOM_NOISE,
    AutocastFactory,
    NoiseKind,
    Norm,
    frozen,
    gaussian_start,
    pgd,
    random_start,
)
from ssat_ray.adversarial.losses import (
    LossParts,
    Totals,
    cross_entropies,
    pgd_at_loss,
    trades_loss,
)
from ssat_ray.data.augment import Mix

ObjectiveName = Literal["trades", "pgd-at"]


def _check_label_smoothing(label_smoothing: float) -> None:
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; allowed: 0 <= value < 1")


class AdversarialObjective(nn.Module):
    """A classifier with its adversarial loss, so that DDP sees one forward a step.

    Wrap this module, not the classifier, in DDP, and call `perturb` on the bare module.

    Args:
        model: classifier, (B, C, H, W) in [0, 1] to logits (B, K).
        name: "trades" or "pgd-at".
        beta: weight of the KL term; not used by "pgd-at".
        label_smoothing: of the cross-entropy, in [0, 1).
        norm: of the ball that `perturb` stays in.
        every_row_labelled: promises that no label is -1; the attack of "pgd-at" then needs no prediction.

    Raises:
        ValueError: an unknown name or norm, or a value out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: ObjectiveName,
        beta: float = 6.0,
        label_smoothing: float = 0.0,
        norm: Norm = "linf",
        every_row_labelled: bool = False,
    ) -> None:
        super().__init__()
        if norm not in get_args(Norm):
            raise ValueError(f"norm is {norm!r}; allowed: {', '.join(get_args(Norm))}")
        if name not in get_args(ObjectiveName):
            raise ValueError(
                f"objective is {name!r}; allowed: {', '.join(get_args(ObjectiveName))}"
            )
        if not (math.isfinite(beta) and beta >= 0):
            raise ValueError(f"beta is {beta}; allowed: a finite number, 0 or more")
        _check_label_smoothing(label_smoothing)
        self.model = model
        self.name: ObjectiveName = name
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.norm: Norm = norm
        self.every_row_labelled = every_row_labelled

    @property
    def noise_kind(self) -> NoiseKind:
        """Which noise `perturb` expects: standard "normal", or "uniform" in [-1, 1]."""
        return "normal" if self.name == "trades" else RANDOM_NOISE[self.norm]

    def forward(
        self,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        weights: Tensor | None = None,
        of: Totals | None = None,
        mix: Mix | None = None,
    ) -> tuple[Tensor, LossParts]:
        """The loss of one batch, on float32 logits, in the module's current mode (train).

        The clean and the adversarial batch pass through the model in separate calls, so that
        BatchNorm normalises each by its own statistics, as in the TRADES reference code.
        "pgd-at" does not run the clean batch.

        Args:
            x: (B, C, H, W) float in [0, 1].
            x_adv: (B, C, H, W) what `perturb` returned for `x`.
            y: (B,) integer labels, -1 for none.
            weights: (B,) per-sample weights or None.
            mix: CutMix's second labels and shares, or None.
            of: `totals` of the batch that these rows are a part of, or None.

        Returns:
            The scalar loss and its detached parts, see `trades_loss` and `pgd_at_loss`.
        """
        if self.name == "pgd-at":
            logits_adv = self.model(x_adv).float()
            return pgd_at_loss(
                logits_adv,
                y,
                label_smoothing=self.label_smoothing,
                weights=weights,
                of=of,
                mix=mix,
            )
        logits, logits_adv = self.model(x).float(), self.model(x_adv).float()
        return trades_loss(
            logits,
            logits_adv,
            y,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            weights=weights,
            of=of,
            mix=mix,
        )

    def perturb(
        self,
        x: Tensor,
        y: Tensor,
        noise: Tensor,
        *,
        eps: float,
        step_size: float,
        num_steps: int,
        autocast: AutocastFactory | None = None,
        mix: Mix | None = None,
    ) -> Tensor:
        """Training attack on the bare, frozen, eval-mode model; BatchNorm statistics stay.

        TRADES: KL ascent; the clean logits do not change, so they are computed once. PGD-AT: CE
        ascent on y, and on the model's own prediction where y is -1; with `mix` on both labels by share.

        Args:
            x: (B, C, H, W) float in [0, 1].
            y: (B,) integer labels, -1 for none; not used by "trades".
            noise: (B, C, H, W) of kind `noise_kind`, the caller's slice of the global batch's.
            eps, step_size, num_steps, autocast: see `attacks.pgd`.
            mix: CutMix's second labels and shares, or None; not used by "trades".

        Returns:
            (B, C, H, W) adversarial images, detached, in the memory format of `x`.

        Source: TRADES reference code; architecture.md, decisions 5 and 6.
        """
        with frozen(self.model) as model:
            if self.name == "trades":
                probabilities = self._clean_logits(x, autocast).softmax(dim=1)

                def ascent(logits: Tensor) -> Tensor:
                    return F.kl_div(logits.log_softmax(dim=1), probabilities, reduction="sum")

                start = gaussian_start(x, noise)
            else:
                labels, second = y.long(), mix
                if not self.every_row_labelled:
                    predicted = self._clean_logits(x, autocast).argmax(dim=1)
                    if mix is not None:
                        second = Mix(torch.where(y < 0, predicted, mix.labels), mix.share)
                    labels = torch.where(labels < 0, predicted, labels)

                def ascent(logits: Tensor) -> Tensor:
                    return cross_entropies(logits, labels, second).sum()

                start = random_start(x, noise, eps, self.norm)
            return pgd(
                model,
                x,
                ascent,
                eps=eps,
                step_size=step_size,
                num_steps=num_steps,
                start=start,
                norm=self.norm,
                autocast=autocast,
            )

    @torch.no_grad()
    def _clean_logits(self, x: Tensor, autocast: AutocastFactory | None) -> Tensor:
        if autocast is None:
            logits: Tensor = self.model(x)
        else:
            with autocast():
                logits = self.model(x)
        return logits.float()


class CleanObjective(nn.Module):
    """Standard cross-entropy training with the same calling style as `AdversarialObjective`.

    Args:
        model: classifier, (B, C, H, W) in [0, 1] to logits (B, K).
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Raises:
        ValueError: label_smoothing is out of range.
    """

    def __init__(self, model: nn.Module, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        _check_label_smoothing(label_smoothing)
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        weights: Tensor | None = None,
        of: Totals | None = None,
    ) -> tuple[Tensor, LossParts]:
        """Mean cross-entropy over the rows with a label.

        Args:
            x: (B, C, H, W) float in [0, 1].
            y: (B,) integer labels; rows with -1 are ignored.
            weights: (B,) per-sample weights or None.
            of: `totals` of the batch that these rows are a part of, or None.

        Returns:
            The scalar loss and detached scalars `loss` and `ce`; 0 without labelled rows.
        """
        logits = self.model(x).float()
        return pgd_at_loss(logits, y, label_smoothing=self.label_smoothing, weights=weights, of=of)
