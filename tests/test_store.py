"""The artefact store: digests, atomic publishing, leases raced by real processes, garbage collection."""

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssat_ray.errors import UserError
from ssat_ray.garbage import collect_garbage
from ssat_ray.leases import FileLease
from ssat_ray.places import folder_bytes, write_atomic
from ssat_ray.provenance import made_by
from ssat_ray.store import LEFTOVERS, Job, Store, canonical_json

JOB = Job("train", 1, {"seed": 0, "row": "full"}, {"lr": 0.1, "steps": 3})
RACERS = 8

RACE = """
import sys, time
from pathlib import Path
from ssat_ray.leases import FileLease
path, go, start, rounds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
Path(f"{go}.{start}").touch()
while not go.exists():
    time.sleep(0.001)
wins, begin = [], float(go.read_text())
for i in range(rounds):
    lease = FileLease(path / str(i) / "lease.json", seconds=30.0)
    time.sleep(max(0.0, begin + 0.05 * i - time.time()))
    if lease.acquire():
        wins.append(i)
print(*wins)
time.sleep(max(0.0, begin + 0.05 * rounds + 1.0 - time.time()))
"""


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _write_lease(path: Path, **changes: object) -> None:
    content = json.loads(FileLease(path, 30.0)._content())
    write_atomic(path, json.dumps({**content, **changes}))


def test_digest_is_20_hex_digits_of_what_determines_the_result() -> None:
    assert len(JOB.digest) == 20 and int(JOB.digest, 16) >= 0
    variants = [
        replace(JOB, stage="score"),
        replace(JOB, version=2),
        replace(JOB, params={"seed": 1, "row": "full"}),
        replace(JOB, config={"lr": 0.2, "steps": 3}),
        replace(JOB, inputs={"data": Job("labelled", 1, {}, {})}),
        replace(JOB, inputs={"data": Job("labelled", 2, {}, {})}),
        replace(JOB, inputs={"pool": Job("labelled", 1, {}, {})}),
        replace(JOB, params=JOB.config, config=JOB.params),
    ]
    assert len({JOB.digest, *(job.digest for job in variants)}) == len(variants) + 1


def test_digest_ignores_about_and_key_order() -> None:
    assert replace(JOB, about="for people").digest == JOB.digest
    other = Job("train", 1, {"row": "full", "seed": 0}, {"steps": 3, "lr": 0.1})
    assert other.digest == JOB.digest
    a, b = Job("a", 1, {}, {}), Job("b", 1, {}, {})
    one, two = (replace(JOB, inputs=inputs) for inputs in ({"a": a, "b": b}, {"b": b, "a": a}))
    assert one.digest == two.digest


def test_a_change_far_upstream_changes_the_digest() -> None:
    def chain(version: int) -> Job:
        job = Job("labelled", version, {}, {})
        for stage in ("pretrain", "generate", "score"):
            job = Job(stage, 1, {}, {}, {"input": job})
        return job

    assert chain(1).digest != chain(2).digest and chain(1).digest == chain(1).digest


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False)))
def test_canonical_json_is_one_text_a_value(value: dict) -> None:
    shuffled = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(shuffled)
    assert json.loads(canonical_json(value)) == value
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_closure_lists_dependencies_first_and_each_once() -> None:
    data = Job("labelled", 1, {}, {})
    pool = Job("generate", 1, {}, {}, {"data": data})
    copy = Job("generate", 1, {}, {}, {"data": Job("labelled", 1, {}, {})}, "another object")
    score = Job("score", 1, {}, {}, {"pool": pool, "data": data})
    top = Job("report", 1, {}, {}, {"score": score, "pool": copy, "data": data})
    order = [job.digest for job in top.closure()]
    assert order == [data.digest, pool.digest, score.digest, top.digest]


def test_closure_of_a_long_chain_does_not_recurse() -> None:
    job = Job("s", 0, {}, {})
    for version in range(1, 3000):
        job = Job("s", version, {}, {}, {"input": job})
        assert job.digest
    assert [j.version for j in job.closure()] == list(range(3000))


def test_write_atomic_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, "old")
    before = os.stat(path).st_ino
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new" and os.stat(path).st_ino != before
    assert os.listdir(path.parent) == ["file"]


