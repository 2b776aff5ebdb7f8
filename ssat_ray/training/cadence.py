"""When to save a training state: by the clock, and at once when a node is about to go."""

from __future__ import annotations

import time
from collections.abc import Callable

from ssat_ray.training.world import World

POLL_SECONDS = 5.0


class Cadence:
    """Says after which steps to save; the same ones on every rank.

    Rank 0's clock decides. Ranks talk about it every few seconds, not in every step, so the loop does not
    wait for it: `due` computes from the pace so far at which step to ask again.

    Make it on all ranks at once: the clock starts then.

    Args:
        world: the ranks.
        minutes: most time between two states, as far as a single step is not longer; 0 is after each step.
        preempted: whether a node of this group is about to be taken away; then every question is answered
            by saving. All ranks ask at the same steps.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        world: World,
        minutes: float,
        preempted: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.world, self.preempted, self.clock = world, preempted, clock
        self.seconds = 60 * minutes
        self.poll = min(POLL_SECONDS, self.seconds / 4)
        self.asked: tuple[int, float] | None = None
        self.next = 0
        self.saved = world.first(clock())

    def due(self, step: int) -> bool:
        """Whether to save now, after `step` steps. Ask after every step, on every rank."""
        if step < self.next:
            return False
        now = self.world.first(self.clock())
        pace = 0.0 if self.asked is None else (now - self.asked[1]) / (step - self.asked[0])
        self.asked = step, now
        ahead = int(self.poll / pace) if pace > 0 else 1
        self.next = step + max(1, ahead)
        notice = self.preempted()
        save = now - self.saved + self.poll >= self.seconds or notice
        if save:
            self.saved = now
        return save
