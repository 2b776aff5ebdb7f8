"""Reading ahead: order, errors in their place, never more ahead than said, an end on closing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ssat_ray.data.prefetch import prefetch


def test_same_items_in_the_same_order() -> None:
    for depth in (1, 3, 100):
        assert list(prefetch(iter(range(50)), depth)) == list(range(50))


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise ValueError("bad row")

    seen = []
    with pytest.raises(ValueError, match="bad row"):
        for item in prefetch(items(), 2):
            seen.append(item)
    assert seen == [1, 2, 3]


def test_no_more_is_read_ahead_than_said_and_closing_ends_the_thread() -> None:
    read, closed = [], threading.Event()

    def items() -> Iterator[int]:
        try:
            for i in range(1000):
                read.append(i)
                yield i
        finally:
            closed.set()

    ahead = prefetch(items(), 3)
    assert next(ahead) == 0
    time.sleep(0.2)
    assert read == [0, 1, 2, 3]
    ahead.close()
    assert closed.is_set() and len(read) <= 5
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]
