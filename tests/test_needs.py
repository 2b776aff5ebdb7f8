"""What a configuration needs at once, against nodes that have it, lack it, or are to come."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ssat_ray.config import RuntimeConfig
from ssat_ray.needs import Need, needs, totals

TWO = [{"CPU": 2.0}, {"CPU": 2.0}]
FOUR_GPUS_ON_TWO = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}]


def unmet(nodes: list[dict[str, float]], autoscaled: bool = True, **settings: Any) -> list[Need]:
    config = RuntimeConfig.model_validate(settings)
    return [need for need in needs(config, nodes, autoscaled=autoscaled) if not need.met]


def test_the_larger_of_workers_and_actors_counts() -> None:
    config = RuntimeConfig(train_workers=(2, 8), cpus_per_worker=3, actors=5, gpus_per_actor=0.5)
    assert totals(config) == {"CPU": 6, "GPU": 2.5}
    assert totals(RuntimeConfig(actors=7, gpus_per_worker=1)) == {"CPU": 7, "GPU": 2}


@pytest.mark.parametrize(
    ("nodes", "settings", "text"),
    [
        (TWO, {"actors": 5}, "runtime.train_workers=2 and runtime.actors=5 need 5 CPUs, Ray has 4"),
        (
            TWO,
            {"cpus_per_worker": 3},
            "runtime.train_workers=2 of 3 CPUs and runtime.actors=2 need 6 CPUs, Ray has 4",
        ),
        (TWO, {"gpus_per_worker": 1}, "runtime.train_workers=2 need 2 GPUs, Ray has 0"),
        (
            FOUR_GPUS_ON_TWO,
            {"gpus_per_worker": 1, "gpus_per_actor": 0.5, "actors": 9},
            "runtime.train_workers=2 and runtime.actors=9 of 0.5 GPUs need 4.5 GPUs, Ray has 4",
        ),
    ],
)
def test_what_is_too_little_in_total(
    nodes: list[dict[str, float]], settings: dict[str, Any], text: str
) -> None:
    (found,) = unmet(nodes, **settings)
    assert found.text == text and not found.to_come and found.mend


@pytest.mark.parametrize(
    ("nodes", "settings", "text"),
    [
        (
            TWO,
            {"cpus_per_worker": 4, "train_workers": 1},
            "runtime.train_workers=1 need 1 places of 4 CPUs on a node, Ray has 0",
        ),
        (  # the GPUs are where the CPUs are not
            [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 2.0}],
            {"gpus_per_worker": 1},
            "runtime.train_workers=2 need 2 places of 1 CPUs and 1 GPUs on a node, Ray has 1",
        ),
        (
            [{"CPU": 4.0, "GPU": 1.0}] * 4,
            {"gpus_per_actor": 2.0},
            "runtime.actors=2 need 2 places of 1 CPUs and 2 GPUs on a node, Ray has 0",
        ),
    ],
)
def test_what_one_process_has_is_on_one_node(
    nodes: list[dict[str, float]], settings: dict[str, Any], text: str
) -> None:
    (found,) = unmet(nodes, **settings)
    assert found.text == text and not found.to_come


@pytest.mark.parametrize(
    ("nodes", "settings"),
    [
        (TWO, {"cpus_per_worker": 2}),
        (FOUR_GPUS_ON_TWO, {"gpus_per_worker": 1, "train_workers": 4}),
        ([{"CPU": 20.0, "GPU": 1.0}], {"gpus_per_actor": 0.1, "actors": 10}),
        ([{"CPU": 2, "GPU": math.inf}], {"gpus_per_worker": 1}),
        ([{}, {"CPU": 2.0}], {}),
    ],
)
def test_what_is_enough(nodes: list[dict[str, float]], settings: dict[str, Any]) -> None:
    assert unmet(nodes, **settings) == []


def test_what_an_autoscaler_may_bring_is_waited_for() -> None:
    wanted = {"gpus_per_worker": 1, "max_gpus": 4}
    (found,) = unmet(TWO, **wanted)
    assert found.to_come and found.text.endswith("need 2 GPUs, Ray has 0 and may get 4")
    assert [need.to_come for need in unmet(TWO, autoscaled=False, **wanted)] == [False]
    assert [need.to_come for need in unmet(TWO, **wanted, train_workers=5)] == [False, False]
    assert [need.to_come for need in unmet(TWO, actors=5, max_cpus=8)] == [True]
    nodes = [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 2.0}]
    assert [need.to_come for need in unmet(nodes, **wanted)] == [True], "a node of another shape"
