"""Shared fixtures: one small comparison through real Ray, run once a session as a user would run it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.config import Config
from ssat_ray.loading import load_config
from ssat_ray.plan import Plan, build_plan
from ssat_ray.store import Store

TINY = """\
rows: [none, random, pcs, lcs-km, lcs-gmm, gmm-ll, easy, lcg-km, full]
model: {widths: [8, 16], strides: [2, 2]}
intermediate: {num_steps: 150, batch_size: 64, bn_group: 32, warmup_steps: 5}
pretrain: {num_steps: 200, channels: [16, 16], norm_num_groups: 4, batch_size: 32}
finetune: {num_steps: 20, batch_size: 32, warmup_steps: 2, weight_warmup_steps: 2}
generate: {num_images: 400, num_inference_steps: 4, shard_rows: 100}
objective: {num_steps: 2, step_size: 0.1}
select: {ratio: 0.25}
train:
  {max_steps: 60, eval_every: 20, batch_size: 32, bn_group: 16, warmup_steps: 5, none_recipes: {half: {lr: 0.05}}}
evaluate: {pgd_steps: 3, apgd_steps: 3, batch_size: 200}
runtime: {checkpoint_minutes: 0.05}
"""


@dataclass(frozen=True)
class Run:
    """A finished command in its own folder, with what it printed."""

    cwd: Path
    config: Config
    output: str
    seconds: float

    @property
    def plan(self) -> Plan:
        return build_plan(self.config)

    @property
    def store(self) -> Store:
        return Store(self.cwd / "store")

    @property
    def folder(self) -> Path:
        return self.cwd / "runs" / "tiny"

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text())

    def row(self, name: str) -> dict[str, Any]:
        return next(row for row in self.results["rows"] if row["row"] == name)


@pytest.fixture(scope="session")
def tiny_preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    cwd = tmp_path_factory.mktemp("tiny")
    start = time.perf_counter()
    command = [
        str(Path(sys.executable).with_name("ssat")),
        "run",
        str(tiny_preset),
        "--name",
        "tiny",
    ]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900)
    log = cwd / "runs" / "tiny" / "run.log"
    tail = log.read_text()[-3000:] if log.exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + tail
    return Run(cwd, load_config(str(tiny_preset)), done.stdout, time.perf_counter() - start)


@dataclass(frozen=True)
class ObjectStore:
    """An S3-protocol server on this machine, and boto3's client of it."""

    endpoint: str
    client: Any

    def bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return name

    def uri(self, path: str) -> str:
        """Of `bucket/prefix`, as a user would write it."""
        return f"s3://{path}?endpoint_override={self.endpoint}&region=us-east-1"

    def keys(self, bucket: str) -> list[str]:
        """All objects of a bucket, without the empty ones that Arrow leaves to stand for folders."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return [key for key in keys if not key.endswith("/")]


@pytest.fixture(scope="session")
def s3() -> Iterator[ObjectStore]:
    import boto3
    from moto.server import ThreadedMotoServer

    secrets = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "nothing"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in secrets.items():
            patch.setenv(name, value)
        yield ObjectStore(
            endpoint, boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        )
    server.stop()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A path whose scratch file is a device that refuses every byte."""
    monkeypatch.setattr("uuid.uuid4", lambda: uuid.UUID(int=0))
    path = tmp_path / "scores"
    path.with_name(f".scores.{uuid.UUID(int=0).hex}.tmp").symlink_to("/dev/full")
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in an actor; two threads sum some products in another order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
