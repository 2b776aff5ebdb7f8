"""A streamed pool against the list of its rows; what is read ahead, and when reading stops."""

import time
from collections.abc import Generator, Iterator
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssat_ray.data.windows import Window, WindowOrder
from ssat_ray.training.sources import Images, Resident, Stream, Streamed

CPU = torch.device("cpu")


class Shards:
    """Shards whose images tell by their pixels which row of the pool they are."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.read_windows, self.closed = sizes, 0, 0
        numbers = torch.arange(sum(sizes))
        self.images = numbers.to(torch.uint8)[:, None, None, None].expand(-1, 2, 3, 3)
        self.shards = torch.split(numbers, sizes)

    @property
    def stream(self) -> Stream:
        return Stream(self.sizes, (2, 3, 3), self.read)

    def read(self, windows: Iterator[Window]) -> Generator[tuple[Window, Images], None, None]:
        try:
            for window in windows:
                self.read_windows += 1
                rows = torch.cat([self.shards[shard] for shard in window.shards])
                yield window, (self.images[rows], rows * 10)
        finally:
            self.closed += 1

    def wait_until_closed(self, times: int) -> None:
        """Reading ends by itself, after the window that it is at."""
        deadline = time.monotonic() + 10
        while self.closed < times and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.closed == times

    def rows(self, window_rows: int, seed: int, count: int) -> Tensor:
        """The first rows of the stream, window after window."""
        found: list[Tensor] = []
        for window in islice(WindowOrder(self.sizes, window_rows, seed).windows(0), count):
            rows = torch.cat([self.shards[shard] for shard in window.shards])
            found.append(rows[window.order(seed)])
        return torch.cat(found)[:count]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    window_rows=st.integers(1, 40),
    count=st.integers(1, 30),
    first=st.integers(0, 6),
)
def test_batches_are_consecutive_rows_of_the_stream(
    sizes: list[int], window_rows: int, count: int, first: int
) -> None:
    shards = Shards(sizes)
    expected = shards.rows(window_rows, 3, (first + 4) * count)
    source = Streamed(shards.stream, count, window_rows, 3, CPU)
    backwards = torch.arange(count).flip(0)
    for step in range(first, first + 4):
        rows = expected[step * count : (step + 1) * count]
        assert torch.equal(source.draw(step), rows * 10)
        images = source.take(backwards)
        assert images.shape == (count, 2, 3, 3) and images.dtype == torch.uint8
        assert torch.equal(images, shards.images[rows.flip(0)])
    source.close()


def test_one_window_is_held_and_one_read_ahead() -> None:
    shards = Shards([10] * 8)
    source = Streamed(shards.stream, 5, 20, 0, CPU)
    for step in range(16):
        source.draw(step)
        assert shards.read_windows <= step // 4 + 3  # held, ready, and the one being read
    source.close()
    shards.wait_until_closed(1)


def test_an_earlier_step_starts_the_stream_again() -> None:
    shards = Shards([10] * 8)
    source = Streamed(shards.stream, 10, 20, 0, CPU)
    first = source.draw(1)
    assert not torch.equal(source.draw(6), first)
    assert torch.equal(source.draw(1), first)
    shards.wait_until_closed(1)
    source.close()
    shards.wait_until_closed(2)


def test_an_error_of_the_reader_reaches_the_batch() -> None:
    def read(windows: Iterator[Window]) -> Generator[tuple[Window, Images], None, None]:
        yield next(windows), (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4).long())
        raise OSError("the disk is gone")

    source = Streamed(Stream([4, 4], (1, 2, 2), read), 4, 4, 0, CPU)
    source.draw(0)
    with pytest.raises(OSError, match="the disk is gone"):
        source.draw(1)
    source.close()


def test_a_streamed_pool_may_lack_labels_and_a_resident_one_knows() -> None:
    images, labels = Shards([4]).images, torch.arange(4)
    assert Streamed.lacks_labels
    assert not Resident((images, labels), 2, 0, "unlabelled", CPU).lacks_labels
    assert Resident((images, labels - 1), 2, 0, "unlabelled", CPU).lacks_labels
