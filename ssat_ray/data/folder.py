"""A folder on any file system that pyarrow knows: a local path, or a URI such as s3://bucket/pool."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow import fs as arrow_fs

from ssat_ray.errors import UserError, cannot_be_read
from ssat_ray.store import write_atomic

OBJECT_STORES = ("s3", "gcs", "abfs")
"""Their files come into being when the stream is closed; and S3, and Azure without hierarchy, move none."""


class Folder:
    """A local folder or a prefix of an object store, named by a path or a URI.

    It can be pickled; the connection is made where it is first used. A custom S3 endpoint goes into the
    URI: `s3://bucket/pool?endpoint_override=http://host:9000&scheme=http`.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        text = os.fspath(location)
        self.uri = text if "://" in text else str(Path(text).absolute())

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.uri,)

    def __str__(self) -> str:
        return self.uri

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri or self.uri.startswith("file://")

    @property
    def local_path(self) -> Path:
        """Where a local folder is."""
        return Path(self._opened[1])

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        if "://" not in self.uri:
            return arrow_fs.LocalFileSystem(), self.uri
        try:
            system, path = arrow_fs.FileSystem.from_uri(self.uri)
        except (ArrowException, ValueError, OSError) as error:
            raise UserError(f"{self.uri} is no location that pyarrow can open: {error}.") from error
        return system, path.rstrip("/")

    def path(self, name: str) -> str:
        """What to call a file of this folder in messages."""
        base, question, options = self.uri.partition("?")
        return f"{base.rstrip('/')}/{name}{question}{options}"

    def read(self, name: str) -> Any:
        """The file's bytes as a pyarrow buffer; FileNotFoundError if there is none."""
        system, base = self._opened
        with system.open_input_file(f"{base}/{name}") as file:
            return file.read_buffer()

    def open(self, name: str) -> Any:
        """The file for random reads; FileNotFoundError if there is none."""
        system, base = self._opened
        return system.open_input_file(f"{base}/{name}")

    def write(self, name: str, data: bytes | str) -> None:
        """Write a file so that readers see all of it or none."""
        if self.is_local:
            write_atomic(self.local_path / name, data)
            return
        system, base = self._opened
        path, scratch = f"{base}/{name}", f"{base}/.{name}.{uuid.uuid4().hex}.tmp"
        whole = system.type_name in OBJECT_STORES
        try:
            with system.open_output_stream(path if whole else scratch) as file:
                file.write(data.encode() if isinstance(data, str) else data)
            if not whole:
                _move(system, scratch, path)
        except OSError:
            with contextlib.suppress(OSError):
                self.delete(scratch.rpartition("/")[2])
            raise

    def exists(self, name: str) -> bool:
        system, base = self._opened
        return bool(system.get_file_info(f"{base}/{name}").type == arrow_fs.FileType.File)

    def names(self, suffix: str = "") -> Iterator[str]:
        """Names of the files directly in the folder, sorted; none if there is no folder."""
        system, base = self._opened
        found = system.get_file_info(arrow_fs.FileSelector(base, allow_not_found=True))
        files = (f.base_name for f in found if f.type == arrow_fs.FileType.File)
        return iter(sorted(name for name in files if name.endswith(suffix)))

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        system, base = self._opened
        if self.exists(name):
            system.delete_file(f"{base}/{name}")


def _move(system: Any, source: str, target: str) -> None:
    """Put a file into another one's place."""
    try:
        system.move(source, target)
    except OSError:  # HDFS moves onto no file that exists
        system.delete_file(target)
        system.move(source, target)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a local file's content; UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise cannot_be_read(path, error) from error
