"""Who made an artefact: the commit, the libraries and the machine, found without importing any of them."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

FAISS = ("faiss-gpu", "faiss-cpu")
"""The packages that hold the module `faiss`; one of them is installed."""
STAGE_PACKAGES = ("torch", "numpy", "ray", "diffusers", "scikit-learn", *FAISS)
"""What `stage.json` names."""
PACKAGES = ("ray", "torch", "torchvision", "diffusers", "scikit-learn", "mlflow", "numpy")
"""What `results.json` and the tags of MLflow name, besides `faiss` and `ssat_ray`."""
NVIDIA = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver has a folder for each GPU."""


@cache
def git_commit() -> str | None:
    """Commit of the source tree this package runs from, with `-dirty` if it was changed; None outside git."""
    root = str(Path(__file__).resolve().parents[1])
    describe = ("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    try:
        done = subprocess.run(
            ["git", "-C", root, *describe], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def made_by() -> dict[str, Any]:
    """Code, libraries and machine of this process, for `stage.json`; the host's name stays out."""
    return {
        "ssat_ray": installed(["ssat_ray"]).get("ssat_ray"),
        "commit": git_commit(),
        "python": platform.python_version(),
        "versions": installed(STAGE_PACKAGES),
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "platform": f"{platform.system()} {platform.machine()}",
            **gpus(),
        },
    }


def machine() -> dict[str, Any]:
    """Processor, cores, memory (GiB) and library versions of this node, for `results.json`."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        **gpus(),
        "python": platform.python_version(),
        "versions": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on; `faiss` stands for whichever package holds it."""
    found = installed(PACKAGES)
    for found_faiss in installed(FAISS).values():
        found["faiss"] = found_faiss
    return {**found, **installed(["ssat_ray"])}


def cpu_model() -> str:
    """The processor's name as the kernel gives it, or its architecture where it gives none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpus(driver: Path = NVIDIA) -> dict[str, str]:
    """`gpus`: number and names of NVIDIA's as the driver gives them; empty where there are none."""
    models: Counter[str] = Counter()
    for path in driver.glob("*/information"):
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                if line.startswith("Model:"):
                    models[line.partition(":")[2].strip()] += 1
    found = ", ".join(f"{number} x {name}" for name, number in sorted(models.items()))
    return {"gpus": found} if found else {}


def installed(names: Iterable[str]) -> dict[str, str]:
    """Versions of those of the packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
