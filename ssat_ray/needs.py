"""What a configuration needs of Ray at once, against what the nodes have: for a run that starts, and for the doctor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ssat_ray.config import RuntimeConfig

Resources = Mapping[str, float]
"""What a node has for Ray: `CPU`, `GPU`."""
KINDS = ("CPU", "GPU")
_MENDS = {
    "CPU": "lower runtime.train_workers, runtime.cpus_per_worker and runtime.actors, add nodes (to a Ray of this machine: "
    "runtime.num_cpus), or set runtime.max_cpus to what an autoscaler may bring",
    "GPU": "set runtime.gpus_per_worker=0 and runtime.gpus_per_actor=0, add GPU nodes, or set runtime.max_gpus to what an "
    "autoscaler may bring",
}


@dataclass(frozen=True)
class Processes:
    """Ray processes that work at the same time.

    Attributes:
        setting: that says how many.
        each: what one of them has of each kind, all of it on one node.
    """

    setting: str
    count: int
    each: Resources

    def text(self, kind: str) -> str:
        """`runtime.train_workers=2 of 4 CPUs`"""
        amount = self.each[kind]
        return f"{self.setting}={self.count}" + (f" of {amount:g} {kind}s" if amount != 1 else "")


@dataclass(frozen=True)
class Need:
    """Something that must be there at once.

    Attributes:
        what: in the plural.
        asked: the settings that ask for it.
        needed, found: how many.
        promised: how many an autoscaler may bring it to; 0: none comes.
        mend: what to do where there is too little.
    """

    what: str
    asked: str
    needed: float
    found: float
    promised: float
    mend: str

    @property
    def met(self) -> bool:
        return self.found >= self.needed

    @property
    def to_come(self) -> bool:
        """Whether it is to be waited for."""
        return not self.met and self.promised >= self.needed

    @property
    def text(self) -> str:
        """`runtime.train_workers=2 and runtime.actors=4 need 4 CPUs, Ray has 2`"""
        promised = f" and may get {self.promised:g}" if self.promised > self.found else ""
        return f"{self.asked} need {self.needed:g} {self.what}, Ray has {self.found:g}{promised}"


def processes(config: RuntimeConfig) -> tuple[Processes, Processes]:
    """The fewest workers of a training group, and the actors of a stage. They do not work at the same time."""
    worker = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    actor = {"CPU": 1.0, "GPU": config.gpus_per_actor}
    return (
        Processes("runtime.train_workers", config.least_workers, worker),
        Processes("runtime.actors", config.actors, actor),
    )


def totals(config: RuntimeConfig) -> dict[str, float]:
    """CPUs and GPUs that must be there at once."""
    both = processes(config)
    return {kind: max(one.count * one.each[kind] for one in both) for kind in KINDS}


def needs(
    config: RuntimeConfig, nodes: Sequence[Resources], *, autoscaled: bool = True
) -> Iterator[Need]:
    """CPUs and GPUs in total; then, where these are there, room on single nodes as far as it lacks.

    Args:
        nodes: what each has.
        autoscaled: whether an autoscaler may bring what the configuration promises.
    """
    promises = {"CPU": config.max_cpus, "GPU": config.max_gpus} if autoscaled else {}
    both, enough = processes(config), True
    for kind, needed in totals(config).items():
        found = sum(node.get(kind, 0.0) for node in nodes)
        asked = " and ".join(one.text(kind) for one in both if one.each[kind])
        promised = promises.get(kind) or 0
        yield Need(f"{kind}s", asked, needed, found, promised, _MENDS[kind])
        enough = enough and found >= needed
    for one in both if enough else ():
        room = sum(_room(one.each, node) for node in nodes)
        if room < one.count:
            parts = " and ".join(f"{one.each[kind]:g} {kind}s" for kind in KINDS if one.each[kind])
            promised = one.count if any(promises.values()) else 0  # of whatever shape they come
            mend = "lower these or ask for less of each: what one process has is on one node"
            asked = f"{one.setting}={one.count}"
            yield Need(f"places of {parts} on a node", asked, one.count, room, promised, mend)


def _room(each: Resources, node: Resources) -> int:
    """How many processes that have so much each fit on a node."""
    shares = [node.get(kind, 0.0) / amount for kind, amount in each.items() if amount]
    return math.floor(min(shares) + 1e-9)
