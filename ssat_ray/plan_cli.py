"""`ssat plan`: measure this cluster, and say what a large pool will take."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from ssat_ray.config import GUIDED, Config
from ssat_ray.errors import RunFailed, UserError
from ssat_ray.loading import load_config
from ssat_ray.options import (
    JsonFile,
    Overrides,
    Preset,
    check_folder_of,
    parse_count,
    write_json,
)
from ssat_ray.places import write_atomic
from ssat_ray.run_folder import PLAN_LOG, RunFolder
from ssat_ray.start import check_inputs, default_name, failures_told, json_line, stamped


def plan(
    preset: Preset,
    images: Annotated[
        int,
        typer.Option(parser=parse_count, metavar="COUNT", help="images of the pool, e.g. 1e8"),
    ],
    overrides: Overrides = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="side of its images; default: the labelled images'")
    ] = None,
    gpus: Annotated[float | None, typer.Option(min=0.01, help="GPUs that it will have")] = None,
    watts: Annotated[float | None, typer.Option(min=0, help="drawn while it runs")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="of a kWh; needs --watts")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="of measuring, starts not counted")] = 60.0,
    json_file: JsonFile = None,
) -> None:
    """Measure this cluster on a small pool, and estimate time, memory and bytes of a large one.

    Prints the estimate, and saves it in the run's folder as plan.json.
    """
    since = time.time()
    if images < 1:
        raise UserError(f"--images {images}: must be at least 1.")
    config = load_config(preset, overrides or [])
    check_folder_of(json_file)
    if price is not None and watts is None:
        raise UserError("--price is of a kWh, so it needs --watts, what the machines draw.")
    with failures_told(config.runtime.log_format, default_name(config)):
        check_inputs(config)
        wanted = {"resolution": resolution, "gpus": gpus, "watts": watts, "price": price}
        _plan(config, images, seconds, wanted, json_file, since)


def _plan(
    config: Config,
    images: int,
    seconds: float,
    wanted: dict[str, Any],
    json_file: str | None,
    since: float,
) -> None:
    name, as_json = default_name(config), config.runtime.log_format == "json"

    def line(event: str, text: str) -> str:
        return json_line(name, event, message=text) if as_json else stamped(text, since)

    print(line("starting", "starting"), flush=True)

    from rich.console import Console

    from ssat_ray import probe
    from ssat_ray.estimate import Target, estimate
    from ssat_ray.tables import estimate_lines, estimate_table
    from ssat_ray.view import quiet_output

    folder = RunFolder.at(config.runtime.runs, name)
    log = folder.home / PLAN_LOG
    with folder.kept(), quiet_output(folder.local / PLAN_LOG) as screen:

        def show(text: str) -> None:
            print(text, file=screen, flush=True)

        def say(text: str) -> None:
            show(line("measuring", text))

        guided = [row for row in config.rows if row in GUIDED]
        if guided:
            say(f"not estimated: fine-tuning and images of {', '.join(guided)}")
        try:
            measured = probe.measure(
                config, images, seconds, before=probe.program_seconds(), say=say
            )
        except RunFailed as error:
            raise RunFailed(f"{error} Log: {log}") from error
        flops = 1.0
        if wanted["resolution"] is not None:
            flops = probe.flops_ratio(config, measured.image_shape, wanted["resolution"])
        target = Target(
            images,
            seeds=len(config.seeds),
            refine_rows=config.cluster.refine_rows,
            resident_bytes=config.runtime.resident_mib * 2**20,
            flops=flops,
            **wanted,
        )
        found = estimate(measured, target)
        saved, numbers = folder.home / "plan.json", found.to_json(measured)
        write_atomic(saved, numbers + "\n")
        if json_file is not None:
            write_json(json_file, numbers)
        if as_json:
            show(json_line(name, "estimate", result=json.loads(numbers), file=str(saved)))
            return
        console = Console(file=screen, width=None if screen.isatty() else 140)
        console.print(estimate_table(found))
        for text in estimate_lines(found, measured):
            show(text)
        show(f"all numbers: {saved}")