def test_a_full_disk_is_a_user_error_that_names_the_file(full_disk: Path) -> None:
    with pytest.raises(UserError, match=f"disk of {full_disk} .*same command to continue") as found:
        write_atomic(full_disk, b"x")
    assert isinstance(found.value.__cause__, OSError)
    assert os.listdir(full_disk.parent) == []


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom ssat_ray.store import write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomic(Path(sys.argv[1]), b'x' * 2000)\nexcept OSError as e: print(e)"
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == f"[Errno 27] File too large: '{path}'", done.stderr
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_publish_makes_the_record_readable_with_all_that_determines_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job = replace(JOB, inputs={"data": Job("labelled", 1, {}, {})})
    assert store.record(job) is None
    write_atomic(store.folder(job) / "model.bin", b"123")
    assert store.record(job) is None, "a folder without stage.json is unfinished"
    store.publish(job, {"seconds": 1.5})
    assert store.record(job) == {
        "stage": "train",
        "version": 1,
        "digest": job.digest,
        "params": job.params,
        "config": job.config,
        "inputs": {"data": job.inputs["data"].digest},
        "made_by": made_by(),
        "seconds": 1.5,
    }
    assert store.folder(job) == tmp_path / "train" / job.digest
    assert sorted(os.listdir(store.folder(job))) == ["model.bin", "stage.json"]
    assert folder_bytes(store.folder(job), ["*.bin"]) == 3


