"""Which network interface gloo is told; that groups of several hosts train is in tests/faults."""

from __future__ import annotations

import os
import socket

import psutil
import pytest
import ray.util

from ssat_ray.stages.process_group import (
    VARIABLE,
    GroupConfig,
    interface_of,
    use_interface_of_node,
)


def test_an_address_leads_to_its_interface() -> None:
    lo = interface_of("127.0.0.1")
    assert lo is not None
    assert "127.0.0.1" in {one.address for one in psutil.net_if_addrs()[lo]}
    assert interface_of("203.0.113.77") is None


@pytest.mark.parametrize("before", [None, "told"])
def test_what_somebody_has_told_gloo_stays(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "unset")
    monkeypatch.delenv(VARIABLE)
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    use_interface_of_node()
    found = os.environ[VARIABLE]
    assert found == (before or interface_of("127.0.0.1"))
    assert before is not None or found in {name for _, name in socket.if_nameindex()}


def test_workers_are_told_before_the_group_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    class Workers:
        def execute(self, function: object) -> None:
            calls.append(function)

    config = GroupConfig(backend="gloo")
    parent = config.backend_cls.__mro__[1]
    monkeypatch.setattr(parent, "on_start", lambda self, group, config: calls.append("made"))
    config.backend_cls().on_start(Workers(), config)
    assert calls == [use_interface_of_node, "made"] and config.backend == "gloo"
