"""Ray sessions, threads per actor, memory and time meters."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import math
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import ray
import torch

from ssat_ray.config import RuntimeConfig
from ssat_ray.errors import RunFailed, UserError
from ssat_ray.needs import Resources, needs

_LOG = logging.getLogger(__name__)
RayError = ray.exceptions.RayError


@contextlib.contextmanager
def ray_session(config: RuntimeConfig) -> Iterator[None]:
    """Join the configured cluster, or start Ray on this machine and stop it afterwards."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    address = config.address or os.environ.get("RAY_ADDRESS")
    if not address:  # how many GPUs there are, Ray finds out
        cpus = config.num_cpus or os.cpu_count() or 1
        _check_resources(config, [{"CPU": cpus, "GPU": math.inf}], autoscaled=False)
    _start(config, address)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        _check_resources(config, nodes, autoscaled=bool(address))
    except UserError:
        ray.shutdown()
        raise
    quiet_data()
    try:
        yield
    finally:
        ray.shutdown()


def quiet_data() -> None:
    """Keep Ray Data from drawing progress bars, in this process."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _start(config: RuntimeConfig, address: str | None) -> None:
    """Connect this process to the cluster at `address`, or to one that is started here.

    Raises:
        UserError: no cluster answers, or it cannot be joined. RunFailed: none could be started.
    """
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **common)
        else:
            ray.init(
                address="local",
                num_cpus=config.num_cpus,
                object_store_memory=config.object_store_mib * 2**20,
                include_dashboard=False,
                **common,
            )
    except Exception as error:  # Ray raises a bare Exception where a node times out
        traceback.print_exc()
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        if address:
            raise UserError(f"the Ray cluster at {address} cannot be joined: {reason}.") from error
        logs = (
            Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray/session_latest/logs"
        )
        raise RunFailed(
            f"Ray did not start on this machine: {reason}. A busy machine can be the cause; wait until it "
            f"is less so. Ray's own logs: {logs}."
        ) from error


def _check_resources(config: RuntimeConfig, nodes: list[Resources], *, autoscaled: bool) -> None:
    """Nothing waits for what never comes, as Ray Train and Ray's tasks do.

    Raises:
        UserError: the nodes have too little, and no autoscaler may bring the rest.
    """
    for need in needs(config, nodes, autoscaled=autoscaled):
        if need.to_come:
            _LOG.warning("%s: waiting for the autoscaler", need.text)
        elif not need.met:
            raise UserError(f"{need.text}; {need.mend}.")


def use_threads(num_threads: int = 1) -> None:
    """Give this process the threads of its CPUs: more than that costs 5 to 7 times on small machines."""
    torch.set_num_threads(num_threads)


def exact_on_gpu() -> None:
    """On GPUs, float32 that is float32, and the same bits every time; nothing changes on CPUs."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def keep_memory() -> None:
    """Keep freed heap for the next block instead of giving it back and faulting it in again.

    Streams of equal blocks otherwise spend much of their time on page faults.
    """
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def release_memory() -> None:
    """Give freed heap back to the system, so that the next job's memory is not the last one's."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def process_pss() -> int:
    """PSS of this process in bytes; RSS where the system does not say."""
    with contextlib.suppress(OSError, StopIteration):
        with open("/proc/self/smaps_rollup") as file:
            line = next(line for line in file if line.startswith("Pss:"))
        return 1024 * int(line.split()[1])
    return int(psutil.Process().memory_info().rss)


class Meter:
    """Wall seconds, and PSS of this process at the start and at its peak, of a `with` block.

    Args:
        interval: seconds between two readings.
        fresh: whether the start and the end have readings of their own. A reading takes 15 ms of a process
            of 1 GB, so where block follows on block one that is younger than the interval will do.
    """

    _latest: ClassVar[tuple[float, int]] = (-math.inf, 0)
    """Time and bytes of this process' last reading."""

    def __init__(self, interval: float = 1.0, *, fresh: bool = True) -> None:
        self.seconds = 0.0
        self.peak_pss = 0
        self.baseline_pss = 0
        self._interval = interval
        self._fresh = fresh

    def __enter__(self) -> Meter:
        self._stop = threading.Event()
        self._start = time.perf_counter()
        self._sample(self._fresh)
        self.baseline_pss = self.peak_pss
        self._thread = threading.Thread(target=self._watch, name="memory-meter", daemon=True)
        self._thread.start()
        return self

    def _sample(self, fresh: bool = True) -> None:
        then, found = Meter._latest
        if fresh or time.monotonic() - then > self._interval:
            found = process_pss()
            Meter._latest = time.monotonic(), found
        self.peak_pss = max(self.peak_pss, found)

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def __exit__(self, *exc: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._thread.join()
        self._sample(self._fresh)
