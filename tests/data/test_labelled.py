"""Reading and splitting labelled sets: exact values, disjoint splits, and every bad input by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ssat_ray.config import DataConfig
from ssat_ray.data.labelled import (
    SPLITS,
    LabelledSet,
    check_images,
    read_labelled,
    split,
    to_nchw,
    unit_float,
)
from ssat_ray.errors import UserError

GOOD = {"image": np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4), "label": np.arange(20) % 3}


def _config(path: Path | None = None, **changes: object) -> DataConfig:
    sizes = {"num_test": 5, "num_labelled": 9, "num_validation": 6}
    where = {"name": "npz", "path": str(path)} if path else {}
    return DataConfig(**{**sizes, **where, **changes})


def _npz(folder: Path, **changes: object) -> Path:
    arrays = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


def test_digits_are_the_uci_values_scaled_to_bytes() -> None:
    found = read_labelled(DataConfig(num_test=797, num_labelled=300, num_validation=700))
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(1797)
    for name, rows in zip(
        ("test", "labelled", "validation"), np.split(order, [797, 1097]), strict=True
    ):
        images, labels = found.splits[name]
        assert images.dtype == np.uint8 and images.shape == (len(rows), 8, 8, 1)
        expected = [[round(v * 255 / 16) for v in bunch.images[r].ravel()] for r in rows[:20]]
        assert images[:20].reshape(20, -1).tolist() == expected
        np.testing.assert_array_equal(labels, bunch.target[rows])
    assert (found.num_classes, found.image_shape) == (10, (1, 8, 8))


def test_splits_are_disjoint_seeded_and_the_test_set_ignores_the_other_sizes() -> None:
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    labels = np.arange(100) % 2

    def rows(**changes: object) -> dict[str, list[int]]:
        found = split((images, labels), _config(**changes))
        for name in SPLITS:
            image, label = found.splits[name]
            np.testing.assert_array_equal(label, image.ravel() % 2)
        return {name: found.splits[name][0].ravel().tolist() for name in SPLITS}

    first = rows()
    assert [len(first[n]) for n in ("labelled", "validation", "test")] == [9, 6, 5]
    everything = [row for part in first.values() for row in part]
    assert len(set(everything)) == len(everything)
    assert rows() == first and rows(split_seed=1) != first
    assert rows(num_labelled=40, num_validation=2)["test"] == first["test"]
    whole = rows(num_labelled=89).values()
    assert sorted(row for part in whole for row in part) == list(range(100))


def test_npz_of_bytes_floats_and_colours(tmp_path: Path) -> None:
    bytes_set = read_labelled(_config(_npz(tmp_path)))
    for dtype in (np.float32, np.float64):
        floats = read_labelled(_config(_npz(tmp_path, image=GOOD["image"].astype(dtype) / 255)))
        for name in SPLITS:
            np.testing.assert_array_equal(floats.splits[name][0], bytes_set.splits[name][0])
    assert bytes_set.image_shape == (1, 4, 4) and bytes_set.num_classes == 3
    colour = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3)).astype(np.uint8)
    found = read_labelled(_config(_npz(tmp_path, image=colour)))
    assert found.image_shape == (3, 4, 5)
    images, labels = found.tensors("test")
    assert images.shape == (5, 3, 4, 5) and labels.dtype == torch.int64
    np.testing.assert_array_equal(images.numpy().transpose(0, 2, 3, 1), found.splits["test"][0])


def test_every_byte_survives_the_round_trip_through_float() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(check_images(values.astype(dtype) / 255, "x")[..., 0], values)
    unit = unit_float(to_nchw(values[..., None]))
    assert unit.dtype == torch.float32 and float(unit.max()) == 1.0
    np.testing.assert_array_equal((unit * 255).round().to(torch.uint8).numpy()[:, 0], values)


def test_save_and_load(tmp_path: Path) -> None:
    before = read_labelled(_config(_npz(tmp_path)))
    files = before.save(tmp_path)
    assert files == before.save(tmp_path), "the bytes enter a record: they must be deterministic"
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    after = LabelledSet.load(tmp_path)
    assert after.num_classes == before.num_classes and after.splits.keys() == before.splits.keys()
    for name in SPLITS:
        for a, b in zip(after.splits[name], before.splits[name], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def _with(row: int, value: float) -> np.ndarray:
    images = GOOD["image"].astype(np.float32) / 255
    images[row, 2, 1] = value
    return images


BAD = {
    "no image array": ({"image": None}, ["image", "found label"]),
    "no label array": ({"label": None}, ["label", "found image"]),
    "object array": ({"image": np.array([None] * 20)}, ["plain arrays"]),
    "NaN": ({"image": _with(7, np.nan)}, ["image 7", "NaN", "(1 in all)"]),
    "infinite": ({"image": _with(3, np.inf)}, ["image 3", "infinite"]),
    "negative": ({"image": _with(11, -0.01)}, ["image 11", "outside [0, 1]"]),
    "above one": ({"image": _with(12, 1.01)}, ["image 12", "outside [0, 1]"]),
    "integers": ({"image": GOOD["image"].astype(np.int32)}, ["uint8 or float", "int32"]),
    "two channels": ({"image": np.zeros((20, 4, 4, 2), np.uint8)}, ["1 or 3 channels", "4, 2)"]),
    "flat": ({"image": np.zeros((20, 16), np.uint8)}, ["(N, H, W)", "(20, 16)"]),
    "too few labels": ({"label": np.arange(19)}, ["20 integers", "(19,)"]),
    "column of labels": ({"label": np.zeros((20, 1), int)}, ["20 integers", "(20, 1)"]),
    "float labels": ({"label": np.zeros(20)}, ["integers", "float64"]),
    "negative label": ({"label": np.r_[np.arange(19), -2]}, ["label -2", "image 19", "negative"]),
    "one class": ({"label": np.full(20, 4)}, ["one class", "at least two"]),
    "too few images": (
        {"image": GOOD["image"][:19], "label": GOOD["label"][:19]},
        ["19 images", "20", "data.num_test"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_are_user_errors_that_say_where(tmp_path: Path, name: str) -> None:
    changes, parts = BAD[name]
    path = _npz(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        read_labelled(_config(path))
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    if name not in ("one class", "too few images"):
        assert str(path) in message


def test_bad_files_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.npz does not exist"):
        read_labelled(_config(tmp_path / "gone.npz"))
    for content in (b"", b"no archive at all"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.npz is not a readable npz"):
            read_labelled(_config(tmp_path / "bad.npz"))


def test_a_truncated_npz_is_a_user_error(tmp_path: Path) -> None:
    path = _npz(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"set\.npz"):
        read_labelled(_config(path))


def test_a_damaged_npz_is_a_user_error(tmp_path: Path) -> None:
    path = _npz(tmp_path)
    data = bytearray(path.read_bytes())
    data[250] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"set\.npz"):
        read_labelled(_config(path))


def test_a_bare_array_is_a_user_error(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", GOOD["image"])
    with pytest.raises(UserError, match=r"set\.npy"):
        read_labelled(_config(tmp_path / "set.npy"))


def test_a_class_without_labelled_images_is_a_user_error(tmp_path: Path) -> None:
    """The DDPM and the classifier would know nothing of it, and yet it would be generated."""
    np.savez(tmp_path / "gap.npz", **{**GOOD, "label": GOOD["label"] * 3})
    with pytest.raises(UserError, match=r"no labelled image has class 1, 2.*data\.num_labelled"):
        read_labelled(_config(tmp_path / "gap.npz"))


def test_too_few_images_or_classes_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 20 images, data\.num_test \+ data\.num_labelled \+"):
        read_labelled(_config(_npz(tmp_path), num_test=6))
    with pytest.raises(UserError, match=r"all of one class"):
        read_labelled(_config(_npz(tmp_path, label=np.zeros(20, int))))


def test_what_is_left_is_labelled() -> None:
    images, labels = np.zeros((20, 4, 4, 1), np.uint8), np.arange(20) % 3
    found = split((images, labels), _config(num_labelled=None, num_test=4))
    assert {name: len(y) for name, (_, y) in found.splits.items()} == {
        "labelled": 10,
        "validation": 6,
        "test": 4,
    }
    with pytest.raises(UserError, match=r"ask for 20 and some more"):
        split((images, labels), _config(num_labelled=None, num_test=14))
