"""The ways a command ends badly: the user can mend it (exit 2), the run failed (exit 1), by diverging too, or Ctrl-C (130)."""

from __future__ import annotations

import os
import re


class UserError(Exception):
    """A mistake in the configuration, the input files or the environment; one paragraph, exit code 2."""

    exit_code = 2


class RunFailed(Exception):
    """A run that started and could not finish; what had finished stays in the store; exit code 1."""

    exit_code = 1


class Diverged(RunFailed):
    """A training whose loss became NaN or infinite: the settings are at fault, and another try ends alike."""


class Stopped(RunFailed):
    """Trainings that were ended at a rung, as somebody decided (`stages.base.Rungs`)."""


INTERRUPTED = 130
"""Exit code after Ctrl-C, which typer gives too instead of passing on the KeyboardInterrupt."""


class Interrupted(RunFailed):
    """Ctrl-C, where the same command is not the way to go on; exit code 130."""

    exit_code = INTERRUPTED


_FAULT = re.compile(rf"^{re.escape(UserError.__module__)}\.UserError: (.*)", re.MULTILINE)


def user_error_in(error: BaseException) -> UserError | None:
    """The UserError of a task or actor, which arrives as the text of its traceback, wrapped by Ray Data."""
    if isinstance(error, UserError):
        return error
    found = _FAULT.search(str(error))
    return UserError(found[1].strip()) if found else None


def cannot_be_read(name: object, error: OSError) -> UserError:
    """What to raise if a file system fails, which says nothing about a file's content."""
    reason = os.strerror(error.errno) if error.errno else str(error).rstrip(".")
    return UserError(f"{name} cannot be read: {reason}. Once it can, run the same command again.")
