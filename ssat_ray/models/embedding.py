"""Images to embeddings and logits, in blocks of one shape, so that a row's numbers do not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ssat_ray.data.labelled import unit_float

BLOCK_ROWS = 2048


class Embedder:
    """Embeds images with a classifier in eval mode.

    Args:
        model: has `embed_with_logits(x, layer)`; (B, C, H, W) float in [0, 1] -> (B, D), (B, K).
        layer: of the embedding.
        precision: `bf16` runs the model under autocast.
        device: where the model is.
    """

    def __init__(
        self,
        model: Any,
        layer: str,
        precision: Literal["float32", "bf16"] = "float32",
        device: str = "cpu",
    ) -> None:
        self.model, self.layer, self.device = model, layer, device
        self._bf16 = precision == "bf16"

    def blocks(self, images: NDArray[np.uint8]) -> Iterator[tuple[slice, Any, Any]]:
        """Rows, their embeddings (b, D) and logits (b, K), float32 arrays, of (N, H, W, C) images.

        The last block is padded, so on a CPU an image gives the same bits at any place of any batch.
        """
        buffer = np.zeros((BLOCK_ROWS, *images.shape[1:]), np.uint8)
        for start in range(0, len(images), BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, len(images)))
            real = rows.stop - rows.start
            buffer[:real] = images[rows]
            h, logits = self._forward(torch.from_numpy(buffer))
            yield rows, h[:real], logits[:real]

    @torch.inference_mode()
    def _forward(self, images: torch.Tensor) -> tuple[Any, Any]:
        x = unit_float(images.to(self.device).permute(0, 3, 1, 2))
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device, torch.bfloat16, enabled=self._bf16):
            h, logits = self.model.embed_with_logits(x, self.layer)
        return h.float().cpu().numpy(), logits.float().cpu().numpy()

    def __call__(self, images: NDArray[np.uint8]) -> tuple[Any, Any]:
        """Embeddings (N, D) and logits (N, K), float32, of all rows."""
        parts = [(h, logits) for _, h, logits in self.blocks(images)]
        if not parts:
            h, logits = self._forward(torch.zeros((1, *images.shape[1:]), dtype=torch.uint8))
            return h[:0], logits[:0]
        h, logits = zip(*parts, strict=True)
        return np.concatenate(h), np.concatenate(logits)
