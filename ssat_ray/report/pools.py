"""What a person is told about a pool: what a command brought into it, and what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ssat_ray.data.pool import Pool
from ssat_ray.report import words


def shape_text(pool: Pool) -> str:
    """Height, width and channels, for example 32x32x3."""
    return "x".join(map(str, pool.shape))


def imported(pool: Pool) -> str:
    """One line on a pool that was just imported."""
    return f"{len(pool):,} images of {shape_text(pool)} imported{_labels(pool)}{_read_as(pool)}"


def appended(pool: Pool) -> str:
    """One line on a pool's newest generation."""
    rows, number = pool.manifest["generations"][-1]["rows"], len(pool.generations) - 1
    return (
        f"{rows:,} images of {shape_text(pool)} appended as generation {number}{_labels(pool)}, "
        f"{len(pool):,} in all{_read_as(pool)}"
    )


def unlabelled_warning(pool: Pool) -> str | None:
    """A sentence if images of the newest generation have no label; with the reason, as far as known."""
    origin, rows = _origin(pool), pool.manifest["generations"][-1]["rows"]
    unlabelled = origin.get("unlabelled", 0)
    if not unlabelled:
        return None
    if unlabelled == rows:
        return f"warning: no image has a label ({origin['labels_from']})"
    return (
        f"warning: {unlabelled:,} of {rows:,} images have no label (labels come from: "
        f"{origin['labels_from']})"
    )


def _origin(pool: Pool) -> dict[str, Any]:
    """Of the newest generation."""
    return (pool.manifest.get("source") or [None])[-1] or {}


def _labels(pool: Pool) -> str:
    unlabelled, rows = _origin(pool).get("unlabelled", 0), pool.manifest["generations"][-1]["rows"]
    if unlabelled == rows:
        return ", none with a label"
    without = f", {unlabelled:,} without a label" if unlabelled else ""
    return f", {pool.num_classes} classes{without}"


def _read_as(pool: Pool) -> str:
    return f"; read as {_origin(pool)['read_as']}"


def described(pool: Pool, missing: Sequence[str]) -> list[str]:
    """Lines on what `pool.json` says, the missing shards first."""
    lines, shards = [], len(pool.shards)
    if missing:
        listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        lines.append(f"MISSING      {len(missing)} of {shards} shards: {listed}")
    names = f" ({', '.join(pool.class_names)})" if pool.class_names else ""
    lines += [
        f"images       {len(pool):,}",
        f"shape        {shape_text(pool)} (H x W x C)",
        f"classes      {pool.num_classes}{names}",
        f"shards       {shards:,}",
        f"bytes        {pool.num_bytes:,} ({words.size(pool.num_bytes)})",
    ]
    if pool.is_reference:
        lines.append(f"shards in    {pool.manifest['location']}")
    generations = pool.manifest["generations"]
    origins = pool.manifest.get("source") or [None] * len(generations)
    for number, (about, origin) in enumerate(zip(generations, origins, strict=False)):
        read_as = (origin or {}).get("read_as")
        lines.append(
            f"generation {number} {about['rows']:,} images, {about['shards']:,} shards, {about['digest']}"
            + (f", read as {read_as}" if read_as else "")
        )
    return lines


def label_counts(pool: Pool, missing: Sequence[str]) -> str:
    """One line: how many images each class has, which reads that column of every shard but the missing."""
    counts = np.zeros(pool.num_classes + 1, np.int64)
    for index, entry in enumerate(pool.shards):
        if entry["file"] not in missing:
            labels = pool.read_ids(index)[1].astype(np.int64)
            counts += np.bincount(labels + 1, minlength=len(counts))
    numbered = [str(number) for number in range(pool.num_classes)]
    for number, name in enumerate(pool.class_names[: pool.num_classes]):
        numbered[number] += f" {name}"
    listed = (f"{name}: {n:,}" for name, n in zip(["none", *numbered], counts, strict=True) if n)
    return f"labels       {', '.join(listed)}"
