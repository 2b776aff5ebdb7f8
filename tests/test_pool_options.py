"""Options of `ssat pool` as they are typed, and as the importers get them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssat_ray.data.importers.base import FORMATS, ImportOptions
from ssat_ray.errors import UserError
from ssat_ray.pool_options import check_paths, class_names, import_options

NONE = [None] * 9


def test_nothing_is_said() -> None:
    assert import_options(*NONE) == ImportOptions() and class_names(None) is None


@pytest.mark.parametrize("module", FORMATS)
def test_formats_by_name_and_by_module(module: str) -> None:
    for name in (module, FORMATS[module].name):
        assert import_options(name, *NONE[1:]) == ImportOptions(format=module)


def test_values() -> None:
    given = (None, "x", "y", "l.npy", "NCHW", "-1,1", "8x9x3", "4x5", 1)
    assert import_options(*given) == ImportOptions(
        None, "x", "y", "l.npy", "NCHW", "-1,1", (8, 9, 3), (4, 5), 1
    )
    assert class_names("cat, sea eel ,dog") == ["cat", "sea eel", "dog"]


@pytest.mark.parametrize("text", ["", "a,,b", "a,a", "a,"])
def test_classes_that_are_no_names(text: str) -> None:
    with pytest.raises(UserError, match=rf"--classes {text}: give different names"):
        class_names(text)


def test_a_single_path() -> None:
    check_paths("append", [Path("a.npz")], "pool")
    with pytest.raises(
        UserError, match=r"ssat pool append a\.npz: a path is missing\. .* \(last\)"
    ):
        check_paths("append", [], "a.npz")
