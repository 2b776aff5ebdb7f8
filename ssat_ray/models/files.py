"""Classifier checkpoints on disk: safetensors for the weights, JSON for everything else."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from ssat_ray.config import ModelConfig
from ssat_ray.models.registry import build_classifier
from ssat_ray.places import Place, local_copy

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def classifier_files(
    model: nn.Module, config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int
) -> dict[str, bytes]:
    """The files of a checkpoint: name -> content."""
    weights = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
    description: dict[str, Any] = {
        "model": config.model_dump(mode="json"),
        "image_shape": list(image_shape),
        "num_classes": num_classes,
    }
    return {WEIGHTS: save(weights), DESCRIPTION: json.dumps(description, indent=1).encode()}


def load_classifier(folder: Place) -> nn.Module:
    """The classifier of a checkpoint folder, in eval mode, parameters frozen, channels-last."""
    about = json.loads((folder / DESCRIPTION).read_text())
    shape = tuple(about["image_shape"])
    model = build_classifier(ModelConfig(**about["model"]), shape, about["num_classes"], seed=0)
    model.load_state_dict(load_file(local_copy(folder / WEIGHTS)))
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
