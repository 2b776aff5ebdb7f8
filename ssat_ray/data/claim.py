"""One command at a time writes into a pool's folder, and says so to a second one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ssat_ray.data.folder import Folder
from ssat_ray.errors import UserError

LOCK = ".pool.lock"
ATTEMPTS = 1000


@contextlib.contextmanager
def claim(folder: Folder) -> Iterator[None]:
    """Keep other commands out of a local folder inside the `with` block; object stores have no such lock.

    The folder is made, and removed again if nothing was written into it.

    Raises:
        UserError: another process has the folder, it is a file, or its file system fails (also inside the
            block).
    """
    try:
        if not folder.is_local:
            yield
            return
        with _locked(folder.local_path):
            yield
    except OSError as error:
        reason = str(error)
        if error.errno:
            reason = f"{os.strerror(error.errno)} ({error.filename or folder})"
        raise UserError(
            f"{folder} cannot be read or written: {reason}. What was finished is kept; once it can, run the "
            "same command again."
        ) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if folder.is_file():
        raise UserError(f"{folder} is a file; a pool is a folder.")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = _lock(folder)
    try:
        yield
    finally:
        if lock is not None:
            # removed while it is held, so that whoever opened it sees that it is void
            (folder / LOCK).unlink(missing_ok=True)
            os.close(lock)
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()  # only if it is empty


def _lock(folder: Path) -> int | None:
    """The locked file's descriptor; None if the folder is read-only, so that nothing can be written into it."""
    path = folder / LOCK
    for _ in range(ATTEMPTS):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its holder has just removed the folder
            continue
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not path.exists():
                return None
            raise
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), path.stat()):
                about = f"process {os.getpid()} on {socket.gethostname()}".encode()
                with contextlib.suppress(OSError):  # a full disk is reported where it matters
                    os.ftruncate(lock, os.pwrite(lock, about, 0))
                return lock
        except FileNotFoundError:
            pass  # its holder has just removed it
        except BlockingIOError:
            holder = os.pread(lock, 1000, 0).decode() or "another process"
            os.close(lock)
            raise UserError(
                f"{holder} is writing into {folder}. Wait until it has ended, or choose another folder."
            ) from None
        os.close(lock)
    raise UserError(
        f"{path} cannot be made, or other processes come and go in {folder}. Try again."
    )
