"""Training state on disk: everything a killed run needs to go on as if nothing had happened."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from ssat_ray.store import write_atomic

NAME = "state.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values atomically, replacing the previous state."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(folder / NAME, buffer.getvalue())


def load_state(folder: Path) -> dict[str, Any] | None:
    """The last state or None. Loaded with `weights_only`: no code in it can run."""
    path = folder / NAME
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def drop_state(folder: Path) -> None:
    """Remove the state of a run that has finished."""
    (folder / NAME).unlink(missing_ok=True)
