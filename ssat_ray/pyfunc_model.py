"""The classifier as an MLflow model from code: MLflow stores this file and the safetensors, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from ssat_ray.models.files import DESCRIPTION, load_classifier


class Classifier(PythonModel):  # type: ignore[misc]
    """`predict` takes (N, C, H, W) float32 images in [0, 1] and returns (N, K) float32 logits."""

    def load_context(self, context: PythonModelContext) -> None:
        checkpoint = Path(context.artifacts["checkpoint"])
        self.model = load_classifier(checkpoint)
        self.image_shape = tuple(json.loads((checkpoint / DESCRIPTION).read_text())["image_shape"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """Logits of a batch.

        Raises:
            ValueError: the images are not float32 or not of the size the classifier was trained on,
                which its convolutions would not notice.
        """
        if model_input.dtype != np.float32 or model_input.shape[1:] != self.image_shape:
            raise ValueError(
                f"expected float32 images of shape (N, {', '.join(map(str, self.image_shape))}), "
                f"got {model_input.dtype} {model_input.shape}"
            )
        with torch.inference_mode():
            logits: np.ndarray = self.model(
                torch.from_numpy(np.ascontiguousarray(model_input))
            ).numpy()
        return logits


mlflow.models.set_model(Classifier())
