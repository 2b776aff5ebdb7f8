"""The score table: one row a pool image, as Parquet files that are read in chunks of bounded size."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssat_ray.errors import UserError
from ssat_ray.places import Place, open_input
from ssat_ray.selection.scores import Array
from ssat_ray.store import RECORD, Store

_NAME = re.compile(r"scores-\d+\.parquet")
CHUNK_ROWS = 1 << 20
"""Most rows of a row group, so of a chunk: 8 MiB for a column of 8 bytes."""

_AGAIN = "remove this folder and run again"
_TYPES = {"id": pa.int64(), "label": pa.int16(), "cluster": pa.int32(), "hash": pa.uint64()}
_REPETITIVE = ["label", "cluster"]


def score_file(shard: int) -> str:
    """Name of the file with the rows of a pool's shard."""
    return f"scores-{shard:05d}.parquet"


def shard_of(path: Place) -> int:
    """Number of the shard that a score file is of."""
    return int(path.name.removeprefix("scores-").removesuffix(".parquet"))


def score_files(folder: Place) -> list[Place]:
    """The score files in a folder by the number of their shard, which names do not sort by."""
    named = (path for path in folder.glob("scores-*.parquet") if _NAME.fullmatch(path.name))
    return sorted(named, key=shard_of)


def encode(columns: Mapping[str, Array]) -> bytes:
    """One file of the table; equal columns give equal bytes.

    Args:
        columns: arrays (n,) by name. `id` is stored as int64 (ascending ids take few bits),
            `label` int16, `cluster` int32, `hash` uint64, every other column float32.

    Uncompressed, since numbers like these hardly shrink and decoding would cost more than reading;
    every page has a checksum.
    """
    types = {name: _TYPES.get(name, pa.float32()) for name in columns}
    schema = pa.schema([pa.field(name, types[name], nullable=False) for name in columns])
    arrays = [
        pa.array(np.asarray(values).astype(types[name].to_pandas_dtype(), copy=False))
        for name, values in columns.items()
    ]
    encodings = {name: "PLAIN" for name in columns if name not in _REPETITIVE}
    if "id" in encodings:
        encodings["id"] = "DELTA_BINARY_PACKED"
    sink = io.BytesIO()
    pq.write_table(
        pa.table(arrays, schema=schema),
        sink,
        row_group_size=CHUNK_ROWS,
        use_dictionary=[name for name in _REPETITIVE if name in columns],
        column_encoding=encodings,
        compression="none",
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue()


class ScoreTable:
    """Score files, read one after another.

    Args:
        files: in the order of their rows, which `choose` wants ascending by id.

    Raises:
        UserError: a file is missing or damaged, here or while it is read.
    """

    def __init__(self, files: Sequence[Place]) -> None:
        self.files = list(files)
        self._rows = [_open(path).metadata.num_rows for path in self.files]
        self.num_rows = sum(self._rows)

    @classmethod
    def of_folders(cls, folders: Sequence[Place]) -> ScoreTable:
        """The files of several published score tables: folder by folder, by shard within each.

        Raises:
            UserError: as above, or the files of a folder have not as many rows as its record says.
        """
        table = cls([path for folder in folders for path in score_files(folder)])
        found: Counter[Place] = Counter()
        for path, rows in zip(table.files, table._rows, strict=True):
            found[path.parent] += rows
        for folder in folders:
            rows = (Store.read_record(folder) or {}).get("rows")
            if rows != found[folder]:
                raise UserError(
                    f"{folder}: the score files have {found[folder]:,} rows and {RECORD} says {rows}, "
                    f"so some are missing or do not belong there; {_AGAIN}."
                )
        return table

    def read(self, columns: Sequence[str]) -> Iterator[dict[str, Array]]:
        """These columns in chunks of at most `CHUNK_ROWS` rows, (n,) each, on the calling thread."""
        names = list(columns)
        for path in self.files:
            with _open(path) as file:
                missing = sorted(set(names) - set(file.schema_arrow.names))
                if missing:
                    raise UserError(
                        f"{path} has no column {', '.join(missing)}; it has "
                        f"{', '.join(file.schema_arrow.names)}; {_AGAIN}."
                    )
                for group in range(file.num_row_groups):
                    yield _read_group(file, group, names, path)


def _open(path: Place) -> pq.ParquetFile:
    try:
        source = path if isinstance(path, Path) else open_input(path)
        return pq.ParquetFile(source, page_checksum_verification=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} of the score table is missing; {_AGAIN}.") from error
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _read_group(
    file: pq.ParquetFile, group: int, names: list[str], path: Place
) -> dict[str, Array]:
    try:
        table = file.read_row_group(group, columns=names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    return {name: table[name].to_numpy() for name in names}


def _damaged(path: Place, error: Exception) -> UserError:
    return UserError(f"{path} of the score table is damaged ({error}); {_AGAIN}.")
