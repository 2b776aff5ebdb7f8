"""What the records say of their maker: the commit, installed versions, the machine."""

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import faiss
import psutil
import pytest

from ssat_ray import provenance
from ssat_ray.provenance import cpu_model, git_commit, library_versions, machine, made_by


def test_git_commit_is_a_hash() -> None:
    commit = git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
    if commit:
        root = Path(provenance.__file__).parent
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True)
        assert commit.removesuffix("-dirty") == head.stdout.decode().strip()


def test_gpus_are_those_of_the_driver(tmp_path: Path) -> None:
    assert provenance.gpus(tmp_path) == {}
    for bus, model in (("0000:01:00.0", "H100"), ("0000:02:00.0", "H100"), ("0000:03:00.0", "T4")):
        (tmp_path / bus).mkdir()
        text = f"Model: \t\t NVIDIA {model}\nIRQ:   \t\t 17\nGPU UUID: \t GPU-1\n"
        (tmp_path / bus / "information").write_text(text)
    assert provenance.gpus(tmp_path) == {"gpus": "2 x NVIDIA H100, 1 x NVIDIA T4"}


def test_git_is_asked_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run = [], subprocess.run

    def counted(*args: object, **options: object) -> object:
        calls.append(args)
        return run(*args, **options)

    for cached in (git_commit, made_by):
        cached.cache_clear()
    monkeypatch.setattr(subprocess, "run", counted)
    for _ in range(3):
        made_by()
        git_commit()
    assert len(calls) == 1


def test_made_by_names_code_libraries_and_machine_and_nothing_else() -> None:
    found = made_by()
    assert set(found) == {"ssat_ray", "commit", "python", "versions", "machine"}
    assert set(found["machine"]) == {"cpu", "cores", "platform"}, "the host's name stays out"
    assert set(found["versions"]) - {"faiss-gpu", "faiss-cpu"} == {
        *("torch", "numpy", "ray", "diffusers", "scikit-learn")
    }
    assert all(metadata.version(name) == text for name, text in found["versions"].items())
    assert faiss.__version__ in [found["versions"].get(f"faiss-{kind}") for kind in ("gpu", "cpu")]
    assert found["ssat_ray"] == metadata.version("ssat_ray") and found["commit"] == git_commit()
    assert found["machine"]["cpu"] and found["machine"]["cores"] == os.cpu_count()


def test_library_versions_are_those_installed_and_faiss_has_one_name() -> None:
    found = library_versions()
    assert found.pop("faiss") == faiss.__version__
    assert set(found) == {
        *("ray", "torch", "torchvision", "diffusers", "scikit-learn", "mlflow", "numpy", "ssat_ray")
    }
    assert all(metadata.version(name) == text for name, text in found.items())


def test_machine_agrees_with_made_by() -> None:
    found = machine()
    assert set(found) == {"cpu", "cores", "memory_gib", "python", "versions"}
    assert found["memory_gib"] == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.05)
    assert found["python"] == platform.python_version() == made_by()["python"]
    assert found["versions"] == library_versions()
    assert {k: found[k] for k in ("cpu", "cores")}.items() <= made_by()["machine"].items()
    assert found["cpu"] == cpu_model()


def test_a_record_needs_neither_ray_nor_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom ssat_ray.provenance import machine\nfrom ssat_ray.store import Job, Store\n"
        "Store(sys.argv[1]).publish(Job('train', 1, {}, {}), {'machine': machine()})\n"
        "print({'ray', 'torch', 'numpy', 'faiss', 'mlflow'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "set()\n"
