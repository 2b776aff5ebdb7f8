"""The configuration tree itself: defaults pass their own checks, sections stand alone, nothing changes."""

import pytest
import yaml
from pydantic import ValidationError

from ssat_ray.config import (
    MODEL_NAMES,
    Config,
    IntermediateConfig,
    ModelConfig,
    PretrainConfig,
    TrainConfig,
)
from ssat_ray.loading import load_config


def test_every_default_resolves_and_passes_its_own_checks() -> None:
    config = Config()
    assert Config.model_validate(config.model_dump()) == config
    assert Config.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))


def test_the_tree_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().seeds = (1,)


def test_recipes_override_only_what_they_name() -> None:
    config = load_config("digits", ["train.none_recipes={slow: {lr: 0.01, patience: 7}}"]).train
    expected = config.model_dump() | {"lr": 0.01, "patience": 7, "none_recipes": {}}
    assert config.recipe("slow").model_dump() == expected
    default = config.model_dump() | {"none_recipes": {}}
    assert config.recipe("default").model_dump() == default


def test_sections_can_be_built_alone() -> None:
    assert not hasattr(IntermediateConfig(), "momentum") and TrainConfig().momentum == 0.9
    assert PretrainConfig(channels=(8, 16), norm_num_groups=2).channels == (8, 16)


@pytest.mark.parametrize("name", [*MODEL_NAMES, "wrn-70-16-silu", "package.module:factory"])
def test_the_names_that_messages_give_are_valid(name: str) -> None:
    assert ModelConfig(name=name).name == name


@pytest.mark.parametrize("name", ["resnet-18", "resnet20", "wrn-28-10", "module:", "xresnet18", ""])
def test_other_model_names_are_not(name: str) -> None:
    with pytest.raises(ValidationError, match="there is no such model"):
        ModelConfig(name=name)
