"""Training states on any file system: everything a killed run needs to go on as if nothing had happened."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import torch

from ssat_ray.data.folder import Folder
from ssat_ray.places import Place, remove_tree
from ssat_ray.training.world import World

_DIGEST_BYTES = 32


class Paused(Exception):
    """A training has saved its state and ended before its end, as it was asked to.

    Args:
        history: its evaluations so far, as in a record.
    """

    def __init__(self, history: list[dict[str, float]]) -> None:
        super().__init__(f"paused after step {history[-1]['step']:.0f}")
        self.history = history


class States:
    """The saved states of one training run.

    Args:
        location: a folder or URI of this run's own, the same whenever the run is started again.
        keep: newest states that stay; older ones go once a newer one is whole.
    """

    def __init__(self, location: str | Place, keep: int = 2) -> None:
        self.folder, self.keep = Folder(location), keep

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write tensors and plain values, all of them or nothing.

        Later states that are still there were damaged, or this step would not be made again. They go first:
        they are not among the newest that stay.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        for name in self._names():
            if name > _name(step):
                self.folder.delete(name)
        self.folder.write(_name(step), hashlib.sha256(content).digest() + content)
        for name in self._names()[: -self.keep]:
            self.folder.delete(name)

    def load(self, world: World | None = None) -> dict[str, Any] | None:
        """The newest whole state, or None; one whose checksum is wrong is passed over for the one before it.

        Loaded with `weights_only`: no code in it can run, pickle.UnpicklingError is raised instead.

        Args:
            world: its first rank chooses, so that all ranks go on from the same state; all of them call.

        Raises:
            OSError: a state that is there cannot be read.
        """
        world = world or World()
        newest = self._newest() if world.rank == 0 else None
        step = int(world.first(-1 if newest is None else newest))
        if step < 0:
            return None
        content = self._content(step)
        if content is None:
            raise OSError(f"{self.folder.path(_name(step))} differs from what rank 0 has read")
        state: dict[str, Any] = torch.load(
            io.BytesIO(content), weights_only=True, map_location="cpu"
        )
        return state

    def _newest(self) -> int | None:
        """Steps of the newest whole state."""
        steps = (int(name.partition(".")[0]) for name in reversed(self._names()))
        return next((step for step in steps if self._content(step) is not None), None)

    def _content(self, step: int) -> bytes | None:
        """What was saved, or None if the file is damaged, or gone: another writer may keep newer ones."""
        try:
            data = self.folder.read(_name(step)).to_pybytes()
        except FileNotFoundError:
            return None
        digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        return content if hashlib.sha256(content).digest() == digest else None

    def drop(self) -> None:
        """Remove the states of a run that has finished, and what a killed writer left beside them."""
        remove_tree(self.folder.place)

    def _names(self) -> list[str]:
        return list(self.folder.names(".pt"))


def _name(step: int) -> str:
    return f"{step:010d}.pt"
