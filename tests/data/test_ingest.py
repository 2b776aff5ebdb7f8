"""Import, append, copy and verify: same bytes after any kill, nothing lost, nothing taken twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.data.fingerprints import FileRecord, fingerprint
from ssat_ray.data.folder import Folder
from ssat_ray.data.importers.base import DamagedFile, ImportOptions
from ssat_ray.data.ingest import append_pool, copy_pool, import_pool, verify_pool
from ssat_ray.data.pool import MANIFEST, Pool
from ssat_ray.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (103, 4, 5, 3), dtype=np.uint8)
LABELS = RNG.integers(-1, 7, 103)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    return save(tmp_path / "a.npz")


def save(path: Path, a: int = 0, b: int = 103) -> Path:
    np.savez(path, image=IMAGES[a:b], label=LABELS[a:b])
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


class FullDisk(Folder):
    """A folder whose disk is full from its n-th shard on."""

    def __init__(self, location: Path, shards: int) -> None:
        super().__init__(location)
        self.left, self.written = shards, 0

    def write(self, name: str, data: bytes | str) -> None:
        if name.endswith(".parquet"):
            if self.left == 0:
                (Path(self.uri) / f".{name}.0.tmp").write_bytes(bytes(data)[:10])
                if self.is_local:  # as `write_atomic` does
                    raise UserError("No space left on the disk; free some.")
                raise OSError(28, "No space left on device")
            self.left -= 1
            self.written += 1
        super().write(name, data)


def test_an_import_is_the_arrays(npz: Path, tmp_path: Path) -> None:
    pool, written = import_pool([npz], str(tmp_path / "pool"), shard_rows=20)
    whole = pool.load()
    assert written and len(pool) == 103 and [s["rows"] for s in pool.shards] == [20] * 5 + [3]
    np.testing.assert_array_equal(whole.ids, np.arange(103))
    np.testing.assert_array_equal(whole.images, IMAGES)
    np.testing.assert_array_equal(whole.labels, LABELS)
    assert pool.num_classes == 7 and pool.shape == (4, 5, 3)
    assert sorted(contents(tmp_path / "pool")) == [MANIFEST, *(s["file"] for s in pool.shards)]


def test_a_finished_import_reads_no_image_again(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "pool"
    import_pool([npz], str(target), shard_rows=20)
    before = contents(target)
    os.utime(npz, ns=(0, 0))
    with monkeypatch.context() as patch:
        patch.setattr("ssat_ray.data.ingest.open_source", None)
        assert import_pool([npz], str(target), shard_rows=20)[1] is False
    assert contents(target) == before
    with pytest.raises(UserError, match=r"imported from these files with shard_rows 20 \(now 30\)"):
        import_pool([npz], str(target), shard_rows=30)
    with pytest.raises(UserError, match=r"made of a\.npz.*`ssat pool append`"):
        import_pool([save(tmp_path / "b.npz", 0, 50)], str(target))


def test_a_corrected_file_is_another_one(tmp_path: Path) -> None:
    """Also where no sample lies; a file that was only touched is the same."""
    images = RNG.integers(0, 256, (3000, 32, 32, 3), np.uint8)
    path, target = tmp_path / "a.npy", str(tmp_path / "pool")
    np.save(path, images)
    before = fingerprint([path])
    import_pool([path], target)
    at = next(i for i in range(2**20, 2**22, 5000) if _changes_no_sample(path, i, before))
    assert import_pool([path], target)[1] is False
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))
    with pytest.raises(UserError, match=r"made of a\.npy with other contents\."):
        import_pool([path], target)
    assert len(append_pool([path], target)[0]) == 6000
    assert append_pool([path], target)[1] is False


def _changes_no_sample(path: Path, at: int, before: list[FileRecord]) -> bool:
    """Whether a fingerprint overlooks a change of this byte, which is undone."""
    good = path.read_bytes()
    path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    found = fingerprint([path])[0]["sample"] == before[0]["sample"]
    path.write_bytes(good)
    return found


def test_a_file_that_changes_while_it_is_imported(npz: Path, tmp_path: Path) -> None:
    def touch(rows: int, total: int | None, row_bytes: int) -> None:
        os.utime(npz, ns=(0, 0))

    with pytest.raises(UserError, match=r"a\.npz changed while it was imported\. Run the same"):
        import_pool([npz], str(tmp_path / "pool"), report=touch)
    assert len(import_pool([npz], str(tmp_path / "pool"))[0]) == 103


@settings(max_examples=25, deadline=None)
@given(
    cut=st.integers(1, 102),
    full_after=st.integers(0, 11),
    second=st.integers(0, 11),
    shard_rows=st.integers(9, 40),
)
def test_a_full_disk_loses_nothing(tmp_path_factory, cut, full_after, second, shard_rows) -> None:
    tmp = tmp_path_factory.mktemp("full")
    paths = [save(tmp / "a.npz", 0, cut), save(tmp / "b.npz", cut, 103)]
    import_pool(paths, str(tmp / "whole"), shard_rows=shard_rows)
    number = -(-103 // shard_rows)
    target = tmp / "pool"
    done = 0
    for shards in (full_after, second):
        if done + shards >= number:
            break
        row = (done + shards) * shard_rows
        name, row = ("a.npz", row) if row < cut else ("b.npz", row - cut)
        folder = FullDisk(target, shards)
        with pytest.raises(UserError, match=rf"{name} row {row}, could not be written: No space"):
            import_pool(paths, folder, shard_rows=shard_rows)
        done += shards
        assert folder.written == shards
        names = [f"shard-{i:05d}.parquet" for i in range(done)]
        assert target.exists() == (done > 0)
        assert not done or sorted(contents(target)) == ["import.json", *names]
    rest = FullDisk(target, 1000)
    import_pool(paths, rest, shard_rows=shard_rows)
    assert rest.written == number - done
    assert contents(target) == contents(tmp / "whole")


def test_rows_before_a_bad_one_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssat_ray.data.importers.arrays.BLOCK_BYTES", 4 * 5 * 3 * 8 * 7)
    images = RNG.random((50, 4, 5, 3))
    images[:, 0, 0, 0] = 1
    images[31, 2, 2, 0] = np.nan
    np.savez(tmp_path / "b.npz", image=images)
    options = ImportOptions(range="0,1")
    with pytest.raises(UserError, match=r"b\.npz: image\.npy row 31 has NaN"):
        import_pool([tmp_path / "b.npz"], str(tmp_path / "pool"), options, shard_rows=10)
    kept = ["import.json", "shard-00000.parquet", "shard-00001.parquet"]
    assert sorted(contents(tmp_path / "pool")) == kept  # blocks of 7 rows: 28 came
    with pytest.raises(UserError, match=r"is no pool"):
        Pool(tmp_path / "pool")


def test_a_damaged_part_costs_its_own_rows_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.tile(IMAGES, (1, 8, 8, 1))
    monkeypatch.setattr("ssat_ray.data.importers.arrays.BLOCK_BYTES", 7 * images[0].nbytes)
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    np.savez(paths[0], image=images[:45])
    np.savez(paths[1], image=images[45:])
    import_pool(paths, str(tmp_path / "whole"), shard_rows=10)
    good, time_ns = paths[1].read_bytes(), paths[1].stat().st_mtime_ns
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    paths[1].write_bytes(bad)
    with pytest.raises(DamagedFile, match=r"b\.npz: image\.npy is corrupt; row 5\d was reached"):
        import_pool(paths, str(tmp_path / "pool"), shard_rows=10)
    journal = json.loads((tmp_path / "pool" / "import.json").read_text())
    assert (
        len(journal["notes"]) == 4
    )  # rows of the damaged part are in doubt, wherever the damage is
    paths[1].write_bytes(good)
    os.utime(paths[1], ns=(time_ns, time_ns))
    rest = FullDisk(tmp_path / "pool", 1000)
    import_pool(paths, rest, shard_rows=10)
    assert rest.written == 7
    assert contents(tmp_path / "pool") == contents(tmp_path / "whole")


def test_a_failed_command_without_a_shard_leaves_nothing(npz: Path, tmp_path: Path) -> None:
    """So that the corrected command is not refused."""
    target = tmp_path / "deep" / "pool"
    with pytest.raises(UserError, match="is no class"):
        import_pool([npz], str(target), num_classes=2)
    assert not target.parent.exists()
    import_pool([npz], str(target), num_classes=7)
    before = contents(target)
    np.savez(tmp_path / "b.npz", image=IMAGES[:3], label=np.array([1, 7, 2]))
    with pytest.raises(UserError, match="is no class"):
        append_pool([tmp_path / "b.npz"], str(target))
    assert contents(target) == before


def test_a_damaged_first_part_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shards are in doubt, so they go too; foreign files in the folder stay, and the journal with them."""
    images, path = np.tile(IMAGES, (1, 8, 8, 1)), tmp_path / "a.npz"
    monkeypatch.setattr("ssat_ray.data.importers.arrays.BLOCK_BYTES", 7 * images[0].nbytes)
    np.savez(path, image=images)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"a\.npz: image\.npy is corrupt"):
        import_pool([path], str(tmp_path / "pool"), shard_rows=10)
    assert not (tmp_path / "pool").exists()
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "mine.parquet").write_text("mine")
    with pytest.raises(DamagedFile):
        import_pool([path], str(tmp_path / "pool"), shard_rows=10, restart=True)
    assert sorted(contents(tmp_path / "pool")) == ["import.json", "mine.parquet"]


