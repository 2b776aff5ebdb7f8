"""The published architectures: recorded logits, a forward by hand, and checkpoints in every wrapping."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssat_ray.config import ModelConfig
from ssat_ray.errors import UserError
from ssat_ray.models.base import LAYERS, EmbeddingClassifier
from ssat_ray.models.files import WEIGHTS, classifier_files
from ssat_ray.models.public import load_public, public_file
from ssat_ray.models.registry import build_classifier

NAMES = ["wrn-16-4-silu", "preact-resnet-18-silu"]


def build(name: str, channels: int = 3, num_classes: int = 10) -> EmbeddingClassifier:
    model = build_classifier(ModelConfig(name=name), (channels, 32, 32), num_classes, seed=0)
    assert isinstance(model, EmbeddingClassifier)
    return model.eval()


def filled(model: nn.Module) -> nn.Module:
    """Weights as the golden file says: functions of the position of the key and of the number."""
    state = model.state_dict()
    for i, key in enumerate(sorted(state)):
        value = state[key]
        t = torch.sin(0.7 * torch.arange(value.numel(), dtype=torch.float64) + i)
        t = t.reshape(value.shape)
        if key.endswith("num_batches_tracked"):
            t = torch.zeros_like(value)
        elif key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
            t = 1 + 0.1 * t
        elif value.ndim == 1:
            t = 0.1 * t
        else:
            t = t / math.sqrt(value[0].numel())
        state[key] = t.to(value.dtype)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_recorded_keys_shapes_and_logits(name: str) -> None:
    place = os.environ.get("SSAT_GOLDEN")
    if not place:
        pytest.skip("SSAT_GOLDEN does not name robustbench_golden.json")
    golden = json.loads(Path(place).read_text())[name]
    model = filled(build(name))
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == golden["keys"]
    pixels = torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)
    x = (0.5 + 0.5 * torch.sin(0.37 * pixels)).reshape(2, 3, 32, 32).float()
    with torch.no_grad():
        assert (model(x) - torch.tensor(golden["logits"])).abs().max() <= 1e-4
    files = classifier_files(model, ModelConfig(name=name), (3, 32, 32), 10)
    weights = safetensors.torch.load(files[WEIGHTS])
    assert set(weights) == set(golden["keys"])
    published = torch.load(io.BytesIO(public_file(weights)), weights_only=True)
    assert type(published) is dict
    assert {key: list(value.shape) for key, value in published.items()} == golden["keys"]
    fresh = build(name)
    fresh.load_state_dict(published, strict=True)
    with torch.no_grad():
        assert (fresh(x) - torch.tensor(golden["logits"])).abs().max() <= 1e-4


def conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """3x3 by explicit padding: at stride 2 one row below and one column right only."""
    size = 1 if stride == 1 else 0
    padded = x.new_zeros(*x.shape[:2], x.shape[2] + 1 + size, x.shape[3] + 1 + size)
    padded[:, :, size : size + x.shape[2], size : size + x.shape[3]] = x
    return F.conv2d(padded, weight, stride=stride)


def normed(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    mean, var, scale, shift = (
        weights[f"{name}.{key}"][None, :, None, None]
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    out = (x - mean) / (var + 1e-5).sqrt() * scale + shift
    return out * out.sigmoid()


def wide_by_hand(w: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    x = conv(2 * x - 1, w["init_conv.weight"], 1)
    for group, first in enumerate((1, 2, 2)):
        for block in range(blocks):
            name, stride = f"layer.{group}.block.{block}", first if block == 0 else 1
            active = normed(x, w, f"{name}.batchnorm_0")
            out = conv(active, w[f"{name}.conv_0.weight"], stride)
            out = conv(normed(out, w, f"{name}.batchnorm_1"), w[f"{name}.conv_1.weight"], 1)
            if f"{name}.shortcut.weight" in w:
                x = F.conv2d(active, w[f"{name}.shortcut.weight"], stride=stride)
            x = x + out
    pooled = normed(x, w, "batchnorm").mean((2, 3))
    return pooled @ w["logits.weight"].T + w["logits.bias"]


def preact_by_hand(w: dict[str, Tensor], x: Tensor) -> Tensor:
    x = conv(2 * x - 1, w["conv_2d.weight"], 1)
    for group in range(4):
        for block in range(2):
            name, stride = f"layer_{group}.{block}", 2 if group and not block else 1
            active = normed(x, w, f"{name}.batchnorm_0")
            out = conv(active, w[f"{name}.conv_2d_1.weight"], stride)
            out = conv(normed(out, w, f"{name}.batchnorm_1"), w[f"{name}.conv_2d_2.weight"], 1)
            if stride == 2:
                x = conv(x, w[f"{name}.shortcut.weight"], 2)
            x = x + out
    pooled = normed(x, w, "batchnorm").mean((2, 3))
    return pooled @ w["logits.weight"].T + w["logits.bias"]


def test_the_wide_resnet_equals_a_forward_by_hand() -> None:
    model = filled(build("wrn-16-1-silu", channels=1, num_classes=3)).double()
    x = torch.rand(2, 1, 8, 12, dtype=torch.float64)
    expected = wide_by_hand(model.state_dict(), x, 2)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_the_preact_resnet_equals_a_forward_by_hand() -> None:
    model = filled(build("preact-resnet-18-silu", num_classes=3)).double()
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    expected = preact_by_hand(model.state_dict(), x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "name", ["wrn-10-1-relu", "wrn-10-1-silu", "preact-resnet-18-relu", "resnet18", "resnet50"]
)
def test_every_layer_of_every_architecture(name: str) -> None:
    model, x = build(name), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        logits, features = model(x), model.features(x)
        for layer in LAYERS:
            embedding, found = model.embed_with_logits(x, layer)
            torch.testing.assert_close(found, logits)
            expected = {
                "pooled": features.mean((2, 3)),
                "logits": logits,
                "unpooled": features.flatten(1),
            }[layer]
            torch.testing.assert_close(embedding, expected)
            torch.testing.assert_close(model.embed(x, layer), expected)


def test_the_activation_matters() -> None:
    models = [filled(build(f"wrn-10-1-{name}")) for name in ("relu", "silu")]
    x = torch.rand(2, 3, 16, 16)
    first, second = (model(x) for model in models)
    assert not torch.allclose(first, second)


def test_the_depth_of_a_wide_resnet() -> None:
    assert [len(g.block) for g in build("wrn-28-1-silu").layer] == [4, 4, 4]  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"model\.name=wrn-17-2-relu.*6 n \+ 4"):
        build("wrn-17-2-relu")


def test_mean_and_std_of_each_channel() -> None:
    config = ModelConfig(name="resnet18", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    model: Any = build_classifier(config, (3, 8, 8), 4, seed=0)
    scaled = model.scaled(torch.full((1, 3, 1, 1), 0.5))
    assert scaled.flatten().tolist() == pytest.approx([0.4, 0.15, 0.05])
    assert not any(key.split(".")[-1] in ("mean", "std") for key in model.state_dict())
    with pytest.raises(UserError, match=r"model\.mean has 3 numbers, the images 1"):
        build_classifier(config, (1, 8, 8), 4, seed=0)


WRAPPINGS = {
    "bare": lambda state: state,
    "model_state_dict": lambda state: {"model_state_dict": state, "epoch": 3},
    "data parallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "with its scaling": lambda state: {
        "model": {
            **{f"module.1.{k}": v for k, v in state.items()},
            "module.0.mean": torch.full((1, 3, 1, 1), 0.5),
        }
    },
    "mean inside": lambda state: {**state, "mu": torch.full((3,), 0.5), "std": torch.tensor(0.5)},
    "without counts": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    "compiled, beside another": lambda state: {
        "optimiser": {"step": torch.ones(1)},
        "net": {f"_orig_mod.{k}": v for k, v in state.items()},
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_checkpoint_loads_from_any_wrapping(wrapping: str, tmp_path: Path) -> None:
    model, path = filled(build("wrn-10-1-silu")), tmp_path / "published.pt"
    torch.save(WRAPPINGS[wrapping](model.state_dict()), path)
    found = build("wrn-10-1-silu")
    load_public(found, path)
    for key, value in model.state_dict().items():
        if wrapping != "without counts" or "num_batches" not in key:
            assert torch.equal(found.state_dict()[key], value), key


State = dict[str, Any]


def averaged_and_not() -> tuple[State, State]:
    """Weights of one model, and others."""
    averaged = filled(build("wrn-10-1-silu")).state_dict()
    return averaged, {key: value + 1 for key, value in averaged.items()}


SEVERAL = {
    "ema": lambda a, b: ({"net": b, "ema": a}, "ema"),
    "without counts": lambda a, b: (
        {"model": b, "ema": {k: v for k, v in a.items() if "num_batches" not in k}},
        "ema",
    ),
    "nested": lambda a, b: (
        {"model": b, "best": {"ema_state_dict": a, "epoch": 3}},
        "best/ema_state_dict",
    ),
    "unaveraged": lambda a, b: (
        {"unaveraged_model_state_dict": b, "model_state_dict": a},
        "model_state_dict",
    ),
    "by prefix": lambda a, b: (
        {
            "state_dict": {
                f"{n}.{k}": v for n, s in (("model", b), ("ema_model", a)) for k, v in s.items()
            }
        },
        "state_dict: ema_model.*",
    ),
    "alike": lambda a, b: ({"model": a, "best": {k: v.clone() for k, v in a.items()}}, "model"),
    "of other shapes": lambda a, b: (
        {"teacher": {**b, "logits.weight": torch.ones(5, 64)}, "net": a},
        "net",
    ),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_of_several_weights_those_that_are_averaged(case: str, tmp_path: Path) -> None:
    averaged, other = averaged_and_not()
    content, name = SEVERAL[case](averaged, other)
    torch.save(content, tmp_path / "several.pt")
    model = build("wrn-10-1-silu")
    assert load_public(model, tmp_path / "several.pt") == name
    for key, value in averaged.items():
        if case != "without counts" or "num_batches" not in key:
            assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize(
    "names",
    [("net", "best"), ("schema", "net"), ("ema", "ema_2"), ("unaveraged", "unaveraged_2")],
)
def test_several_weights_that_no_name_tells_apart(names: tuple[str, str], tmp_path: Path) -> None:
    first, second = averaged_and_not()
    torch.save(dict(zip(names, (first, second), strict=True)), tmp_path / "several.pt")
    with pytest.raises(UserError, match=rf"several\.pt.*differ: {names[0]}, and {names[1]};"):
        load_public(build("wrn-10-1-silu"), tmp_path / "several.pt")


def test_a_checkpoint_of_another_input_scale_is_refused(tmp_path: Path) -> None:
    path, cifar = tmp_path / "published.pt", torch.tensor([0.4914, 0.4822, 0.4465])
    state = build("wrn-10-1-silu").state_dict()
    wrapped = {
        **{f"1.{key}": value for key, value in state.items()},
        "0.mu": cifar.view(1, 3, 1, 1),
    }
    torch.save(wrapped, path)
    said = r"by 0\.mu = \[0\.4914, 0\.4822, 0\.4465\], the model by \[0\.5.*set model\.mean"
    with pytest.raises(UserError, match=said):
        load_public(build("wrn-10-1-silu"), path)


def test_a_published_file_holds_a_bare_state_dict(tmp_path: Path) -> None:
    """Whatever the tensors' layout: nobody else's module is channels-last."""
    model, path = (
        filled(build("wrn-10-1-silu")).to(memory_format=torch.channels_last),
        tmp_path / "a.pt",
    )
    path.write_bytes(public_file(model.state_dict()))
    found = torch.load(path, weights_only=True)
    assert type(found) is dict and set(found) == set(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(found[key], value) and found[key].is_contiguous()
    load_public(build("wrn-10-1-silu"), path)


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


def test_bad_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, path = build("wrn-10-1-silu"), tmp_path / "bad.pt"
    state = model.state_dict()

    def refused(content: object, match: str) -> None:
        torch.save(content, path)
        with pytest.raises(UserError, match=match) as caught:
            load_public(model, path)
        assert str(path) in str(caught.value)

    refused({k: v for k, v in state.items() if "conv_0" not in k}, r"lacks layer.0.block.0.conv_0")
    refused({**state, "logits2.weight": torch.ones(2)}, r"the unknown logits2\.weight")
    refused(build("wrn-10-1-silu", num_classes=5).state_dict(), r"logits.weight \(5, 64\) instead")
    refused(build("preact-resnet-18-silu").state_dict(), "lacks init_conv.weight")
    refused({"epoch": 3}, "no weights of this model.*no tensors")
    refused([1, 2], "no weights of this model")
    refused({"model": Harmful()}, "weights_only")
    assert not (tmp_path / "executed").exists()
    path.write_bytes(pickle.dumps({"a": 1}, protocol=2)[:-3])
    with pytest.raises(UserError, match=r"bad\.pt"):
        load_public(model, path)
    with pytest.raises(UserError, match=r"none\.pt"):
        load_public(model, tmp_path / "none.pt")
