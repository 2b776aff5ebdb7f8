"""A disk or network that fails is no damage of the file: every importer tells the two apart."""

from __future__ import annotations

import errno
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from ssat_ray.data.importers.arrays import NpyStream
from ssat_ray.data.importers.base import (
    DamagedFile,
    ImportOptions,
    open_source,
    unreadable,
)
from ssat_ray.errors import UserError, cannot_be_read

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = len(png())
        archive.addfile(member, io.BytesIO(png()))


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.npz": lambda path: np.savez(path, image=IMAGES),
    "a.npy": lambda path: np.save(path, IMAGES),
    "a.parquet": lambda path: pq.write_table(pa.table({"image": [png()]}), path),
    "a.tar": write_tar,
    "a.pickle": lambda path: path.write_bytes(pickle.dumps({"data": IMAGES})),
    "a.mat": lambda path: savemat(path, {"X": IMAGES.transpose(1, 2, 3, 0)}),
    "folder/a.png": lambda path: path.write_bytes(png()),
}


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.parquet", "a.tar", "folder/a.png"])
def test_a_file_that_is_gone_is_not_damaged(tmp_path: Path, name: str) -> None:
    """As after a mount is lost; the others are read whole when they are opened."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    WRITERS[name](path)
    opened = path.parent if "/" in name else path
    source = open_source([opened], ImportOptions())
    opened.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"{opened}.* cannot be read: No such file") as caught:
        list(source.blocks())
    assert not isinstance(caught.value, DamagedFile)


@pytest.mark.parametrize(
    ("name", "option", "value", "users"),
    [
        ("a.npz", "channels", 3, "parquet, tar, folder"),
        ("a.npz", "shape", (5, 4, 3), "parquet"),
        ("a.npy", "image_key", "x", "npz, parquet, tar, pickle, mat"),
        ("a.tar", "labels", "l.npy", "npz, npy"),
        ("a.parquet", "layout", "NHWC", "npz, npy, pickle"),
        ("a.mat", "size", (4, 4), "parquet, tar, folder"),
        ("folder/a.png", "label_key", "y", "npz, parquet, tar, pickle, mat"),
        ("folder/a.png", "range", "0,1", "npz, npy, pickle, mat"),
    ],
)
def test_an_option_that_the_format_does_not_use(
    tmp_path: Path, name: str, option: str, value: object, users: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    WRITERS[name](path)
    opened = path.parent if "/" in name else path
    words = (
        rf"--{option.replace('_', '-')} says nothing about {opened} \(\w+\); it is for {users}\.$"
    )
    with pytest.raises(UserError, match=words):
        open_source([opened], ImportOptions(**{option: value}))


def test_an_option_that_one_of_the_files_uses(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("a.npz", "folder/a.png"):
        WRITERS[name](tmp_path / name)
    paths = [tmp_path / "a.npz", tmp_path / "folder"]
    source = open_source(paths, ImportOptions(channels=3, size=(5, 4)))
    assert source.read_as == "uint8 NHWC; encoded images, RGB, resized to 5x4"


def test_empty_and_packed_files(tmp_path: Path) -> None:
    for name in ("a.npz", "a.npy", "a.parquet", "a.tar", "a.pickle", "a.mat"):
        (tmp_path / name).touch()
        with pytest.raises(DamagedFile, match=rf"{name} is empty: it has 0 bytes\."):
            open_source([tmp_path / name], ImportOptions())
    for name in ("a.tar.gz", "a.tgz"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match=rf"{name}: gzip is not read; `gunzip .*{name}` first"):
            open_source([tmp_path / name], ImportOptions())


@pytest.mark.parametrize("name", ["a.npy", "a.tar", "a.pickle", "a.mat"])
def test_a_disk_that_fails_at_once(tmp_path: Path, name: str) -> None:
    """Reading a process's memory at address 0 is an input/output error."""
    path = tmp_path / name
    path.symlink_to("/proc/self/mem")
    with pytest.raises(
        UserError, match=r"a\.\w+ cannot be read: Input/output error\. Once"
    ) as caught:
        open_source([path], ImportOptions())
    assert not isinstance(caught.value, DamagedFile)


class Failing(io.BytesIO):
    """A stream whose disk fails after some bytes."""

    def __init__(self, data: bytes, good: int) -> None:
        super().__init__(data)
        self.good = good

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() + (size or 0) > self.good:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return super().read(size)


@pytest.mark.parametrize("good", [5, 128 + 60 * 3])
def test_a_disk_that_fails_in_the_middle(tmp_path: Path, good: int) -> None:
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    data, streams = buffer.getvalue(), [10**6, good] if good > 128 else [good]

    def opened() -> io.BytesIO:
        return Failing(data, streams.pop(0))

    with pytest.raises(UserError, match=r"a\.npy cannot be read: Stale file handle\.") as caught:
        list(NpyStream(opened, len(data), "a.npy", can_seek=True).chunks(0, 1))
    assert not isinstance(caught.value, DamagedFile)


def test_what_the_content_causes_is_damage() -> None:
    """And what `zipfile` makes of a failing disk is none."""
    contents: tuple[Exception, ...] = (
        OSError("Couldn't deserialize thrift"),
        OSError(errno.EINVAL, "Invalid argument"),
        zipfile.BadZipFile("File is not a zip file"),
    )
    for error in contents:
        assert isinstance(unreadable("a.npz", error, "problem"), DamagedFile)
    try:
        try:
            raise OSError(errno.EIO, "Input/output error")
        except OSError:
            raise zipfile.BadZipFile("File is not a zip file") from None
    except zipfile.BadZipFile as failed:
        found = unreadable("a.npz", failed, "problem")
    expected = cannot_be_read("a.npz", OSError(errno.EIO, "anything"))
    assert type(found) is UserError and str(found) == str(expected)