def test_a_pool_that_lacks_a_shard(npz: Path, tmp_path: Path) -> None:
    target = tmp_path / "pool"
    import_pool([npz], str(target), shard_rows=20)
    copy_pool(str(target), str(tmp_path / "copy"))
    (target / "shard-00003.parquet").unlink()
    (tmp_path / "copy" / "shard-00000.parquet").unlink()
    before, words = contents(target), r"pool is incomplete: 1 of its 6 .* \(shard-00003\.parquet\)"
    for paths in ([npz], [save(tmp_path / "b.npz", 0, 20)]):
        with pytest.raises(UserError, match=words):
            append_pool(paths, str(target))
    with pytest.raises(UserError, match=words):
        import_pool([npz], str(target), shard_rows=20)
    with pytest.raises(UserError, match=r"copy is incomplete: 1 of its 1"):
        copy_pool(str(target), str(tmp_path / "copy"))
    assert contents(target) == before


def test_what_is_kept_of_an_import(tmp_path: Path) -> None:
    """Unlabelled rows are counted over all runs of a command."""
    paths, target = (
        [save(tmp_path / "a.npz", 0, 50), save(tmp_path / "b.npz", 50, 103)],
        tmp_path / "p",
    )
    with pytest.raises(UserError, match="No space"):
        import_pool(paths, FullDisk(target, 3), shard_rows=10)
    (origin,) = import_pool(paths, str(target), shard_rows=10)[0].manifest["source"]
    assert origin["read_as"] == "uint8 NHWC" and origin["labels_from"] == "array label"
    assert origin["unlabelled"] == (LABELS < 0).sum() > 0


