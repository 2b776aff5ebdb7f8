"""Look after a pool that grows: submit the drift check for new generations, and the pipeline where clusters no longer fit.

Run by the CronJob `ssat-recheck`. What was checked is kept in `recheck.json` in the run's folder.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ssat_ray import jobs
from ssat_ray.config import Config
from ssat_ray.data.pool import Pool
from ssat_ray.errors import RunFailed, UserError
from ssat_ray.loading import load_config
from ssat_ray.places import place, write_atomic
from ssat_ray.start import check_name

JOBS = Path(__file__).resolve().parents[1] / "jobs"
STABLE, CLUSTER_AGAIN = 0, 3
"""Exit codes of `ssat drift`; 2 is a mistake in the configuration, 1 a failure."""


class Recheck:
    """One look at the pool of a configuration.

    Args:
        client: a `JobSubmissionClient` of the cluster that computes.
        path: the configuration's file, on this node and on the cluster's head.
        name: the run's name.
    """

    def __init__(self, client: Any, path: str, config: Config, name: str) -> None:
        self.client, self.path, self.config, self.name = client, path, config, name
        self.folder = place(config.runtime.runs) / name
        self.state_path = self.folder / "recheck.json"

    def run(self) -> str:
        """Submit what is due and wait for it; returns what was found.

        Raises:
            UserError: the pool is not one that grows, or the drift check says the configuration is wrong.
            RunFailed: a job failed, or the cluster is away. The next look begins with the same check.
        """
        if self.config.pool.source != "external":
            raise UserError(
                f"pool.source={self.config.pool.source}: only a pool that exists elsewhere grows; "
                "name one with pool.source=external and pool.path."
            )
        found = len(Pool(str(self.config.pool.path)).generations)
        state = self._state()
        clustered, checked = state["clustered"], state["checked"]
        if found <= max(clustered, checked):
            return f"nothing new: {found} generations"
        self.folder.mkdir(parents=True, exist_ok=True)
        report = str(self.folder / "drift.json")
        code = self._submit("drift", found, clustered, "--json", report)
        if code == STABLE:
            self._save(clustered, found)
            return f"{found} generations; the clusters still fit"
        if code != CLUSTER_AGAIN:
            failure = UserError if code == UserError.exit_code else RunFailed
            raise failure(f"the drift check ended with exit code {code}; its log is above.")
        code = self._submit("pipeline", found, found)
        if code != 0:
            raise RunFailed(f"clustering again ended with exit code {code}; its log is above.")
        self._save(found, found)
        return f"{found} generations; clustered again over all of them"

    def _state(self) -> dict[str, int]:
        """Generations that the clusters were fitted on, and that were checked."""
        first = self.config.pool.cluster_generations
        if not self.state_path.exists():
            return {"clustered": first, "checked": first}
        state: dict[str, int] = json.loads(self.state_path.read_text())
        return {**state, "clustered": max(first, state["clustered"])}

    def _save(self, clustered: int, checked: int) -> None:
        write_atomic(self.state_path, json.dumps({"clustered": clustered, "checked": checked}))

    def _submit(self, script: str, found: int, clustered: int, *more: str) -> int:
        """Exit code of the job for these generations: of the one that still runs, or of a new one."""
        setting = f"pool.cluster_generations={clustered}"
        command = ["python", str(JOBS / f"{script}.py"), self.path, "--name", self.name]
        prefix = f"{script}-{self.name}-{found}-try-"
        tries = {
            job.submission_id: job
            for job in self.client.list_jobs()
            if (job.submission_id or "").startswith(prefix)
        }
        running = [key for key, job in tries.items() if not job.status.is_terminal()]
        job_id = running[0] if running else f"{prefix}{len(tries) + 1}"
        if not running:
            entrypoint = shlex.join([*command, "--set", setting, *more])
            self.client.submit_job(entrypoint=entrypoint, submission_id=job_id)
        return jobs.follow(self.client, job_id, sys.stdout.write)


def main(
    preset: Annotated[str, typer.Argument(help="the configuration's file")],
    name: Annotated[str, typer.Option(help="run name")],
    address: Annotated[str, typer.Option(help="of the cluster's dashboard, http://HOST:8265")],
) -> None:
    """Check a growing pool once. Exit code: 0, also after clustering again; 2 a mistake; 1 failed."""
    config = load_config(preset, [])
    check_name(name)

    print(Recheck(jobs.connect(address), preset, config, name).run(), flush=True)


if __name__ == "__main__":
    try:
        typer.run(main)
    except (UserError, RunFailed) as error:
        print(f"recheck: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
