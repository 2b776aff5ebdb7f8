"""Names of files: sorted like Python's strings, and compact."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssat_ray.data.listing import Names, scan
from ssat_ray.errors import UserError

NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)


@given(st.sets(NAME))
def test_names_come_out_sorted(names: set[str]) -> None:
    found = Names()
    for name in names:
        found.add(name)
    assert len(found) == len(names)
    assert list(found) == sorted(names) == list(found)


def test_a_name_that_is_no_unicode_survives() -> None:
    found = Names()
    found.add(os.fsdecode(b"b\xff.png"))
    found.add("a.png")
    assert [os.fsencode(name) for name in found] == [b"a.png", b"b\xff.png"]


def test_a_name_takes_its_bytes_and_an_eighth_at_most() -> None:
    count, length = 50_000, 20
    tracemalloc.start()
    try:
        found = Names()
        for i in range(count):
            found.add(f"image_{i * 7919 % count:010d}.png")
        last = ""
        for name in found:
            assert last < name
            last = name
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < count * length * 9 / 8 + 2**16


def test_scan(tmp_path: Path) -> None:
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    for name in ("b.png", "a.png", "notes.txt", "deep/c.png"):
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "none")
    files, folders = scan(str(tmp_path), lambda name: name.endswith(".png"))
    assert list(files) == ["a.png", "b.png", "nowhere.png"] and list(folders) == ["deep"]
    assert list(scan(str(tmp_path), bool, follow_links=True)[1]) == ["deep", "link"]
    with pytest.raises(UserError, match=r"a\.png cannot be read: Not a directory"):
        scan(str(tmp_path / "a.png"), bool)
