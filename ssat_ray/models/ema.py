"""Exponential moving average of weights, with warm-up, BatchNorm buffers included."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """shadow <- decay_t * shadow + (1 - decay_t) * weights, decay_t = min(decay, (1 + t) / (10 + t)).

    Integer buffers are copied. t counts the updates from 0: early on, when the weights move fast, the average
    forgets them fast, and a decay of 0.995 counts from update 1,790 on.

    Source: the ramp of TensorFlow's ExponentialMovingAverage, as in Gowal et al. 2020 (arXiv 2010.03593).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        shadow, source = self.model.state_dict(), model.state_dict()
        floats = [k for k, v in shadow.items() if v.is_floating_point()]
        torch._foreach_lerp_([shadow[k] for k in floats], [source[k] for k in floats], 1 - decay)
        for key in shadow.keys() - set(floats):
            shadow[key].copy_(source[key])