def test_a_file_twice_in_one_command(npz: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "b.npz", 0, 20)
    target = str(tmp_path / "pool")
    with pytest.raises(UserError, match=r"a\.npz is given twice"):
        import_pool([npz, other, npz], target)
    import_pool([npz], target)
    with pytest.raises(UserError, match=r"b\.npz is given twice"):
        append_pool([other, tmp_path / "pool" / ".." / "b.npz"], target)


def test_an_unfinished_import_of_something_else(npz: Path, tmp_path: Path) -> None:
    folder = FullDisk(tmp_path / "pool", 2)
    with pytest.raises(UserError, match="No space"):
        import_pool([npz], folder, shard_rows=10)
    other = save(tmp_path / "b.npz", 0, 50)
    for paths, rows in (([other], 10), ([npz], 20)):
        with pytest.raises(
            UserError, match=r"import\.json is of an unfinished command with .*--restart"
        ):
            import_pool(paths, str(tmp_path / "pool"), shard_rows=rows)
    pool, _ = import_pool([other], str(tmp_path / "pool"), shard_rows=10, restart=True)
    np.testing.assert_array_equal(pool.load().images, IMAGES[:50])
    (tmp_path / "pool" / MANIFEST).unlink()
    with pytest.raises(
        UserError, match=r"holds Parquet files, but neither pool\.json nor import\.json"
    ):
        import_pool([other], str(tmp_path / "pool"), shard_rows=10)


