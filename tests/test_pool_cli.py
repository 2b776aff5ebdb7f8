"""`ssat pool` as a user runs it: exit codes, what it prints, mistakes in one paragraph."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssat_ray.cli import main
from ssat_ray.data.pool import Pool
from ssat_ray.errors import UserError
from ssat_ray.pool_cli import Progress, app

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 5, 3), dtype=np.uint8)


def pool(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "from ssat_ray.cli import main; main()"
    command = [sys.executable, "-c", code, "pool", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_import_append_info_verify_copy(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=IMAGES[:10], label=np.arange(10) % 4)
    np.savez(tmp_path / "b.npz", image=IMAGES[10:20], label=np.arange(10) % 4)
    np.savez(tmp_path / "c.npz", image=IMAGES[20:])
    done = pool("import", "a.npz", "b.npz", "out", "--shard-rows", 8, cwd=tmp_path)
    said = "out: 20 images of 4x5x3 imported, 4 classes; read as uint8 NHWC\n"
    assert done.returncode == 0 and done.stdout.endswith(said) and not done.stderr
    done = pool("import", "a.npz", "b.npz", "out", "--shard-rows", 8, cwd=tmp_path)
    assert done.returncode == 0 and "20 images are there already" in done.stdout
    done = pool("append", "c.npz", "out", cwd=tmp_path)
    said = (
        "10 images of 4x5x3 appended as generation 1, none with a label, 30 in all; read as uint8"
    )
    assert done.returncode == 0 and said in done.stdout
    assert done.stderr.startswith("warning: no image has a label (no array is called label, ")
    done = pool("append", "c.npz", "out", cwd=tmp_path)
    assert done.returncode == 0 and "these images are there already, 30 in all" in done.stdout
    done = pool("copy", "out", "copy", "--shard-rows", 5, cwd=tmp_path)
    assert done.returncode == 0 and "30 images copied, 6 shards" in done.stdout
    lines = pool("info", "copy", cwd=tmp_path).stdout.splitlines()
    found = dict(line.split(maxsplit=1) for line in lines if not line.startswith("generation"))
    assert found["images"] == "30" and found["shape"] == "4x5x3 (H x W x C)"
    assert found["classes"] == "4" and found["shards"] == "6"
    assert found["labels"] == "none: 10, 0: 6, 1: 6, 2: 4, 3: 4"
    assert [line.split(", ")[0] for line in lines if line.startswith("generation")] == [
        "generation 0 20 images",
        "generation 1 10 images",
    ]
    assert all(line.endswith("read as uint8 NHWC") for line in lines if "generation" in line)
    done = pool("verify", "copy", cwd=tmp_path)
    assert done.returncode == 0 and "30 images in 6 shards are as they were written" in done.stdout
    (tmp_path / "copy" / "shard-00003.parquet").unlink()
    done = pool("verify", "copy", cwd=tmp_path)
    assert done.returncode == 1 and "shard-00003.parquet is listed in pool.json" in done.stdout
    done = pool("info", "copy", cwd=tmp_path)
    assert done.returncode == 1 and not done.stderr
    assert done.stdout.splitlines()[0] == "MISSING      1 of 6 shards: shard-00003.parquet"


def test_formats_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Formats by the names of the docs, and by those of older releases."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "eel"):
        Path("png", name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(f"png/{name}/0.png")
    for format_ in ("folder", "folders"):
        app(["import", "png", "p", "--format", format_], standalone_mode=False)
    (origin,) = Pool("p").manifest["source"]
    assert origin["options"]["format"] == "folders" and Pool("p").class_names == ["cat", "eel"]
    app(["import", "png", "q", "--classes", "eel, dog,cat"], standalone_mode=False)
    assert Pool("q").class_names == ["eel", "dog", "cat"] and Pool("q").num_classes == 3
    app(["append", "q", "p", "--classes", "cat,eel,dog"], standalone_mode=False)
    assert Pool("p").load().labels.tolist() == [0, 1, 0, 1] and Pool("p").num_classes == 3


def test_synth(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=IMAGES, label=np.arange(30) % 3)
    sizes = ("num_test=5", "num_labelled=20", "num_validation=5")
    sets = [part for size in sizes for part in ("--set", f"data.{size}")]
    arguments = ("synth", "a.npz", "out", "--num-images", "7e1", "--shard-rows", "3_0", *sets)
    done = pool(*arguments, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("out: 70 images made\n")
    assert "70 images are there already" in pool(*arguments, cwd=tmp_path).stdout
    done = pool(*arguments, "--set", "synth.noise=2", cwd=tmp_path)
    assert done.returncode == 2 and "out holds a pool with noise 8.0 (now 2.0)" in done.stderr
    done = pool("synth", "a.npz", "out", "--num-images", "0.2", cwd=tmp_path)
    assert done.returncode == 2 and "no whole number" in done.stderr


def test_export(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=IMAGES, label=np.arange(30) % 3)
    pool("import", "a.npz", "in", cwd=tmp_path)
    done = pool("export", "in", "out.npz", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "out.npz: 30 images exported\n"
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_array_equal(found["image"], IMAGES)
    done = pool("export", "in", "out.npz", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == "ssat: out.npz exists; --force replaces it.\n"
    assert pool("export", "in", "out.npz", "--force", cwd=tmp_path).returncode == 0


def test_large_numbers_have_separators_and_units(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2000, 24, 24, 1), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", image=images, label=np.zeros(2000, np.int64))
    assert "2,000 images of 24x24x1 imported" in pool("import", "a.npz", "out", cwd=tmp_path).stdout
    lines = pool("info", "out", cwd=tmp_path).stdout.splitlines()
    found = dict(line.split(maxsplit=1) for line in lines)
    assert found["images"] == "2,000" and found["labels"] == "0: 2,000"
    size = (tmp_path / "out" / "shard-00000.parquet").stat().st_size
    assert found["bytes"] == f"{size:,} ({size / 2**20:.3g} MiB)" and size > 10**6


def test_pools_do_without_heavy_libraries(tmp_path: Path) -> None:
    """pandas, torch and scikit-learn take longer to import than these commands take."""
    code = (
        "import sys; from ssat_ray.cli import app\n"
        "for command in ('synth digits out --num-images 50', 'info out', 'export out out.npz'):\n"
        "    app(['pool', *command.split()], standalone_mode=False)\n"
        "print([m for m in ('pandas', 'torch', 'ray', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "[]"


SYNTH = ["synth", "digits", "out", "--num-images", "5"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["import", "nope.npz", "out"], "nope.npz cannot be read: No such file or directory"),
        (["import", "a.txt", "out"], "a.txt: unknown suffix; known are .npz"),
        (["import", "a.npz", "out", "--range", "0,2"], "--range 0,2: allowed are 0,1, -1,1, 0,255"),
        (["import", "a.npz", "out", "--layout", "CHW"], "--layout CHW: allowed are NHWC, NCHW"),
        (["import", "a.npz", "out", "--channels", "2"], "--channels 2: allowed are 1, 3"),
        (["import", "a.npz", "out", "--shape", "32x32"], "--shape 32x32: give HxWxC, for example"),
        (["import", "a.npz", "out", "--size", "0x8"], "--size 0x8: give HxW, for example 32x32."),
        (["import", "a.npz", "out", "--num-classes", "0"], "--num-classes 0: allowed are 1"),
        (["import", "a.npz", "out", "--image-key", "b"], "has no 'b' (--image-key); found image"),
        (["import", "a.npz", "out", "--shard-rows", "0"], "--shard-rows 0"),
        (["import", "a.npz", "out", "--range", "-1,1"], "is uint8; --range is for floating-point"),
        (["import", "a.npz", "out", "--size", "8x8"], "--size says nothing about a.npz (npz)"),
        (
            ["import", "a.npz", "out", "--format", "zip"],
            "allowed are npz, npy, parquet, tar, pickle",
        ),
        (["import", "a.npz", "out", "--classes", "a,,b"], "--classes a,,b: give different names"),
        (["import", "a.npz", "out", "--classes", "a,a"], "--classes a,a: give different names"),
        (["import", "a.npz", "a.npz", "out"], "a.npz is given twice"),
        (["import", "a.npz"], "ssat pool import a.npz: a path is missing. Give the sources, then"),
        (["append", "out"], "ssat pool append out: a path is missing. Give the sources, then the"),
        (["append", "a.npz", "out"], "out is no pool"),
        (["synth", "digits", "out", "--num-images", "0"], "--num-images 0: allowed are 1 to"),
        ([*SYNTH, "--seed", "-1"], "--seed -1: allowed are 0 to"),
        ([*SYNTH, "--first-id", str(2**62)], "allowed are 0 to 4611686018427387899"),
        ([*SYNTH, "--shard-rows", "0"], "--shard-rows 0: allowed are 1 to"),
        ([*SYNTH, "--set", "synth.mix=3"], "synth.mix=3: input should be less than or equal to"),
        ([*SYNTH, "--set", "synth.mx=3"], "unknown key 'synth.mx' (did you mean 'synth.mix'?)"),
        ([*SYNTH, "--set", "synth.num_images=3"], "--set synth.num_images=3: allowed are keys of"),
        (
            ["synth", "b.npz", "out", "--num-images", "5"],
            "b.npz does not exist; SOURCE is `digits`",
        ),
        (
            ["synth", ".", "out", "--num-images", "5"],
            "ssat: . is a folder; SOURCE is `digits` or an",
        ),
        (["synth", "a.npz", "out", "--num-images", "5"], "a.npz lacks the array(s) label"),
        (["info", "out"], "out is no pool"),
        (["verify", "out"], "out is no pool"),
        (["copy", "out", "b"], "out is no pool"),
    ],
)
def test_mistakes_are_one_paragraph_and_exit_2(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", image=IMAGES)
    Path("a.txt").write_text("text")
    monkeypatch.setattr(sys, "argv", ["ssat", "pool", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert expected in printed.err
    assert len(printed.err.strip().splitlines()) == 1 and not printed.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.txt"]


@pytest.mark.parametrize(
    "arguments",
    [["info"], ["verify"], ["append", "a.npz"], ["import", "a.npz"], ["copy", "pool"]],
)
@pytest.mark.parametrize("place", ["a.npz", "a.npz/pool"])
def test_a_file_in_the_place_of_a_pool(
    arguments: list[str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", image=IMAGES)
    app(["import", "a.npz", "pool"], standalone_mode=False)
    with pytest.raises(UserError, match=r"a\.npz.* (is a file; a|is no|cannot be read or written)"):
        app([*arguments, place], standalone_mode=False)


def test_progress_prints_a_line_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("ssat_ray.pool_cli.time.monotonic", lambda: clock[0])
    progress = Progress()
    for rows in range(1000, 13_000, 1000):
        progress(rows, 12_000, 3000)
        clock[0] += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "6,000 of 12,000 images, 1,000 images/s, 3 MB/s",
        "11,000 of 12,000 images, 1,000 images/s, 3 MB/s",
    ]
