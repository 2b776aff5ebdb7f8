"""Options that several commands share."""

from pathlib import Path
from typing import Any

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
    found = str(tmp_path / "found.json")
    check_folder_of(found)
    write_json(found, "{}")
    assert Path(found).read_text() == "{}\n"
    with pytest.raises(UserError, match="its folder does not exist"):
        check_folder_of(str(tmp_path / "no" / "found.json"))
    with pytest.raises(UserError, match="cannot be written"):
        write_json(str(tmp_path), "{}")


def test_the_file_of_json_may_be_in_a_bucket(s3: Any) -> None:
    bucket = s3.bucket()
    check_folder_of(s3.uri(f"{bucket}/runs/found.json"))
    write_json(s3.uri(f"{bucket}/runs/found.json"), "{}")
    assert s3.client.get_object(Bucket=bucket, Key="runs/found.json")["Body"].read() == b"{}\n"
    with pytest.raises(UserError, match="no location that pyarrow can open"):
        check_folder_of("elsewhere://bucket/found.json")
    with pytest.raises(UserError, match="cannot be written"):
        write_json(s3.uri("no-such-bucket/found.json"), "{}")
