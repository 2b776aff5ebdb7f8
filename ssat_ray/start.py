"""What a command does before torch and Ray are imported: checks of its inputs, the run's name, stamped lines."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssat_ray.config import Config
from ssat_ray.data.pool import Pool
from ssat_ray.errors import INTERRUPTED, RunFailed, UserError
from ssat_ray.loading import load_config
from ssat_ray.report.words import duration
from ssat_ray.store import canonical_json

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_inputs(config: Config) -> None:
    """Look at the files that the configuration names, which takes milliseconds.

    Raises:
        UserError: one is missing, or the pool is damaged or too small.
    """
    path = config.data.path
    if path is not None and not Path(path).exists():
        raise UserError(f"data.path: {path} does not exist.")
    path = config.intermediate.checkpoint
    if path is not None and not Path(path).is_file():
        raise UserError(f"intermediate.checkpoint: {path} does not exist.")
    path = config.pretrain.checkpoint
    if path is not None and not Path(path).is_dir() and not _HUB_ID.fullmatch(path):
        raise UserError(f"pretrain.checkpoint: {path} is no folder, and no id of the hub either.")
    if config.pool.path is not None:
        found = Pool(config.pool.path)
        try:
            config.check_pool(f"pool.path={config.pool.path}, images", len(found))
        except ValueError as error:
            raise UserError(f"{error}.") from error


def check_grown(config: Config) -> int:
    """Generations of the pool, some of which are newer than the clusters.

    Raises:
        UserError: the pool cannot be appended to, or no generation is newer.
    """
    if config.pool.source != "external":
        raise UserError(
            f"pool.source={config.pool.source}: only a pool that exists elsewhere is appended to; "
            "give one with pool.source=external and pool.path."
        )
    generations = len(Pool(str(config.pool.path)).generations)
    if generations <= config.pool.cluster_generations:
        raise UserError(
            f"pool.path={config.pool.path} has {generations} generation(s), and the clusters are "
            f"fitted on pool.cluster_generations={config.pool.cluster_generations}: nothing is "
            "newer than they. Append images (`ssat pool append`) or lower the setting."
        )
    return generations


def check_name(name: str, option: str = "--name") -> str:
    """The name that an option gives, if it is a plain file name: `ssat gc` looks for runs one folder deep.

    Raises:
        UserError: it is not.
    """
    if not name.strip() or name.startswith(".") or set(name) & set("/\\"):
        raise UserError(
            f"{option} {name!r}: it must be a plain file name: not empty, no / or \\, no dot in front."
        )
    return name


def default_name(config: Config) -> str:
    """Run name: the preset's, with 8 hex digits where overrides change a result."""
    own = config.model_dump(mode="json", exclude={"runtime"})
    with contextlib.suppress(UserError):
        if load_config(config.preset).model_dump(mode="json", exclude={"runtime"}) == own:
            return config.preset
    return f"{config.preset}-{hashlib.sha256(canonical_json(own).encode()).hexdigest()[:8]}"


def json_line(run: str, event: str, **about: Any) -> str:
    """A line of progress for programs: an object with `time` (s since 1970), `run`, `event` and what it is about."""
    return json.dumps({"time": round(time.time(), 3), "run": run, "event": event, **about})


@contextlib.contextmanager
def failures_told(log_format: str, run: str) -> Iterator[None]:
    """With `runtime.log_format=json`, print the event `failed` if the block fails; the error goes on.

    It has `exit_code`, and in `message` what the error output says.
    """
    try:
        yield
    except BaseException as error:
        if log_format == "json":
            code, message = _ending(error)
            print(json_line(run, "failed", exit_code=code, message=message), flush=True)
        raise


def _ending(error: BaseException) -> tuple[int, str]:
    """Exit code of a command that ends by this, and why it does."""
    if isinstance(error, UserError | RunFailed):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code, "told to end"
    return 1, f"{type(error).__name__}: {error}"


def stamped(text: str, since: float) -> str:
    """A line of progress with the time since `since` (of `time.time()`): `[   12 s] cluster: 1 to do`."""
    return f"[{duration(round(time.time() - since)):>7}] {text}"
