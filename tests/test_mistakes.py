"""The nearest right word, and problems that keep their text when they move."""

import pytest
from pydantic import BaseModel, ValidationError

from ssat_ray.mistakes import moved, nearest

KEYS = ["select", "select.ratio", "train", "train.lr", "pretrain.lr"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("select.ratoi", " (did you mean 'select.ratio'?)"),
        ("train.ratio", " (did you mean 'select.ratio'?)"),  # a right leaf in a wrong section
        ("trian.lr", " (did you mean 'train.lr'?)"),  # a leaf of two sections settles nothing
        ("zzzzzz", ""),
    ],
)
def test_the_nearest_word(word: str, expected: str) -> None:
    assert nearest(word, KEYS) == expected


def test_moved_problems_keep_what_was_found() -> None:
    class Small(BaseModel):
        size: int

    with pytest.raises(ValidationError) as caught:
        Small(size="big")
    (before,), (after,) = caught.value.errors(), moved(caught.value, ("outer", "name")).errors()
    assert after["loc"] == ("outer", "name", "size")
    assert (after["msg"], after["input"]) == (before["msg"], before["input"])