def test_readers_never_see_half_a_record(tmp_path: Path) -> None:
    store, big = Store(tmp_path), {"text": "x" * 300_000}
    script = (
        "import sys\nfrom pathlib import Path\nfrom ssat_ray.store import Job, Store\n"
        "job = Job('train', 1, {'seed': 0, 'row': 'full'}, {'lr': 0.1, 'steps': 3})\n"
        "for i in range(30): Store(sys.argv[1]).publish(job, {'text': 'x' * 300_000, 'i': i})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    seen = set()
    while writer.poll() is None:
        record = store.record(JOB)  # a torn file would raise UserError
        if record is not None:
            assert record["text"] == big["text"]
            seen.add(record["i"])
    assert writer.returncode == 0 and len(seen) > 1


@pytest.mark.parametrize("content", [b'{"stage": "tr', b"", b"\xff\xfe\x00"])
def test_a_damaged_record_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    write_atomic(store.folder(JOB) / "stage.json", content)
    with pytest.raises(UserError, match=rf"{JOB.digest}.*damaged.*delete"):
        store.record(JOB)


def test_an_unwritable_store_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/store.*runtime\.store"):
        Store(tmp_path / "file" / "store").check_writable()
    Store(tmp_path / "new" / "store").check_writable()
    assert os.listdir(tmp_path / "new" / "store") == []


def test_a_held_lease_is_refused_and_a_released_one_given(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.folder(JOB) / "lease.json"
    with store.lease(JOB) as first:
        with store.lease(JOB) as second:
            assert (first, second) == (True, False)
        assert path.exists(), "the refused process must not remove the lease"
        with store.lease(replace(JOB, version=9)) as other:
            assert other
    assert not path.exists()
    with pytest.raises(RuntimeError), store.lease(JOB):
        raise RuntimeError
    with store.lease(JOB) as again:
        assert again


@pytest.mark.parametrize("damaged", [False, True])
def test_a_dead_lease_is_taken_over_at_once(tmp_path: Path, damaged: bool) -> None:
    path = tmp_path / "lease.json"
    _write_lease(path, owner="other", pid=os.getpid() if damaged else _dead_pid())
    if damaged:  # leases are written by rename, so half a lease is nobody's
        path.write_bytes(path.read_bytes()[:14])
    lease = FileLease(path, 30.0)
    assert not lease.held_by_other() and lease.acquire()
    assert json.loads(path.read_text())["owner"] == lease.owner
    lease.release()
    assert os.listdir(tmp_path) == []


def test_a_killed_holder_is_taken_over_at_once(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom ssat_ray.leases import FileLease\n"
        "assert FileLease(Path(sys.argv[1]), 60.0).acquire()\nprint('held', flush=True)\ntime.sleep(60)"
    )
    path = tmp_path / "lease.json"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert not FileLease(path, 60.0).acquire()
    holder.kill()
    holder.wait()
    lease = FileLease(path, 60.0)
    assert lease.acquire()
    lease.release()


@pytest.mark.parametrize("elsewhere", [{"host": "elsewhere"}, {"machine": "another boot pid:[1]"}])
def test_a_dead_pid_on_another_machine_is_not_judged(
    tmp_path: Path, elsewhere: dict[str, str]
) -> None:
    path = tmp_path / "lease.json"
    _write_lease(path, owner="other", pid=_dead_pid(), **elsewhere)
    assert not FileLease(path, 30.0).acquire()
    _write_lease(path, owner="other", host="elsewhere", expires=time.time() - 0.01)
    lease = FileLease(path, 30.0)
    assert lease.acquire()
    lease.release()


def test_renewal_keeps_a_lease_alive_past_its_life(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    holder = FileLease(path, 0.9)
    assert holder.acquire()
    first = json.loads(path.read_text())["expires"]
    time.sleep(1.3)
    assert time.time() > first and not FileLease(path, 0.9).acquire()
    holder.release()
    assert not path.exists()


@pytest.mark.parametrize("trouble", ["full disk", "for a while"])
def test_a_renewal_that_fails_is_tried_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    path = tmp_path / "lease.json"
    holder, other = FileLease(path, 1.2), FileLease(path, 1.2)
    assert holder.acquire()
    monkeypatch.setattr("uuid.uuid4", lambda: uuid.UUID(int=0))
    scratch = path.with_name(f".lease.json.{uuid.UUID(int=0).hex}.tmp")
    if trouble == "full disk":
        scratch.symlink_to("/dev/full")  # removed by what fails to write to it
        time.sleep(1.6)
    else:
        scratch.mkdir()
        time.sleep(0.8)
        scratch.rmdir()
        time.sleep(0.8)
    assert not other.acquire()
    assert caplog.text.count("lease.json could not be renewed") == 1
    holder.release()
    assert not path.exists()


def test_a_lost_lease_is_logged_and_not_taken_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lease.json"
    holder = FileLease(path, 0.9)
    assert holder.acquire()
    _write_lease(path, owner="other")
    time.sleep(0.8)
    assert caplog.text.count("lease.json is lost: it was not renewed within 1 s") == 1
    holder.release()
    assert json.loads(path.read_text())["owner"] == "other"


def test_a_lease_that_is_not_renewed_expires(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    _write_lease(path, owner="other", expires=time.time() + 0.3)
    lease = FileLease(path, 30.0)
    assert not lease.acquire()
    time.sleep(0.35)
    assert lease.acquire()
    lease.release()


@pytest.mark.parametrize("dead_lease", [False, True])
def test_of_racing_processes_exactly_one_gets_the_lease(tmp_path: Path, dead_lease: bool) -> None:
    rounds, go = 5, tmp_path / "go"
    pid = _dead_pid()
    for i in range(rounds):
        (tmp_path / str(i)).mkdir()
        if dead_lease:
            _write_lease(tmp_path / str(i) / "lease.json", owner="other", pid=pid)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path), str(go), str(n), str(rounds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(RACERS)
    ]
    while len(list(tmp_path.glob("go.*"))) < RACERS:
        assert all(racer.poll() is None for racer in racers)
        time.sleep(0.01)
    write_atomic(go, str(time.time() + 0.2))
    wins = [int(w) for racer in racers for w in racer.communicate(timeout=60)[0].split()]
    assert sorted(wins) == list(range(rounds))


def test_a_holder_that_lost_its_lease_leaves_the_new_holders_alone(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    paused, successor = FileLease(path, 60.0), FileLease(path, 60.0)
    assert paused.acquire()
    _write_lease(path, owner=paused.owner, expires=time.time() - 1)  # stopped past its life
    assert successor.acquire()
    with contextlib.ExitStack() as stack:
        stack.callback(successor.release)
        paused.release()
        assert json.loads(path.read_text())["owner"] == successor.owner


def _age(*paths: Path, seconds: float = 7200.0) -> None:
    for path in paths:
        os.utime(path, (time.time() - seconds,) * 2)


def _artefact(store: Store, job: Job, *, age: float = 7200.0) -> Path:
    folder = store.folder(job)
    write_atomic(folder / "data.bin", b"x" * 100)
    store.publish(job, {})
    _age(folder, seconds=age)
    return folder


def test_gc_keeps_what_runs_name_leased_and_young_and_removes_the_rest(tmp_path: Path) -> None:
    store, runs = Store(tmp_path / "store"), tmp_path / "runs"
    named, orphan, young, leased, dead = (
        _artefact(store, replace(JOB, version=v), age=0 if v == 3 else 7200) for v in range(1, 6)
    )
    write_atomic(runs / "one" / "run.json", json.dumps({"digests": [named.name]}))
    _write_lease(leased / "lease.json", owner="other")
    _write_lease(dead / "lease.json", owner="other", pid=_dead_pid())
    _age(leased, dead)
    other, group = store.root / "notes" / "not-a-digest", store.root / "ray-train" / "train-abc-1"
    for folder in (other, group):
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    expected_bytes = sum(p.stat().st_size for f in (orphan, dead) for p in f.iterdir())

    found, size = collect_garbage(store, runs, dry_run=True)
    assert set(found) == {orphan, dead} and size == expected_bytes
    assert all(f.exists() for f in (named, orphan, young, leased, dead, other))

    assert (set(found), size) == (lambda r: (set(r[0]), r[1]))(collect_garbage(store, runs))
    assert not orphan.exists() and not dead.exists()
    assert group.exists(), "a training group may be alive while anything is leased"
    for folder in (named, young, leased, other):
        assert folder.is_dir()
    assert (named / "data.bin").read_bytes() == b"x" * 100
    (leased / "lease.json").unlink()
    _age(leased)
    assert set(collect_garbage(store, runs)[0]) == {leased, group}


def test_gc_keeps_what_a_sweeps_trials_name_and_the_folder_of_a_sweep_at_work(
    tmp_path: Path,
) -> None:
    store, runs = Store(tmp_path / "store"), tmp_path / "runs"
    named, orphan = (_artefact(store, replace(JOB, version=v)) for v in (1, 2))
    write_atomic(runs / "sweep" / "trial" / "run.json", json.dumps({"digests": [named.name]}))
    scratch = runs / "sweep" / "trial" / ".results.json.0123.tmp"
    scratch.write_bytes(b"12345")
    at_work, left = store.root / "ray-tune" / "one", store.root / "ray-tune" / "two"
    _write_lease(at_work / "lease.json", owner="other")
    left.mkdir()
    _age(scratch, at_work, left)
    assert collect_garbage(store, runs)[0] == [orphan]
    assert named.exists() and at_work.exists() and not scratch.exists()
    (at_work / "lease.json").unlink()
    _age(at_work)
    assert set(collect_garbage(store, runs)[0]) == {at_work, left}


def test_gc_min_age_decides_what_is_young(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder = _artefact(store, JOB, age=50)
    assert collect_garbage(store, tmp_path / "runs", min_age=100) == ([], 0)
    assert collect_garbage(store, tmp_path / "runs", min_age=10)[0] == [folder]


def test_gc_with_a_damaged_run_is_a_user_error_and_removes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder = _artefact(store, JOB)
    write_atomic(tmp_path / "runs" / "one" / "run.json", '{"digests": [')
    with pytest.raises(UserError, match=r"run\.json"):
        collect_garbage(store, tmp_path / "runs")
    assert folder.exists()


def _unfinished(folder: Path, size: int = 10) -> list[Path]:
    """What a stage keeps while it runs, as a kill leaves it; `lease.json` names a dead process."""
    for name in ("state/1.pt", "failed.txt", "parts/00000.json", "parts/embeddings-00000.npy"):
        write_atomic(folder / name, b"x" * size)
    _write_lease(folder / "lease.json", owner="other", pid=_dead_pid())
    return [folder / name for name in LEFTOVERS]


def test_gc_knows_what_the_stages_keep_while_they_run() -> None:
    from ssat_ray.stages.base import STATE
    from ssat_ray.stages.group import FAILED
    from ssat_ray.stages.parts import NOTES

    assert set(LEFTOVERS) == {NOTES, STATE, FAILED, "lease.json"}


def test_gc_sweeps_published_artefacts_and_leaves_unfinished_ones(tmp_path: Path) -> None:
    store, runs = Store(tmp_path / "store"), tmp_path / "runs"
    published, held, unfinished = (replace(JOB, version=v) for v in (1, 2, 3))
    done, live = _artefact(store, published), _artefact(store, held)
    open_ = store.folder(unfinished)
    left = {folder: _unfinished(folder) for folder in (done, live, open_)}
    _write_lease(live / "lease.json", owner="other")
    named = [folder.name for folder in (done, live, open_)]
    write_atomic(runs / "one" / "run.json", json.dumps({"digests": named}))
    old = [f / ".failed.txt.0123.tmp" for f in (done, done / "parts", live, open_, runs / "one")]
    young = done / ".shard.4567.tmp"
    for path in (*old, young):
        path.write_bytes(b"12345")
    _age(*old)
    lease_bytes = (done / "lease.json").stat().st_size
    expected = 4 * 10 + lease_bytes + 4 * 5  # one of the five is in a leased folder

    assert collect_garbage(store, runs, dry_run=True) == ([], expected)
    assert all(path.exists() for paths in left.values() for path in paths)
    assert all(path.exists() for path in old)

    assert collect_garbage(store, runs) == ([], expected)
    assert sorted(os.listdir(done)) == [young.name, "data.bin", "stage.json"]
    assert all(path.exists() for path in left[live]) and old[2].exists()
    assert all(path.exists() for path in left[open_]), "a killed job goes on from these"
    assert not old[3].exists() and os.listdir(runs / "one") == ["run.json"]
    assert collect_garbage(store, runs, min_age=0.0) == ([], 5) and not young.exists()
    assert store.record(published) is not None


def test_taking_a_lease_sweeps_what_the_dead_holder_was_writing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.folder(JOB)
    left = _unfinished(folder)
    stale = [folder / ".failed.txt.0123.tmp", folder / "parts" / ".00001.json.4567.tmp"]
    for path in stale:
        path.write_bytes(b"half")
    with store.lease(JOB) as mine:
        assert mine
        assert not any(path.exists() for path in stale)
        assert all(path.exists() for path in left)
        stale[0].write_bytes(b"ours")
        with store.lease(JOB) as second:
            assert not second
        assert stale[0].exists(), "a refused process must not touch the holder's files"
