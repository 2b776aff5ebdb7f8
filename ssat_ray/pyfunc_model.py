"""The classifier as an MLflow model from code: MLflow stores this file and the safetensors, no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from ssat_ray.models.files import load_classifier


class Classifier(PythonModel):  # type: ignore[misc]
    """`predict` takes (N, C, H, W) float32 images in [0, 1] and returns (N, K) float32 logits."""

    def load_context(self, context: PythonModelContext) -> None:
        self.model = load_classifier(Path(context.artifacts["checkpoint"]))

    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = self.model(
                torch.from_numpy(np.ascontiguousarray(model_input))
            ).numpy()
        return logits


mlflow.models.set_model(Classifier())
