"""Options that several commands share."""

from pathlib import Path

import pytest
import typer

from ssat_ray.errors import UserError
from ssat_ray.options import check_folder_of, parse_count, write_json


def test_a_count_is_a_whole_number() -> None:
    assert [parse_count(value) for value in ("1e5", "100_000", 7)] == [100_000, 100_000, 7]
    with pytest.raises(typer.BadParameter, match=r"'0\.2' is no whole number"):
        parse_count("0.2")


def test_the_file_of_json(tmp_path: Path) -> None:
    check_folder_of(None)
    check_folder_of(tmp_path / "found.json")
    write_json(tmp_path / "found.json", "{}")
    assert (tmp_path / "found.json").read_text() == "{}\n"
    with pytest.raises(UserError, match="its folder does not exist"):
        check_folder_of(tmp_path / "no" / "found.json")
    with pytest.raises(UserError, match="cannot be written"):
        write_json(tmp_path, "{}")
