"""The logged model's class: the same logits as the torch model, and wrong images refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ssat_ray.config import ModelConfig
from ssat_ray.models.files import classifier_files
from ssat_ray.models.registry import build_classifier
from ssat_ray.pyfunc_model import Classifier

SHAPE, CLASSES = (3, 8, 8), 4
CONTEXT = None  # what `predict` gets and does not use


@pytest.fixture
def torch_model() -> nn.Module:
    config = ModelConfig(widths=(4, 8), strides=(1, 2))
    model = build_classifier(config, SHAPE, CLASSES, seed=1)
    rng = torch.Generator().manual_seed(0)
    for _ in range(3):  # batch norm statistics other than the initial ones
        model.train()(torch.rand(16, *SHAPE, generator=rng))
    return model.eval()


@pytest.fixture
def classifier(torch_model: nn.Module, tmp_path: Path) -> Classifier:
    config = ModelConfig(widths=(4, 8), strides=(1, 2))
    for name, data in classifier_files(torch_model, config, SHAPE, CLASSES).items():
        (tmp_path / name).write_bytes(data)
    loaded = Classifier()
    loaded.load_context(SimpleNamespace(artifacts={"checkpoint": str(tmp_path)}))
    return loaded


@pytest.mark.parametrize("number", [1, 5])
def test_predict_gives_the_torch_models_logits(
    classifier: Classifier, torch_model: nn.Module, number: int
) -> None:
    images = np.random.default_rng(0).random((number, *SHAPE), np.float32)
    logits = classifier.predict(CONTEXT, images)
    assert logits.shape == (number, CLASSES) and logits.dtype == np.float32
    with torch.no_grad():
        expected = torch_model(torch.from_numpy(images))
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)
    probabilities = torch.softmax(torch.from_numpy(logits), 1).numpy()
    np.testing.assert_allclose(probabilities, expected.softmax(1).numpy(), atol=1e-5)


def test_predict_takes_a_strided_view_and_no_images(
    classifier: Classifier,
) -> None:
    images = np.random.default_rng(0).random((6, 8, 8, 3), np.float32)
    view = images[::2].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(
        classifier.predict(CONTEXT, view), classifier.predict(CONTEXT, view.copy()), atol=1e-6
    )
    assert classifier.predict(CONTEXT, np.zeros((0, *SHAPE), np.float32)).shape == (0, CLASSES)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 1, 8, 8), np.float32),
        np.zeros((2, 3, 16, 16), np.float32),
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((3, 8, 8), np.float32),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((2, 3, 8, 8), np.float64),
    ],
    ids=lambda x: f"{x.dtype}{x.shape}",
)
def test_wrong_images_are_refused(classifier: Classifier, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"float32 images of shape \(N, 3, 8, 8\)"):
        classifier.predict(CONTEXT, images)
