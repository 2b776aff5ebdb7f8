"""Checkpoints as others publish them: one file of `torch.save`, whatever is wrapped around the weights."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssat_ray.errors import UserError

_INPUT_SCALE = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}
"""Buffers of wrappers that scale the input, and their keys in the model's configuration, which says how."""
AVERAGED, UNAVERAGED = {"ema", "swa", "averaged"}, {"unaveraged"}
"""Words in the name of weights that are averaged over steps, which are the ones to use, and of those that are not."""


class _Weights(NamedTuple):
    """Tensors by the model's keys, and where they lie: `model_state_dict`, `state_dict: module.*` ..."""

    name: str
    state: dict[str, Tensor]

    @property
    def words(self) -> set[str]:
        return set(re.findall("[a-z]+", self.name.lower()))


def load_public(model: nn.Module, path: Path) -> str:
    """Put the weights of a published checkpoint into `model`.

    The state dict may lie in a dictionary under any name (`model_state_dict`, `state_dict` ...), and its
    keys may have any prefix (`module.`, `model.0.`, `_orig_mod.` ...). Nothing in the file is executed. Of
    several that fit, the one that is named as averaged is taken, or the only one that is not named as unaveraged.

    Returns:
        The name in the file of what was taken.

    Raises:
        UserError: the file is no checkpoint that torch loads with `weights_only`, or keys or shapes differ,
            or the mean and standard deviation that it scales its input by, or several state dicts fit.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch's unpickler raise almost anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} is no checkpoint that loads with weights_only: {reason}"
        ) from error
    wanted = model.state_dict()
    fitting = _fitting(content, wanted)
    if not fitting:
        raise UserError(
            f"{path} has no weights of this model: no key ends with {next(iter(wanted))!r}; "
            f"it has {_some(_tensors(content))}. Is model.name right?"
        )
    state = fitting[0].state
    extra = [k for k in state if k not in wanted and k.split(".")[-1] not in _INPUT_SCALE]
    missing = [key for key in wanted if key not in state and not _is_count(key)]
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
    chosen = _chosen(fitting, wanted, path)
    model.load_state_dict({key: chosen.state.get(key, wanted[key]) for key in wanted})
    return chosen.name


def _is_count(key: str) -> bool:
    """BatchNorm's count of batches, which averages with a momentum do not use and old checkpoints have not."""
    return key.endswith(".num_batches_tracked")


def _check_input_scale(model: nn.Module, content: Any, path: Path) -> None:
    """UserError if the file scales its input otherwise than the model, whose own buffers are in no file."""
    for _, tensors in _dictionaries(content):
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


def _fitting(content: Any, wanted: Mapping[str, Tensor]) -> list[_Weights]:
    """The dictionaries of tensors, anywhere in the content, that have most of the keys after one prefix, and
    of these the most shapes."""
    best, found = (0, 0), list[_Weights]()
    last = min(wanted, key=lambda key: (key.count("."), key))
    for name, tensors in _dictionaries(content):
        for prefix in sorted({key[: -len(last)] for key in tensors if key.endswith(last)}):
            if prefix and not prefix.endswith("."):
                continue
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            common = {k for k in wanted.keys() & state.keys() if not _is_count(k)}
            fit = len(common), sum(state[key].shape == wanted[key].shape for key in common)
            if fit > best:
                best, found = fit, []
            if fit == best and fit[0]:
                where = [name or "the file"] + ([f"{prefix}*"] if prefix else [])
                found.append(_Weights(": ".join(where), state))
    return found


def _chosen(fitting: list[_Weights], wanted: Mapping[str, Tensor], path: Path) -> _Weights:
    """The weights to take of several that fit; UserError if they differ and no name tells which."""

    def differing(found: list[_Weights]) -> list[_Weights]:
        return [
            one
            for one in found[1:]
            if any(
                not torch.equal(one.state[key], found[0].state[key])
                for key in wanted
                if not _is_count(key)
            )
        ]

    named = [one for one in fitting if one.words & AVERAGED]
    if not named and any(one.words & UNAVERAGED for one in fitting):
        named = [one for one in fitting if not one.words & UNAVERAGED]
    candidates = named or fitting
    others = differing(candidates)
    if others:
        raise UserError(
            f"{path} has several weights of this model that differ: {candidates[0].name}, and {others[0].name}; "
            "save the ones to use in a file of their own."
        )
    return candidates[0]


def _dictionaries(content: Any, name: str = "") -> list[tuple[str, dict[str, Tensor]]]:
    """Name (keys joined by /) and tensors of every dictionary with tensors."""
    if not isinstance(content, dict):
        return []
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    nested = [
        found
        for key, value in content.items()
        for found in _dictionaries(value, f"{name}/{key}".lstrip("/"))
    ]
    return ([(name, tensors)] if tensors else []) + nested


def _tensors(content: Any) -> list[str]:
    return [key for _, tensors in _dictionaries(content) for key in tensors]


def _some(keys: list[str], count: int = 3) -> str:
    shown = ", ".join(keys[:count]) or "no tensors"
    return shown if len(keys) <= count else f"{shown} and {len(keys) - count} more"
