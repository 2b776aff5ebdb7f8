"""The two ways a command ends badly: the user can mend it (exit 2) or the run failed (exit 1)."""

from __future__ import annotations

import os


class UserError(Exception):
    """A mistake in the configuration, the input files or the environment; one paragraph, exit code 2."""

    exit_code = 2


class RunFailed(Exception):
    """A run that started and could not finish; what had finished stays in the store; exit code 1."""

    exit_code = 1


def cannot_be_read(name: object, error: OSError) -> UserError:
    """What to raise if a file system fails, which says nothing about a file's content."""
    reason = os.strerror(error.errno) if error.errno else str(error).rstrip(".")
    return UserError(f"{name} cannot be read: {reason}. Once it can, run the same command again.")
