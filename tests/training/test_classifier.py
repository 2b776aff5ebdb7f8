"""The training loop: batches, a step against a hand-written one, learning, resuming, NaN and cost."""

from copy import deepcopy
from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ssat_ray.config import (
    DataConfig,
    IntermediateConfig,
    ModelConfig,
    ObjectiveConfig,
    ThreatConfig,
    TrainConfig,
)
from ssat_ray.data.batches import generator
from ssat_ray.data.labelled import read_labelled
from ssat_ray.models.registry import build_classifier
from ssat_ray.training.classifier import ClassifierTask, ClassifierTrainer
from ssat_ray.training.state import Paused, States
from ssat_ray.training.world import World

SMALL = ModelConfig(widths=(4, 8), strides=(2, 2))
DIGITS = read_labelled(DataConfig(num_test=900, num_labelled=200, num_validation=60))
EPS, STEP_SIZE, NUM_STEPS, BETA, DECAY = 0.1, 0.04, 3, 4.0, 0.01


class Killed(Exception):
    """Stands for a kill at a moment of the test's choosing."""


def _train(**changes: object) -> TrainConfig:
    options = {
        "batch_size": 24,
        "bn_group": 24,
        "lr": 0.05,
        "warmup_steps": 4,
        "precision": "float32",
        "max_steps": 20,
        "eval_every": 5,
        "weight_decay": DECAY,
    }
    return TrainConfig(**{**options, **changes})


def _intermediate(**changes: object) -> IntermediateConfig:
    options = {
        "batch_size": 24,
        "bn_group": 24,
        "lr": 0.05,
        "warmup_steps": 4,
        "precision": "float32",
    }
    return IntermediateConfig(**{**options, "num_steps": 24, **changes})


def _trainer(
    config: TrainConfig | IntermediateConfig,
    seed: int = 0,
    objective: str = "trades",
    pool_weight: float = 1.0,
    **changes,
) -> ClassifierTrainer:
    pool, pseudo = DIGITS.tensors("test")
    options = {
        "model": build_classifier(SMALL, (1, 8, 8), 10, seed),
        "optimiser": config,
        "objective": ObjectiveConfig(
            name=objective,
            beta=BETA,
            num_steps=NUM_STEPS,
            step_size=STEP_SIZE,
            pool_weight=pool_weight,
        ),
        "threat": ThreatConfig(eps=EPS),
        "labelled": DIGITS.tensors("labelled"),
        "validation": DIGITS.tensors("validation"),
        "unlabelled": (pool, pseudo),
        "seed": seed,
    }
    return ClassifierTrainer(ClassifierTask(**{**options, **changes}), World())


def _quiet(done: int, total: int, note: str) -> None:
    """A progress callback that looks away."""


def _run(trainer: ClassifierTrainer, folder: Path, progress=_quiet) -> dict[str, Any]:
    return trainer.run(States(folder), lambda step: step % 8 == 0, progress)


def _wider() -> nn.Module:
    return build_classifier(ModelConfig(widths=(8, 16), strides=(1, 2)), (1, 8, 8), 10, 0)


def _weights(trainer: ClassifierTrainer) -> dict[str, Tensor]:
    averaged = {f"ema.{k}": v for k, v in trainer.ema.model.state_dict().items()}
    return {k: v.clone() for k, v in {**trainer.model.state_dict(), **averaged}.items()}


def _untimed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def _assert_identical(a: ClassifierTrainer, b: ClassifierTrainer) -> None:
    x, y = _weights(a), _weights(b)
    assert x.keys() == y.keys()
    assert [key for key in x if not torch.equal(x[key], y[key])] == []


# -- one step ---------------------------------------------------------------------------------------------


def _kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    p, q = p_logits.softmax(1), q_logits.softmax(1)
    return (p * (p / q).log()).sum(1)


def _attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    objective: str,
    steps: int = NUM_STEPS,
    step_size: float = STEP_SIZE,
) -> Tensor:
    model = deepcopy(model).eval()
    with torch.no_grad():
        clean = model(x)
    x_adv = x + (0.001 * noise if objective == "trades" else EPS * noise)
    x_adv = x_adv.clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        logits = model(x_adv)
        loss = _kl(clean, logits).sum()
        if objective == "pgd-at":
            loss = -logits.log_softmax(1).gather(1, y[:, None]).sum()
        gradient = torch.autograd.grad(loss, x_adv)[0]
        x_adv = x_adv.detach() + step_size * gradient.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, x - EPS), x + EPS).clamp(0, 1)
    return x_adv.detach()


