"""A run's configuration as a preset: YAML that `ssat run` takes and that gives the same digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ssat_ray.config import RuntimeConfig
from ssat_ray.errors import UserError
from ssat_ray.loading import resolve
from ssat_ray.mistakes import nearest
from ssat_ray.places import Place, write_atomic

RUN = "run.json"
SUFFIXES = (".yaml", ".yml")


def write_preset(run: str, runs: Place, out: Path, force: bool = False) -> None:
    """Write the configuration of a run, or of a sweep's trial, as a YAML file.

    It has every key but those of `runtime`, which change no result, so later defaults change nothing in it
    either. Of `runtime` only `train_workers` is kept where it is not the default, as batches must fit it. The
    digests are those of the run, but for the report's, which names the preset.

    Args:
        run: a name in `runs`, or `<sweep>/<trial>`.
        out: ends in .yaml or .yml.
        force: replace a file.

    Raises:
        UserError: there is no such run, this version cannot read its configuration, or the file is there.
    """
    if out.exists() and not force:
        raise UserError(f"--out {out} exists; give another name, or --force to replace it.")
    path = runs / run / RUN
    if not path.is_file():
        known = [p.parent.name for p in runs.glob(f"*/{RUN}")]
        known += [f"{p.parent.parent.name}/{p.parent.name}" for p in runs.glob(f"*/*/{RUN}")]
        raise UserError(f"{runs / run} is no run{nearest(run, sorted(known))}.")
    try:
        config = json.loads(path.read_text())["config"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); run its command again.") from error
    text = preset_text(config, run)
    try:
        write_atomic(out, text)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}).") from error


def preset_text(config: dict[str, Any], run: str) -> str:
    """The YAML of a resolved configuration.

    Args:
        config: the `config` of a `run.json`.
        run: its name, for the comment.

    Raises:
        UserError: this version cannot read the configuration.
    """
    whole = resolve(dict(config))
    tree = whole.model_dump(mode="json", exclude={"runtime", "preset"})
    workers = whole.model_dump(mode="json")["runtime"]["train_workers"]
    if workers != RuntimeConfig().train_workers:
        tree["runtime"] = {"train_workers": workers}
    head = f"# The configuration of the run {run} (preset {whole.preset}): every key that a result depends on.\n"
    text = head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    again = resolve({**yaml.safe_load(text), "preset": whole.preset})
    assert again.model_dump(exclude={"runtime"}) == whole.model_dump(exclude={"runtime"})
    return text
