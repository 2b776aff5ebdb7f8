"""Folders of images in every mode against Pillow's arrays; what is refused."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssat_ray.data.importers.base import MAX_IMAGE_BYTES, ImportOptions, open_source
from ssat_ray.data.importers.folders import _images_below
from ssat_ray.errors import UserError

RNG = np.random.default_rng(0)


def read(root: Path, start: int = 0, **options: object) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(open_source([root], ImportOptions(**options)).blocks(start))
    return np.concatenate([b.images for b in blocks]), np.concatenate([b.labels for b in blocks])


def write(
    path: Path, mode: str = "RGB", size: tuple[int, int] = (5, 4), seed: int = 0
) -> Image.Image:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode)
    image.save(path)
    return image


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    flat=st.booleans(),
    modes=st.lists(st.sampled_from(["RGB", "L", "P", "RGBA", "1", "LA"]), min_size=1, max_size=20),
    channels=st.sampled_from([1, 3]),
    start=st.integers(0, 20),
)
def test_folders(tmp_path_factory, counts, flat, modes, channels, start) -> None:
    root, images, labels = tmp_path_factory.mktemp("folder"), [], []
    for label, count in enumerate(counts):
        for i in range(count):
            name = f"{i}.png" if not flat else f"{label}-{i}.png"
            path = root / name if flat else root / f"class {label}" / "deeper" / name
            image = write(path, modes[len(images) % len(modes)], seed=len(images))
            grey = image.convert("RGBA" if image.mode == "P" else image.mode)
            array = np.asarray(grey.convert("L" if channels == 1 else "RGB"))
            images.append(array.reshape(5, 4, channels))
            labels.append(-1 if flat else label)
    (root / "notes.txt").write_text("not an image")
    (root / "empty").mkdir()
    start = min(start, len(images) - 1)
    found, found_labels = read(root, start, channels=channels)
    np.testing.assert_array_equal(found, np.stack(images)[start:])
    np.testing.assert_array_equal(found_labels, labels[start:])


@settings(max_examples=20, deadline=None)
@given(
    st.sets(
        st.lists(st.text("ab-~é ", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join),
        max_size=8,
    )
)
def test_images_come_in_the_order_of_their_paths(tmp_path_factory, stems) -> None:
    """As `pathlib` compares them: part by part, not as text."""
    root = tmp_path_factory.mktemp("folder")
    for stem in stems:
        path = root / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [Path(path) for path in _images_below(str(root))]
    assert found == sorted(root.rglob("*.png"))


def test_names_are_held_compactly(tmp_path: Path) -> None:
    """Paths in a list take 350 bytes and more a file."""
    write(tmp_path / "cat" / "000.png")
    count = 3000
    for i in range(count):
        (tmp_path / "cat" / f"image_{i:010d}.png").touch()
    tracemalloc.start()
    try:
        source = open_source([tmp_path], ImportOptions())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert source.rows == count + 1 and peak < 100 * count


def test_the_channels_are_those_of_the_first_image(tmp_path: Path) -> None:
    write(tmp_path / "a.png", "L")
    assert read(tmp_path)[0].shape == (1, 5, 4, 1)
    write(tmp_path / "b.png", "RGB")
    with pytest.raises(UserError, match=r"b\.png has colours, the images before it are grey"):
        read(tmp_path)
    assert read(tmp_path, channels=1)[0].shape == (2, 5, 4, 1)
    write(tmp_path / "0.png", "RGB")
    assert read(tmp_path)[0].shape == (3, 5, 4, 3)


@pytest.mark.parametrize("start", [0, 2])
def test_mixed_sizes(tmp_path: Path, start: int) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png")
    write(tmp_path / "3.png", size=(4, 5))
    with pytest.raises(UserError, match=r"3\.png is 4x5, .*0\.png is 5x4 .*--size HxW"):
        read(tmp_path, start)
    images, _ = read(tmp_path, start, size=(7, 3))
    assert images.shape == (4 - start, 7, 3, 3)


def test_jpeg_and_other_suffixes(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.bmp", "c.PNG", "d.webp", "e.tiff", "f.gif", "g.ppm"):
        write(tmp_path / name)
    images, _ = read(tmp_path)
    expected = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(tmp_path.iterdir())]
    np.testing.assert_array_equal(np.sort(images, 0), np.sort(np.stack(expected), 0))


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images"):
        open_source([tmp_path], ImportOptions())
    write(tmp_path / "a.png")
    write(tmp_path / "cat" / "b.png")
    with pytest.raises(UserError, match=r"holds images and folders of images \(cat\)"):
        open_source([tmp_path], ImportOptions())
    (tmp_path / "a.png").unlink()
    for name, data, expected in (
        ("z.png", (tmp_path / "cat" / "b.png").read_bytes()[:60], r"z\.png is damaged"),
        ("z.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", r"z\.png is damaged, or no image that is read"),
    ):
        (tmp_path / "cat" / name).write_bytes(data)
        with pytest.raises(UserError, match=expected):
            read(tmp_path)
    Image.fromarray(np.zeros((5, 4), np.uint16)).save(tmp_path / "cat" / "z.png")
    with pytest.raises(UserError, match=r"z\.png has mode I;16; 8 bits a channel"):
        read(tmp_path)
    Image.new("1", (8000, 8000)).save(tmp_path / "cat" / "z.png")
    with pytest.raises(UserError, match=r"z\.png is 8000x8000; at most"):
        read(tmp_path)
    (tmp_path / "cat" / "z.png").unlink()
    os.mkfifo(tmp_path / "cat" / "z.png")
    with pytest.raises(UserError, match=r"z\.png is no regular file"):
        read(tmp_path)
    (tmp_path / "cat" / "z.png").unlink()
    with open(tmp_path / "cat" / "z.png", "wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(UserError, match=r"z\.png is .*more than 67108864 bytes"):
        read(tmp_path)
    (tmp_path / "cat" / "z.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"z\.png is damaged, or no image .*: it is empty\."):
        read(tmp_path)


def test_what_is_said_of_the_images(tmp_path: Path) -> None:
    write(tmp_path / "eel" / "a.png", "L")
    write(tmp_path / "cat" / "a.png", "L")
    source = open_source([tmp_path], ImportOptions())
    assert source.read_as == "encoded images, grey" and source.labels_from == "subfolders"
    assert source.class_names == ["cat", "eel"]
    flat = open_source([tmp_path / "cat"], ImportOptions(channels=3, size=(7, 3)))
    assert flat.read_as == "encoded images, RGB, resized to 7x3" and not flat.class_names
    assert flat.labels_from == "there are no subfolders, which would be classes"


def test_classes_of_several_folders_are_numbered_by_name(tmp_path: Path) -> None:
    for name in ("a/dog", "a/eel", "b/cat", "b/eel"):
        write(tmp_path / name / "0.png")
    source = open_source([tmp_path / "a", tmp_path / "b"], ImportOptions())
    assert source.class_names == ["cat", "dog", "eel"]
    assert [int(label) for block in source.blocks() for label in block.labels] == [1, 2, 0, 2]
