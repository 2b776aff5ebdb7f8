"""The first wrong field of a JSON file is named."""

from __future__ import annotations

import pytest

from ssat_ray.data.schema import Journal, check

GOOD = {
    "job": {"options": {}, "files": [{"name": "a", "bytes": 1, "mtime_ns": 2, "sample": "0"}]},
    "starts": [0, 5],
    "notes": [],
}


def test_more_fields_than_needed_are_fine() -> None:
    check(Journal, {**GOOD, "later": [1]})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"starts": [0, -1]}, r"^starts\.1: input should be greater than or equal to 0$"),
        ({"starts": [0.0]}, r"^starts\.0: input should be a valid integer$"),
        ({"job": {"options": {}, "files": [{}]}}, r"^job\.files\.0\.name: field required$"),
        (
            {"job": {"options": {}, "generations": 3}},
            r"^job\.generations: input should be a valid list$",
        ),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        check(Journal, {**GOOD, **change})
