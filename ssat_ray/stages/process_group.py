"""The process group of DDP workers on several hosts: gloo talks over the address that Ray knows a node by."""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray.util
from ray.train.torch import TorchConfig

VARIABLE = "GLOO_SOCKET_IFNAME"


class GroupConfig(TorchConfig):
    """Ray's `TorchConfig`, for hosts whose own name stands for a loopback address, as Debian's does.

    Gloo listens where the host's name leads, and 127.0.0.1 is another host's own to everybody else.
    """

    @property
    def backend_cls(self) -> type:
        return _GroupBackend


_TorchBackend: Any = TorchConfig().backend_cls


class _GroupBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(use_interface_of_node)
        super().on_start(worker_group, backend_config)


def use_interface_of_node() -> None:
    """Tell gloo the interface of this node's Ray address, unless somebody has told it one."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(VARIABLE, name)


def interface_of(address: str) -> str | None:
    """Name of this host's network interface with that IP address, if there is one."""
    for name, found in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in found):
            return name
    return None
