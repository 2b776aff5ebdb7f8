"""The presets: all load, say which paths they need, and hold the published recipes' numbers."""

import re
from importlib import resources
from typing import Any

import pytest

from ssat_ray.config import Config
from ssat_ray.errors import UserError
from ssat_ray.loading import load_config, preset_names
from ssat_ray.training.schedule import rule_of

PATHS = ("data.path=images", "pool.path=pool")
RECIPES = ("cifar10-rst", "cifar10-edm", "cifar100-edm", "svhn", "tiny-imagenet")
RECIPE_A = {
    "model.name": "wrn-28-10-relu",
    "train.batch_size": 256,
    "train.lr": 0.1,
    "train.momentum": 0.9,
    "train.weight_decay": 5e-4,
    "train.unsup_fraction": 0.5,
    "objective.name": "trades",
    "objective.beta": 6.0,
    "objective.step_size": 0.007,
    "select.boundary_fraction": 0.6,
}
"""The authors and RST: WRN-28-10 ReLU, batch 256, SGD 0.1, momentum 0.9, decay 5e-4, half of a batch unlabelled."""
RECIPE_B = {
    "model.name": "wrn-28-10-silu",
    "train.batch_size": 512,
    "train.lr": 0.2,
    "train.momentum": 0.9,
    "train.nesterov": True,
    "train.weight_decay": 5e-4,
    "train.schedule": "onecycle",
    "train.pct_start": 0.025,
    "train.num_epochs": 400,
    "train.ema_decay": 0.995,
    "train.unsup_fraction": 0.7,
    "train.keep": "best",
    "train.val_pgd_steps": 40,
    "objective.name": "trades",
    "objective.beta": 5.0,
    "objective.label_smoothing": 0.1,
    "objective.step_size": 2 / 255,
    "data.num_validation": 1024,
    "select.boundary_fraction": 0.4,
}
"""Wang et al. 2023."""
EVERY = {
    "threat.norm": "linf",
    "threat.eps": 8 / 255,
    "objective.num_steps": 10,
    "select.ratio": 0.2,
    "cluster.k": None,
    "embed.layer": "pooled",
    "pool.source": "external",
    "data.num_test": None,
    "data.num_labelled": None,
    "evaluate.pgd_steps": 40,
    "evaluate.pgd_step_size": 0.01,
}
CROP_AND_FLIP = {"train.augment_shift": 4, "train.augment_flip": True}
NO_AUGMENTATION = {"train.augment_shift": 0, "train.augment_flip": False, "train.cutmix": 0.0}
OWN: dict[str, dict[str, Any]] = {
    "cifar10-rst": {
        **RECIPE_A,
        **CROP_AND_FLIP,
        "data.name": "cifar10",
        "train.schedule": "cosine",
        "train.num_epochs": 200,
    },
    "cifar10-edm": {**RECIPE_B, **CROP_AND_FLIP, "data.name": "cifar10"},
    "cifar100-edm": {**RECIPE_B, **CROP_AND_FLIP, "data.name": "cifar100"},
    "svhn": {
        **RECIPE_A,
        **NO_AUGMENTATION,
        "data.name": "svhn",
        "train.schedule": "multistep",
        "train.milestones": (0.75, 0.9),
        "train.num_epochs": 100,
    },
    "tiny-imagenet": {**RECIPE_B, **CROP_AND_FLIP, "data.name": "tiny-imagenet"},
}
NUM_TRAINING_IMAGES = {
    "cifar10-rst": 50_000,
    "cifar10-edm": 50_000,
    "cifar100-edm": 50_000,
    "svhn": 73_257,
    "tiny-imagenet": 100_000,
}


def _value(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def test_the_recipes_are_all_presets_but_the_demonstrations() -> None:
    assert set(preset_names()) == {"digits", "scale-100m", *RECIPES}
    assert load_config("digits").preset == "digits" and load_config("scale-100m").seeds == (0,)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_published_numbers(name: str) -> None:
    config = load_config(name, PATHS)
    assert config.preset == name
    wanted = {**EVERY, **OWN[name]}
    assert {key: _value(config, key) for key in wanted} == wanted


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_validates_once_an_epoch(name: str) -> None:
    config = load_config(name, PATHS)
    num_labelled = NUM_TRAINING_IMAGES[name] - config.data.num_validation
    epochs = config.train.num_epochs
    assert epochs is not None
    assert rule_of(config.train, num_labelled).last_step == epochs * config.train.eval_every


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("missing", [("data.path",), ("pool.path",), ("data.path", "pool.path")])
def test_a_missing_path_is_named_with_what_sets_it(name: str, missing: tuple[str, ...]) -> None:
    given = [path for path in PATHS if path.partition("=")[0] not in missing]
    with pytest.raises(UserError) as caught:
        load_config(name, given)
    message = str(caught.value)
    for key in ("data.path", "pool.path"):
        assert (f"--set {key}=PATH" in message) == (key in missing), message


@pytest.mark.parametrize("name", RECIPES)
def test_every_number_of_a_recipe_names_its_source(name: str) -> None:
    """In a comment on its line or on that of its mapping; the head of the file explains the names."""
    text = (resources.files("ssat_ray") / "presets" / f"{name}.yaml").read_text()
    legend, sections = text.split("seeds:")[0], text.split("\nmodel:")[1]
    bare = []
    covered = False
    for line in sections.splitlines():
        if line and not line.startswith(" "):
            covered = "#" in line
        elif any(c.isdigit() for c in line.partition("#")[0]) and "#" not in line and not covered:
            bare.append(line.strip())
    assert [line for line in bare if not line.startswith(("std:", "warmup_steps: 0"))] == []
    explained = set(re.findall(r"#   \[(\w+)\]  ", legend))
    used = re.findall(r"#.*?\[((?:ours|[A-Z]+)(?:, [A-Z]+)*)\]", text.partition("seeds:")[2])
    assert explained == {name for names in used for name in names.split(", ")}
