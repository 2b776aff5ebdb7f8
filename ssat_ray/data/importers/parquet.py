"""Parquet files with a column of raw or encoded images, and one of labels if there is any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ssat_ray.data.importers.base import (
    BLOCK_BYTES,
    IMAGE_KEYS,
    LABEL_KEYS,
    MAX_IMAGE_BYTES,
    Block,
    DamagedFile,
    ImportOptions,
    Source,
    check_image_bytes,
    choose_key,
    no_labels,
    unreadable,
)
from ssat_ray.data.importers.encoded import BlockBuilder, Decoder, read_as, to_labels
from ssat_ray.errors import UserError

ENCODED_ROWS = 16
"""Encoded images in memory at a time: their sizes are known only once they are read."""
BROKEN = (pa.ArrowException, OSError, UnicodeDecodeError)
HINT = " Raw pixels? --shape HxWxC says what they are."
PARQUET_IMAGE_KEYS = (*IMAGE_KEYS, "pixels", "png", "jpg", "jpeg")
PARQUET_LABEL_KEYS = (*LABEL_KEYS, "fine_label", "cls", "class")


def open_file(path: Path, options: ImportOptions) -> Source:
    """The rows of one Parquet file.

    The image column holds H * W * C raw bytes (with `options.shape`), encoded images, or structs with a
    field `bytes` of encoded images, as Hugging Face datasets write them.

    Raises:
        UserError: columns are missing, ambiguous or of a refused type, or the first image is refused.
        DamagedFile: it is no Parquet file, or truncated.
    """
    return ParquetImages(path, options)


class ParquetImages(Source):
    """Batches of the two columns, read page by page: a row group may be larger than memory."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self.name, self._path, self._options = str(path), path, options
        try:
            with self._open() as file:
                schema, self.rows = file.schema_arrow, file.metadata.num_rows
                names = schema.names
                groups = range(file.metadata.num_row_groups)
                self._group_rows = [file.metadata.row_group(i).num_rows for i in groups]
        except BROKEN as error:
            problem = f"{path} is truncated, or no Parquet file: {error}."
            raise unreadable(self.name, error, problem) from error
        image = choose_key(names, options.image_key, PARQUET_IMAGE_KEYS, "--image-key", self.name)
        if image is None:
            raise UserError(
                f"{path} has no column called {', '.join(PARQUET_IMAGE_KEYS)}; found "
                f"{', '.join(names)}. --image-key names it."
            )
        others = [name for name in names if name != image]
        self._image, self._kind = image, _binary_type(schema.field(image).type, self.name)
        self._label = choose_key(
            others, options.label_key, PARQUET_LABEL_KEYS, "--label-key", self.name
        )
        if self._label is not None and not pa.types.is_integer(schema.field(self._label).type):
            raise UserError(
                f"{path}: column {self._label} is {schema.field(self._label).type}; labels must be integers."
            )
        self.labels_from = f"column {self._label}"
        if self._label is None:
            self.labels_from = no_labels("column", PARQUET_LABEL_KEYS, others)
        self.shape = self._shape()
        self.read_as = "raw bytes HWC" if options.shape else read_as(self.shape, options)

    def blocks(self, start: int = 0) -> Iterator[Block]:
        return self._raw(start) if self._options.shape is not None else self._decoded(start)

    def _raw(self, start: int) -> Iterator[Block]:
        for batch, row in self._batches(start):
            images = self._pixels(self._encoded(batch[self._image], row), row)
            yield Block(images, to_labels(self._labels(batch), row, self.name))

    def _decoded(self, start: int) -> Iterator[Block]:
        decoder, builder = Decoder(self._options, HINT), BlockBuilder(start, self.name)
        if start > 0:
            for data in self._first_image():  # rows are alike wherever reading starts
                decoder(data, f"{self.name} row 0")
        for batch, first in self._batches(start):
            encoded, labels = self._encoded(batch[self._image], first), self._labels(batch)
            for row, (data, label) in enumerate(zip(encoded, labels, strict=True), first):
                if builder.add(decoder(data, f"{self.name} row {row}"), label):
                    yield builder.take()
        if len(builder):
            yield builder.take()

    def _labels(self, batch: pa.RecordBatch) -> list[int]:
        if self._label is None:
            return [-1] * len(batch)
        return [-1 if label is None else label for label in batch[self._label].to_pylist()]

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(
            self._path, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True
        )

    def _batches(self, start: int) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Record batches of the rows from `start` on, with the row of their first."""
        group, row = 0, 0
        while group < len(self._group_rows) and row + self._group_rows[group] <= start:
            row += self._group_rows[group]
            group += 1
        size = ENCODED_ROWS
        if self._options.shape is not None:
            size = max(1, BLOCK_BYTES // int(np.prod(self._options.shape)))
        columns = [self._image] if self._label is None else [self._image, self._label]
        try:
            with self._open() as file:
                for batch in file.iter_batches(
                    size, range(group, len(self._group_rows)), columns, use_threads=False
                ):
                    skipped = min(max(0, start - row), len(batch))
                    if skipped < len(batch):
                        yield batch[skipped:], row + skipped
                    row += len(batch)
        except BROKEN as error:
            problem = f"{self.name} is corrupt; row {row} was reached: {error}. Get the file again."
            raise unreadable(self.name, error, problem) from error
        if row != self.rows:
            raise DamagedFile(
                f"{self.name} is corrupt: it has {row} rows and says {self.rows}. Get the file again."
            )

    def _first_image(self) -> Iterator[bytes]:
        for batch, _ in self._batches(0):
            yield self._encoded(batch[self._image][:1], 0)[0]
            return

    def _shape(self) -> tuple[int, int, int]:
        given = self._options.shape
        if given is not None:
            check_image_bytes(given, self.name)
            if given[2] not in (1, 3):
                raise UserError(f"--shape: {given[2]} channels; allowed are 1 and 3.")
            if self._options.size or self._options.channels:
                raise UserError(
                    f"{self.name}: --size and --channels are for encoded images, --shape is for raw bytes."
                )
            return given
        if pa.types.is_fixed_size_binary(self._kind):
            raise UserError(
                f"{self.name}: column {self._image} holds {self._kind.byte_width} raw bytes an image; "
                "--shape HxWxC says what they are."
            )
        for data in self._first_image():
            height, width, channels = Decoder(self._options, HINT)(data, f"{self.name} row 0").shape
            return height, width, channels
        raise UserError(f"{self.name} has no rows.")

    def _pixels(self, data: list[bytes], row: int) -> NDArray[np.uint8]:
        size = int(np.prod(self.shape))
        for i, image in enumerate(data):
            if len(image) != size:
                raise UserError(
                    f"{self.name} row {row + i} has {len(image)} bytes, --shape asks for {size}."
                )
        return np.frombuffer(b"".join(data), np.uint8).reshape(-1, *self.shape)

    def _encoded(self, column: Any, row: int) -> list[bytes]:
        if pa.types.is_struct(column.type):
            column = (
                column.field("bytes")
                if not column.null_count
                else column.flatten()[[f.name for f in column.type].index("bytes")]
            )
        if column.null_count:
            missing = row + column.is_null().to_pylist().index(True)
            raise UserError(f"{self.name} row {missing} has no image in column {self._image}.")
        sizes = pc.binary_length(column).to_numpy(zero_copy_only=False)
        too_large = np.flatnonzero(sizes > MAX_IMAGE_BYTES)
        if len(too_large):
            raise UserError(
                f"{self.name} row {row + too_large[0]}: {sizes[too_large[0]]} bytes in column "
                f"{self._image} are more than {MAX_IMAGE_BYTES}."
            )
        found: list[bytes] = column.to_pylist()
        return found


def _binary_type(kind: Any, where: str) -> Any:
    """The type of the images' bytes; UserError if there are none."""
    if pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
        kind = kind.field("bytes").type
    if not (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    ):  # fmt: skip
        raise UserError(
            f"{where}: the image column is {kind}; allowed are binary, fixed-size binary, and structs with a "
            "field `bytes`."
        )
    return kind
