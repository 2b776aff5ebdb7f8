"""Training states on any file system: everything a killed run needs to go on as if nothing had happened."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import torch

from ssat_ray.data.folder import Folder


class States:
    """The saved states of one training run.

    Args:
        location: a folder or URI of this run's own, the same whenever the run is started again.
        keep: newest states that stay; older ones go once a newer one is whole.
    """

    def __init__(self, location: str | Path, keep: int = 2) -> None:
        self.folder, self.keep = Folder(location), keep

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write tensors and plain values, all of them or nothing."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.folder.write(f"{step:010d}.pt", buffer.getvalue())
        for name in self._names()[: -self.keep]:
            self.folder.delete(name)

    def load(self) -> dict[str, Any] | None:
        """The newest whole state, or None; a damaged one is passed over for the one before it.

        Loaded with `weights_only`: no code in it can run, pickle.UnpicklingError is raised instead.
        """
        for name in reversed(self._names()):
            content = io.BytesIO(self.folder.read(name))
            try:
                state: dict[str, Any] = torch.load(content, weights_only=True, map_location="cpu")
            except (RuntimeError, EOFError, ValueError):  # cut short, or a checksum is wrong
                continue
            return state
        return None

    def drop(self) -> None:
        """Remove the states of a run that has finished, and what a killed writer left beside them."""
        if self.folder.is_local:
            shutil.rmtree(self.folder.local_path, ignore_errors=True)
            return
        for name in self._names():
            self.folder.delete(name)

    def _names(self) -> list[str]:
        return list(self.folder.names(".pt"))
