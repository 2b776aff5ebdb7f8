"""Counter-based bits: the published generator, and draws that depend on (id, seed) alone."""

import numpy as np
import pytest

from ssat_ray.data.mix64 import GOLDEN, hash_ids, mix64, unit

MASK = (1 << 64) - 1


def test_mix64_gives_the_published_outputs() -> None:
    # First outputs for state 1234567, as published with the reference implementation.
    states = [(1234567 + step * GOLDEN) & MASK for step in (1, 2)]
    expected = [6457827717110365317, 3203168211198807973]
    assert mix64(np.array(states, np.uint64)).tolist() == expected


def test_mix64_leaves_its_argument() -> None:
    z = np.arange(5, dtype=np.uint64)
    mix64(z)
    assert z.tolist() == [0, 1, 2, 3, 4]


def test_hash_ids_is_a_function_of_id_and_seed() -> None:
    ids = np.random.default_rng(0).permutation(1000)
    whole = hash_ids(ids, 3)
    np.testing.assert_array_equal(whole[400:410], hash_ids(ids[400:410].astype(np.int32), 3))
    assert not (whole == hash_ids(ids, 4)).any()
    assert len(np.unique(whole)) == 1000


@pytest.mark.parametrize("seed", [0, -1, 2**64 - GOLDEN, 2**80])
def test_hash_ids_takes_any_integer_seed_and_negative_ids(seed: int) -> None:
    assert len(np.unique(hash_ids(np.array([-(2**63), -1, 0, 2**63 - 1]), seed))) == 4


def test_hash_ids_refuses_floats() -> None:
    with pytest.raises(ValueError, match="ids must be integers, found float64"):
        hash_ids(np.array([0.0]), 0)


def test_unit_covers_zero_to_below_one() -> None:
    ends = unit(np.array([0, MASK], np.uint64))
    assert ends[0] == 0 and 1 - 2.0**-52 < ends[1] < 1
