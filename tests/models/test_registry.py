"""Building classifiers by name and by import path: seeds, the global generator, and mistakes."""

import copy
import sys
from pathlib import Path

import pytest
import torch

from ssat_ray.config import ModelConfig
from ssat_ray.errors import UserError
from ssat_ray.models.preact_small import PreActSmall
from ssat_ray.models.registry import build_classifier, check_outputs

SMALL = ModelConfig(widths=(4, 8), strides=(1, 2), blocks=1)
MODULE = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.linear = nn.Linear(in_channels * 4, num_classes)

    def embed_with_logits(self, x, layer="pooled"):
        return x.flatten(1), self(x)

    def forward(self, x):
        return self.linear(x.flatten(1))

class Embeds(nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.linear = nn.Linear(in_channels * 4, num_classes)

    def embed(self, x, layer):
        return {"pooled": 2 * x.flatten(1), "logits": self(x)}[layer]

    def forward(self, x):
        return self.linear(x.flatten(1))

def factory(in_channels, num_classes):
    return Own(in_channels, num_classes)

def half(in_channels, num_classes):
    return nn.Linear(4, num_classes)

def one_class_more(in_channels, num_classes):
    return Own(in_channels, num_classes + 1)

class Maps(Own):
    def embed_with_logits(self, x, layer="pooled"):
        return x, self(x)

class Other(Own):
    def embed_with_logits(self, x, layer="pooled"):
        return x.flatten(1), self(x)[:, 1:]

constant = 3.0
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_classifier_for_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_classifier_for_tests"
    sys.modules.pop("own_classifier_for_tests", None)


def _build(config: ModelConfig = SMALL, seed: int = 0) -> torch.nn.Module:
    return build_classifier(config, (1, 8, 8), 3, seed)


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def test_weights_are_a_function_of_the_seed() -> None:
    first = _build()
    torch.rand(7)
    assert _same(first, _build()) and not _same(first, _build(seed=1))


def test_the_global_generator_is_not_touched() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    _build()
    assert torch.equal(before, torch.get_rng_state())


def test_the_configuration_decides_the_shape() -> None:
    model = build_classifier(
        ModelConfig(widths=(4, 6, 8), strides=(1, 1, 2), blocks=2), (3, 8, 8), 5, 0
    )
    assert isinstance(model, PreActSmall)
    assert [len(group) for group in model.layer] == [2, 2, 2]
    assert [group[-1].conv_1.out_channels for group in model.layer] == [4, 6, 8]
    assert [group[0].conv_0.stride[0] for group in model.layer] == [1, 1, 2]
    assert model.init_conv.in_channels == 3 and model.logits.out_features == 5
    assert model.init_conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_an_import_path_leads_to_your_own_model(own: str) -> None:
    config = ModelConfig(name=f"{own}:factory")
    model = build_classifier(config, (3, 2, 2), 4, seed=2)
    assert type(model).__name__ == "Own" and model(torch.rand(5, 3, 2, 2)).shape == (5, 4)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert _same(model, build_classifier(config, (3, 2, 2), 4, seed=2))
    assert not _same(model, build_classifier(config, (3, 2, 2), 4, seed=3))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("no_such_package_at_all:factory", ["no_such_package_at_all", "cannot be imported"]),
        ("ssat_ray.models.preact_small:Nothing", ["Nothing", "cannot be imported"]),
        ("ssat_ray.models.nothing:f", ["ssat_ray.models.nothing", "cannot be imported"]),
    ],
)
def test_a_wrong_path_is_a_user_error(name: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        _build(ModelConfig(name=name))
    message = str(caught.value)
    assert f"model.name={name}" in message and all(part in message for part in parts)


def test_a_module_without_embed_with_logits_is_a_user_error(own: str) -> None:
    with pytest.raises(
        UserError, match=rf"model\.name={own}:half.*embed_with_logits\(\) and no embed"
    ):
        _build(ModelConfig(name=f"{own}:half"))


@pytest.mark.parametrize(
    ("factory", "shape", "expected"),
    [
        ("one_class_more", (1, 2, 2), r"gives \(1, 5\); expected logits \(1, 4\)"),
        ("Maps", (1, 2, 2), r"gives \(1, 1, 2, 2\) and \(1, 4\)"),
        ("Other", (1, 2, 2), r"gives logits \(1, 3\), forward\(\) \(1, 4\)"),
        ("Own", (1, 3, 3), r"one image \(1, 3, 3\) with layer 'pooled' fails: mat1 and mat2"),
    ],
)
def test_outputs_of_another_shape_are_a_user_error(
    own: str, factory: str, shape: tuple[int, int, int], expected: str
) -> None:
    name = f"{own}:{factory}"
    model = build_classifier(ModelConfig(name=name), shape, 4, seed=0)
    with pytest.raises(UserError, match=rf"model\.name={name}.*{expected}"):
        check_outputs(model, name, shape, 4, "pooled")


@pytest.mark.parametrize("name", ["Own", "Embeds"])
def test_outputs_as_they_should_be(own: str, name: str) -> None:
    model = build_classifier(ModelConfig(name=f"{own}:{name}"), (1, 2, 2), 4, seed=0)
    check_outputs(model, name, (1, 2, 2), 4, "pooled")


def test_a_module_with_embed_alone_is_adapted(own: str) -> None:
    model = build_classifier(ModelConfig(name=f"{own}:Embeds"), (1, 2, 2), 4, seed=2)
    copied, x = copy.deepcopy(model), torch.rand(5, 1, 2, 2)
    with torch.no_grad():
        copied.linear.weight.zero_()
        for net in (model, copied):
            for layer in ("pooled", "logits"):
                embedding, logits = net.embed_with_logits(x, layer)
                assert torch.equal(logits, net(x))
                assert torch.equal(embedding, 2 * x.flatten(1) if layer == "pooled" else logits)
        assert torch.equal(model.embed_with_logits(x)[0], 2 * x.flatten(1))
    assert set(model.state_dict()) == {"linear.weight", "linear.bias"}


def test_an_object_that_is_no_factory_is_a_user_error(own: str) -> None:
    with pytest.raises(UserError, match=r"model\.name"):
        _build(ModelConfig(name=f"{own}:constant"))


def test_a_relative_path_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"model\.name"):
        _build(ModelConfig(name=".models:factory"))
