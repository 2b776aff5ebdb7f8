"""Leases in an object store: one holder among racing processes, takeover from the dead, nothing from the living."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from ssat_ray.leases import Lease, RemoteLease, lease_of
from ssat_ray.places import Place, place, write_atomic

RACERS = 6
RACE = """
import sys, time
from ssat_ray.leases import lease_of
from ssat_ray.places import place
folder, begin = place(sys.argv[1]), float(sys.argv[2])
for i in range(int(sys.argv[3])):
    time.sleep(max(0.0, begin + 0.4 * i - time.time()))
    lease = lease_of(folder / str(i) / "lease.json")
    if lease.acquire():
        print(i, flush=True)
time.sleep(max(0.0, begin + 0.4 * int(sys.argv[3]) + 12 - time.time()))
"""


@pytest.fixture
def path(s3: Any) -> Place:
    return place(s3.uri(f"{s3.bucket()}/store/train/abc")) / "lease.json"


def claims(path: Place) -> list[dict[str, Any]]:
    return [json.loads(claim.read_text()) for claim in path.glob("*.json")]


def named(path: Place, owner: str, seconds: float = 60.0) -> RemoteLease:
    """A lease whose owner has this name, which decides between contenders."""
    lease = lease_of(path, seconds)
    assert isinstance(lease, RemoteLease)
    lease.owner, lease._own = owner, lease.path / f"{owner}.json"
    return lease


def other(path: Place, owner: str | None = None, **changes: Any) -> Lease:
    """A claim that a process elsewhere holds."""
    lease = lease_of(path) if owner is None else named(path, owner)
    content = json.loads(lease._content(**{"held": True, "host": "elsewhere", **changes}))
    write_atomic(path / f"{lease.owner}.json", json.dumps(content))
    return lease


def stalled(lease: RemoteLease, taken_over: Callable[[], Lease]) -> list[Lease]:
    """The process stalls before it writes that it holds the lease: its claim expires, and another one takes over.

    Returns:
        The successor, from then on.
    """
    write, successor = lease._write_held, []

    def late() -> list[dict[str, Any]]:
        lease._own.unlink()
        successor.append(taken_over())
        return write()

    lease._write_held = late  # type: ignore[method-assign]
    return successor


def test_only_one_holder_until_it_is_released(path: Place) -> None:
    first, second = lease_of(path), lease_of(path)
    assert isinstance(first, RemoteLease)
    assert first.acquire() and not first.held_by_other() and second.held_by_other()
    assert not second.acquire() and len(claims(path)) == 1
    first.release()
    assert claims(path) == [] and not second.held_by_other()
    assert second.acquire()
    second.release()


@pytest.mark.slow
def test_one_of_racing_processes_wins(s3: Any) -> None:
    """Every round has a winner, and none has two."""
    rounds, folder = 12, s3.uri(f"{s3.bucket()}/store")
    begin = str(time.time() + 8.0)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, folder, begin, str(rounds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(RACERS)
    ]
    wins = [int(line) for racer in racers for line in racer.communicate()[0].split()]
    assert all(racer.returncode == 0 for racer in racers)
    assert sorted(wins) == list(range(rounds))


def test_a_lease_that_has_expired_is_taken_over(path: Place) -> None:
    other(path, expires=time.time() - 1)
    lease = lease_of(path)
    assert not lease.held_by_other() and lease.acquire()
    assert [claim["owner"] for claim in claims(path)] == [lease.owner]
    lease.release()


def test_a_live_one_elsewhere_is_not(path: Place) -> None:
    holder = other(path)
    lease = lease_of(path)
    assert lease.held_by_other() and not lease.acquire()
    assert [claim["owner"] for claim in claims(path)] == [holder.owner]


@pytest.mark.parametrize("reaped", [False, True])
def test_that_of_a_process_killed_on_this_host_is_taken_over_at_once(
    path: Place, reaped: bool
) -> None:
    """Whether its parent has asked for its end yet or not."""
    script = (
        "import sys, time\nfrom ssat_ray.leases import lease_of\nfrom ssat_ray.places import place\n"
        "assert lease_of(place(sys.argv[1]), 60.0).acquire()\nprint('held', flush=True)\ntime.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert not lease_of(path, 60.0).acquire()
        holder.kill()
        while not reaped and psutil.Process(holder.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        if reaped:
            holder.wait()
        lease = lease_of(path, 60.0)
        assert lease.acquire()
        lease.release()


def test_a_contender_that_gave_up_is_waited_for_by_the_lowest_name_only(path: Place) -> None:
    """Two that want it at the same moment: the lower name stays, the higher gives way."""
    low, high = named(path, "0" * 32), named(path, "f" * 32)
    wanted = json.loads(low._content(held=False, host="elsewhere", pid=os.getpid()))
    write_atomic(path / f"{low.owner}.json", json.dumps(wanted))
    assert not high.acquire() and [claim["owner"] for claim in claims(path)] == [low.owner]
    (path / f"{low.owner}.json").unlink()
    write_atomic(
        path / f"{high.owner}.json",
        json.dumps({**wanted, "owner": high.owner, "expires": time.time() + 1.0}),
    )
    begin = time.time()
    assert low.acquire() and time.time() - begin > 0.5, "it waited until the other one had gone"
    low.release()


def test_it_is_renewed_and_a_lost_one_is_left_alone(path: Place) -> None:
    lease = lease_of(path, 1.2)
    assert lease.acquire()
    first = claims(path)[0]["expires"]
    time.sleep(2.0)
    assert claims(path)[0]["expires"] > first + 0.5 and lease_of(path).held_by_other()
    for claim in path.glob("*.json"):
        claim.unlink()
    successor = other(path)
    time.sleep(1.0)
    lease.release()
    assert [claim["owner"] for claim in claims(path)] == [successor.owner]


def test_refused(path: Place) -> None:
    with lease_of(path).refused() as free:
        assert free and not lease_of(path).acquire()
    lease = lease_of(path)
    assert lease.acquire()
    with lease_of(path).refused() as free:
        assert not free
    lease.release()


def test_whoever_fails_while_it_refuses_others_gives_the_lease_back(path: Place) -> None:
    with pytest.raises(RuntimeError), lease_of(path).refused() as free:
        assert free
        raise RuntimeError
    assert claims(path) == []


def test_to_look_removes_nothing(path: Place) -> None:
    other(path, expires=time.time() - 1)
    assert not lease_of(path).held_by_other() and len(claims(path)) == 1


def test_a_contender_that_stalled_before_it_held_the_lease_gives_way(path: Place) -> None:
    lease = named(path, "0" * 32)
    successor = stalled(lease, lambda: other(path, "f" * 32))
    assert not lease.acquire()
    assert [claim["owner"] for claim in claims(path)] == [successor[0].owner]


def test_a_holder_that_stalled_within_a_renewal_gives_way(path: Place) -> None:
    lease = named(path, "0" * 32, seconds=1.0)
    assert lease.acquire()
    lease._stop.set()  # renewals are this test's
    write_atomic(lease._own, lease._content(held=True, expires=time.time() - 0.1))
    successor = stalled(lease, lambda: other(path, "f" * 32))
    assert not lease._renew_once()
    assert [claim["owner"] for claim in claims(path)] == [successor[0].owner]


@pytest.mark.parametrize(("rival", "stays"), [("f", True), ("0", False)])
def test_of_two_holders_the_lower_name_goes_on(path: Place, rival: str, stays: bool) -> None:
    """However both came to hold it, by clocks that differ for example."""
    lease = named(path, "5" * 32)
    assert lease.acquire()
    other(path, rival * 32)
    assert lease._renew_once() == stays
    assert ("5" * 32 in [claim["owner"] for claim in claims(path)]) == stays
    lease.release()


def test_a_contender_does_not_disturb_a_renewal(path: Place) -> None:
    lease = named(path, "f" * 32)
    assert lease.acquire()
    other(path, "0" * 32, held=False)
    assert lease._renew_once()
    lease.release()


def test_a_process_that_was_stopped_for_too_long_finds_its_lease_lost_and_says_so(
    path: Place,
) -> None:
    script = (
        "import sys, time\nfrom ssat_ray.leases import lease_of\nfrom ssat_ray.places import place\n"
        "assert lease_of(place(sys.argv[1]), 1.5).acquire()\nprint('held', flush=True)\ntime.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            holder.send_signal(signal.SIGSTOP)
            time.sleep(2.0)
            lease = lease_of(path, 60.0)
            assert lease.acquire()
            holder.send_signal(signal.SIGCONT)
            assert holder.stderr is not None and "lease.json" in (said := holder.stderr.readline())
            assert "is lost: it was not renewed within 2 s" in said
            assert [claim["owner"] for claim in claims(path)] == [lease.owner]
        finally:
            holder.kill()
    lease.release()


def test_a_process_id_of_another_boot_or_namespace_is_not_judged(path: Place) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    own = json.loads(lease_of(path)._content())
    other(path, host=own["host"], pid=gone.pid, machine="another boot pid:[1]")
    assert lease_of(path).held_by_other() and not lease_of(path).acquire()
    for claim in path.glob("*.json"):
        claim.unlink()
    other(path, host=own["host"], pid=gone.pid)
    assert not lease_of(path).held_by_other()
