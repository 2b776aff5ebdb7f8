"""Counter-based random bits: SplitMix64 (Steele, Lea and Flood 2014) over arrays.

A draw is a function of (id, seed), so order, batches and shards do not matter. Not for use against an
adversary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15
"""The generator's increment: 2^64 over the golden ratio, made odd."""

_MASK = (1 << 64) - 1


def mix64(z: UInt64) -> UInt64:
    """SplitMix64's finaliser, element-wise; arithmetic modulo 2^64. A new array of z's shape."""
    z = z ^ (z >> np.uint64(30))
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def hash_ids(ids: NDArray[Any], seed: int) -> UInt64:
    """(N,) integer ids -> (N,) uint64: output id + 1 of the generator whose state is the mixed seed.

    Raises:
        ValueError: ids are of another type.
    """
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids must be integers, found {ids.dtype}")
    state = mix64(np.array([(seed + GOLDEN) & _MASK], np.uint64))
    counter = ids.astype(np.int64).view(np.uint64) + np.uint64(1)
    return mix64(counter * np.uint64(GOLDEN) + state)


def unit(bits: UInt64) -> NDArray[np.float64]:
    """Random bits -> float64 uniform in [0, 1), same shape."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
