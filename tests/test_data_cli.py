"""`ssat data download` and `ssat run --download` as commands."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import pytest
from torchvision import datasets

from ssat_ray import cli
from ssat_ray.errors import UserError


def run(*arguments: str) -> None:
    cli.app(list(arguments), standalone_mode=False)


def test_it_says_how_to_use_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = {}
    for split, (_, name, _) in datasets.SVHN.split_list.items():
        (tmp_path / name).write_text(split)
        listed[split] = ["http://nowhere.invalid/", name, hashlib.md5(split.encode()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    run("data", "download", "svhn", "--to", str(tmp_path))
    said = (
        f"{tmp_path} has svhn as published; use it: --set data.name=svhn --set data.path={tmp_path}"
    )
    assert capsys.readouterr().out.strip() == said
    run("data", "download", "svhn-extra", "--to", str(tmp_path))
    assert f"ssat pool import {tmp_path}/extra_32x32.mat POOL" in capsys.readouterr().out


def test_a_run_downloads_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything else: no folder of a run is there when it fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/cifar-10-python.tar.gz"
    monkeypatch.setattr(datasets.CIFAR10, "url", url)
    sets = ("--set", "data.name=cifar10", "--set", "data.path=set")
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz could not be downloaded"):
        run("run", "digits", "--download", *sets)
    with pytest.raises(UserError, match=r"data\.name=digits is not downloaded"):
        run("run", "digits", "--download")
    assert not (tmp_path / "runs").exists()
