"""`ssat pool`: import, append, synth, info, verify, copy, export."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ssat_ray.errors import UserError
from ssat_ray.options import parse_count
from ssat_ray.pool_options import check_paths, class_names, import_options

app = typer.Typer(no_args_is_help=True, help="Make, extend, check and copy pools of images.")
LINE_SECONDS = 5.0
"""Between two lines of progress."""
Sources = Annotated[
    list[Path],
    typer.Argument(
        default_factory=list,  # so that a single path is the target, and what is missing can be said
        show_default=False,
        metavar="SOURCES",
        help="npz, npy, Parquet, tar, 80M-TI pickle or SVHN .mat files, or folders of images; "
        "of `append` also pools",
    ),
]
Target = Annotated[str, typer.Argument(help="the pool's folder: a path, or a URI such as s3://b/p")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="the sources' format, whatever their suffix: npz, npy, parquet, tar, pickle, mat, folder",
    ),
]
ImageKey = Annotated[str | None, typer.Option(help="name of the array or column of images")]
LabelKey = Annotated[str | None, typer.Option(help="name of the array or column of labels")]
Labels = Annotated[
    str | None, typer.Option(help="a .npy file of labels beside a .npy or npz of images")
]
Layout = Annotated[str | None, typer.Option(help="NHWC or NCHW, where the shape does not tell")]
Range = Annotated[
    str | None, typer.Option("--range", help="range of floating-point pixels: 0,1 | -1,1 | 0,255")
]
ShapeText = Annotated[str | None, typer.Option("--shape", help="HxWxC of raw bytes in a column")]
Size = Annotated[str | None, typer.Option("--size", help="HxW to which encoded images are resized")]
Channels = Annotated[int | None, typer.Option(help="1 or 3: convert encoded images")]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME,...",
        help="names of the classes in the order of their numbers; default: of a folder, its sorted subfolders",
    ),
]
ShardRows = Annotated[
    int | None,
    typer.Option(
        parser=parse_count,
        metavar="COUNT",
        help="images a shard; default: 64 MiB, at most 262,144",
    ),
]
Restart = Annotated[
    bool, typer.Option("--restart", help="discard the shards of an unfinished command")
]


@app.command("import")
def import_(
    sources: Sources,
    target: Target,
    format_: Format = None,
    image_key: ImageKey = None,
    label_key: LabelKey = None,
    labels: Labels = None,
    layout: Layout = None,
    range_: Range = None,
    shape: ShapeText = None,
    size: Size = None,
    channels: Channels = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            parser=parse_count, metavar="COUNT", help="default: the largest label plus one"
        ),
    ] = None,
    classes: Classes = None,
    shard_rows: ShardRows = None,
    restart: Restart = False,
) -> None:
    """Make a pool of the images in one or more files. Run it again to resume."""
    from ssat_ray.data.ingest import import_pool
    from ssat_ray.report import pools

    check_paths("import", sources, target)
    if num_classes is not None and not 1 <= num_classes <= 2**15:
        raise UserError(f"--num-classes {num_classes}: allowed are 1 to {2**15}.")
    options = import_options(
        format_, image_key, label_key, labels, layout, range_, shape, size, channels
    )
    pool, written = import_pool(
        sources,
        target,
        options,
        shard_rows=shard_rows,
        num_classes=num_classes,
        classes=class_names(classes),
        restart=restart,
        report=Progress(),
    )
    said = pools.imported(pool) if written else f"{len(pool):,} images are there already"
    _print_result(f"{pool.folder}: {said}", pools.unlabelled_warning(pool) if written else None)


@app.command()
def append(
    sources: Sources,
    target: Target,
    format_: Format = None,
    image_key: ImageKey = None,
    label_key: LabelKey = None,
    labels: Labels = None,
    layout: Layout = None,
    range_: Range = None,
    shape: ShapeText = None,
    size: Size = None,
    channels: Channels = None,
    classes: Classes = None,
    shard_rows: ShardRows = None,
    again: Annotated[
        bool, typer.Option("--again", help="add files that the pool holds already")
    ] = False,
    restart: Restart = False,
) -> None:
    """Add the images of one or more files, or of another pool, to a pool. Run it again to resume."""
    from ssat_ray.data.ingest import append_pool
    from ssat_ray.report import pools

    check_paths("append", sources, target)
    options = import_options(
        format_, image_key, label_key, labels, layout, range_, shape, size, channels
    )
    pool, written = append_pool(
        sources,
        target,
        options,
        shard_rows=shard_rows,
        classes=class_names(classes),
        again=again,
        restart=restart,
        report=Progress(),
    )
    there = f"these images are there already, {len(pool):,} in all"
    said = pools.appended(pool) if written else there
    _print_result(f"{pool.folder}: {said}", pools.unlabelled_warning(pool) if written else None)


@app.command()
def synth(
    source: Annotated[str, typer.Argument(help="`digits`, or an npz with `image` and `label`")],
    target: Target,
    num_images: Annotated[
        int, typer.Option(parser=parse_count, metavar="COUNT", help="images to make, e.g. 1e6")
    ],
    seed: Annotated[int, typer.Option(help="another one gives other images")] = 0,
    first_id: Annotated[
        int, typer.Option(parser=parse_count, metavar="COUNT", help="id of the first image")
    ] = 0,
    shard_rows: ShardRows = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="a key of `synth` or `data`"),
    ] = None,
    restart: Restart = False,
) -> None:
    """Make a pool of distorted labelled images, of any size. Run it again to resume."""
    from ssat_ray.data.labelled import read_labelled
    from ssat_ray.data.synth_pool import check_numbers, synth_pool
    from ssat_ray.loading import resolve

    check_numbers(num_images, seed, first_id)
    given = ("data.name", "data.path", "synth.num_images", "synth.shard_rows")
    for override in overrides or []:
        key = override.partition("=")[0].strip()
        if key in given or key.split(".")[0] not in ("synth", "data"):
            raise UserError(
                f"--set {override}: allowed are keys of synth and data but {', '.join(given)}, which are "
                "SOURCE, --num-images and --shard-rows."
            )
    if source != "digits" and not Path(source).is_file():
        found = "is a folder" if Path(source).is_dir() else "does not exist"
        raise UserError(f"{source} {found}; SOURCE is `digits` or an npz with `image` and `label`.")
    labelled = {"name": "digits"} if source == "digits" else {"name": "npz", "path": source}
    config = resolve({"data": labelled}, overrides or [])
    pool, written = synth_pool(
        read_labelled(config.data),
        target,
        config.synth.model_copy(update={"num_images": num_images, "shard_rows": shard_rows}),
        seed=seed,
        first_id=first_id,
        restart=restart,
        report=Progress(),
    )
    print(f"{pool.folder}: {len(pool):,} images {'made' if written else 'are there already'}")


@app.command()
def info(
    target: Target,
    histogram: Annotated[
        bool, typer.Option(help="count the labels, which reads that column of every shard")
    ] = True,
) -> None:
    """Say what a pool holds; exit code 1 if a shard is missing."""
    from ssat_ray.data.pool import Pool
    from ssat_ray.report import pools

    pool = Pool(target)
    missing = pool.missing()
    print("\n".join(pools.described(pool, missing)))
    if histogram:
        print(pools.label_counts(pool, missing))
    if missing:
        raise typer.Exit(1)


@app.command()
def verify(target: Target) -> None:
    """Read every shard and check it; exit code 1 if one is missing or was altered."""
    from ssat_ray.data.ingest import verify_pool
    from ssat_ray.data.pool import Pool

    pool = Pool(target)
    problems = verify_pool(pool, Progress())
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(1)
    print(
        f"{pool.folder}: {len(pool):,} images in {len(pool.shards):,} shards are as they were written"
    )


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="the pool's folder: a path or a URI")],
    target: Target,
    shard_rows: ShardRows = None,
    restart: Restart = False,
) -> None:
    """Copy a pool to another place, in shards of another size if wanted. Run it again to resume."""
    from ssat_ray.data.ingest import copy_pool

    pool, written = copy_pool(
        source, target, shard_rows=shard_rows, restart=restart, report=Progress()
    )
    print(
        f"{pool.folder}: {len(pool):,} images {'copied' if written else 'are there already'}, "
        f"{len(pool.shards):,} shards"
    )


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="the pool's folder: a path or a URI")],
    target: Annotated[str, typer.Argument(help="an .npz file, or a folder for PNG files")],
    force: Annotated[bool, typer.Option("--force", help="replace an earlier export")] = False,
) -> None:
    """Write a pool's images as one npz, or as PNG files in a folder for each class."""
    from ssat_ray.data.export import export_pool
    from ssat_ray.data.pool import Pool

    pool = Pool(source)
    export_pool(pool, target, force=force, report=Progress())
    print(f"{target}: {len(pool):,} images exported")


class Progress:
    """Prints a line on stderr every few seconds."""

    def __init__(self) -> None:
        self._start = self._printed = time.monotonic()
        self._first: int | None = None

    def __call__(self, rows: int, total: int | None, row_bytes: int) -> None:
        if (
            self._first is None
        ):  # rows of an earlier process, and the first block, are not its speed
            self._first, self._start = rows, time.monotonic()
        now = time.monotonic()
        if now - self._printed < LINE_SECONDS:
            return
        self._printed = now
        speed = (rows - self._first) / max(now - self._start, 1e-9)
        of = "" if total is None else f" of {total:,}"
        print(
            f"{rows:,}{of} images, {speed:,.0f} images/s, {speed * row_bytes / 1e6:,.0f} MB/s",
            file=sys.stderr,
            flush=True,
        )


def _print_result(line: str, warning: str | None) -> None:
    print(line)
    if warning is not None:
        print(warning, file=sys.stderr)
