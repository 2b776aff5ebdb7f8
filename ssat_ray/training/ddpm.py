"""Train the class-conditional DDPM: noise, predict, compare; a fixed number of steps with weight averaging."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssat_ray.config import PretrainConfig
from ssat_ray.data.batches import epoch_indices, generator, shift_offsets, shifted
from ssat_ray.data.labelled import unit_float
from ssat_ray.diffusion.noise import training_target
from ssat_ray.models.ema import EMA
from ssat_ray.training.schedule import fixed_lr_factor, set_lr
from ssat_ray.training.state import States
from ssat_ray.training.world import World

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

LOG_EVERY = 50


@dataclass(frozen=True)
class DDPMTask:
    """One DDPM to train on (N, C, H, W) uint8 images with (N,) int64 labels."""

    unet: UNet2DModel
    scheduler: DDPMScheduler
    config: PretrainConfig
    images: Tensor
    labels: Tensor
    seed: int


def train_ddpm(
    task: DDPMTask,
    world: World,
    states: States,
    due: Callable[[int], bool],
    progress: Callable[[int, int, str], None],
) -> tuple[EMA, dict[str, Any]]:
    """Train to the end, going on from the last of `states`; returns the averaged model and the result.

    A state is saved after every step, told as their number, that is `due`.

    Source: Ho et al. 2020, algorithm 1; v-prediction: Salimans and Ho 2022. Timesteps and noise are drawn
    for the whole global batch from (seed, step).

    Raises:
        FloatingPointError: the loss became NaN or infinite.
    """
    config, unet = task.config, task.unet.train()
    parallel = world.wrap(unet)
    optimiser = torch.optim.AdamW(unet.parameters(), config.lr, weight_decay=1e-4)
    ema = EMA(unet, config.ema_decay)
    step, seconds, history = 0, 0.0, []
    state = states.load(world)
    loss_sum, count = torch.zeros(()), 0
    if state is not None:
        unet.load_state_dict(state["unet"])
        optimiser.load_state_dict(state["optimiser"])
        ema.model.load_state_dict(state["ema"])
        ema.num_updates = state["ema_updates"]
        step, seconds, history = state["step"], state["seconds"], state["history"]
        loss_sum, count = state["loss_sum"] * (world.rank == 0), state["count"]  # of all ranks
    started = time.perf_counter() - seconds
    while step < config.num_steps:
        set_lr(optimiser, config.lr * fixed_lr_factor(step, config.num_steps, config.warmup_steps))
        x0, noise, timesteps, labels = _batch(task, world, step)
        noisy = task.scheduler.add_noise(x0, noise, timesteps)  # type: ignore[arg-type]
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            predicted = parallel(noisy, timesteps, class_labels=labels).sample
        loss = F.mse_loss(predicted.float(), training_target(task.scheduler, x0, noise, timesteps))
        optimiser.zero_grad(set_to_none=False)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        ema.update(unet)
        loss_sum, count, step = loss_sum + loss.detach(), count + 1, step + 1
        if step % LOG_EVERY == 0 or step == config.num_steps:
            mean = float(world.sum(loss_sum.clone())) / (count * world.size)
            loss_sum, count = torch.zeros(()), 0
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"the DDPM loss became NaN or infinite before step {step}; lower pretrain.lr ({config.lr})."
                )
            history.append({"step": step, "seconds": time.perf_counter() - started, "loss": mean})
            progress(step, config.num_steps, f"loss {mean:.4f}")
        if due(step) and step < config.num_steps:
            state = {
                "step": step,
                "seconds": time.perf_counter() - started,
                "history": history,
                "unet": unet.state_dict(),
                "optimiser": optimiser.state_dict(),
                "ema": ema.model.state_dict(),
                "ema_updates": ema.num_updates,
                "loss_sum": world.sum(loss_sum.clone()),
                "count": count,
            }
            if world.rank == 0:
                states.save(step, state)
    seconds = time.perf_counter() - started
    return ema, {"steps": step, "seconds": seconds, "loss": history[-1]["loss"], "history": history}


def _batch(task: DDPMTask, world: World, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """This rank's x0 in [-1, 1], noise, timesteps and labels of global batch `step`."""
    total, part = task.config.batch_size, world.part(task.config.batch_size)
    rows = epoch_indices(len(task.images), total, task.seed, "labelled", step)
    size = task.config.augment_shift
    offsets = shift_offsets(total, size, generator(task.seed, "shift", step))
    images = shifted(task.images[rows[part]], size, offsets[part])
    x0 = unit_float(images) * 2 - 1
    noise = torch.randn((total, *x0.shape[1:]), generator=generator(task.seed, "noise", step))
    timesteps = torch.randint(
        0, task.config.num_timesteps, (total,), generator=generator(task.seed, "timestep", step)
    )
    return x0, noise[part], timesteps[part], task.labels[rows[part]]
