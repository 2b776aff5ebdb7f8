"""One command at a time writes into a pool's folder, and says so to a second one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ssat_ray.data.folder import Folder
from ssat_ray.errors import UserError

LOCK = ".pool.lock"


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
        reason = (
            f"{os.strerror(error.errno)} ({error.filename or folder})" if error.errno else error
        )
        raise UserError(
            f"{folder} cannot be read or written: {reason}. What was finished is kept; once it can, run the "
            "same command again."
        ) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if folder.is_file():
        raise UserError(f"{folder} is a file; a pool is a folder.")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    file = _lock(folder)
    try:
        yield
    finally:
        if file is not None:
            (folder / LOCK).unlink(
                missing_ok=True
            )  # while it is held: whoever waits sees that it is gone
            file.close()
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()  # only if it is empty


def _lock(folder: Path) -> IO[str] | None:
    """The locked file; None if the folder is read-only, so that nobody here can write into it."""
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "a+")  # noqa: SIM115
        except FileNotFoundError:  # its holder has just removed the folder
            continue
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not path.exists():
                return None
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                return file
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise UserError(
                f"{holder} is writing into {folder}. Wait until it has ended, or choose another folder."
            ) from None
        except FileNotFoundError:
            pass  # the lock was given back meanwhile, and its file removed
        file.close()
