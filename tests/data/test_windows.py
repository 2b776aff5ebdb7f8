"""The order of a streamed pool: every image once an epoch, in windows of whole shards, the same from anywhere."""

from itertools import islice, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssat_ray.data.windows import Window, WindowOrder, rows_a_window

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def _epoch(order: WindowOrder, epoch: int) -> list[Window]:
    windows = order.windows(epoch * order.num_rows)
    return list(takewhile(lambda window: window.epoch == epoch, windows))


@given(sizes=SIZES, window_rows=st.integers(1, 40), seed=st.integers(0, 5))
def test_an_epoch_has_every_image_once_in_windows_of_whole_shards(
    sizes: list[int], window_rows: int, seed: int
) -> None:
    order = WindowOrder(sizes, window_rows, seed)
    for epoch in range(2):
        windows, position = _epoch(order, epoch), epoch * sum(sizes)
        assert sorted(shard for w in windows for shard in w.shards) == list(range(len(sizes)))
        for window in windows:
            assert window.start == position and window.epoch == epoch
            assert window.rows == sum(sizes[shard] for shard in window.shards)
            assert sorted(window.order(seed).tolist()) == list(range(window.rows))
            position = window.stop
            assert window.rows - sizes[window.shards[-1]] < window_rows, (
                "whole shards, as few as fit"
            )
        assert len(windows) <= -(-sum(sizes) // window_rows)


def test_the_windows_of_an_epoch_are_about_the_same_size() -> None:
    windows = _epoch(WindowOrder([10] * 103, 300, 0), 0)
    assert [window.rows for window in windows] == [260, 260, 260, 250]


def test_rows_of_a_window() -> None:
    assert rows_a_window(3, (3, 32, 32)) == 1024 and rows_a_window(0.01, (1, 8, 8)) == 163
    assert rows_a_window(0.001, (3, 224, 224)) == 1


@given(sizes=SIZES, window_rows=st.integers(1, 40), position=st.integers(0, 200))
def test_the_stream_can_be_entered_anywhere(
    sizes: list[int], window_rows: int, position: int
) -> None:
    order = WindowOrder(sizes, window_rows, 0)
    whole = islice(order.windows(0), 600)  # enough: a window has a row at least
    later = [window for window in whole if window.stop > position][:5]
    assert later[0].start <= position < later[0].stop
    assert list(islice(order.windows(position), 5)) == later


@pytest.mark.parametrize("window_rows", [1, 30])
def test_seeds_and_epochs_shuffle_anew(window_rows: int) -> None:
    def rows(seed: int, epoch: int) -> list[tuple[int, ...]]:
        windows = _epoch(WindowOrder([5] * 20, window_rows, seed), epoch)
        return [(*window.shards, *window.order(seed).tolist()) for window in windows]

    assert rows(0, 0) == rows(0, 0)
    assert rows(0, 0) != rows(1, 0) and rows(0, 0) != rows(0, 1)
