"""Labelled sets in their published formats, in miniature, and what is said of wrong ones."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from ssat_ray.config import DataConfig
from ssat_ray.data.labelled import read_labelled
from ssat_ray.data.published import fingerprint, read_published
from ssat_ray.errors import UserError
from ssat_ray.loading import load_config
from ssat_ray.plan import build_plan

RNG = np.random.default_rng(0)
NEEDED: dict[str, Any] = {"num_test": None, "num_labelled": None, "num_validation": 5}


def config(name: str, path: Path, **more: Any) -> DataConfig:
    return DataConfig(name=name, path=str(path), verify=False, **{**NEEDED, **more})


def pictures(count: int, size: int = 32) -> np.ndarray:
    return RNG.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def cifar(root: Path, kind: str, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Python batches of `count` images each; all images and labels in their order, test last."""
    about = datasets.CIFAR10 if kind == "cifar10" else datasets.CIFAR100
    folder = root / about.base_folder
    folder.mkdir()
    images, labels = [], []
    for name, _ in [*about.train_list, *about.test_list]:
        x, y = pictures(count), (np.arange(count) % 10)
        content: dict[bytes, Any] = {
            b"data": x.transpose(0, 3, 1, 2).reshape(count, -1),
            b"filenames": [b"x.png"] * count,
        }
        if kind == "cifar10":
            content |= {b"labels": y.tolist(), b"batch_label": name.encode()}
        else:
            content |= {b"fine_labels": y.tolist(), b"coarse_labels": (y // 2).tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        images.append(x)
        labels.append(y)
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar(kind: str, tmp_path: Path) -> None:
    images, labels = cifar(tmp_path, kind)
    inner = tmp_path / ("cifar-10-batches-py" if kind == "cifar10" else "cifar-100-python")
    for root in (tmp_path, inner):
        train, test = read_published(config(kind, root))
        assert test is not None
        np.testing.assert_array_equal(np.concatenate([train[0], test[0]]), images)
        np.testing.assert_array_equal(np.concatenate([train[1], test[1]]), labels)
        assert len(test[0]) == 20 and train[0].dtype == np.uint8


def test_svhn(tmp_path: Path) -> None:
    x, y = pictures(30), np.arange(30) % 10
    for name, rows in (("train_32x32.mat", slice(0, 20)), ("test_32x32.mat", slice(20, 30))):
        stored = np.where(y[rows] == 0, 10, y[rows])[:, None]
        savemat(
            tmp_path / name, {"X": np.moveaxis(x[rows], 0, 3), "y": stored}, do_compression=True
        )
    train, test = read_published(config("svhn", tmp_path))
    assert test is not None
    np.testing.assert_array_equal(np.concatenate([train[0], test[0]]), x)
    np.testing.assert_array_equal(np.concatenate([train[1], test[1]]), y)


def tiny_imagenet(root: Path, num_classes: int = 3, count: int = 4) -> list[str]:
    """In the order of wnids.txt, which is not that of the ids."""
    wnids = [f"n{90 - i:08d}" for i in range(num_classes)]
    root = root / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(wnids))
    lines = []
    for c, wnid in enumerate(wnids):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for i in range(count):
            grey = Image.new("L", (64, 64), 20 * c + i)
            grey.save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        Image.new("RGB", (64, 64), (20 * c,) * 3).save(root / "val" / "images" / f"val_{c}.JPEG")
        lines.append(f"val_{c}.JPEG\t{wnid}\t0\t32\t44\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return wnids


def test_tiny_imagenet(tmp_path: Path) -> None:
    wnids = tiny_imagenet(tmp_path)
    train, test = read_published(config("tiny-imagenet", tmp_path))
    assert test is not None
    assert train[0].shape == (12, 64, 64, 3) and test[0].shape == (3, 64, 64, 3)
    order = [wnids.index(wnid) for wnid in sorted(wnids)]
    np.testing.assert_array_equal(train[0][:, 0, 0, 0] // 20, np.repeat(order, 4))
    np.testing.assert_array_equal(train[1], np.repeat(np.arange(3), 4))
    brightness = test[0][:, 0, 0, 0] // 20
    assert [order[label] for label in test[1]] == brightness.tolist()


def test_tiny_imagenet_with_a_bad_line(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)
    listing = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    listing.write_text(listing.read_text() + "val_9.JPEG\tn00000001\t0\n")
    with pytest.raises(UserError, match=r"val_annotations\.txt line 4: no class 'n00000001'"):
        read_published(config("tiny-imagenet", tmp_path))


def medical(root: Path) -> None:
    """Two unbalanced classes of greyscale PNGs, no two of one size."""
    for name, count in (("benign", 30), ("malignant", 8)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (20 + i, 31 - i // 2), 5 * i).save(root / name / f"{i:02d}.png")


def test_a_folder_of_mixed_sizes(tmp_path: Path) -> None:
    medical(tmp_path)
    found = read_labelled(config("folder", tmp_path, size=(16, 12), num_test=10))
    assert found.num_classes == 2 and found.image_shape == (1, 16, 12)
    assert {name: len(labels) for name, (_, labels) in found.splits.items()} == {
        "labelled": 23,
        "validation": 5,
        "test": 10,
    }
    everything = np.concatenate([labels for _, labels in found.splits.values()])
    assert np.bincount(everything).tolist() == [30, 8]
    with pytest.raises(UserError, match=r"one size.*data\.size=\[H,W\]\) resizes them"):
        read_labelled(config("folder", tmp_path, num_test=10))
    with pytest.raises(UserError, match=r"data\.num_test=null, but the set has no test images"):
        read_labelled(config("folder", tmp_path, size=(16, 12)))


def test_a_folder_with_train_and_test(tmp_path: Path) -> None:
    medical(tmp_path / "train")
    medical(tmp_path / "test")
    found = read_labelled(config("folder", tmp_path, size=(8, 8), channels=3, num_test=None))
    assert found.image_shape == (3, 8, 8) and len(found.splits["test"][1]) == 38
    (tmp_path / "test" / "other").mkdir()
    read_labelled(config("folder", tmp_path, size=(8, 8), num_test=None))  # no image, no class
    Image.new("L", (8, 8)).save(tmp_path / "test" / "other" / "a.png")
    with pytest.raises(UserError, match=r"train has .*'malignant'\], test of .*'other'"):
        read_labelled(config("folder", tmp_path, size=(8, 8)))


def test_a_class_without_test_images_does_not_move_the_labels_of_the_next(tmp_path: Path) -> None:
    medical(tmp_path / "train")
    medical(tmp_path / "test")
    for image in (tmp_path / "test" / "benign").iterdir():
        image.unlink()
    with pytest.raises(UserError, match=r"test of \['malignant'\]"):
        read_labelled(config("folder", tmp_path, size=(8, 8)))


def test_a_class_may_be_called_as_a_part(tmp_path: Path) -> None:
    medical(tmp_path)
    (tmp_path / "benign").rename(tmp_path / "valid")
    about = config("folder", tmp_path, size=(8, 8), num_test=10)
    assert read_labelled(about).num_classes == 2


@pytest.mark.parametrize(
    "parts", [("train", "val"), ("Training",), ("train", "test", "val"), ("test", "val")]
)
def test_parts_are_not_taken_for_classes(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        medical(tmp_path / part)
    with pytest.raises(UserError, match=rf"has the folders .*{parts[-1]}.*move other folders away"):
        read_labelled(config("folder", tmp_path, size=(8, 8), num_test=10))


def test_a_folder_without_classes(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="each class into its own folder"):
        read_labelled(config("folder", tmp_path))


def test_parts_of_a_set_with_its_own_test_images(tmp_path: Path) -> None:
    images, _ = cifar(tmp_path, "cifar10")
    whole = read_labelled(config("cifar10", tmp_path)).splits
    assert [len(whole[name][1]) for name in ("labelled", "validation", "test")] == [95, 5, 20]
    small = read_labelled(config("cifar10", tmp_path, num_test=7, num_labelled=60)).splits
    assert [len(small[name][1]) for name in ("labelled", "validation", "test")] == [60, 5, 7]
    own = {image.tobytes() for image in images[100:]}
    assert {image.tobytes() for image in small["test"][0]} <= own
    for name in ("labelled", "validation"):
        assert not own & {image.tobytes() for image in whole[name][0]}
    with pytest.raises(UserError, match=r"100 images, data\.num_labelled \+ data\.num_validation"):
        read_labelled(config("cifar10", tmp_path, num_labelled=96))
    with pytest.raises(UserError, match=r"has 20 images, data\.num_test ask"):
        read_labelled(config("cifar10", tmp_path, num_test=21))


def test_files_that_were_not_published_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar(tmp_path, "cifar10")
    strict = DataConfig(name="cifar10", path=str(tmp_path), **NEEDED)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    with pytest.raises(UserError, match=r"data_batch_1 is not the published file.*data\.verify"):
        read_labelled(strict)
    sums = [
        (name, hashlib.md5((path.parent / name).read_bytes()).hexdigest())
        for name, _ in [*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list]
    ]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:-1])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[-1:])
    assert len(read_labelled(strict).splits["test"][1]) == 20


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    cifar(tmp_path, "cifar10")
    folder = tmp_path / "cifar-10-batches-py"
    with pytest.raises(UserError, match=r"has no train_32x32\.mat; svhn consists of"):
        read_labelled(config("svhn", tmp_path))
    with pytest.raises(UserError, match=r"none is no folder"):
        read_labelled(config("svhn", tmp_path / "none"))
    content = (folder / "data_batch_2").read_bytes()
    (folder / "data_batch_2").write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"data_batch_2 is truncated"):
        read_labelled(config("cifar10", tmp_path))
    (folder / "data_batch_2").write_bytes(pickle.dumps({b"data": np.zeros((3, 5)), b"labels": []}))
    with pytest.raises(UserError, match=r"data_batch_2: `data` must be \(N, 3072\)"):
        read_labelled(config("cifar10", tmp_path))
    (folder / "data_batch_2").unlink()
    with pytest.raises(UserError, match=r"has no data_batch_2"):
        fingerprint(config("cifar10", tmp_path))


def test_a_fingerprint_follows_the_files(tmp_path: Path) -> None:
    cifar(tmp_path, "cifar10")
    about = config("cifar10", tmp_path)
    before = fingerprint(about)
    assert fingerprint(config("cifar10", tmp_path / "cifar-10-batches-py")) == before
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes().replace(b"x.png", b"y.png"))
    assert fingerprint(about) != before
    medical(tmp_path / "folder")
    about = config("folder", tmp_path / "folder")
    before = fingerprint(about)
    assert fingerprint(about) == before
    Image.new("L", (9, 9)).save(tmp_path / "folder" / "benign" / "00.png")
    assert fingerprint(about) != before


def test_a_fingerprint_follows_links_to_folders(tmp_path: Path) -> None:
    medical(tmp_path / "elsewhere")
    (tmp_path / "folder").mkdir()
    for name in ("benign", "malignant"):
        (tmp_path / "folder" / name).symlink_to(tmp_path / "elsewhere" / name)
    about = config("folder", tmp_path / "folder", size=(8, 8), num_test=10)
    assert read_labelled(about).num_classes == 2
    before = fingerprint(about)
    (tmp_path / "elsewhere" / "benign" / "around").symlink_to(tmp_path / "elsewhere")
    assert fingerprint(about) == before  # the importer does not go there
    Image.new("L", (9, 9)).save(tmp_path / "elsewhere" / "benign" / "00.png")
    assert fingerprint(about) != before


def test_settings() -> None:
    with pytest.raises(ValueError, match=r"data\.name=cifar10 needs data\.path"):
        DataConfig(name="cifar10")
    with pytest.raises(ValueError, match=r"data\.path=somewhere needs a data\.name"):
        DataConfig(path="somewhere")
    with pytest.raises(ValueError, match=r"data\.num_test=null"):
        DataConfig(num_test=None)


PRESET = """\
seeds: [0]
rows: [none, random, lcs-km]
data: {name: NAME, path: set, verify: false, num_test: TEST, num_labelled: null, num_validation: 6DATA}
model: {widths: [8, 16], strides: [2, 2]}
intermediate: {num_steps: 20, batch_size: 16, bn_group: 8, warmup_steps: 2}
pool: {source: synth}
synth: {num_images: 200, shard_rows: 50}
objective: {num_steps: 2, step_size: 0.01}
threat: {eps: 0.03}
select: {ratio: 0.25}
train: {max_steps: 20, eval_every: 10, batch_size: 16, bn_group: 8, warmup_steps: 2}
evaluate: {pgd_steps: 2, apgd_steps: 2}
"""


def small_svhn(root: Path) -> None:
    for name, count in (("train_32x32.mat", 60), ("test_32x32.mat", 12)):
        labels = 1 + np.arange(count)[:, None] % 10  # 10 stands for 0
        savemat(root / name, {"X": np.moveaxis(pictures(count), 0, 3), "y": labels})


SETS: dict[str, tuple[Callable[[Path], Any], str, str, list[int], int, int]] = {
    "cifar10": (lambda root: cifar(root, "cifar10"), "null", "", [3, 32, 32], 10, 20),
    "cifar100": (lambda root: cifar(root, "cifar100", 40), "null", "", [3, 32, 32], 10, 40),
    "svhn": (small_svhn, "null", "", [3, 32, 32], 10, 12),
    "tiny-imagenet": (lambda root: tiny_imagenet(root, 4, 10), "null", "", [3, 64, 64], 4, 4),
    "folder": (medical, "10", ", size: [24, 16], channels: 1", [1, 24, 16], 2, 10),
}


def _preset(name: str, folder: Path) -> Path:
    """The set's files in `folder`/set, and the preset that compares on them."""
    make, test, more, *_ = SETS[name]
    (folder / "set").mkdir()
    make(folder / "set")
    text = PRESET.replace("NAME", name).replace("TEST", test).replace("DATA", more)
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


@pytest.mark.parametrize("name", SETS)
def test_a_comparison_is_planned(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the slow test's preset does not rot."""
    monkeypatch.chdir(tmp_path)
    plan = build_plan(load_config(str(_preset(name, tmp_path)), []))
    assert {row for row, _, _ in plan.jobs} == {"none", "random", "lcs-km"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_a_comparison(name: str, tmp_path: Path) -> None:
    *_, shape, num_classes, num_test = SETS[name]
    _preset(name, tmp_path)
    ssat = str(Path(sys.executable).with_name("ssat"))
    done = subprocess.run(
        [ssat, "run", "mine.yaml", "--name", "mine"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    results = json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())
    assert results["data"]["image_shape"] == shape
    assert results["data"]["num_classes"] == num_classes
    assert results["data"]["num_test"] == num_test
    assert results["config"]["data"]["verify"] is False
    rows = {row["row"]: row for row in results["rows"]}
    assert rows["lcs-km"]["images"]["pool"] == rows["random"]["images"]["pool"] == 50
    for row in rows.values():
        assert 0 <= row["accuracy"]["pgd"]["mean"] <= row["accuracy"]["clean"]["mean"] <= 100
