"""A folder on any file system that pyarrow knows: a local path, or a URI such as s3://bucket/pool."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssat_ray.errors import cannot_be_read
from ssat_ray.places import Place, Remote, open_input, place, write_atomic


class Folder:
    """Files by name in a local folder or under a prefix of an object store.

    It can be pickled; the connection is made where it is first used (`ssat_ray.places.Remote`).
    """

    def __init__(self, location: str | os.PathLike[str] | Remote) -> None:
        self.place: Place = place(location)

    def __str__(self) -> str:
        return self.uri

    @property
    def uri(self) -> str:
        return str(self.place)

    @property
    def is_local(self) -> bool:
        return isinstance(self.place, Path)

    @property
    def local_path(self) -> Path:
        """Where a local folder is."""
        assert isinstance(self.place, Path), f"{self} is not local"
        return self.place

    def path(self, name: str) -> str:
        """What to call a file of this folder in messages."""
        return str(self.place / name)

    def read(self, name: str) -> Any:
        """The file's bytes as a pyarrow buffer; FileNotFoundError if there is none."""
        with self.open(name) as file:
            return file.read_buffer()

    def open(self, name: str) -> Any:
        """The file for random reads; FileNotFoundError if there is none."""
        return open_input(self.place / name)

    def write(self, name: str, data: bytes | str) -> None:
        """Write a file so that readers see all of it or none."""
        write_atomic(self.place / name, data)

    def exists(self, name: str) -> bool:
        return (self.place / name).is_file()

    def names(self, suffix: str = "") -> Iterator[str]:
        """Names of the files directly in the folder, sorted; none if there is no folder."""
        if isinstance(self.place, Remote):
            return (found.name for found in self.place.files_in() if found.name.endswith(suffix))
        try:
            with os.scandir(self.place) as entries:
                found = [entry.name for entry in entries if entry.is_file()]
        except FileNotFoundError:
            found = []
        return iter(sorted(name for name in found if name.endswith(suffix)))

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            (self.place / name).unlink()


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a local file's content; UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise cannot_be_read(path, error) from error
