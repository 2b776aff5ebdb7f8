"""Which images make batch `step`, and how they are shifted: functions of (seed, step) alone.

Every draw is for the whole global batch and is then sliced by rank, so the batches and the noise do not
depend on the number of workers, and a resumed run needs no sampler state.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

_STREAMS = {
    "labelled": 1,
    "unlabelled": 2,
    "shift": 3,
    "attack": 4,
    "noise": 5,
    "timestep": 6,
    "evaluate": 7,
    "flip": 8,
    "cutmix": 9,
    "shards": 10,
    "window": 11,
    "model": 12,
}


def generator(seed: int, stream: str, step: int) -> torch.Generator:
    """A CPU generator for one stream of draws at one step."""
    words = (seed & 0xFFFFFFFF, _STREAMS[stream], step)
    mixed = 0x9E3779B97F4A7C15
    for word in words:  # splitmix64 over the three words: neighbouring steps get unrelated states
        mixed = (mixed ^ word) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed & 0x7FFFFFFFFFFFFFFF)


def epoch_indices(
    num_items: int, batch_size: int, seed: int, stream: str, step: int
) -> torch.Tensor:
    """Indices (batch_size,) of batch `step` of an endless stream of seeded permutations.

    Position p of the stream is item p mod N of permutation p // N, so every item appears once in N
    consecutive draws whatever the batch size.
    """
    start = step * batch_size
    parts: list[torch.Tensor] = []
    while start < (step + 1) * batch_size:
        epoch, offset = divmod(start, num_items)
        order = _permutation(num_items, seed, stream, epoch)
        take = min(num_items - offset, (step + 1) * batch_size - start)
        parts.append(order[offset : offset + take])
        start += take
    return torch.cat(parts)


@lru_cache(maxsize=4)  # this epoch's and the next one's, of two streams
def _permutation(num_items: int, seed: int, stream: str, epoch: int) -> torch.Tensor:
    return torch.randperm(num_items, generator=generator(seed, stream, epoch))


def interleave(num_labelled: int, num_unlabelled: int) -> torch.Tensor:
    """Positions that spread labelled and unlabelled rows evenly: every rank's slice has both.

    Returns (num_labelled + num_unlabelled,) indices into [labelled rows, unlabelled rows].
    """
    labelled = (torch.arange(num_labelled) + 0.5) / max(num_labelled, 1)
    unlabelled = (torch.arange(num_unlabelled) + 0.5) / max(num_unlabelled, 1)
    return torch.argsort(torch.cat([labelled, unlabelled]), stable=True)


def shift_offsets(batch: int, max_shift: int, rng: torch.Generator) -> torch.Tensor:
    """(batch, 2) where each image's window lies in its padded copy: 0 to 2 * max_shift, rows and columns."""
    return torch.randint(0, 2 * max_shift + 1, (batch, 2), generator=rng)


def shifted(images: torch.Tensor, max_shift: int, offsets: torch.Tensor) -> torch.Tensor:
    """Each image (B, C, H, W) padded by `max_shift` zeros and cut at its offset (B, 2) again."""
    if max_shift == 0:
        return images
    batch, channels, height, width = images.shape
    padded = F.pad(images, (max_shift,) * 4)
    rows = offsets[:, 0, None] + torch.arange(height, device=images.device)
    columns = offsets[:, 1, None] + torch.arange(width, device=images.device)
    index = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[index, channel, rows[:, None, :, None], columns[:, None, None, :]]


def moved(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on the device; through pinned memory, as a copy from pageable memory waits for the device."""
    if device.type == "cpu":
        return value
    return value.pin_memory().to(device, non_blocking=True)
