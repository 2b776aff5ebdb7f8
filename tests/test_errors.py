"""A user's mistake that a task found is known again from the text that Ray hands on."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from ssat_ray.errors import UserError, user_error_in
from ssat_ray.places import write_atomic


def test_a_full_disk_in_an_actor_is_told_in_its_own_words(full_disk: Path) -> None:
    """A traceback is all that arrives from an actor; its user's error is found in it."""
    with pytest.raises(UserError) as error:
        write_atomic(full_disk, b"x")
    wrapped = RuntimeError("".join(traceback.format_exception(error.value)))
    found = user_error_in(wrapped)
    assert found is not None and str(found) == str(error.value)
    assert user_error_in(error.value) is error.value


def test_another_error_is_none() -> None:
    assert user_error_in(ValueError("UserError: said by nobody")) is None
