"""The cluster of three hosts that the faults befall."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.hosts import Hosts, namespaces_missing


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A cluster of three hosts, or a skip that says why there is none."""
    if why := namespaces_missing():
        pytest.skip(f"no hosts of their own: {why}")
    with Hosts(tmp_path_factory.mktemp("hosts")) as found:
        yield found
