"""Losses against float64 loops and written-out gradients; a batch in parts adds up to the whole."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssat_ray.adversarial.losses import pgd_at_loss, totals, trades_loss
from ssat_ray.data.augment import Mix

Y = torch.tensor([2, -1, 0, 1, -1])
WEIGHTS = torch.tensor([0.5, 2.0, 1.5, 0.0, 3.0], dtype=torch.float64)
MIX = Mix(torch.tensor([1, -1, 0, 2, -1]), torch.tensor([0.25, 0.5, 0.9, 1.0, 0.0]))


def _logits(seed: int, rows: int = 5, classes: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


def _loop(
    z: Tensor, z_adv: Tensor, y: Tensor, beta: float, smoothing: float, w: Tensor
) -> tuple[float, float, float]:
    ce_sum = ce_weight = kl_sum = kl_weight = 0.0
    for i in range(len(y)):
        p = [math.exp(v) for v in z[i].tolist()]
        q = [math.exp(v) for v in z_adv[i].tolist()]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        weight, classes = float(w[i]), len(p)
        kl_sum += weight * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        kl_weight += weight
        if y[i] >= 0:
            target = [
                smoothing / classes + (1 - smoothing) * (k == int(y[i])) for k in range(classes)
            ]
            ce_sum -= weight * sum(t * math.log(a) for t, a in zip(target, p, strict=True))
            ce_weight += weight
    ce, kl = ce_sum / ce_weight, kl_sum / kl_weight
    return ce + beta * kl, ce, kl


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_trades_equals_a_loop(smoothing: float, weights: Tensor | None) -> None:
    z, z_adv = _logits(0), _logits(1)
    loss, parts = trades_loss(z, z_adv, Y, beta=6.0, label_smoothing=smoothing, weights=weights)
    ones = torch.ones(5) if weights is None else weights
    expected = _loop(z, z_adv, Y, 6.0, smoothing, ones)
    found = [float(loss), float(parts["ce"]), float(parts["kl"])]
    assert found == pytest.approx(expected, rel=1e-12)
    assert float(parts["loss"]) == float(loss) and not parts["kl"].requires_grad


def test_trades_gradients_equal_the_written_out_formula() -> None:
    """method.md section 5: the last-layer gradients of the TRADES loss, in closed form."""
    beta = 5.0
    z, z_adv = _logits(2).requires_grad_(), _logits(3).requires_grad_()
    loss, _ = trades_loss(z, z_adv, Y, beta=beta)
    found, found_adv = torch.autograd.grad(loss, (z, z_adv))
    p, q = z.detach().softmax(1), z_adv.detach().softmax(1)
    kl = (p * (p.log() - q.log())).sum(1, keepdim=True)
    ce = torch.zeros_like(p)
    labelled = (Y >= 0).nonzero().squeeze(1)
    for i in labelled.tolist():
        ce[i] = p[i]
        ce[i, Y[i]] -= 1
    expected = ce / len(labelled) + beta / 5 * p * (p.log() - q.log() - kl)
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(found_adv, beta / 5 * (q - p), atol=1e-12)


def test_gradients_equal_finite_differences() -> None:
    z, z_adv = _logits(4).requires_grad_(), _logits(5).requires_grad_()

    def trades(a: Tensor, b: Tensor) -> Tensor:
        return trades_loss(a, b, Y, beta=3.0, label_smoothing=0.1, weights=WEIGHTS)[0]

    def pgd_at(b: Tensor) -> Tensor:
        return pgd_at_loss(b, Y, label_smoothing=0.1, weights=WEIGHTS)[0]

    assert torch.autograd.gradcheck(trades, (z, z_adv))
    assert torch.autograd.gradcheck(pgd_at, (z_adv,))


def test_pgd_at_ignores_unlabelled_rows() -> None:
    z_adv = _logits(6)
    for weights in (None, WEIGHTS):
        loss, parts = pgd_at_loss(z_adv, Y, label_smoothing=0.2, weights=weights)
        ones = torch.ones(5) if weights is None else weights
        assert float(loss) == pytest.approx(_loop(z_adv, z_adv, Y, 0.0, 0.2, ones)[1], rel=1e-12)
        assert float(parts["ce"]) == float(loss)


def _soft_labels(y: Tensor, mix: Mix) -> Tensor:
    """One distribution over the classes a row, from both of its labels."""
    share = mix.share.double()[:, None]
    first, second = (F.one_hot(v.clamp(min=0), 3) for v in (y, mix.labels))
    return share * first + (1 - share) * second


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_two_labels_a_row_are_one_distribution_over_classes(weights: Tensor | None) -> None:
    z, z_adv, labelled = _logits(0), _logits(1), Y >= 0
    w = (torch.ones(5) if weights is None else weights)[labelled]
    soft = _soft_labels(Y, MIX)[labelled]

    def ce(logits: Tensor) -> float:
        rows = F.cross_entropy(logits[labelled], soft, reduction="none", label_smoothing=0.1)
        return float((w * rows).sum() / w.sum())

    settings: dict[str, Any] = {"label_smoothing": 0.1, "weights": weights, "mix": MIX}
    loss, parts = trades_loss(z, z_adv, Y, beta=6.0, **settings)
    _, plain = trades_loss(z, z_adv, Y, beta=6.0, label_smoothing=0.1, weights=weights)
    assert float(parts["ce"]) == pytest.approx(ce(z), rel=1e-6)
    assert torch.equal(parts["kl"], plain["kl"])
    assert float(loss) == pytest.approx(ce(z) + 6 * float(plain["kl"]), rel=1e-6)
    assert float(pgd_at_loss(z_adv, Y, **settings)[0]) == pytest.approx(ce(z_adv), rel=1e-6)


def test_batches_without_labels_or_weight_give_zero_not_nan() -> None:
    z, z_adv = _logits(7).requires_grad_(), _logits(8).requires_grad_()
    none = torch.full((5,), -1)
    loss, parts = trades_loss(z, z_adv, none, beta=2.0)
    assert float(parts["ce"]) == 0.0 and float(parts["kl"]) > 0
    assert loss.item() == pytest.approx(2 * float(parts["kl"]))
    loss_at, _ = pgd_at_loss(z_adv, none)
    assert loss_at.item() == 0.0
    zero, _ = trades_loss(z, z_adv, Y, beta=2.0, weights=torch.zeros(5))
    for scalar in (loss, loss_at, zero):
        gradients = torch.autograd.grad(scalar, (z, z_adv), allow_unused=True)
        assert all(g is None or bool(g.isfinite().all()) for g in gradients)
    assert zero.item() == 0.0


def test_half_precision_logits_are_raised_to_float32() -> None:
    z, z_adv = _logits(9).bfloat16(), _logits(10).bfloat16()
    loss, _ = trades_loss(z, z_adv, Y, beta=1.0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, trades_loss(z.float(), z_adv.float(), Y, beta=1.0)[0])


def test_mismatched_shapes_are_errors() -> None:
    with pytest.raises(ValueError, match="logits_adv"):
        trades_loss(_logits(0), _logits(0)[:4], Y, beta=1.0)
    with pytest.raises(ValueError, match="y has shape"):
        pgd_at_loss(_logits(0), Y[:4])
    with pytest.raises(ValueError, match="weights"):
        pgd_at_loss(_logits(0), Y, weights=torch.ones(4))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_parts_of_a_batch_add_up_to_the_whole(weights: Tensor | None) -> None:
    """However the rows are cut; the last part has no labelled row at all."""
    z, z_adv = _logits(0).requires_grad_(), _logits(1).requires_grad_()
    whole, parts = trades_loss(z, z_adv, Y, beta=6.0, label_smoothing=0.1, weights=weights, mix=MIX)
    of, found = totals(Y, weights), dict.fromkeys(parts, 0.0)
    loss_at, of_at = pgd_at_loss(z_adv, Y, weights=weights)[0], torch.zeros(())
    total = torch.zeros(())
    for rows in (slice(0, 1), slice(1, 4), slice(4, 5)):
        some = None if weights is None else weights[rows]
        mix = Mix(MIX.labels[rows], MIX.share[rows])
        loss, of_part = trades_loss(
            z[rows],
            z_adv[rows],
            Y[rows],
            beta=6.0,
            label_smoothing=0.1,
            weights=some,
            mix=mix,
            of=of,
        )
        total = total + loss
        found = {name: value + float(of_part[name]) for name, value in found.items()}
        of_at = of_at + pgd_at_loss(z_adv[rows], Y[rows], weights=some, of=of)[0]
    assert found == pytest.approx({name: float(v) for name, v in parts.items()}, rel=1e-6)
    assert float(of_at.detach()) == pytest.approx(float(loss_at.detach()), rel=1e-6)
    for a, b in zip(
        torch.autograd.grad(total, (z, z_adv)), torch.autograd.grad(whole, (z, z_adv)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
