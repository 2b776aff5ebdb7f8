"""Clean and PGD flags against closed forms, a float64 loop and other batchings; classes; signs of masking."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssat_ray.adversarial.evaluation import (
    class_accuracies,
    clean_flags,
    masking_warnings,
    pgd_flags,
    worst_class,
)

PGD: dict[str, Any] = {"eps": 0.05, "step_size": 0.02, "num_steps": 5, "seed": 0}


def test_clean_flags_and_restored_mode(linear: Any, data: Any) -> None:
    norm = nn.BatchNorm2d(1)
    model = nn.Sequential(norm, nn.Dropout(0.9), linear(3))
    x, y = data(model.eval(), 10, 3)
    model.train()
    flags = clean_flags(model, x, y, 4)
    assert flags.tolist() == [False] + [True] * 9
    assert flags.dtype == torch.bool and model.training and norm.training
    assert norm.state_dict()["num_batches_tracked"].item() == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(flags, clean_flags(model, x, y))


def test_logits_that_are_not_finite_count_as_wrong() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2] * float("nan")

    assert not clean_flags(Broken(), torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)).any()


def test_pgd_flags_of_a_linear_model_are_exact(linear: Any, data: Any, linear_truth: Any) -> None:
    model = linear(2, seed=3)
    x, y = data(model, 60, 2)
    truth = linear_truth(model, x, y, 0.05)
    assert 5 < sum(truth) < 55
    flags = pgd_flags(model, x, y, eps=0.05, step_size=0.05, num_steps=3, seed=0)
    assert flags.tolist() == truth


def test_pgd_flags_of_a_linear_model_are_exact_in_the_l2_ball(l2_case: Any) -> None:
    model, x, y, eps, truth = l2_case
    settings: dict[str, Any] = {"eps": eps, "norm": "l2", "step_size": 0.04, "num_steps": 60}
    assert pgd_flags(model, x, y, **settings, seed=0).tolist() == truth
    assert sum(truth) == 30


def _start(seed: int, restart: int, image_id: int, norm: str) -> np.ndarray:
    """The noise of one image, (1, 4, 4) float64."""
    key = np.array([seed, image_id], dtype=np.uint64)
    counter = np.array([0, 0, 0, restart], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    if norm == "l2":
        noise = generator.standard_normal((1, 4, 4), dtype=np.float32).astype(np.float64)
        return noise / np.sqrt((noise**2).sum())
    return 2 * generator.random((1, 4, 4), dtype=np.float32).astype(np.float64) - 1


def _attacked_in_float64(
    model: nn.Sequential, image: np.ndarray, label: int, start: np.ndarray, norm: str, eps: float
) -> bool:
    """Whether one image stays correct at the end of PGD-CE on z = tanh(x A + a) B + b, by hand."""
    a, a0, b, b0 = (p.detach().double().numpy() for p in model.parameters())
    x = image.reshape(-1)

    def projected(x_adv: np.ndarray) -> np.ndarray:
        if norm == "linf":
            return np.clip(np.clip(x_adv, x - eps, x + eps), 0, 1)
        length = np.sqrt(((x_adv - x) ** 2).sum())
        return np.clip(x + (x_adv - x) * min(1.0, eps / max(length, 1e-300)), 0, 1)

    x_adv = projected(np.clip(x + eps * start.reshape(-1), 0, 1))
    for _ in range(3):
        hidden = np.tanh(a @ x_adv + a0)
        logits = b @ hidden + b0
        p = np.exp(logits - logits.max())
        p /= p.sum()
        p[label] -= 1
        gradient = ((b.T @ p) * (1 - hidden**2)) @ a
        unit = np.sign(gradient) if norm == "linf" else gradient / np.sqrt((gradient**2).sum())
        x_adv = projected(x_adv + 0.4 * eps * unit)
    return bool((b @ np.tanh(a @ x_adv + a0) + b0).argmax() == label)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.12), ("l2", 0.4)])
def test_pgd_flags_equal_a_float64_loop(norm: Any, eps: float, curved: Any, data: Any) -> None:
    model = curved()
    x, y = data(model, 50, 4)
    expected = clean_flags(model, x, y).tolist()
    for restart in range(2):
        for i, (image, label) in enumerate(zip(x.double().numpy(), y.tolist(), strict=True)):
            start = _start(9, restart, 20 + i, norm)
            expected[i] &= _attacked_in_float64(model, image, label, start, norm, eps)
    steps: dict[str, Any] = {"step_size": 0.4 * eps, "num_steps": 3, "restarts": 2}
    found = pgd_flags(model, x, y, eps=eps, **steps, seed=9, first_id=20, norm=norm)
    assert found.tolist() == expected
    assert 5 < sum(expected) < 45


def test_pgd_flags_do_not_depend_on_batches_shards_or_order(curved: Any, data: Any) -> None:
    model = curved()
    x, y = data(model, 60, 4)
    weak: dict[str, Any] = {"eps": 0.3, "step_size": 0.01, "num_steps": 1, "batch_size": 60}
    flags = pgd_flags(model, x, y, **weak, seed=0)
    assert 10 < int(flags.sum()) < 59
    for batch_size in (1, 7, 32):
        assert torch.equal(
            flags, pgd_flags(model, x, y, **weak | {"batch_size": batch_size}, seed=0)
        )
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        flags[order], pgd_flags(model, x[order], y[order], **weak, seed=0, ids=order)
    )
    shard = pgd_flags(model, x[20:], y[20:], **weak, seed=0, first_id=20)
    assert torch.equal(flags[20:], shard)
    # The random start matters here, so the equalities above are not empty.
    others = [pgd_flags(model, x, y, **weak, seed=seed) for seed in (1, 2)]
    assert not all(torch.equal(flags, other) for other in others)
    assert not torch.equal(flags[20:], pgd_flags(model, x[20:], y[20:], **weak, seed=0))


def test_restarts_combine_and_their_starts_are_keyed_by_seed_restart_and_id(
    linear: Any, data: Any
) -> None:
    model = linear(3, seed=2)
    x, y = data(model, 40, 3)
    ids = torch.arange(100, 140)
    starts: dict[str, Any] = {"eps": 0.4, "step_size": 0.0, "num_steps": 0}
    expected = clean_flags(model, x, y)
    counts = [int(expected.sum())]
    for restart in range(3):
        noise = np.stack(
            [
                np.random.Generator(
                    np.random.Philox(
                        key=np.array([9, i], dtype=np.uint64),
                        counter=np.array([0, 0, 0, restart], dtype=np.uint64),
                    )
                ).random((1, 4, 4), dtype=np.float32)
                for i in ids.tolist()
            ]
        )
        start = (x + 0.4 * (2 * torch.from_numpy(noise) - 1)).clamp(0, 1)
        expected &= clean_flags(model, start, y)
        found = pgd_flags(model, x, y, **starts, seed=9, restarts=restart + 1, ids=ids)
        assert torch.equal(found, expected)
        counts.append(int(expected.sum()))
    assert counts[0] > counts[1] > counts[3]


def test_bad_input_is_named(linear: Any, data: Any) -> None:
    model = linear(2)
    x, y = data(model, 4, 2)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        clean_flags(model, 255 * x, y)
    with pytest.raises(ValueError, match="no label"):
        clean_flags(model, x, y - 2)
    with pytest.raises(ValueError, match="batch_size"):
        clean_flags(model, x, y, 0)
    with pytest.raises(ValueError, match="restarts"):
        pgd_flags(model, x, y, **PGD, restarts=0)
    with pytest.raises(ValueError, match="ids"):
        pgd_flags(model, x, y, **PGD, ids=torch.arange(3))
    with pytest.raises(ValueError, match="float32"):
        clean_flags(linear(2).double(), x, y)


def test_empty_sets_give_empty_flags(linear: Any) -> None:
    x, y = torch.rand(0, 1, 4, 4), torch.zeros(0, dtype=torch.long)
    assert clean_flags(linear(2), x, y).shape == (0,)
    assert pgd_flags(linear(2), x, y, **PGD).shape == (0,)


def test_class_accuracies_and_the_worst_class() -> None:
    labels = np.array([2, 0, 2, 0, 2, 4])
    flags = np.array([True, False, False, True, False, True])
    found = class_accuracies(flags, labels, 6)
    assert found == [0.5, None, pytest.approx(1 / 3), None, 1.0, None]
    assert worst_class(found) == 2
    assert worst_class([0.5, None, 0.5]) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"clean": 0.6, "pgd": 0.62, "apgd-ce": 0.6}, ["pgd accuracy 0.6200 exceeds clean"]),
        ({"autoattack": 0.605}, ["autoattack accuracy 0.6050 exceeds pgd"]),
        ({"apgd-ce": 0.63}, ["apgd-ce accuracy 0.6300 exceeds pgd"]),
        ({"apgd-ce": 0.619}, []),
        ({"autoattack": 0.45, "apgd-ce": 0.55}, ["pgd accuracy 0.6000 exceeds autoattack"]),
        ({"apgd-ce": 0.56}, ["autoattack accuracy 0.5700 exceeds apgd-ce"]),
    ],
)
def test_masking_warnings(change: dict[str, float], words: list[str]) -> None:
    base = {"clean": 0.9, "pgd": 0.6, "apgd-ce": 0.61, "autoattack": 0.57}
    found = masking_warnings(base | change)
    assert len(found) == len(words)
    assert all(text.startswith(word) for text, word in zip(found, words, strict=True))


def test_masking_warnings_accepts_parts_and_checks_values() -> None:
    assert masking_warnings({"clean": 0.5}) == []
    with pytest.raises(ValueError, match="unknown"):
        masking_warnings({"fgsm": 0.5})
    with pytest.raises(ValueError, match="fraction"):
        masking_warnings({"pgd": 61.8})
    with pytest.raises(ValueError, match="fraction"):
        masking_warnings({"pgd": float("nan")})