@pytest.mark.parametrize("objective", ["trades", "pgd-at"])
def test_two_steps_equal_hand_written_ones(objective: str) -> None:
    trainer = _trainer(_train(), objective=objective)
    reference = build_classifier(SMALL, (1, 8, 8), 10, 0)
    velocity = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    for step in range(2):
        x, y = trainer.feed.batch(step).x, trainer.feed.batch(step).y
        noise = trainer.feed.noise("normal" if objective == "trades" else "uniform", step)
        x_adv = _attack(reference, x, y, noise, objective)
        reference.train()
        if objective == "trades":
            clean, adversarial = reference(x), reference(x_adv)
            ce = -clean.log_softmax(1).gather(1, y[:, None]).mean()
            loss = ce + BETA * _kl(clean, adversarial).mean()
        else:
            loss = -reference(x_adv).log_softmax(1).gather(1, y[:, None]).mean()
        reference.zero_grad()
        loss.backward()
        lr = 0.05 * (step + 1) / 4  # warm-up
        with torch.no_grad():
            for name, p in reference.named_parameters():
                assert p.grad is not None
                gradient = p.grad + (DECAY * p if p.ndim > 1 else 0)
                velocity[name] = 0.9 * velocity[name] + gradient
                p -= lr * (gradient + 0.9 * velocity[name])
        trainer.advance()
        assert trainer.step == step + 1
        found = trainer.model.state_dict()
        for key, value in reference.state_dict().items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=key)
        assert trainer.mean_losses()["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_a_step_leaves_the_model_trainable_and_in_train_mode() -> None:
    trainer = _trainer(_train(precision="bf16"))
    trainer.model.train()
    trainer.advance()
    assert trainer.model.training and all(p.requires_grad for p in trainer.model.parameters())
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert trainer.ema.num_updates == 1 and not trainer.ema.model.training


def test_validation_equals_a_hand_written_pgd_10_on_the_averaged_model() -> None:
    trainer = _trainer(_intermediate(num_steps=60, lr=0.3, ema_decay=0.8), model=_wider())
    for _ in range(60):
        trainer.advance()
    clean, robust = trainer.validate()
    images, labels = DIGITS.tensors("validation")
    x = images.float() / 255
    with torch.no_grad():
        right = (trainer.ema.model(x).argmax(1) == labels).float().mean()
    assert clean == pytest.approx(100 * float(right))
    noise = 2 * torch.rand(x.shape, generator=generator(0, "evaluate", 0)) - 1
    x_adv = _attack(trainer.ema.model, x, labels, noise, "pgd-at", 10, EPS / 4)
    with torch.no_grad():
        right = (trainer.ema.model(x_adv).argmax(1) == labels).float().mean()
    assert robust == pytest.approx(100 * float(right), abs=100 / 60 + 1e-6)  # one image on an edge
    assert trainer.validate() == (clean, robust) and robust < clean and clean > 40
    found = []
    for eps in (1e-6, 0.9):
        other = _trainer(_intermediate(), model=_wider(), threat=ThreatConfig(eps=eps))
        other.ema.model.load_state_dict(trainer.ema.model.state_dict())
        found.append(other.validate())
    assert found[0] == (clean, clean) and found[1][0] == clean and found[1][1] < robust + 1e-9


@pytest.mark.parametrize("steps", [1, 15])
def test_validation_takes_the_asked_steps(steps: int) -> None:
    trainer = _trainer(_train(val_pgd_steps=steps), model=_wider())
    images, labels = DIGITS.tensors("validation")
    x = images.float() / 255
    noise = 2 * torch.rand(x.shape, generator=generator(0, "evaluate", 0)) - 1
    model = trainer.ema.model
    x_adv = _attack(model, x, labels, noise, "pgd-at", steps, EPS / 4)
    with torch.no_grad():
        right = (model(x_adv).argmax(1) == labels).float().mean()
    assert trainer.validate()[1] == pytest.approx(100 * float(right), abs=100 / 60 + 1e-6)


# -- the loop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clean", "trades", "pgd-at"])
def test_a_short_run_learns(kind: str) -> None:
    changes = {"lr": 0.3, "batch_size": 48, "bn_group": 48}
    config = _intermediate(num_steps=90, **changes) if kind == "clean" else _train(**changes)
    trainer = _trainer(
        config,
        objective="trades" if kind == "clean" else kind,
        model=_wider(),
        threat=ThreatConfig(eps=0.05),
    )
    losses = []
    for _ in range(6):
        for _ in range(10):
            trainer.advance()
        losses.append(trainer.mean_losses()["loss"])
    assert losses[-1] < 0.8 * losses[0], losses


def test_a_run_ends_at_the_plateau_plus_the_cool_down(tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    trainer = _trainer(_train(max_steps=15, cooldown_fraction=0.4))
    result = _run(trainer, tmp_path, lambda *call: calls.append(call))
    assert trainer.finished and (result["steps"], result["plateau_step"]) == (21, 15)
    assert result["hit_max_steps"] is True
    assert [row["step"] for row in result["history"]] == [5, 10, 15, 20, 21]
    rates = [row["lr"] for row in result["history"]]
    assert rates == pytest.approx([0.05, 0.05, 0.05, 0.05 * 2 / 6, 0.05 * 1 / 6])
    assert result["val_pgd"] == result["history"][-1]["val_pgd"]
    assert (calls[-1][0], calls[-1][1]) == (21, 21) and calls[0][:2] == (5, 21)
    assert result["seconds"] > 0 and States(tmp_path).load() is not None


def test_an_intermediate_run_takes_its_steps_and_no_more(tmp_path: Path) -> None:
    trainer = _trainer(_intermediate(num_steps=13))
    result = _run(trainer, tmp_path)
    assert (result["steps"], result["plateau_step"], result["hit_max_steps"]) == (13, None, False)
    assert [row["step"] for row in result["history"]] == [13]


RECIPE = {"cutmix": 1.0, "augment_flip": True, "schedule": "onecycle", "pct_start": 0.2}
RUNS = {
    "dropout": lambda: _train(max_steps=15, cooldown_fraction=0.5),
    "train": lambda: _train(max_steps=15, cooldown_fraction=0.5),
    "intermediate": lambda: _intermediate(),
    "recipe": lambda: _train(**RECIPE, num_steps=23, eval_every=3, keep="best", lr=1.0),
}


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("killed_at", [10, 20])
def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path, kind: str, killed_at: int) -> None:
    config = RUNS[kind]()

    def model(seed: int) -> nn.Module:
        found = build_classifier(SMALL, (1, 8, 8), 10, seed)
        if kind == "dropout":  # draws numbers itself
            found.logits = nn.Sequential(nn.Dropout(0.3), found.logits)
        return found

    whole = _trainer(config, model=model(0))
    expected = _run(whole, tmp_path / "whole")
    assert kind != "recipe" or expected["kept_step"] < 8, "the best must be from before the kill"

    def kill(done: int, total: int, note: str) -> None:
        if done == killed_at:
            raise Killed

    broken = tmp_path / "broken"
    with pytest.raises(Killed):
        _run(_trainer(config, model=model(0)), broken, kill)
    state = States(broken).load()
    assert state is not None and state["step"] == 8 * (killed_at // 8)
    again = _trainer(config, model=model(99))
    steps: list[int] = []
    found = _run(again, broken, lambda done, *_: steps.append(done))
    assert min(steps) > state["step"], "it went on, it did not start again"
    _assert_identical(whole, again)
    assert _untimed(found["history"]) == _untimed(expected["history"])
    for key in expected.keys() - {"seconds", "history", "resumed_step"}:
        assert found[key] == expected[key]
    assert (expected["resumed_step"], found["resumed_step"]) == (0, state["step"])
    assert found["seconds"] >= state["seconds"] > 0, "time survives a resume"


def test_a_run_that_pauses_continues_to_the_same_bits(tmp_path: Path) -> None:
    whole, folder = _trainer(_train()), tmp_path / "paused"
    expected = _run(whole, tmp_path / "whole")
    for pause, step in (
        (1, 5),
        (5, 5),
        (7, 10),
    ):  # at the first validation from there on; a second time at once
        with pytest.raises(Paused) as found:
            _trainer(_train()).run(States(folder), lambda _: False, _quiet, pause)
        assert [row["step"] for row in found.value.history] == list(range(5, step + 1, 5))
        state = States(folder).load()
        assert state is not None and state["step"] == step and state["seconds"] > 0
    again = _trainer(_train(), model=build_classifier(SMALL, (1, 8, 8), 10, 99))
    ended = again.run(States(folder), lambda _: False, _quiet, 10_000)
    _assert_identical(whole, again)
    assert _untimed(ended["history"]) == _untimed(expected["history"])


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer = _trainer(_intermediate(num_steps=6), seed=seed)
        torch.rand(5)  # the global generator must not matter
        _run(trainer, tmp_path / name)
        runs.append(trainer)
    _assert_identical(runs[0], runs[1])
    assert not torch.equal(runs[0].model.logits.weight, runs[2].model.logits.weight)


@pytest.mark.parametrize("kind", ["train", "intermediate"])
def test_an_exploding_run_says_what_to_do(tmp_path: Path, kind: str) -> None:
    changes = {"lr": 1e30, "warmup_steps": 0}
    config = _train(**changes) if kind == "train" else _intermediate(**changes)
    with pytest.raises(FloatingPointError, match=r"NaN or infinite.*lr 1e\+30.*lower the learning"):
        _run(_trainer(config), tmp_path)


@pytest.mark.parametrize("kind", ["train", "intermediate"])
def test_no_state_of_an_exploded_run_is_saved(tmp_path: Path, kind: str) -> None:
    """Far from its next validation it ends at the first state that would not be finite."""
    changes = {"lr": 1e30, "warmup_steps": 0}
    config = _train(eval_every=20, **changes) if kind == "train" else _intermediate(**changes)
    with pytest.raises(FloatingPointError, match="before step 8 "):
        _run(_trainer(config), tmp_path)
    assert list(tmp_path.iterdir()) == []


class FlopCounter(TorchDispatchMode):
    """Sums PyTorch's own formulas over every operation that runs, backward included."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            formula = flop_registry[func._overloadpacket]
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


@pytest.mark.parametrize("objective", ["trades", "pgd-at", "clean"])
@pytest.mark.parametrize("labels", ["all", "none"])
def test_flops_are_those_of_a_counted_step(labels: str, objective: str) -> None:
    """Nearly: the first convolution needs no gradient of its input in the weight update."""
    config = _intermediate(num_steps=1) if objective == "clean" else _train()
    name, (pool, pseudo) = "trades" if objective == "clean" else objective, DIGITS.tensors("test")
    unlabelled = (pool, pseudo if labels == "all" else torch.full_like(pseudo, -1))
    trainer = _trainer(config, objective=name, unlabelled=unlabelled)
    with FlopCounter() as counter:
        trainer.advance()
    trainer.mean_losses()
    trainer.history.append({"step": 1, "val_clean": 0.0, "val_pgd": 0.0})
    assert trainer.result()["flops"] == pytest.approx(
        counter.total, rel=0.1 if objective == "clean" else 0.05
    )


def test_max_steps_is_kept_between_evaluations(tmp_path: Path) -> None:
    trainer = _trainer(_train(max_steps=6, eval_every=5, cooldown_fraction=0.5))
    result = _run(trainer, tmp_path)
    assert (result["plateau_step"], result["hit_max_steps"], result["steps"]) == (6, True, 9)


def test_a_schedule_with_an_end_ends_there(tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    config = _train(schedule="cosine", num_epochs=2, eval_every=4, max_steps=5)
    trainer = _trainer(config)  # 200 labelled images: ceil(200 / 24) = 9 steps an epoch
    result = _run(trainer, tmp_path, lambda *call: calls.append(call))
    assert (result["steps"], result["plateau_step"], result["hit_max_steps"]) == (18, None, False)
    assert [row["step"] for row in result["history"]] == [4, 8, 12, 16, 18]
    rates = [row["lr"] for row in result["history"]]
    expected = [0.05, *(0.05 * (1 + cos(pi * (s - 5) / 14)) / 2 for s in (8, 12, 16, 18))]
    assert rates == pytest.approx(expected)
    assert all(call[1] == 18 for call in calls)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_kept_model_is_that_of_its_evaluation(tmp_path: Path, keep: str) -> None:
    """A rate that destroys the model late makes the best evaluation an early one."""

    def trainer() -> ClassifierTrainer:
        config = _train(
            schedule="multistep", milestones=(0.9,), num_steps=20, eval_every=2, keep=keep, lr=0.8
        )
        return _trainer(config, model=_wider(), threat=ThreatConfig(eps=0.02))

    run = trainer()
    result = _run(run, tmp_path)
    robust = {row["step"]: row["val_pgd"] for row in result["history"]}
    best = min(step for step in robust if robust[step] == max(robust.values()))
    assert best < 20, "the run does not tell the best from the last"
    assert result["kept_step"] == (best if keep == "best" else 20)
    again = trainer()
    while again.step < result["kept_step"]:
        again.advance()
    for key, value in again.ema.model.state_dict().items():
        assert torch.equal(run.ema.model.state_dict()[key], value), key
    assert again.validate() == (result["val_clean"], result["val_pgd"])


def test_a_mixed_batch_has_the_cross_entropy_of_both_labels() -> None:
    pool, _ = DIGITS.tensors("test")
    trainer = _trainer(_train(cutmix=1.0), unlabelled=(pool, torch.full((len(pool),), -1)))
    batch = trainer.feed.batch(0)
    x, y, mix = batch.x, batch.y, batch.mix
    assert mix is not None and torch.equal(mix.labels < 0, y < 0) and int((y < 0).sum()) == 12
    log_p, real = deepcopy(trainer.model).train()(x).log_softmax(1), y >= 0
    first, second = (-log_p[real].gather(1, v[real, None])[:, 0] for v in (y, mix.labels))
    expected = (mix.share[real] * first + (1 - mix.share[real]) * second).mean()
    trainer.advance()
    assert trainer.mean_losses()["ce"] == pytest.approx(expected.item(), rel=1e-5)


def test_pseudo_labels_of_minus_one_are_skipped_by_the_cross_entropy() -> None:
    pool, _ = DIGITS.tensors("test")
    trainer = _trainer(_train(), unlabelled=(pool, torch.full((len(pool),), -1)))
    batch = trainer.feed.batch(0)
    x, y = batch.x, batch.y
    reference = deepcopy(trainer.model).train()
    expected = F.cross_entropy(reference(x)[y >= 0], y[y >= 0])
    assert int((y < 0).sum()) == 12
    trainer.advance()
    assert trainer.mean_losses()["ce"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("objective", ["trades", "pgd-at"])
def test_pool_images_weigh_what_is_asked(objective: str) -> None:
    """Weighted means by hand, over labelled rows and over all; half of the pool has no label."""
    pool, pseudo = DIGITS.tensors("test")
    pseudo = torch.where(torch.arange(len(pool)) % 2 == 0, pseudo, -1)
    config, data = _train(bn_group=12), (pool, pseudo)
    trainer = _trainer(config, objective=objective, pool_weight=2.5, unlabelled=data)
    batch, kind = trainer.feed.batch(0), trainer.update.noise_kind
    assert batch.weights is not None and kind is not None
    assert sorted(batch.weights.tolist()) == [1.0] * 12 + [2.5] * 12
    assert bool((batch.y[batch.weights == 1] >= 0).all()) and int((batch.y < 0).sum()) > 2
    x_adv = trainer.update.perturb(batch.x, batch.y, trainer.feed.noise(kind, 0))
    reference, ce, kl = deepcopy(trainer.model).train(), 0.0, 0.0
    with torch.no_grad():
        clean, attacked = reference(batch.x), reference(x_adv)
    weights, first = batch.weights.tolist(), clean if objective == "trades" else attacked
    for row, weight in enumerate(weights):
        if batch.y[row] >= 0:
            ce += weight * float(F.cross_entropy(first[row], batch.y[row]))
        kl += weight * float(_kl(clean[row : row + 1], attacked[row : row + 1])[0])
    ce /= sum(w for w, label in zip(weights, batch.y.tolist(), strict=True) if label >= 0)
    kl /= sum(weights)
    trainer.advance()
    found = trainer.mean_losses()
    assert found["ce"] == pytest.approx(ce, rel=1e-5)
    expected = ce + BETA * kl if objective == "trades" else ce
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
