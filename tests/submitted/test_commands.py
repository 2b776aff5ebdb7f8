"""`ssat` commands as jobs of a cluster: results, exit codes, two at once, connections that break."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssat_ray.loading import load_config
from ssat_ray.plan import build_plan
from ssat_ray.store import Store
from tests.artefacts import files
from tests.submitted.proxy import CuttingProxy

if TYPE_CHECKING:
    from tests.submitted.conftest import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TINY = """\
rows: [random, full]
pool: {source: synth}
synth: {num_images: 2000}
runtime: {train_workers: 1, actors: 1}
"""
SHARED = """\
goal: selection
rows: [random, pcs]
model: {widths: [8, 16], strides: [2, 2]}
intermediate: {num_steps: 1000, batch_size: 64, bn_group: 32}
pool: {source: synth}
synth: {num_images: 20000, shard_rows: 5000}
runtime: {train_workers: 1, actors: 1}
"""
RATIOS = {"one": "select.ratio=0.2", "other": "select.ratio=0.3"}


@pytest.fixture(autouse=True)
def presets(cluster: Cluster) -> None:
    (cluster.cwd / "tiny.yaml").write_text(TINY)
    (cluster.cwd / "shared.yaml").write_text(SHARED)


def wait_until(done: Callable[[], bool]) -> None:
    for _ in range(60):
        if done():
            return
        time.sleep(1)
    raise AssertionError("not within a minute")


def test_a_job_ends_as_the_command_would(cluster: Cluster) -> None:
    done = cluster.ssat("submit", "select", "tiny.yaml", "--name", "first#1")
    assert done.returncode == 0, done.stdout + done.stderr
    job = re.findall(r"^submitted (ssat-select-first-1-\w+)$", done.stdout, re.MULTILINE)[0]
    assert list((cluster.cwd / "store/select").glob("*/stage.json"))
    assert (cluster.cwd / "runs/first#1/run.json").exists()
    lines = [line for line in done.stdout.splitlines() if "synth:" in line]
    assert lines and len(lines) == len(set(lines)), done.stdout
    assert cluster.ssat("status", job).stdout.startswith(f"{job}  succeeded")
    assert lines[0] in cluster.ssat("status", job, "--logs").stdout
    again = cluster.ssat("submit", "select", "tiny.yaml", "--name", "first#1")
    assert "everything is up to date" in again.stdout and again.returncode == 0


def test_ray_job_submit_runs_a_script_of_a_clone(cluster: Cluster) -> None:
    """Ray's own command, from a checkout, with absolute paths."""
    (cluster.cwd / "sub").mkdir()
    preset = cluster.cwd / "sub/tiny.yaml"
    preset.write_text(TINY)
    places = [f"runtime.{name}={cluster.cwd / 'cloned' / name}" for name in ("store", "runs")]
    chosen = ("goal=selection", "rows=[random]", *places)
    settings = [part for one in chosen for part in ("--set", one)]
    script = ["python", "jobs/pipeline.py", str(preset), *settings]
    ray = str(Path(sys.executable).with_name("ray"))
    done = subprocess.run(
        [ray, "job", "submit", "--working-dir", ".", "--", *script],
        cwd=Path(__file__).parents[2],
        env=cluster.environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((cluster.cwd / "cloned/store/select").glob("*/stage.json"))
    wrapped = cluster.ssat("submit", "run", "./sub/tiny.yaml", *settings)
    assert wrapped.returncode == 0, wrapped.stdout + wrapped.stderr
    assert "everything is up to date" in wrapped.stdout, "it is the same computation"


PROBE = """\
from ssat_ray.models.preact_small import PreActSmall

def build(in_channels, num_classes):
    return PreActSmall(in_channels, num_classes, (8, 16), (2, 2), 1)
"""


def test_packages_that_the_cluster_lacks_are_installed(cluster: Cluster, tmp_path: Path) -> None:
    """From a file that is longer than an environment variable may be, as one with hashes is.

    Ray copies the environment that it runs in, where that is a virtual one, and installs into the copy.
    """
    if shutil.disk_usage(cluster.scratch).free < 16 * 2**30:
        pytest.skip("less than 16 GiB are free, and Ray copies this environment")
    wheel, about = tmp_path / "ssat_probe-1.0-py3-none-any.whl", "ssat_probe-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("ssat_probe.py", PROBE)
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: ssat-probe\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    requirements = tmp_path / "requirements.lock"
    requirements.write_text("#\n" * 100_000 + f"ssat-probe @ {wheel.as_uri()}\n")
    (cluster.cwd / "probe.yaml").write_text(
        SHARED.replace("{widths: [8, 16], strides: [2, 2]}", '{name: "ssat_probe:build"}')
    )
    lacking = cluster.ssat("submit", "intermediate", "probe.yaml")
    assert lacking.returncode == 2 and "ssat_probe" in lacking.stdout
    done = cluster.ssat("submit", "--requirements", str(requirements), "intermediate", "probe.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_exit_code_is_the_commands(cluster: Cluster) -> None:
    done = cluster.ssat("submit", "drift", "tiny.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "pool.source=synth: only a pool that exists elsewhere" in done.stdout


def test_two_at_once_share_what_both_need(cluster: Cluster) -> None:
    """The first stage takes half a minute at least, the start of its worker group, so both are there meanwhile."""
    command = [sys.executable, "-m", "ssat_ray"]
    jobs = {
        name: subprocess.Popen(
            [*command, "submit", "run", "shared.yaml", "--name", name, "--set", ratio],
            cwd=cluster.cwd,
            env=cluster.environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, ratio in RATIOS.items()
    }
    said = {name: job.communicate(timeout=600)[0] for name, job in jobs.items()}
    assert [job.returncode for job in jobs.values()] == [0, 0], said
    for stage in ("intermediate", "synth", "score"):
        assert "".join(said.values()).count(f"{stage}: done in") == 1, said
    waited = "intermediate seed 0: another process computes it; waiting"
    assert sum(waited in text for text in said.values()) == 1, said
    _assert_both_are_as_alone(cluster.cwd, command)


def _assert_both_are_as_alone(cwd: Path, command: list[str]) -> None:
    """Every artefact of both runs is that of an undisturbed run, by a Ray and in a store of its own."""
    alone = cwd / "alone"
    alone.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    digests = {}
    for name, ratio in RATIOS.items():
        own = [*command, "run", str(cwd / "shared.yaml"), "--name", name, "--set", ratio]
        done = subprocess.run(own, cwd=alone, env=clean, capture_output=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        plan = build_plan(load_config(str(cwd / "shared.yaml"), [ratio]))
        for job in plan.unique:
            found = files(Store(cwd / "store").folder(job))
            assert found and found == files(Store(alone / "store").folder(job)), job.label
        digests[name] = {job.label: job.digest for job in plan.unique}
        written = json.loads((cwd / "runs" / name / "run.json").read_text())["digests"]
        assert written == sorted(digests[name].values())
    one, other = digests.values()
    assert {label for label in one if one[label] != other[label]} == {
        "select random seed 0",
        "select pcs seed 0",
    }


def test_detached_and_stopped(cluster: Cluster) -> None:
    many = ("--set", "synth.num_images=3e7", "--name", "long")
    done = cluster.ssat("submit", "--detach", "synth", "tiny.yaml", *many)
    assert done.returncode == 0, done.stdout + done.stderr
    job = done.stdout.split()[1]
    wait_until(lambda: "running" in cluster.ssat("status", job).stdout)
    assert job in cluster.ssat("status").stdout
    stopped = cluster.ssat("stop", job)
    assert stopped.returncode == 0 and f"{job}: stopped" in stopped.stdout
    assert "ended already" in cluster.ssat("stop", job).stdout


def test_an_unknown_job_is_named(cluster: Cluster) -> None:
    done = cluster.ssat("status", "ssat-none")
    assert done.returncode == 2 and "has no job ssat-none" in done.stderr


FOLLOWER = """\
import sys, time
from ssat_ray import jobs

client = jobs.connect(sys.argv[1])
for _ in range(30):
    try:
        job = client.submit_job(entrypoint=sys.argv[2])
        break
    except RuntimeError:  # a young cluster has no agent yet that takes a job
        time.sleep(2)
sys.exit(jobs.follow(client, job, lambda text: print(text, end="", flush=True)))
"""
TALKER = "import sys, time; [(print('line', i, flush=True), time.sleep(0.5)) for i in range(60)]; sys.exit(7)"


def test_a_connection_that_breaks_is_made_again(cluster: Cluster, tmp_path: Path) -> None:
    """Three times in half a minute, while the job writes; nothing is lost, nothing is written twice."""
    with CuttingProxy(cluster.port) as proxy, open(tmp_path / "output.txt", "wb") as output:
        talk = shlex.join([sys.executable, "-c", TALKER])
        following = subprocess.Popen(
            [sys.executable, "-c", FOLLOWER, proxy.address, talk],
            env=cluster.environment(),
            stdout=output,
        )
        for cut in range(1, 4):
            wait_until(lambda: following.poll() is not None or proxy.open_with(b"/logs/tail") > 0)
            time.sleep(2)
            assert proxy.cut(b"/logs/tail") == 1, f"not followed before cut {cut}"
        code = following.wait(timeout=120)
    found = re.findall(r"^line \d+$", (tmp_path / "output.txt").read_text(), re.MULTILINE)
    assert found == [f"line {number}" for number in range(60)]
    assert code == 7 and proxy.seen_with(b"/logs/tail") >= 4


def test_the_doctor_visits_the_cluster_as_a_job(cluster: Cluster) -> None:
    done = cluster.ssat("submit", "doctor", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       cluster: 1 node\n" in done.stdout
    assert "ok       token: needed to get in\n" in done.stdout
    unfit = cluster.ssat("submit", "doctor", "tiny.yaml", "--set", "runtime.actors=99")
    assert unfit.returncode == 1 and "error    CPUs: 2 on 1 node, 99 needed" in unfit.stdout


def test_ctrl_c_leaves_the_job_running_and_says_so(cluster: Cluster) -> None:
    many = ("--set", "synth.num_images=3e7", "--name", "left")
    at_a_terminal = ["env", "--default-signal=INT"]  # a shell's background job ignores it
    with subprocess.Popen(
        [*at_a_terminal, sys.executable, "-m", "ssat_ray", "submit", "synth", "tiny.yaml", *many],
        cwd=cluster.cwd,
        env=cluster.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None and command.stderr is not None
        job = command.stdout.readline().split()[1]
        wait_until(lambda: "running" in cluster.ssat("status", job).stdout)
        command.send_signal(signal.SIGINT)
        assert command.wait(timeout=60) == 130
        assert command.stderr.read() == (
            f"ssat: interrupted; the job goes on: ssat status {job}, ssat stop {job}.\n"
        )
    assert "running" in cluster.ssat("status", job).stdout
    assert cluster.ssat("stop", job).returncode == 0