def test_settings_that_cannot_be(npz: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "pool")
    with pytest.raises(UserError, match=r"--shard-rows 0: allowed are 1 to 1118481"):
        import_pool([npz], target, shard_rows=0)
    first = int((LABELS >= 5).argmax())
    with pytest.raises(UserError, match=rf"a\.npz row {first}: label \d is no class .* 5 classes"):
        import_pool([npz], target, num_classes=5)
    np.savez(tmp_path / "none.npz", image=IMAGES[:0])
    with pytest.raises(UserError, match=r"none\.npz has no images"):
        import_pool([tmp_path / "none.npz"], str(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be read or written: Not a directory"):
        import_pool([npz], str(tmp_path / "file" / "pool"))


@settings(max_examples=15, deadline=None)
@given(first=st.integers(1, 102), shard_rows=st.integers(9, 40), full_after=st.integers(0, 9))
def test_append_adds_a_generation(tmp_path_factory, first, shard_rows, full_after) -> None:
    tmp = tmp_path_factory.mktemp("append")
    a, b = save(tmp / "a.npz", 0, first), save(tmp / "b.npz", first, 103)
    target = tmp / "pool"
    old, _ = import_pool([a], str(target), num_classes=7, shard_rows=shard_rows)
    before = contents(target)
    if full_after < -(-(103 - first) // shard_rows):
        with pytest.raises(UserError, match="No space"):
            append_pool([b], FullDisk(target, full_after), shard_rows=shard_rows)
        assert Pool(target).manifest == old.manifest
    pool, written = append_pool([b], str(target), shard_rows=shard_rows)
    assert written
    whole = pool.load()
    np.testing.assert_array_equal(whole.ids, np.arange(103))
    np.testing.assert_array_equal(whole.images, IMAGES)
    np.testing.assert_array_equal(whole.labels, LABELS)
    assert pool.manifest["generations"][0] == old.manifest["generations"][0]
    assert len(pool.generations) == 2 and pool.shards[: len(old.shards)] == old.shards
    after = contents(target)
    assert {k: v for k, v in after.items() if k in before and k != MANIFEST} == {
        k: v for k, v in before.items() if k != MANIFEST
    }
    assert sorted(after) == [MANIFEST, *(s["file"] for s in pool.shards)]
    for paths in ([a], [b]):
        assert append_pool(paths, FullDisk(target, 0), shard_rows=shard_rows)[1] is False
        with pytest.raises(UserError, match=r"holds .*\.npz already, with range None.*--again"):
            append_pool(paths, str(target), ImportOptions(range="0,1"), shard_rows=shard_rows)
    assert contents(target) == after
    assert len(append_pool([b], str(target), again=True)[0]) == 206 - first
    assert verify_pool(Pool(target)) == []


def test_what_cannot_be_appended(npz: Path, tmp_path: Path) -> None:
    import_pool([save(tmp_path / "b.npz", 0, 20)], str(tmp_path / "pool"), num_classes=7)
    np.savez(tmp_path / "c.npz", image=IMAGES[:, :3, :2])
    with pytest.raises(UserError, match=r"c\.npz has images of shape \(3, 2, 3\).*of \(4, 5, 3\)"):
        append_pool([tmp_path / "c.npz"], str(tmp_path / "pool"), ImportOptions(layout="NHWC"))
    np.savez(tmp_path / "c.npz", image=IMAGES[:3], label=np.array([1, 7, 2]))
    with pytest.raises(UserError, match=r"c\.npz row 1: label 7 is no class"):
        append_pool([tmp_path / "c.npz"], str(tmp_path / "pool"))
    with pytest.raises(UserError, match="is no pool"):
        append_pool([npz], str(tmp_path / "nowhere"))


def test_an_append_killed_after_the_manifest_is_finished(npz: Path, tmp_path: Path) -> None:
    target = tmp_path / "pool"
    import_pool([save(tmp_path / "b.npz", 0, 20)], str(target), num_classes=7)
    append_pool([npz], str(target))
    digests = [g["digest"] for g in Pool(target).manifest["generations"]]
    job = {"generations": digests[:1], "files": [], "options": {}}
    (target / "append.json").write_text(json.dumps({"job": job, "starts": [0], "notes": []}))
    np.savez(tmp_path / "c.npz", image=IMAGES[:5])
    pool, _ = append_pool([tmp_path / "c.npz"], str(target))
    assert len(pool) == 128 and not (target / "append.json").exists()


@settings(max_examples=15, deadline=None)
@given(shard_rows=st.integers(5, 60), full_after=st.integers(0, 25))
def test_a_copy_keeps_rows_ids_and_generations(tmp_path_factory, shard_rows, full_after) -> None:
    tmp = tmp_path_factory.mktemp("copy")
    origin = tmp / "origin"
    import_pool([save(tmp / "a.npz", 0, 44)], str(origin), num_classes=7, shard_rows=11)
    append_pool([save(tmp / "b.npz", 44, 103)], str(origin), shard_rows=17)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp)
        try:
            copy_pool("origin", FullDisk(tmp / "copy", full_after), shard_rows=shard_rows)
        except UserError as error:
            assert "No space" in str(error)  # noqa: PT017
            assert not (tmp / "copy" / MANIFEST).exists()
        pool, _ = copy_pool("origin", "copy", shard_rows=shard_rows)
        again, rewritten = copy_pool("origin", "copy", shard_rows=shard_rows)
        copy_pool("origin", "undisturbed", shard_rows=shard_rows)
    assert not rewritten and len(again) == 103
    assert contents(tmp / "copy") == contents(tmp / "undisturbed")
    for a, b in zip(
        (pool.load().ids, pool.load().images, pool.load().labels),
        (Pool(origin).load().ids, IMAGES, LABELS),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert [sum(s["rows"] for s in g) for g in pool.generations] == [44, 59]
    assert max(s["rows"] for s in pool.shards) <= shard_rows
    assert verify_pool(pool) == []
    with pytest.raises(UserError, match="holds another pool"):
        copy_pool(str(origin), str(tmp / "copy"), shard_rows=shard_rows + 1)


def test_verify_names_every_bad_shard(npz: Path, tmp_path: Path) -> None:
    pool, _ = import_pool([npz], str(tmp_path / "pool"), shard_rows=20)
    assert verify_pool(pool) == []
    data = bytearray((tmp_path / "pool" / "shard-00001.parquet").read_bytes())
    data[100] ^= 1
    (tmp_path / "pool" / "shard-00001.parquet").write_bytes(data)
    (tmp_path / "pool" / "shard-00004.parquet").unlink()
    problems = verify_pool(Pool(tmp_path / "pool"))
    assert len(problems) == 2
    assert "shard-00001.parquet was altered" in problems[0]
    assert "shard-00004.parquet is listed in pool.json and missing" in problems[1]
    about = json.loads((tmp_path / "pool" / MANIFEST).read_text())
    about["rows"], about["generations"][0]["digest"] = 104, "0" * 20
    (tmp_path / "pool" / MANIFEST).write_text(json.dumps(about))
    assert len(verify_pool(Pool(tmp_path / "pool"))) == 4


IMPORT = """
import sys
from pathlib import Path
from ssat_ray.cli import main
sys.argv = ["ssat", "pool", *sys.argv[1:]]
try:
    main()
finally:
    status = Path("/proc/self/status").read_text()  # ru_maxrss would include the parent's memory
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    heavy = [m for m in ("torch", "ray") if m in sys.modules]
    print("peak", peak, heavy)
"""


def ssat_pool(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", IMPORT, *arguments], stdout=subprocess.PIPE, text=True
    )


def test_sigkill_at_any_time(tmp_path: Path) -> None:
    images = np.broadcast_to(RNG.integers(0, 256, (20_000, 8, 8, 3), np.uint8), (20_000, 8, 8, 3))
    np.savez_compressed(tmp_path / "a.npz", image=images, label=np.arange(20_000) % 10)
    arguments = ["import", str(tmp_path / "a.npz"), str(tmp_path / "pool"), "--shard-rows", "100"]
    import_pool([tmp_path / "a.npz"], str(tmp_path / "whole"), shard_rows=100)
    kills = 0
    for after in (5, 60, 110, 160):
        process = ssat_pool(*arguments)
        waiting = tmp_path / "pool" / f"shard-{after:05d}.parquet"
        while process.poll() is None and not waiting.exists():
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        assert not (tmp_path / "pool" / MANIFEST).exists()
    assert kills == 4
    process = ssat_pool(*arguments)
    assert process.wait() == 0
    assert contents(tmp_path / "pool") == contents(tmp_path / "whole")


def write_npz(path: Path, rows: int, compression: int) -> None:
    """Images of 3072 bytes that compress, and labels, written a MiB at a time."""
    block = np.repeat(RNG.integers(0, 256, (1000, 768), np.uint8), 4, axis=1)
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        with archive.open("image.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (rows, 32, 32, 3)}
            np.lib.format.write_array_header_1_0(member, header)
            for _ in range(rows // 1000):
                member.write(block.tobytes())
        with archive.open("label.npy", "w") as member:
            np.lib.format.write_array(member, np.arange(rows) % 10)


def peak_of_import(path: Path, target: Path, *options: str) -> int:
    process = ssat_pool("import", str(path), str(target), *options)
    output = process.communicate()[0]
    assert process.returncode == 0
    word, peak, heavy = output.splitlines()[-1].split(maxsplit=2)
    assert (word, heavy) == ("peak", "[]")
    return int(peak)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for rows in (60_000, 150_000):
        write_npz(tmp_path / "a.npz", rows, zipfile.ZIP_STORED)
        peaks.append(peak_of_import(tmp_path / "a.npz", tmp_path / f"pool-{rows}"))
    assert peaks[1] - peaks[0] < 64 * 2**20
    assert peaks[1] < 700 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_file_larger_than_the_bound_is_imported_below_it(
    tmp_path: Path, compression: int
) -> None:
    rows = 500_000
    write_npz(tmp_path / "a.npz", rows, compression)
    begin = time.perf_counter()
    peak = peak_of_import(tmp_path / "a.npz", tmp_path / "pool")
    seconds = time.perf_counter() - begin
    size = rows * 3072
    print(
        f"{size / 2**30:.2f} GiB of images: {size / seconds / 1e6:.0f} MB/s, peak {peak / 2**20:.0f} MiB"
    )
    assert size > 2**30 > peak
    assert len(Pool(tmp_path / "pool")) == rows
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["npy", "parquet", "tar", "folder"])
def test_other_formats_larger_than_the_bound(tmp_path: Path, suffix: str) -> None:
    """One array, row group or archive, in which nothing says where to pause; a folder of files."""
    rows, path = 400_000, tmp_path / f"a.{suffix}"
    make = f"""
import io, os, sys, tarfile
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from PIL import Image
images = np.repeat(np.arange({rows}, dtype=np.uint32) * 2654435761, 768).view(np.uint8)
images = images.reshape({rows}, 32, 32, 3)
if sys.argv[1].endswith("npy"):
    np.save(sys.argv[1], images)
elif sys.argv[1].endswith("parquet"):
    pixels = pa.FixedSizeBinaryArray.from_buffers(pa.binary(3072), {rows}, [None, pa.py_buffer(images)])
    pq.write_table(pa.table({{"image": pixels}}), sys.argv[1], row_group_size={rows}, compression="none")
elif sys.argv[1].endswith("folder"):
    for i, picture in enumerate(images.reshape(-1, 640, 640, 3)):
        os.makedirs(f"{{sys.argv[1]}}/{{i % 10}}", exist_ok=True)
        Image.fromarray(picture).save(f"{{sys.argv[1]}}/{{i % 10}}/{{i}}.bmp")
else:
    with tarfile.open(sys.argv[1], "w") as archive:
        for i in range({rows} // 16):  # a picture of 128 x 128 each
            buffer = io.BytesIO()
            Image.fromarray(images[16 * i : 16 * (i + 1)].reshape(128, 128, 3)).save(buffer, "BMP")
            member = tarfile.TarInfo(f"{{i:06d}}.bmp")
            member.size = buffer.tell()
            archive.addfile(member, io.BytesIO(buffer.getvalue()))
"""
    subprocess.run([sys.executable, "-c", make, str(path)], check=True)
    files = path.glob("*/*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    assert size > 2**30
    options = ("--shape", "32x32x3") if suffix == "parquet" else ()
    peak = peak_of_import(path, tmp_path / "pool", *options)
    print(f"{suffix}: {size / 2**20:.0f} MiB, peak {peak / 2**20:.0f} MiB")
    assert peak < 2**30
    rows_a_picture = {"tar": 16, "folder": 400}.get(suffix, 1)
    assert len(Pool(tmp_path / "pool")) == rows // rows_a_picture
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pickle", "mat"])
def test_what_is_held_in_memory_is_held_once(tmp_path: Path, suffix: str) -> None:
    rows, path = 500_000, tmp_path / f"a.{suffix}"
    make = f"""
import pickle, sys
import numpy as np
from scipy.io import savemat
block = np.repeat(np.arange({rows}, dtype=np.uint32) * 2654435761, 768).view(np.uint8)
images, labels = block.reshape({rows}, 32, 32, 3), np.arange({rows}) % 10
if sys.argv[1].endswith("mat"):
    savemat(sys.argv[1], {{"X": images.transpose(1, 2, 3, 0), "y": labels + 1}}, do_compression=True)
else:
    with open(sys.argv[1], "wb") as file:
        pickle.dump({{"data": images, "extrapolated_targets": labels}}, file, 3)
"""
    subprocess.run(
        [sys.executable, "-c", make, str(path)], check=True
    )  # its memory is not this process's
    peak = peak_of_import(path, tmp_path / "pool")
    size = rows * 3072
    print(f"{suffix}: {size / 2**20:.0f} MiB of images, peak {peak / 2**20:.0f} MiB")
    assert peak < size + 2**29
    assert len(Pool(tmp_path / "pool")) == rows
    shutil.rmtree(tmp_path)
