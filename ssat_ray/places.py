"""Files on any file system that pyarrow knows: local ones as `pathlib.Path`, others as `Remote`.

A `Place` is one of the two. What both can do is done by their methods of the same names; what differs is done
by the functions here.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from ssat_ray.errors import UserError

OBJECT_STORES = ("s3", "gcs", "abfs")
"""Their files come into being when the stream is closed; and S3, and Azure without hierarchy, move none."""
CACHE = "SSAT_CACHE"
"""Environment variable: where copies of remote files are kept on each node."""


@dataclass(frozen=True)
class RemoteStat:
    """Bytes of a file, and when it was last written (seconds since 1970, 0 if unknown)."""

    st_size: int
    st_mtime: float


class _Connection:
    """Of all places that were made of one URI; opened where it is first used."""

    def __init__(self, base: str, uri: str) -> None:
        self.base, self.uri = base, uri

    @cached_property
    def opened(self) -> tuple[Any, str]:
        from pyarrow import ArrowException
        from pyarrow import fs as arrow_fs

        try:
            system, path = arrow_fs.FileSystem.from_uri(self.uri)
        except (ArrowException, ValueError, OSError) as error:
            raise UserError(f"{self.uri} is no location that pyarrow can open: {error}.") from error
        return system, path.rstrip("/")


class Remote:
    """A file or a folder at a URI, with the methods of `pathlib.Path` that make sense there.

    It can be pickled. A custom S3 endpoint goes into the URI:
    `s3://bucket/store?endpoint_override=http://host:9000&scheme=http`. Folders are prefixes: they need not
    be made, and one without files is none.
    """

    def __init__(self, uri: str) -> None:
        base, _, self._options = uri.partition("?")
        self._base = base.rstrip("/")
        self._connection = _Connection(self._base, str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (str(self),)

    def __str__(self) -> str:
        return self._base + (f"?{self._options}" if self._options else "")

    def __repr__(self) -> str:
        return f"Remote({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: Remote) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: str) -> Remote:
        return self._at(f"{self._base}/{name}")

    def _at(self, base: str) -> Remote:
        found = Remote(f"{base}?{self._options}" if self._options else base)
        found._connection = self._connection
        return found

    @property
    def opened(self) -> tuple[Any, str]:
        """The pyarrow file system, and the path in it.

        Raises:
            UserError: pyarrow can open no such URI.
        """
        system, path = self._connection.opened
        first = self._connection.base
        if self._base.startswith(first):
            return system, path + self._base.removeprefix(first)
        return system, path[: len(self._base) - len(first)]  # a parent

    @property
    def name(self) -> str:
        return self._base.rpartition("/")[2]

    @property
    def parent(self) -> Remote:
        return self._at(self._base.rpartition("/")[0])

    def with_name(self, name: str) -> Remote:
        return self.parent / name

    def _info(self) -> Any:
        system, path = self.opened
        return system.get_file_info(path)

    def exists(self) -> bool:
        return self._info().type.name != "NotFound"

    def is_file(self) -> bool:
        return self._info().type.name == "File"

    def is_dir(self) -> bool:
        return self._info().type.name == "Directory"

    def stat(self) -> RemoteStat:
        """Of a file; FileNotFoundError if there is none."""
        info = self._info()
        if info.type.name == "NotFound":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return _stat(info)

    def read_bytes(self) -> bytes:
        system, path = self.opened
        with system.open_input_file(path) as file:
            return file.readall()

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there as soon as a file is in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file."""
        system, path = self.opened
        try:
            system.delete_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def iterdir(self) -> Iterator[Remote]:
        """Files and folders directly in it, sorted by name; none if it is no folder."""
        return (found for found, _ in self._listed(recursive=False))

    def glob(self, pattern: str) -> Iterator[Remote]:
        """Files and folders below it that match, `*` and `?` within one level, sorted."""
        levels = pattern.split("/")
        found = [self]
        for level in levels[:-1]:
            plain = not any(c in level for c in "*?[")
            found = [
                child
                for folder in found
                for child in ([folder / level] if plain else folder._matching(level))
            ]
        for folder in found:
            yield from folder._matching(levels[-1])

    def rglob(self, pattern: str) -> Iterator[Remote]:
        """Files and folders at any depth whose name matches, sorted."""
        return (
            found
            for found, _ in self._listed(recursive=True)
            if fnmatch.fnmatchcase(found.name, pattern)
        )

    def _matching(self, pattern: str) -> list[Remote]:
        return [found for found in self.iterdir() if fnmatch.fnmatchcase(found.name, pattern)]

    def files_in(self) -> list[Remote]:
        """Files directly in it, sorted by name, by one listing."""
        listed = self._listed(recursive=False)
        return [found for found, info in listed if info.type.name == "File"]

    def files(self) -> list[tuple[Remote, RemoteStat]]:
        """All files at any depth with what is known of them, by one listing."""
        listed = self._listed(recursive=True)
        return [(found, _stat(info)) for found, info in listed if info.type.name == "File"]

    def _listed(self, recursive: bool) -> list[tuple[Remote, Any]]:
        from pyarrow import fs as arrow_fs

        system, path = self.opened
        selector = arrow_fs.FileSelector(path, allow_not_found=True, recursive=recursive)
        found = sorted(system.get_file_info(selector), key=lambda info: info.path)
        return [(self / info.path.removeprefix(f"{path}/"), info) for info in found]

    def write(self, data: bytes) -> None:
        """Write a file so that readers see all of it or none."""
        system, path = self.opened
        if system.type_name in OBJECT_STORES:
            with system.open_output_stream(path) as file:
                file.write(data)
            return
        folder, _, name = path.rpartition("/")
        scratch = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
        try:
            system.create_dir(folder, recursive=True)
            with system.open_output_stream(scratch) as file:
                file.write(data)
            _move(system, scratch, path)
        except OSError:
            with contextlib.suppress(OSError):
                system.delete_file(scratch)
            raise


