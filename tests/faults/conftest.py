"""The cluster of three hosts that the faults befall, and the runs that they are compared with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.hosts import Hosts, namespaces_missing
from tests.faults.work import PRESETS, Undisturbed


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A cluster of three hosts, or a skip that says why there is none."""
    if why := namespaces_missing():
        pytest.skip(
            f"no hosts of their own: {why}; test_kills.py kills nodes that share an address"
        )
    with Hosts(tmp_path_factory.mktemp("hosts")) as found:
        yield found


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of undisturbed runs and the log."""
    given = os.environ.get("SSAT_FAULT_FOLDER")
    return Path(given).absolute() if given else tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def undisturbed(kept: Path) -> Callable[[str], Undisturbed]:
    """Preset -> its run, which is done once and, if it has been begun before, to its end."""
    found: dict[str, Undisturbed] = {}

    def get(preset: str) -> Undisturbed:
        if preset not in found:
            cwd = kept / preset
            cwd.mkdir(parents=True, exist_ok=True)
            (cwd / "preset.yaml").write_text(PRESETS[preset])
            clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
            command = [sys.executable, "-m", "ssat_ray", "run", "preset.yaml"]
            done = subprocess.run(
                command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=1200
            )
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr
            found[preset] = Undisturbed(cwd, preset)
        return found[preset]

    return get
