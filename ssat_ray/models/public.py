"""Checkpoints as others publish them: one file of `torch.save`, whatever is wrapped around the weights."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssat_ray.errors import UserError

_INPUT_SCALE = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}
"""Buffers of wrappers that scale the input, and their keys in the model's configuration, which says how."""


def load_public(model: nn.Module, path: Path) -> None:
    """Put the weights of a published checkpoint into `model`.

    The state dict may lie in a dictionary under any name (`model_state_dict`, `state_dict` ...), and its
    keys may have any prefix (`module.`, `model.0.`, `_orig_mod.` ...). Nothing in the file is executed.

    Raises:
        UserError: the file is no checkpoint that torch loads with `weights_only`, or keys or shapes differ,
            or the mean and standard deviation that it scales its input by.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch's unpickler raise almost anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} is no checkpoint that loads with weights_only: {reason}"
        ) from error
    wanted = model.state_dict()
    state = _matching(content, set(wanted))
    if state is None:
        raise UserError(
            f"{path} has no weights of this model: no key ends with {next(iter(wanted))!r}; "
            f"it has {_some(_tensors(content))}. Is model.name right?"
        )
    extra = [k for k in state if k not in wanted and k.split(".")[-1] not in _INPUT_SCALE]
    missing = [key for key in wanted if key not in state]
    other = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    faults = (("lacks", missing), ("has the unknown", extra), ("has", other))
    found = [f"{what} {_some(keys)}" for what, keys in faults if keys]
    if found:
        raise UserError(f"{path} {'; '.join(found)}. Is model.name right?")
    _check_input_scale(model, content, path)
    model.load_state_dict({key: state[key] for key in wanted})


def _check_input_scale(model: nn.Module, content: Any, path: Path) -> None:
    """UserError if the file scales its input otherwise than the model, whose own buffers are in no file."""
    for tensors in _dictionaries(content):
        for name, value in tensors.items():
            key = _INPUT_SCALE.get(name.rpartition(".")[2])
            own = getattr(model, key, None) if key else None
            if not isinstance(own, Tensor):
                continue
            theirs, ours = value.float().flatten(), own.float().flatten().cpu()
            alike = len(theirs) == len(ours) or 1 in (len(theirs), len(ours))
            if not alike or not torch.allclose(theirs, ours, atol=1e-4):
                raise UserError(
                    f"{path} scales its input by {name} = {_rounded(theirs)}, the model by {_rounded(ours)}; "
                    f"set model.{key}."
                )


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def public_file(weights: Mapping[str, Tensor]) -> bytes:
    """A checkpoint as RobustBench's model zoo reads it: `torch.save` of the bare state dict."""
    buffer = io.BytesIO()
    torch.save({key: value.cpu().contiguous() for key, value in weights.items()}, buffer)
    return buffer.getvalue()


def _matching(content: Any, wanted: set[str]) -> dict[str, Tensor] | None:
    """The dictionary of tensors, anywhere in the content, that has most of the keys after one prefix."""
    best: tuple[int, dict[str, Tensor]] = (0, {})
    last = min(wanted, key=lambda key: (key.count("."), key))
    for tensors in _dictionaries(content):
        for prefix in {key[: -len(last)] for key in tensors if key.endswith(last)}:
            if prefix and not prefix.endswith("."):
                continue
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            common = len(wanted & state.keys())
            if common > best[0]:
                best = (common, state)
    return best[1] if best[0] else None


def _dictionaries(content: Any) -> list[dict[str, Tensor]]:
    if not isinstance(content, dict):
        return []
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    nested = [found for value in content.values() for found in _dictionaries(value)]
    return ([tensors] if tensors else []) + nested


def _tensors(content: Any) -> list[str]:
    return [key for tensors in _dictionaries(content) for key in tensors]


def _some(keys: list[str], count: int = 3) -> str:
    shown = ", ".join(keys[:count]) or "no tensors"
    return shown if len(keys) <= count else f"{shown} and {len(keys) - count} more"
