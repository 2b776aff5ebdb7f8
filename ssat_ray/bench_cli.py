"""`ssat bench`: measure the project against the bare alternative and print the table."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from ssat_ray.bench.measure import HEADER, Comparison
from ssat_ray.config import GUIDED
from ssat_ray.errors import UserError
from ssat_ray.options import Overrides, parse_count
from ssat_ray.provenance import git_commit, machine
from ssat_ray.report.words import machine_name, short_commit

bench = typer.Typer(
    no_args_is_help=True, help="Measure the project against the bare alternative, in alternation."
)
Rows = Annotated[
    int | None,
    typer.Option(
        parser=parse_count, metavar="COUNT", help="images or points; default: the size of the bar"
    ),
]
Repeats = Annotated[
    int | None,
    typer.Option(
        parser=parse_count, metavar="COUNT", help="measurements of each side; medians are shown"
    ),
]
Device = Annotated[str | None, typer.Option(help="cuda: on a GPU, as a share of its matrix peak")]


def _writable(path: Path | None) -> Path | None:
    """Before anything is measured.

    Raises:
        UserError: the file cannot be written.
    """
    if path is not None:
        try:
            path.open("ab").close()
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    return path


Out = Annotated[
    Path | None,
    typer.Option(help="Markdown file to append the table to", callback=_writable),
]


BENCHES = {
    "score": "a large pool: `ssat score` against a bare loop over an array",
    "kmeans": "Lloyd iterations against FAISS, inertia against scikit-learn",
    "gmm": "EM iterations and log-likelihood against scikit-learn",
    "select": "the choice among 100M scores against NumPy in memory",
    "generate": "images by `ssat generate` against a plain diffusers loop",
    "sampling": "20 steps of DPM-Solver++ against 1,000 ancestral ones: time and quality",
    "step": "a TRADES-10 training step against the textbook's",
    "ddp": "two DDP workers of one thread against one process of two",
    "autoattack": "AutoAttack on two actors against one",
}
"""Modules of `ssat_ray.bench` with a `run`, imported where they are asked for."""
GROUPS = {
    "selection": ["score", "kmeans", "gmm", "select"],
    "generation": ["generate", "sampling"],
    "training": ["step", "ddp", "autoattack"],
}
"""Benches that one command runs one after another, each at the size of its bar."""


def table(name: str, given: Mapping[str, object], found: list[Comparison]) -> str:
    """The Markdown section of one bench, with command, machine, date and commit.

    Args:
        given: options of the command that were not left at their defaults.
    """
    lines = [comparison.markdown() for comparison in found]
    return "\n".join(
        [*_heading(name, given.items()), "Medians with the extremes.", "", HEADER, *lines, ""]
    )


def _heading(name: str, given: Iterable[tuple[str, object]]) -> list[str]:
    about = machine()
    command = " ".join(["ssat bench", name, *(f"--{option} {value}" for option, value in given)])
    versions = about["versions"]
    return [
        f"## {name}",
        "",
        f"`{command}`, {date.today().isoformat()}, commit {short_commit(git_commit())}; "
        f"{machine_name(about)}; torch {versions.get('torch')}, Ray {versions.get('ray')}.",
    ]


def _run(name: str, rows: int | None, repeats: int | None, out: Path | None) -> None:
    run = importlib.import_module(f"ssat_ray.bench.{name}").run
    options = {"rows": rows, "repeats": repeats}
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        if value < 1:
            raise UserError(f"--{option} {value}: must be at least 1.")
        if option not in inspect.signature(run).parameters:
            raise UserError(f"--{option} {value}: bench {name} has no such size; leave it out.")
    _show(name, given, run(**given), out)


def _show(
    name: str, given: Mapping[str, object], found: list[Comparison], out: Path | None
) -> None:
    _tell(table(name, given, found), out)


def _tell(text: str, out: Path | None) -> None:
    """Print a section, and append it to a file."""
    print(text)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


@bench.command()
def step(repeats: Repeats = None, device: Device = None, out: Out = None) -> None:
    """A TRADES-10 training step against the textbook's; with --device, against the device's matrix peak."""
    if device is None:
        _run("step", None, repeats, out)
    else:
        _on_device("step", repeats, device, out)


@bench.command()
def generate(
    rows: Rows = None, repeats: Repeats = None, device: Device = None, out: Out = None
) -> None:
    """Images by `ssat generate` against a plain diffusers loop; with --device, sampling alone against its matrix peak."""
    if device is None:
        _run("generate", rows, repeats, out)
    elif rows is not None:
        raise UserError("--rows: the size is fixed with --device; leave it out.")
    else:
        _on_device("generate", repeats, device, out)


def _on_device(name: str, repeats: int | None, device: str, out: Path | None) -> None:
    import torch

    from ssat_ray.bench import gpu

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--device {device}: PyTorch has no such device here ({reason})."
        ) from error
    measure = gpu.steps if name == "step" else gpu.samples
    given = {} if repeats is None else {"repeats": repeats}
    _show(name, {**given, "device": device}, measure(repeats or 10, torch.device(device)), out)


def _command(name: str, about: str) -> None:
    def command(rows: Rows = None, repeats: Repeats = None, out: Out = None) -> None:
        _run(name, rows, repeats, out)

    command.__doc__ = f"{about[0].upper()}{about[1:]}."
    bench.command(name)(command)


for _name, _about in BENCHES.items():
    if _name not in ("step", "generate"):
        _command(_name, _about)


@bench.command()
def guidance(
    weight: Annotated[
        list[float] | None, typer.Option(help="lambda of fine-tuning; may be repeated")
    ] = None,
    sampling: Annotated[
        list[float] | None, typer.Option(help="weight of guidance at sampling; may be repeated")
    ] = None,
    row: Annotated[list[str] | None, typer.Option(help="guided row; may be repeated")] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="may be repeated")] = None,
    out: Out = None,
    figure: Annotated[
        Path | None, typer.Option(help="PNG file for the curves", callback=_writable)
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="keeps the store here, for running it again")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Guided rows over the weight of guidance: margins, label agreement and coverage by guide and judge; seeds 0, 1, 2 by default.

    With --weight alone, nothing is guided at sampling; with --sampling alone, nothing in fine-tuning; with neither, both.
    """
    if unknown := sorted(set(row or []) - set(GUIDED)):
        raise UserError(f"--row {unknown[0]}: expected one of {', '.join(GUIDED)}.")
    if wrong := [w for w in weight or [] if not (0 <= w < math.inf)]:
        raise UserError(f"--weight {wrong[0]:g}: must be at least 0 and finite.")
    if wrong := [w for w in sampling or [] if not (0 < w < math.inf)]:
        raise UserError(f"--sampling {wrong[0]:g}: must be above 0 and finite.")
    from ssat_ray.bench import guidance as curve

    if wrong_keys := [o for o in overrides or [] if o.partition("=")[0].strip() in curve.OWN]:
        raise UserError(f"--set {wrong_keys[0]}: use --weight, --sampling, --row or --seed.")
    if weight or sampling:
        weights, strengths = tuple(weight or ()), tuple(sampling or ())
    else:
        weights, strengths = curve.WEIGHTS, curve.SAMPLING
    rows, seeds = tuple(row or GUIDED), tuple(seed or curve.SEEDS)
    points = curve.run(weights, strengths, seeds, rows, tuple(overrides or ()), folder)
    options = {"weight": weight, "sampling": sampling, "row": row, "seed": seed, "set": overrides}
    given = [(name, value) for name, values in options.items() for value in values or []]
    text = "\n".join(
        [
            *_heading("guidance", given),
            f"Means with 95 % intervals (Student's t over the seeds {_listed(seeds)}).",
            "",
            curve.table(points),
            "",
            f"The values of the seeds {_listed(seeds)}, in this order:",
            "",
            curve.table_by_seed(points),
            "",
        ]
    )
    _tell(text, out)
    if figure is not None:
        curve.draw(points, figure)


@bench.command()
def sharing(
    sweep: Annotated[str, typer.Argument(help="name of a sweep that has ended, in --runs")],
    sample: Annotated[
        int | None, typer.Option(min=1, help="trials that are run by themselves; default: 3")
    ] = None,
    runs: Annotated[Path, typer.Option(help="the runs' folder")] = Path("runs"),
    out: Out = None,
) -> None:
    """A sweep's wall time against runs of its trials one by one, each in a store of its own: measured on some of them."""
    from ssat_ray.bench import sharing as sampled

    found = sampled.run(sweep, runs, sample or sampled.SAMPLE)
    given = {"sample": sample, "runs": None if runs == Path("runs") else runs}
    _show(
        f"sharing {sweep}",
        {key: one for key, one in given.items() if one is not None},
        [found],
        out,
    )


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _group(group: str) -> None:
    names = GROUPS[group]

    def command(out: Out = None) -> None:
        for name in names:
            _run(name, None, None, out)

    command.__doc__ = f"{', '.join(names)}: all benches of the group, one after another."
    bench.command(group)(command)


for _name in GROUPS:
    _group(_name)
