"""Train a DDPM, from nothing or guided from a trained one: noise, predict, compare; a fixed number of steps
with weight averaging."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssat_ray.config import DenoiserConfig
from ssat_ray.data.batches import epoch_indices, generator, shift_offsets, shifted
from ssat_ray.data.labelled import unit_float
from ssat_ray.diffusion.guidance import Regulariser
from ssat_ray.diffusion.noise import training_target
from ssat_ray.models.ema import EMA
from ssat_ray.models.unet import is_conditional
from ssat_ray.training.schedule import fixed_lr_factor, set_lr
from ssat_ray.training.state import States
from ssat_ray.training.world import World

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

LOG_EVERY = 50
TERMS = ("loss", "guidance", "anchor")
"""What the history has of a step: L_DDPM and, of a guided one, the unweighted other terms."""


@dataclass(frozen=True)
class DDPMTask:
    """One DDPM to train on (N, C, H, W) uint8 images with (N,) int64 labels, which an unconditional one ignores.

    Args:
        section: of the configuration, for messages.
        regulariser: what guided fine-tuning adds to the loss.
        first_draw: step whose images, noise and timesteps the first step sees.
    """

    unet: UNet2DModel
    scheduler: DDPMScheduler
    config: DenoiserConfig
    images: Tensor
    labels: Tensor
    seed: int
    section: str = "pretrain"
    regulariser: Regulariser | None = None
    first_draw: int = 0


def train_ddpm(
    task: DDPMTask,
    world: World,
    states: States,
    due: Callable[[int], bool],
    progress: Callable[[int, int, str], None],
) -> tuple[EMA, dict[str, Any]]:
    """Train to the end on the world's device, going on from the last of `states`.

    A state is saved after every step, told as their number, that is `due`. Returns the averaged model and
    the result.

    Source: Ho et al. 2020, algorithm 1; v-prediction: Salimans and Ho 2022; guidance: arXiv 2501.10466.
    Timesteps and noise are drawn for the whole global batch from (seed, step).

    Raises:
        FloatingPointError: the loss became NaN or infinite.
    """
    config, device = task.config, world.device
    unet = task.unet.train().to(device)
    parallel = world.wrap(unet)
    optimiser = torch.optim.AdamW(unet.parameters(), config.lr, weight_decay=1e-4)
    ema = EMA(unet, config.ema_decay)
    terms = TERMS if task.regulariser else TERMS[:1]
    step, seconds, history = 0, 0.0, []
    sums, count = torch.zeros(len(terms), device=device), 0
    state = states.load(world)
    if state is not None and "sums" in state:  # else of an older release: from the start
        unet.load_state_dict(state["unet"])
        optimiser.load_state_dict(state["optimiser"])
        ema.model.load_state_dict(state["ema"])
        ema.num_updates = state["ema_updates"]
        step, seconds, history = state["step"], state["seconds"], state["history"]
        sums, count = state["sums"].to(device) * (world.rank == 0), state["count"]  # of all ranks
    resumed_step = step
    started = time.perf_counter() - seconds
    own = world.part(config.batch_size)
    # the mean over ranks that DDP takes is then one over images, whatever their parts
    share = (own.stop - own.start) * world.size / config.batch_size
    while step < config.num_steps:
        set_lr(optimiser, config.lr * fixed_lr_factor(step, config.num_steps, config.warmup_steps))
        x0, noise, timesteps, labels = (t.to(device) for t in _batch(task, world, step))
        conditions = labels if is_conditional(task.unet) else None
        dropout = generator(task.seed, "model", step * world.size + world.rank)
        torch.manual_seed(dropout.initial_seed())
        noisy = task.scheduler.add_noise(x0, noise, timesteps)  # type: ignore[arg-type]
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            predicted = parallel(noisy, timesteps, class_labels=conditions).sample.float()
        target = training_target(task.scheduler, x0, noise, timesteps)
        loss = share * F.mse_loss(predicted, target)
        found = [loss.detach()]
        if task.regulariser is not None:
            guidance, anchor = (
                share * term
                for term in task.regulariser(
                    task.scheduler, noisy, timesteps, conditions, predicted
                )
            )
            found += [guidance.detach(), anchor.detach()]
            loss = loss + task.regulariser.weight(step) * guidance
            loss = loss + task.regulariser.config.anchor * anchor
        optimiser.zero_grad(set_to_none=False)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        ema.update(unet)
        sums, count, step = sums + torch.stack(found), count + 1, step + 1
        if step % LOG_EVERY == 0 or step == config.num_steps:
            means = (world.sum(sums.clone()) / (count * world.size)).tolist()
            sums, count = torch.zeros_like(sums), 0
            if not all(map(math.isfinite, means)):
                raise FloatingPointError(
                    f"the DDPM loss became NaN or infinite before step {step}; lower {task.section}.lr "
                    f"({config.lr})."
                )
            seconds = time.perf_counter() - started
            history.append(
                {"step": step, "seconds": seconds, **dict(zip(terms, means, strict=True))}
            )
            note = ", ".join(f"{k} {v:.4f}" for k, v in zip(terms, means, strict=True))
            progress(step, config.num_steps, note)
        if due(step) and step < config.num_steps:
            state = {
                "step": step,
                "seconds": time.perf_counter() - started,
                "history": history,
                "unet": unet.state_dict(),
                "optimiser": optimiser.state_dict(),
                "ema": ema.model.state_dict(),
                "ema_updates": ema.num_updates,
                "sums": world.sum(sums.clone()),
                "count": count,
            }
            if world.rank == 0:
                states.save(step, state)
    seconds = time.perf_counter() - started
    last = {name: history[-1][name] for name in terms}
    steps = {"steps": step, "resumed_step": resumed_step}
    return ema, {**steps, "seconds": seconds, **last, "history": history}


def _batch(task: DDPMTask, world: World, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """This rank's x0 in [-1, 1], noise, timesteps and labels of global batch `step`."""
    total, part = task.config.batch_size, world.part(task.config.batch_size)
    step += task.first_draw
    rows = epoch_indices(len(task.images), total, task.seed, "labelled", step)
    size = task.config.augment_shift
    offsets = shift_offsets(total, size, generator(task.seed, "shift", step))
    images = shifted(task.images[rows[part]], size, offsets[part])
    x0 = unit_float(images) * 2 - 1
    noise = torch.randn((total, *x0.shape[1:]), generator=generator(task.seed, "noise", step))
    num_timesteps = task.scheduler.config["num_train_timesteps"]
    timesteps = torch.randint(
        0, num_timesteps, (total,), generator=generator(task.seed, "timestep", step)
    )
    return x0, noise[part], timesteps[part], task.labels[rows[part]]
