"""A flipped bit anywhere in a file: a message for the user, or an import; never another exception."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat

from ssat_ray.data.fingerprints import fingerprint
from ssat_ray.data.importers.base import ImportOptions, open_source
from ssat_ray.errors import UserError
from tests.data.importers.generated import encode

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(6)
NUM_FLIPS = 60


def write_npz(path: Path) -> None:
    np.savez_compressed(path, image=IMAGES, label=LABELS)


def write_npy(path: Path) -> None:
    np.save(path, IMAGES)


def write_parquet(path: Path) -> None:
    columns = {"image": [encode(image) for image in IMAGES], "label": LABELS}
    pq.write_table(pa.table(columns), path, write_page_checksum=True)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for i, image in enumerate(IMAGES):
            for suffix, data in (("png", encode(image)), ("json", b'{"label": %d}' % i)):
                member = tarfile.TarInfo(f"train/{i}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"data": IMAGES, "extrapolated_targets": LABELS}, 2))


def write_mat(path: Path) -> None:
    content = {"X": IMAGES.transpose(1, 2, 3, 0), "y": LABELS}
    savemat(path, content, do_compression=path.parent.name == "packed")


def write_png(path: Path) -> None:
    path.write_bytes(encode(IMAGES[0]))


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.npz": write_npz,
    "a.npy": write_npy,
    "a.parquet": write_parquet,
    "a.tar": write_tar,
    "a.pickle": write_pickle,
    "a.mat": write_mat,
    "packed/a.mat": write_mat,
    "folder/a.png": write_png,
}
CHECKED = ("a.npz", "a.parquet", "folder/a.png")
"""Their images have checksums; the other formats have none, or none of the images."""


@pytest.mark.parametrize("name", WRITERS)
def test_flipped_bits(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    WRITERS[name](path)
    source = path.parent if name.startswith("folder") else path
    good, rng = path.read_bytes(), np.random.default_rng(1)
    used = len(good.rstrip(b"\0"))
    for _ in range(NUM_FLIPS):
        bad = bytearray(good)
        place, bit = int(rng.integers(used)), int(rng.integers(8))
        bad[place] ^= 1 << bit
        path.write_bytes(bad)
        try:
            fingerprint([source])
            opened = open_source([source], ImportOptions(layout="NHWC"))
            images = np.concatenate([block.images for block in opened.blocks()])
        except UserError as error:
            assert str(source) in str(error)  # noqa: PT017
            continue
        except Exception as error:
            pytest.fail(f"bit {bit} of byte {place}: {error!r}")
        assert images.dtype == np.uint8 and images.shape[1:] == opened.shape
        if name in CHECKED:
            np.testing.assert_array_equal(images, IMAGES[: len(images)])
