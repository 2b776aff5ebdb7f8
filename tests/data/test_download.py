"""Downloads by torchvision from a server on this machine: layouts, checksums, what is fetched again, errors."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import pickle
import socket
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from torchvision import datasets

from ssat_ray.config import DataConfig
from ssat_ray.data.download import BY_HAND, download, download_set
from ssat_ray.data.importers.base import ImportOptions, open_source
from ssat_ray.data.published import read_published
from ssat_ray.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)


class Server:
    """Serves a folder over HTTP and remembers what was asked for (torchvision asks for redirects first)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, dict[str, None]()
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                asked[self.path.strip("/")] = None
                super().do_GET()

            def log_message(self, *args: Any) -> None: ...

        make = functools.partial(Handler, directory=str(folder))
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), make)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    running = Server(tmp_path / "served")
    thread = threading.Thread(target=running.http.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.http.shutdown()
    thread.join()
    running.http.server_close()


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def publish_cifar(kind: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A miniature archive on the server, and torchvision told its address and checksums."""
    about: Any = datasets.CIFAR10 if kind == "cifar10" else datasets.CIFAR100
    labels = b"labels" if kind == "cifar10" else b"fine_labels"
    buffer, sums = io.BytesIO(), {}
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for i, (name, _) in enumerate([*about.train_list, *about.test_list]):
            planes = np.roll(IMAGES, i, 0).transpose(0, 3, 1, 2).reshape(10, -1)
            content = pickle.dumps({b"data": planes, labels: list(range(10))}, protocol=2)
            member = tarfile.TarInfo(f"{about.base_folder}/{name}")
            member.size, sums[name] = len(content), md5(content)
            archive.addfile(member, io.BytesIO(content))
    (server.folder / about.filename).write_bytes(buffer.getvalue())
    monkeypatch.setattr(about, "url", f"{server.url}/{about.filename}")
    monkeypatch.setattr(about, "tgz_md5", md5(buffer.getvalue()))
    for field in ("train_list", "test_list"):
        listed = [[name, sums[name]] for name, _ in getattr(about, field)]
        monkeypatch.setattr(about, field, listed)
    return about


def publish_svhn(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {}
    for split, (_, name, _) in datasets.SVHN.split_list.items():
        labels = np.arange(1, 11)[:, None]  # 10 stands for 0
        savemat(server.folder / name, {"X": np.moveaxis(IMAGES, 0, 3), "y": labels})
        content = (server.folder / name).read_bytes()
        listed[split] = [f"{server.url}/{name}", name, md5(content)]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)


def settings(name: str, folder: Path, **more: Any) -> DataConfig:
    return DataConfig.model_validate({"name": name, "path": str(folder), **more})


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_is_read_as_published(
    kind: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = publish_cifar(kind, server, monkeypatch)
    config = settings(kind, tmp_path / "new" / "set")
    download_set(config)
    train, test = read_published(config)  # data.verify is on: it checks every file
    np.testing.assert_array_equal(train[0][:10], IMAGES)
    assert test is not None and len(test[0]) == 10
    assert list(server.asked) == [about.filename]
    server.asked.clear()
    (tmp_path / "new" / "set" / about.filename).unlink()
    download_set(config)
    assert not server.asked, "what is there is not fetched again"


def test_svhn_and_its_extra_images(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_svhn(server, monkeypatch)
    download("svhn", tmp_path)
    train, test = read_published(settings("svhn", tmp_path))
    np.testing.assert_array_equal(train[0], IMAGES)
    assert test is not None and test[1].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert list(server.asked) == ["train_32x32.mat", "test_32x32.mat"]
    for expected in (["extra_32x32.mat"], []):
        server.asked.clear()
        download("svhn-extra", tmp_path)
        assert list(server.asked) == expected
    source = open_source([tmp_path / "extra_32x32.mat"], ImportOptions())
    np.testing.assert_array_equal(np.concatenate([b.images for b in source.blocks()]), IMAGES)


def test_a_damaged_file_is_fetched_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that was killed leaves half a file."""
    publish_svhn(server, monkeypatch)
    config = settings("svhn", tmp_path)
    download_set(config)
    path = tmp_path / "test_32x32.mat"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    download_set(settings("svhn", tmp_path, verify=False))
    assert path.stat().st_size == 1000, "without data.verify, files may differ"
    server.asked.clear()
    download_set(config)
    assert path.read_bytes() == whole and list(server.asked) == ["test_32x32.mat"]


def test_an_archive_brought_by_hand(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = publish_cifar("cifar10", server, monkeypatch)
    (server.folder / about.filename).rename(tmp_path / about.filename)
    download("cifar10", tmp_path)
    assert not server.asked and read_published(settings("cifar10", tmp_path))[1] is not None


def test_what_came_is_not_what_was_published(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = publish_cifar("cifar10", server, monkeypatch)
    archive = server.folder / about.filename
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"could not be downloaded \(File not found or corrupted\)"):
        download("cifar10", tmp_path)
    archive.write_bytes(whole)
    monkeypatch.setattr(about, "test_list", [["test_batch", "0" * 32]])
    with pytest.raises(UserError, match="test_batch is not the published file"):
        download("cifar10", tmp_path)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/cifar-10-python.tar.gz"
    monkeypatch.setattr(datasets.CIFAR10, "url", url)
    said = (
        r"cifar-10-python\.tar\.gz could not be downloaded .*by other means.*run the same command"
    )
    with pytest.raises(UserError, match=said) as caught:
        download("cifar10", tmp_path)
    assert str(tmp_path) in str(caught.value) and "refused" in str(caught.value)


def test_a_server_without_the_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_svhn(server, monkeypatch)
    (server.folder / "test_32x32.mat").unlink()
    with pytest.raises(
        UserError, match=r"test_32x32\.mat could not be downloaded \(HTTP Error 404"
    ):
        download("svhn", tmp_path)
    assert socket.getdefaulttimeout() is None


def test_sets_that_are_not_downloaded(tmp_path: Path) -> None:
    for name, why in BY_HAND.items():
        with pytest.raises(UserError, match=f"{name} is not downloaded: {why}"):
            download(name, tmp_path)
    with pytest.raises(UserError, match=r"tiny-imagenet-200\.zip"):
        download_set(settings("tiny-imagenet", tmp_path))
    with pytest.raises(UserError, match=r"data\.name=digits is not downloaded"):
        download_set(DataConfig())
    with pytest.raises(UserError, match=r"unknown set 'cifar' \(did you mean 'cifar10'\?\)"):
        download("cifar", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_set_says_how_to_get_it(tmp_path: Path) -> None:
    from ssat_ray.data.published import fingerprint

    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=rf"ssat data download svhn --to {folder}$"):
            fingerprint(settings("svhn", folder))
    with pytest.raises(UserError, match=r"does not exist\.$"):
        fingerprint(settings("folder", tmp_path / "none"))
