"""Checkpoints on disk: every bit comes back, and no code is in them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from ssat_ray.config import ModelConfig
from ssat_ray.models.files import DESCRIPTION, WEIGHTS, classifier_files, load_classifier
from ssat_ray.models.registry import build_classifier

CONFIG = ModelConfig(widths=(4, 8), strides=(1, 2), blocks=1)


@pytest.fixture
def trained() -> torch.nn.Module:
    """A model whose statistics, counters and parameters all differ from a fresh one's."""
    model = build_classifier(CONFIG, (1, 8, 8), 3, seed=4)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for _ in range(3):
            model.train()(torch.rand(5, 1, 8, 8))
    return model


def _write(folder: Path, model: torch.nn.Module) -> dict[str, bytes]:
    files = classifier_files(model, CONFIG, (1, 8, 8), 3)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


def test_round_trip_is_bit_exact_with_buffers(tmp_path: Path, trained: torch.nn.Module) -> None:
    _write(tmp_path, trained)
    before, after = trained.state_dict(), load_classifier(tmp_path).state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype and torch.equal(value, after[key]), key
    assert int(after["batchnorm.num_batches_tracked"]) == 3
    x = torch.rand(4, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    assert torch.equal(load_classifier(tmp_path)(x), trained.eval()(x))


def test_the_loaded_model_is_ready_to_be_attacked(tmp_path: Path, trained: torch.nn.Module) -> None:
    _write(tmp_path, trained)
    model = load_classifier(tmp_path)
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert model.init_conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_files_are_plain_data(tmp_path: Path, trained: torch.nn.Module) -> None:
    files = _write(tmp_path, trained)
    assert set(files) == {WEIGHTS, DESCRIPTION}
    data = files[WEIGHTS]
    header = int.from_bytes(data[:8], "little")  # the safetensors layout: length, JSON, bytes
    listed = set(json.loads(data[8 : 8 + header])) - {"__metadata__"}
    assert listed == set(trained.state_dict())
    with safe_open(tmp_path / WEIGHTS, "pt") as archive:
        assert set(archive.keys()) == listed
    about = json.loads(files[DESCRIPTION])
    assert about["image_shape"] == [1, 8, 8] and about["num_classes"] == 3
    assert ModelConfig(**about["model"]) == CONFIG
    assert classifier_files(trained, CONFIG, (1, 8, 8), 3) == files, "the same bytes every time"


def test_a_pickle_in_place_of_the_weights_is_refused(
    tmp_path: Path, trained: torch.nn.Module
) -> None:
    _write(tmp_path, trained)
    torch.save(trained.state_dict(), tmp_path / WEIGHTS)
    with pytest.raises(SafetensorError):
        load_classifier(tmp_path)


def test_loading_leaves_the_global_generator_alone(
    tmp_path: Path, trained: torch.nn.Module
) -> None:
    _write(tmp_path, trained)
    before = torch.get_rng_state()
    load_classifier(tmp_path)
    assert torch.equal(before, torch.get_rng_state())
