"""Whole numbers in the ways people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssat_ray.counts import whole_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("-5", -5),
        ("100_000_000", 10**8),
        ("1e8", 10**8),
        ("1E+2", 100),
        ("1.5e6", 1_500_000),
        ("2.e1", 20),
        ("1e23", 10**23),
        ("3.0", None),
        ("1.5", None),
        ("1.25e1", None),
        ("1e-3", None),
        ("1e999999999", None),
        ("1__0", None),
        ("_1", None),
        ("1,000", None),
        ("e5", None),
        ("", None),
        ("nan", None),
    ],
)
def test_examples(text: str, expected: int | None) -> None:
    assert whole_number(text) == expected


@given(st.integers())
def test_pythons_own_ways_to_write_an_integer(value: int) -> None:
    assert whole_number(str(value)) == whole_number(f"{value:_}") == value


@given(st.integers(1, 999), st.integers(0, 15))
def test_exponents_agree_with_floats(digits: int, exponent: int) -> None:
    text = f"{digits}e{exponent}"
    assert whole_number(text) == int(float(text))
