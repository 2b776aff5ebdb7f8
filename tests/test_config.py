"""The configuration tree itself: defaults pass their own checks, sections stand alone, nothing changes."""

import json
from pathlib import Path
from typing import Any

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
from ssat_ray.errors import UserError
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


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value and prefix.count(".") < 1:
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def test_the_page_has_every_key_with_its_default_and_what_the_demonstrations_set() -> None:
    """docs/configuration.md, where it comes with the source."""
    page = Path(__file__).parent.parent / "docs" / "configuration.md"
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| `")]
    found = {row[0].strip("| `"): row for row in rows if len(row) == 6}
    defaults = _leaves(Config().model_dump(mode="json"))
    presets = {
        name: _leaves(load_config(name).model_dump(mode="json"))
        for name in ("digits", "scale-100m")
    }
    assert set(found) == set(defaults)
    for key, row in found.items():
        assert row[3].strip() == f"`{json.dumps(defaults[key])}`", key
        shown = row[4]
        for name, values in presets.items():
            text = f"`{json.dumps(values[key])}` in "
            differs = key != "preset" and values[key] != defaults[key]
            assert (f"{text}`{name}`" in shown or f"{text}both" in shown) == differs, (key, name)


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


@pytest.mark.parametrize("key", ["runtime.tracking_uri", "runtime.checkpoints", "pool.path"])
def test_a_password_in_an_address_is_refused_and_not_repeated(key: str) -> None:
    more = ["pool.source=external", "rows=[random, full]"] if key == "pool.path" else []
    with pytest.raises(UserError, match=r"https://…@host has a password .* environment") as caught:
        load_config("digits", [*more, f"{key}=https://me:canary@host/x"])
    assert "canary" not in str(caught.value)
    load_config("digits", [*more, f"{key}=https://host/x"])


@pytest.mark.parametrize("endpoint", ["http://me:canary@host", "http%3A%2F%2Fme%3Acanary%40host"])
def test_a_password_within_the_query_of_an_address_is_refused_too(endpoint: str) -> None:
    address = f"s3://bucket/store?region=us-east-1&endpoint_override={endpoint}"
    with pytest.raises(UserError, match="http://…@host has a password") as caught:
        load_config("digits", [f"runtime.store={address}"])
    assert "canary" not in str(caught.value)
    load_config("digits", ["runtime.store=s3://bucket/store?endpoint_override=http://host:9000"])