Place: TypeAlias = Path | Remote


def place(location: str | os.PathLike[str] | Remote) -> Place:
    """A local path, absolute, or what a URI names; `file://` is local."""
    if isinstance(location, Remote):
        return location
    text = os.fspath(location)
    if text.startswith("file://"):
        from pyarrow import fs as arrow_fs

        return Path(arrow_fs.FileSystem.from_uri(text)[1])
    return Remote(text) if "://" in text else Path(text).absolute()


def named(text: str) -> Place:
    """As `place`, but a relative path stays as it was written, for messages."""
    return place(text) if "://" in text else Path(text)


def write_atomic(path: Place, data: bytes | str) -> None:
    """Write a file so that readers see all of it or none (locally temporary name, fsync, rename).

    Raises:
        UserError: the disk or a quota is full.
        OSError: any other reason; it names `path`.
    """
    content = data.encode() if isinstance(data, str) else data
    if isinstance(path, Remote):
        path.write(content)
        return
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(scratch, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left on the disk of {path} ({error.strerror}); free some and run the same "
                "command to continue."
            ) from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def open_input(path: Place) -> Any:
    """The file for random reads, as pyarrow opens it; FileNotFoundError if there is none."""
    if isinstance(path, Remote):
        system, name = path.opened
        return system.open_input_file(name)
    from pyarrow import fs as arrow_fs

    return arrow_fs.LocalFileSystem().open_input_file(str(path))


def local_copy(path: Place) -> Path:
    """Where the file can be read by what knows local files only: itself, or a copy in this node's cache.

    For files that never change once they are there. A copy is made once a node and checked for its size.
    """
    if isinstance(path, Path):
        return path
    copy = cache_of(path.parent) / path.name
    size = path.stat().st_size
    if not copy.exists() or copy.stat().st_size != size:
        write_atomic(copy, path.read_bytes())
    return copy


def local_folder(path: Place) -> Path:
    """As `local_copy`, of a folder with all files in it."""
    if isinstance(path, Path):
        return path
    copy = cache_of(path)
    for found, about in path.files():
        target = copy / str(found).removeprefix(str(path).partition("?")[0]).partition("?")[0][1:]
        if not target.exists() or target.stat().st_size != about.st_size:
            write_atomic(target, found.read_bytes())
    return copy


def cache_of(path: Remote) -> Path:
    """This node's folder for copies of the files of a remote one."""
    root = os.environ.get(CACHE) or f"{tempfile.gettempdir()}/ssat-cache-{os.getuid()}"
    return Path(root) / hashlib.sha256(str(path).encode()).hexdigest()[:20]


def remove_tree(path: Place) -> None:
    """Remove a folder with all that is in it, if it is there."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
        return
    system, name = path.opened
    with contextlib.suppress(FileNotFoundError):
        system.delete_dir(name)


def folder_bytes(folder: Place, names: Iterable[str] = ("*",)) -> int:
    """Bytes of the files in a folder, at any depth, that match any of the patterns."""
    if isinstance(folder, Remote):
        return sum(
            about.st_size
            for found, about in folder.files()
            if any(fnmatch.fnmatchcase(found.name, name) for name in names)
        )
    return sum(p.stat().st_size for name in names for p in folder.rglob(name) if p.is_file())


def _stat(info: Any) -> RemoteStat:
    return RemoteStat(info.size or 0, info.mtime.timestamp() if info.mtime else 0.0)


def _move(system: Any, source: str, target: str) -> None:
    """Put a file into another one's place."""
    try:
        system.move(source, target)
    except OSError:  # HDFS moves onto no file that exists
        system.delete_file(target)
        system.move(source, target)
