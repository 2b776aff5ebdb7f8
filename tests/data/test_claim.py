"""Two commands never write into one folder at once."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ssat_ray.config import SynthConfig
from ssat_ray.data.claim import LOCK, claim
from ssat_ray.data.folder import Folder
from ssat_ray.data.ingest import append_pool, copy_pool, import_pool
from ssat_ray.data.labelled import LabelledSet
from ssat_ray.data.synth_pool import synth_pool
from ssat_ray.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)


def test_every_command_that_writes_claims_its_folder(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=IMAGES)
    import_pool([tmp_path / "a.npz"], str(tmp_path / "pool"))
    before = sorted(p.name for p in (tmp_path / "pool").iterdir())
    digits = LabelledSet({"labelled": (IMAGES, np.arange(20) % 2)}, 2)
    target, files = str(tmp_path / "pool"), [tmp_path / "a.npz"]
    busy = rf"process {os.getpid()} on .* is writing into .*pool\. Wait until"
    with claim(Folder(target)):
        with pytest.raises(UserError, match=busy):
            import_pool(files, target)
        with pytest.raises(UserError, match=busy):
            append_pool(files, target, again=True)
        with pytest.raises(UserError, match=busy):
            copy_pool(target, target)
        with pytest.raises(UserError, match=busy):
            synth_pool(digits, target, SynthConfig(num_images=5))
    assert sorted(p.name for p in (tmp_path / "pool").iterdir()) == before


HOLD = """
import sys, time
from ssat_ray.data.claim import claim
from ssat_ray.data.folder import Folder
with claim(Folder(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(60)
"""


def test_the_claim_of_a_killed_process_is_void(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "pool")
    command = [sys.executable, "-c", HOLD, folder.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "claimed\n"
        with pytest.raises(UserError, match=rf"process {holder.pid} on "), claim(folder):
            pass
        holder.send_signal(signal.SIGKILL)
    assert list(folder.names()) == [LOCK]
    with claim(folder):
        folder.write("a.txt", "mine")
    assert list(folder.names()) == ["a.txt"]


@pytest.mark.parametrize("keep", [True, False])
def test_one_holder_at_any_time(tmp_path: Path, keep: bool) -> None:
    """Also while the folder comes and goes, and the file with it."""
    if keep:
        (tmp_path / "pool").mkdir()
    holders, most, taken = [0], [0], [0]

    def work() -> None:
        for _ in range(100):
            with contextlib.suppress(UserError), claim(Folder(tmp_path / "pool")):
                holders[0] += 1
                most[0], taken[0] = max(most[0], holders[0]), taken[0] + 1
                time.sleep(1e-4)
                holders[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and taken[0] > 6
    assert list(Folder(tmp_path / "pool").names()) == []


def test_folders_made_in_vain_are_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), claim(Folder(tmp_path / "a" / "b")):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """As a user who may read the folder and not write into it."""
    folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())
        folder.chmod(0o755)


def test_a_finished_pool_may_be_read_only() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "a.npz", image=IMAGES)
        import_pool([folder / "a.npz"], str(folder / "pool"))
        folder.chmod(0o755)
        with unprivileged(folder / "pool"):
            assert import_pool([folder / "a.npz"], str(folder / "pool"))[1] is False
            with pytest.raises(
                UserError, match=r"append\.json could not be written: Permission denied"
            ):
                append_pool([folder / "a.npz"], str(folder / "pool"), again=True)
        (folder / "pool" / LOCK).write_text("")
        held = pytest.raises(UserError, match=r"Permission denied \(.*\.pool\.lock\)")
        with unprivileged(folder / "pool"), held:  # somebody may hold it, and this user cannot ask
            import_pool([folder / "a.npz"], str(folder / "pool"))


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to(tmp_path / "none" / "none")
    with pytest.raises(UserError, match=r"\.pool\.lock cannot be made"), claim(Folder(tmp_path)):
        pass


def test_a_file_system_that_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file; a pool is a folder"):
        import_pool([tmp_path / "file"], str(tmp_path / "file"))
    failing = r"pool cannot be read or written: Input/output error \(/x\)\. What was finished"
    with pytest.raises(UserError, match=failing), claim(Folder(tmp_path / "pool")):
        raise OSError(errno.EIO, "Input/output error", "/x")
    failing = r"s3://b/p cannot be read or written: AWS Error\. What"
    with pytest.raises(UserError, match=failing), claim(Folder("s3://b/p")):
        raise OSError("AWS Error")
