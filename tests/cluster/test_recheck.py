"""The CronJob's look at a growing pool, with a client that only pretends to compute."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from cluster import recheck
from cluster.manifests.generate import SCRIPTS
from ssat_ray.config import Config
from ssat_ray.errors import RunFailed, UserError
from ssat_ray.options import check_folder_of, write_json
from ssat_ray.places import place


@dataclass
class Client:
    """As a JobSubmissionClient whose jobs end at once with the next of `codes`."""

    codes: list[int | None]
    submitted: list[tuple[str, str]] = field(default_factory=list)
    jobs: dict[str, Any] = field(default_factory=dict)

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id=None), *self.jobs.values()]

    def submit_job(self, *, entrypoint: str, submission_id: str) -> None:
        self.submitted.append((submission_id, entrypoint))
        self.add(submission_id, self.codes.pop(0), JobStatus.RUNNING)

    def add(self, job_id: str, code: int | None, status: JobStatus) -> None:
        self.jobs[job_id] = SimpleNamespace(
            submission_id=job_id, status=status, driver_exit_code=code
        )

    def get_job_info(self, job_id: str) -> Any:
        return self.jobs[job_id]

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        job = self.jobs[job_id]
        yield f"log of {job_id}\n"
        job.status = JobStatus.SUCCEEDED if job.driver_exit_code == 0 else JobStatus.FAILED


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Of a pool with three generations, the first of which is clustered."""
    grow(monkeypatch, 3)
    return configured(str(tmp_path / "runs"))


def configured(runs: str) -> Config:
    pool = {"source": "external", "path": "/mnt/pool"}
    return Config.model_validate({"pool": pool, "runtime": {"runs": runs}})


def grow(monkeypatch: pytest.MonkeyPatch, generations: int) -> None:
    pool = SimpleNamespace(generations=[{}] * generations)
    monkeypatch.setattr(recheck, "Pool", lambda path: pool)


def look(client: Client, config: Config) -> str:
    return recheck.Recheck(client, "/etc/ssat/run.yaml", config, "digits").run()


def state(config: Config) -> Any:
    return json.loads((place(config.runtime.runs) / "digits" / "recheck.json").read_text())


def test_stable_clusters_are_kept_and_the_check_is_not_repeated(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Client([0])
    assert look(client, config) == "3 generations; the clusters still fit"
    ((job_id, entrypoint),) = client.submitted
    assert job_id == "drift-digits-3-try-1"
    words = shlex.split(entrypoint)
    assert words[0] == "python" and Path(words[1]).is_file() and Path(words[1]).stem in SCRIPTS
    assert words[2:5] == ["/etc/ssat/run.yaml", "--name", "digits"]
    assert words[5:7] == ["--set", "pool.cluster_generations=1"]
    assert words[7] == "--json" and Path(words[8]).parent.is_dir()
    assert "log of drift-digits-3-try-1" in capsys.readouterr().out
    assert state(config) == {"clustered": 1, "checked": 3}
    assert look(client, config) == "nothing new: 3 generations"


def test_drift_clusters_again_over_all_generations(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client([3, 0, 0])
    assert look(client, config) == "3 generations; clustered again over all of them"
    assert "jobs/pipeline.py" in client.submitted[1][1]
    assert client.submitted[1][1].endswith("--set pool.cluster_generations=3")
    assert state(config) == {"clustered": 3, "checked": 3}
    grow(monkeypatch, 4)
    look(client, config)
    assert "--set pool.cluster_generations=3 --json" in client.submitted[2][1]
    assert state(config) == {"clustered": 3, "checked": 4}


@pytest.mark.parametrize(("code", "error"), [(2, UserError), (1, RunFailed), (None, RunFailed)])
def test_a_check_that_fails_is_repeated(
    config: Config, code: int | None, error: type[Exception]
) -> None:
    client = Client([code, 0])
    with pytest.raises(error, match="the drift check ended with exit code"):
        look(client, config)
    look(client, config)
    assert [job_id for job_id, _ in client.submitted] == [
        "drift-digits-3-try-1",
        "drift-digits-3-try-2",
    ]


def test_clustering_that_fails_is_repeated_from_the_check(config: Config) -> None:
    client = Client([3, 1, 3, 0])
    with pytest.raises(RunFailed, match="clustering again ended with exit code 1"):
        look(client, config)
    assert look(client, config) == "3 generations; clustered again over all of them"
    assert len(client.submitted) == 4


def test_a_job_that_still_runs_is_followed(config: Config) -> None:
    client = Client([])
    client.add("drift-digits-3-try-1", 1, JobStatus.FAILED)
    client.add("drift-digits-3-try-2", 0, JobStatus.RUNNING)
    assert look(client, config) == "3 generations; the clusters still fit"
    assert client.submitted == []


def test_runs_may_be_in_a_bucket(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(monkeypatch, 3)
    config, client = configured(s3.uri(f"{s3.bucket()}/runs")), Client([3, 0])
    assert look(client, config) == "3 generations; clustered again over all of them"
    report = shlex.split(client.submitted[0][1])[-1]
    check_folder_of(report)
    write_json(report, "{}")
    assert (place(config.runtime.runs) / "digits" / "drift.json").read_text() == "{}\n"
    assert state(config) == {"clustered": 3, "checked": 3}
    assert look(client, config) == "nothing new: 3 generations"


def test_nobody_at_the_address_is_one_paragraph(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("pool: {source: external, path: /mnt/pool}\n")
    command = [sys.executable, recheck.__file__, "run.yaml", "--name=digits"]
    done = subprocess.run(
        [*command, "--address=http://127.0.0.1:9"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "no_proxy": "127.0.0.1"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("recheck: the job server at http://127.0.0.1:9 did not answer")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_pool_that_cannot_grow_is_a_mistake(config: Config) -> None:
    with pytest.raises(UserError, match=r"pool\.source=generate: only a pool"):
        look(Client([]), Config())
