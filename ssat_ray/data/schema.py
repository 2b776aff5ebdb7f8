"""What the JSON files in a pool's folder must hold: `pool.json` and the journals of unfinished commands."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError


class _Object(BaseModel):
    """A JSON object with at least these fields."""

    model_config = ConfigDict(strict=True)


class Shard(_Object):
    """An entry of `shards`."""

    file: str
    rows: PositiveInt
    first_id: NonNegativeInt
    last_id: NonNegativeInt
    bytes: NonNegativeInt
    sha256: str


class Generation(_Object):
    """An entry of `generations`; `shards` is their number."""

    rows: NonNegativeInt
    shards: NonNegativeInt
    digest: str
    num_classes: NonNegativeInt | None = None


class File(_Object):
    """A file or folder that was imported (`fingerprints`)."""

    name: str
    bytes: NonNegativeInt
    mtime_ns: int
    sample: str
    sha256: str | None = None


class Origin(_Object):
    """What a generation was made of."""

    files: Annotated[list[File], Field(min_length=1)]
    options: dict[str, Any]
    read_as: str = ""
    labels_from: str = ""
    unlabelled: NonNegativeInt = 0


class Manifest(_Object):
    """`pool.json`."""

    shape: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    num_classes: NonNegativeInt
    rows: NonNegativeInt
    generations: list[Generation]
    shards: Annotated[list[Shard], Field(min_length=1)]
    location: str = ""
    class_names: list[str] = []
    source: list[Origin | None] | None = None
    synth: dict[str, Any] = {}


class Note(_Object):
    """A shard that is written."""

    entry: Shard
    generation: NonNegativeInt
    max_label: int
    unlabelled: NonNegativeInt = 0


class Job(_Object):
    """What an unfinished command was about; only some have files, or generations of the pool before."""

    files: list[File] = []
    generations: list[str] = []
    class_names: list[str] = []
    options: dict[str, Any]


class Journal(_Object):
    """An unfinished command."""

    job: Job
    starts: Annotated[list[NonNegativeInt], Field(min_length=1)]
    notes: list[Note]


def check(model: type[BaseModel], content: Any) -> None:
    """ValueError with the first field that is missing or wrong."""
    try:
        model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
