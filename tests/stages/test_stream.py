"""A pool streamed by Ray Data for training: the windows' images, and a shard that cannot be read."""

from __future__ import annotations

from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from ssat_ray.data.pool import Pool
from ssat_ray.data.windows import WindowOrder
from ssat_ray.errors import UserError
from ssat_ray.stages.base import Task
from ssat_ray.stages.shards import Pools
from ssat_ray.stages.stream import LEAST_SHARDS, _executions, stream_of
from ssat_ray.store import Job

pytestmark = pytest.mark.ray


def _task(inputs: dict[str, Path]) -> Task:
    return Task(Job("train", 0, {}, {}), Path("unused"), inputs, Path("unused"))


def test_windows_come_in_order_with_their_shards_images(
    ray_here: None, selections, tmp_path: Path
) -> None:
    """Over two pools and into the second epoch. The first shard takes longer than all others together."""
    sizes = {"a": (200_000, 200_000), "b": (250, 50)}
    pools = [Pool(selections.pool(tmp_path / name, *rows)) for name, rows in sizes.items()]
    folders = {"unlabelled": tmp_path / "a", "unlabelled.1": tmp_path / "b"}
    stream = stream_of(Pools(_task(folders), "unlabelled"), range(6), 0)
    assert stream.shard_rows == [200_000, *[50] * 5] and len(stream) == 200_250
    shards = [shard for pool in pools for shard in pool]
    order = WindowOrder(stream.shard_rows, 100, seed=6)
    windows = list(islice(order.windows(0), 6))
    assert {window.epoch for window in windows} == {0, 1}
    assert windows[0].shards == (0,) and len(windows[1].shards) > 1
    with closing(stream.read(iter(windows))) as found:
        for expected, (window, (images, labels)) in zip(windows, found, strict=True):
            assert window == expected
            of = [shards[shard] for shard in window.shards]
            nhwc = np.concatenate([shard.images for shard in of])
            assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), nhwc)
            assert np.array_equal(labels.numpy(), np.concatenate([shard.labels for shard in of]))


@pytest.mark.parametrize("num_shards", [4, 1000])
def test_executions_have_whole_epochs_and_enough_shards(num_shards: int) -> None:
    windows = list(islice(WindowOrder([10] * num_shards, 30, 0).windows(5), 700))
    found = list(_executions(iter(windows)))
    assert [window for together in found for window in together] == windows
    for together, following in pairwise(found):
        assert together[-1].epoch + 1 == following[0].epoch
        assert sum(len(window.shards) for window in together) >= LEAST_SHARDS
    assert len(found) == {4: -(-1398 // 64), 1000: 3}[num_shards]


def test_an_altered_shard_is_named(ray_here: None, selections, tmp_path: Path) -> None:
    pool = selections.pool(tmp_path / "pool", 300, 100)
    path = pool / "shard-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    stream = stream_of(Pools(_task({"unlabelled": pool}), "unlabelled"), range(3), 1)
    with (
        closing(stream.read(WindowOrder([100] * 3, 100, 0).windows(0))) as found,
        pytest.raises(UserError, match=rf"{path.name} was altered .* Tried 2 times\."),
    ):
        for _ in islice(found, 3):
            pass
