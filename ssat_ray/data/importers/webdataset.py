"""WebDataset tar files: `key.png` beside `key.cls` or `key.json`. Nothing is written to disk."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from ssat_ray.data.importers.base import (
    LABEL_KEYS,
    MAX_IMAGE_BYTES,
    Block,
    ImportOptions,
    Source,
    no_labels,
    unreadable,
)
from ssat_ray.data.importers.encoded import BlockBuilder, Decoder, is_image, read_as
from ssat_ray.errors import UserError

Sample = dict[str, bytes]
"""Suffix (after the first dot of the file name) -> content."""


def open_file(path: Path, options: ImportOptions) -> Source:
    """The samples of a tar file in their order.

    Raises:
        UserError: an absolute name, one with `..`, a link or a device; a sample without exactly one image;
            a label that is no integer.
        DamagedFile: it is no tar file, or truncated.
    """
    return WebDataset(path, options)


class WebDataset(Source):
    """Files of one sample follow one another and share the name up to the first dot of its last part."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self.name, self._path, self._options = str(path), path, options
        self.rows = None
        first = next(self._samples(), None)
        if first is None:
            raise UserError(f"{path} holds no samples.")
        height, width, channels = self._image(Decoder(options), *first).shape
        self.shape = height, width, channels
        self.read_as, self.labels_from = read_as(self.shape, options), self._labels_from(first[1])

    def blocks(self, start: int = 0) -> Iterator[Block]:
        decoder, builder = Decoder(self._options), BlockBuilder(start, self.name)
        for row, (key, sample) in enumerate(self._samples()):
            if row == 0 and start > 0:
                self._image(decoder, key, sample)  # rows are alike wherever reading starts
            if row < start:
                continue
            label = self._label(key, sample)
            if builder.add(self._image(decoder, key, sample), label):
                yield builder.take()
        if len(builder):
            yield builder.take()

    def _image(self, decoder: Decoder, key: str, sample: Sample) -> Any:
        suffixes = [suffix for suffix in sample if is_image(f"x.{suffix}")]
        wanted = self._options.image_key
        if wanted is not None:
            suffixes = [suffix for suffix in suffixes if suffix == wanted.lower()]
        if len(suffixes) != 1:
            raise UserError(
                f"{self.name}: sample {key} has {', '.join(sample)}, so {len(suffixes)} images; one is needed. "
                "--image-key names the suffix."
            )
        return decoder(sample[suffixes[0]], f"{self.name}: {key}.{suffixes[0]}")

    def _label(self, key: str, sample: Sample) -> int:
        """The integer in `.cls`, or in a field of `.json`; -1 if there is neither.

        A field that the user names goes before `.cls`.
        """
        wanted = self._options.label_key
        try:
            if any(len(sample.get(suffix, b"")) > MAX_LABEL_BYTES for suffix in ("cls", "json")):
                raise ValueError(f"it has more than {MAX_LABEL_BYTES} bytes")
            if "cls" in sample and wanted in (None, "cls"):
                return int(sample["cls"].decode("ascii"))
            if "json" in sample:
                content = json.loads(sample["json"])
                keys = self._label_fields(content)
                if len(keys) > 1:
                    raise ValueError(
                        f"{', '.join(keys)} could all be meant; --label-key says which"
                    )
                if wanted is not None and not keys:
                    raise ValueError(f"there is no {wanted} (--label-key)")
                if keys and type(content[keys[0]]) is not int:
                    raise ValueError(f"{keys[0]} is no integer")
                return int(content[keys[0]]) if keys else -1
            if "cls" in sample:
                raise ValueError(
                    f"--label-key {wanted} is a field of .json, and there is only .cls"
                )
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self.name}: the label of sample {key} is unreadable: {error}."
            ) from error
        return -1

    def _label_fields(self, content: Any) -> list[str]:
        """The fields of a `.json` that may be the label."""
        wanted = self._options.label_key
        return [k for k in content if k == wanted or (wanted is None and k in JSON_LABELS)]

    def _labels_from(self, sample: Sample) -> str:
        """Told by the first sample; what is wrong with it comes up when it is read."""
        if "cls" in sample and self._options.label_key in (None, "cls"):
            return ".cls files"
        if "json" not in sample:
            return "the first sample has no .cls and no .json"
        try:
            content = json.loads(sample["json"])
            names, found = list(map(str, content)), self._label_fields(content)
        except (ValueError, TypeError, RecursionError):
            return ".json files"
        return (
            f"field {found[0]} of .json"
            if found
            else no_labels("field of .json", JSON_LABELS, names)
        )

    def _samples(self) -> Iterator[tuple[str, Sample]]:
        key: str | None = None
        sample: Sample = {}
        for name, data in _members(self._path):
            folder, slash, last = str(PurePosixPath(name)).rpartition("/")
            stem, _, suffix = last.partition(".")
            found = folder + slash + stem
            if found != key:
                if key is not None:
                    yield key, sample
                key, sample, num_bytes = found, {}, 0
            num_bytes += tarfile.BLOCKSIZE + len(name) + len(data)
            if num_bytes > MAX_IMAGE_BYTES:
                raise UserError(
                    f"{self._path}: the files of sample {key} have more than {MAX_IMAGE_BYTES} bytes "
                    f"(after {name}); split it, or leave out what is no image and no label."
                )
            if suffix.lower() in sample:
                raise UserError(f"{self._path}: member {name} occurs twice in its sample.")
            sample[suffix.lower()] = data
        if key is not None:
            yield key, sample


MAX_LABEL_BYTES = 2**20
JSON_LABELS = ("cls", "class", *LABEL_KEYS[:5])


class _Limited:
    """A file that refuses to read very much at once: a header may not ask for all memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_IMAGE_BYTES:
            raise tarfile.ReadError(
                f"a header or file of {size} bytes; allowed are {MAX_IMAGE_BYTES}"
            )
        return self._file.read(size)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the regular files, each name checked."""
    name = "its first member"
    try:
        with open(path, "rb") as file:
            with tarfile.open(fileobj=cast(IO[bytes], _Limited(file)), mode="r:") as archive:
                for member in archive:
                    name = member.name
                    archive.members.clear()  # type: ignore[attr-defined]  # or it would keep them all
                    _check_member(path, member)
                    if member.isfile():
                        stream = archive.extractfile(member)
                        yield name, cast(IO[bytes], stream).read(member.size)
                end = archive.offset
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("there is no end mark")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        problem = f"{path} is truncated, or no tar file: {error} (after {name})."
        raise unreadable(str(path), error, problem) from error


def _check_member(path: Path, member: tarfile.TarInfo) -> None:
    pure = PurePosixPath(member.name)
    problem = None
    if pure.is_absolute() or ".." in pure.parts:
        problem = "has a path that leads out of the archive"
    elif not (member.isfile() or member.isdir()):
        problem = "is a link or a special file"
    elif member.size > MAX_IMAGE_BYTES:
        problem = f"has {member.size} bytes; allowed are {MAX_IMAGE_BYTES}"
    if problem:
        raise UserError(
            f"{path}: member {member.name} {problem}; nothing was imported from there on."
        )
