"""Duplicates by hash: all rows but the first of each hash, whatever the chunks."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.selection import duplicates
from ssat_ray.selection.duplicates import find_duplicates

# Few values per part and few parts, so that parts without, with some and with only copies occur.
HASHES = st.builds(lambda top, low: top << 56 | low, st.integers(0, 255), st.integers(0, 1)) | (
    st.integers(0, 2**64 - 1)
)


@settings(max_examples=100, deadline=None)
@given(
    hashes=st.lists(HASHES | st.sampled_from([0, 2**64 - 1]), max_size=80), stop=st.integers(0, 80)
)
def test_marks_all_rows_but_the_first_of_each_hash(hashes, stop):
    expected = [h in hashes[:i] for i, h in enumerate(hashes)]
    array = np.array(hashes, np.uint64)
    found = find_duplicates([array[:stop], array[stop:]], len(hashes))
    assert found.tolist() == expected


def test_rows_beyond_the_first_chunk_keep_their_positions():
    hashes = np.random.default_rng(0).integers(0, 2**64, 70_000, dtype=np.uint64)
    hashes[[300, 66_000, 69_999]] = hashes[[299, 2, 2]]
    found = find_duplicates(np.array_split(hashes, 7), 70_000)
    assert np.flatnonzero(found).tolist() == [300, 66_000, 69_999]


def test_rows_keep_their_positions_where_they_are_dealt_in_turns(monkeypatch):
    monkeypatch.setattr(duplicates, "_DEALT_ROWS", 1000)
    test_rows_beyond_the_first_chunk_keep_their_positions()


def test_memory_does_not_grow_with_the_chunks():
    hashes = np.random.default_rng(0).integers(0, 2**64, 89_000, dtype=np.uint64)

    def peak(chunks):
        tracemalloc.start()
        find_duplicates(np.array_split(hashes, chunks), len(hashes))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(200) < 1.5 * peak(1)


def test_refuses_another_number_of_rows():
    with pytest.raises(ValueError, match="expected 4 hashes, found 3"):
        find_duplicates([np.arange(3, dtype=np.uint64)], 4)
