"""`ssat sweep`: the pipeline over many settings, as a sweep file says."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ssat_ray.errors import RunFailed, UserError
from ssat_ray.options import Overrides
from ssat_ray.places import named, place
from ssat_ray.start import check_inputs, check_name, failures_told, json_line, stamped
from ssat_ray.sweeps.space import Space, read_sweep


def sweep(
    file: Annotated[Path, typer.Argument(help="sweep file (YAML, docs/sweeps.md), or digits-grid")],
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="sweep's name; default: the file's")] = None,
) -> None:
    """Run the pipeline at every setting of a space, sharing what they have in common. Run it again to resume.

    At its end it compares the trials, as `ssat compare` does, and writes the page.

    Exit code: 1 if a trial failed, 2 for a mistake in the file or the input.
    """
    since = time.time()
    space = read_sweep(file, overrides or [])
    own = check_name(file.stem) if name is None else check_name(name)
    with failures_told(space.base.runtime.log_format, own):
        _run(space, own, since)


def _run(space: Space, own: str, since: float) -> None:
    runtime = space.base.runtime
    runs = place(runtime.runs)
    if not isinstance(runs, Path):
        raise UserError(
            f"runtime.runs={runtime.runs}: a sweep's runs must be in a folder on a file system, which may be a "
            "network's; runtime.store may be in an object store."
        )
    folder = runs / own
    check_inputs(space.base)
    if (folder / "run.json").exists():
        raise UserError(
            f"{folder} is a run, so no sweep can have its name; give another by --name."
        )
    as_json = runtime.log_format == "json"
    print(json_line(own, "starting") if as_json else stamped(f"starting {own}", since), flush=True)

    from rich.console import Console

    from ssat_ray.run_folder import PAGE, signals_told
    from ssat_ray.store import Store
    from ssat_ray.sweeps import sweep as sweeping
    from ssat_ray.sweeps.log import PATIENCE, Log
    from ssat_ray.sweeps.record import FAILED, FILE, FINISHED
    from ssat_ray.sweeps.sharing import sharing_text
    from ssat_ray.sweeps.show import Lines, sweep_table
    from ssat_ray.view import quiet_output

    Store(runtime.store).check_writable()
    log_file = folder / sweeping.LOG
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runtime.runs: {folder} cannot be written ({error.strerror}).") from error
    record, found, uncompared = None, [], None
    with quiet_output(log_file) as screen:
        lines = Lines(runtime.log_format, own, since, screen)
        log = Log(folder, space, lines)
        try:
            with signals_told():
                record = sweeping.run(space, folder, lines, log)
            if record.of(FINISHED):
                try:
                    found = _compared(own, runtime.runs)
                except UserError as error:  # the trials have ended all the same
                    uncompared = str(error)
        except RunFailed as error:
            raise RunFailed(
                f"{error} Ended trials are kept; run the same command to continue. Log: {log_file}"
            ) from error
        finally:
            untracked = log.close(record, PATIENCE if record else 0.0)
        told = [f"trials: {folder / FILE}"]
        about: dict[str, Any] = {"trials": len(record.trials), "results": str(folder / FILE)}
        if found:
            about["page"] = str(folder / PAGE)
            told += [*found, f"page: {about['page']} (ssat compare {own})"]
        if as_json:
            lines.say("finished", "", **about)
        else:
            console = Console(file=screen, width=None if screen.isatty() else 160)
            console.print(sweep_table(record))
            for line in [f"shared: {sharing_text(record.sharing)}", *told]:
                console.print(line, highlight=False, markup=False, soft_wrap=True)
    failed = record.of(FAILED)
    problems = [f"trial {trial['name']} failed: {trial['cause']}" for trial in failed[:3]]
    if len(failed) > len(problems):
        problems.append(f"{len(failed) - len(problems)} more failed")
    if uncompared:
        problems.append(f"the trials could not be compared: {uncompared}")
    if untracked:
        problems.append(f"logging to MLflow failed: {untracked}")
    if problems:
        sys.stdout.flush()
        raise RunFailed(
            f"{'; '.join(problems)}. The same command tries again. Log: {log_file}, and run.log of each trial"
        )


def _compared(own: str, runs: str) -> list[str]:
    """Write the page that compares the sweep's trials; returns what it says."""
    from ssat_ray.comparison.analysis import Question
    from ssat_ray.comparison.page import write_page
    from ssat_ray.comparison.table import comparison_lines

    content, _ = write_page([own], Question(runs=named(runs)))
    return comparison_lines(content)
