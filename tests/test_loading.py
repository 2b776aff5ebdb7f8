"""Presets and overrides to a configuration, and what the messages of mistakes contain."""

from pathlib import Path

import pytest
import yaml

from ssat_ray.config import Config
from ssat_ray.errors import UserError
from ssat_ray.loading import all_keys, flatten, load_config

SELECTING = "rows=[none, random, lcs-km, full]"
"""No guided row, which would need more images."""


def _message(*overrides: str, preset: str = "digits") -> str:
    with pytest.raises(UserError) as caught:
        load_config(preset, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_digits_preset_is_what_its_file_says() -> None:
    path = Path(__import__("ssat_ray").__file__).parent / "presets" / "digits.yaml"
    written = flatten(yaml.safe_load(path.read_text()))
    resolved = flatten(load_config("digits").model_dump(mode="json"))
    assert {key: resolved[key] for key in written} == written
    config = load_config("digits")
    assert config.data.num_test + config.data.num_labelled + config.data.num_validation == 1797
    assert set(config.rows) >= {"none", "random", "full"}


def test_overrides_reach_nested_keys_and_leave_the_others() -> None:
    before = flatten(load_config("digits").model_dump(mode="json"))
    after = flatten(
        load_config(
            "digits",
            ["select.ratio=0.1", "seeds=[3, 4]", "cluster.k=7", "train.none_recipes.slow.lr=0.01"],
        ).model_dump(mode="json")
    )
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    assert changed == {
        "select.ratio": 0.1,
        "seeds": [3, 4],
        "cluster.k": 7,
        "train.none_recipes.slow.lr": 0.01,
    }
    assert set(before) <= set(after)


def test_a_later_override_wins_and_null_resets() -> None:
    config = load_config("digits", ["cluster.k=7", "cluster.k=9", "generate.num_images=200"])
    assert config.cluster.k == 9 and config.generate.num_images == 200
    assert load_config("digits", ["cluster.k=7", "cluster.k=null"]).cluster.k is None


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.lrr=0.1", ["'train.lrr'", "'train.lr'"]),
        ("selct.ratio=0.1", ["'selct'", "'select'"]),
        ("train.lr=abc", ["train.lr='abc'", "number", "float"]),
        ("train.patience=2.5", ["train.patience=2.5", "integer"]),
        ("select.ratio=1.5", ["select.ratio=1.5", "less than or equal to 1", "selected images"]),
        ("select.ratio=0", ["select.ratio=0", "greater than 0"]),
        ("threat.eps=.nan", ["threat.eps=nan", "finite"]),
        ("threat.eps=1.5", ["threat.eps=1.5", "linf", "less than 1"]),
        ("threat.norm=l1", ["threat.norm='l1'", "linf", "l2"]),
        ("embed.layer=poled", ["embed.layer='poled'", "'pooled', 'logits' or 'unpooled'"]),
        ("rows=[nonne, full]", ["'nonne'", "'none'", "'lcs-gmm'"]),
        ("rows=[none, full, none]", ["rows", "duplicates", "['none', 'full', 'none']"]),
        ("rows=[none]", ["rows=['none']", "add a row"]),
        ("rows=[]", ["rows=[]", "at least 1"]),
        ("seeds=[0, 1, 0]", ["seeds", "duplicates", "[0, 1, 0]"]),
        ("generate.num_images=5", []),
        ("model={widths: [8], strides: [1, 2, 2]}", ["model.strides", "3", "model.widths", "1"]),
        ("model.name=resnet", ["model.name='resnet'", "preact-small"]),
        ("data.name=npz", ["data.name=npz", "--set data.path="]),
        ("pool.source=external", ["pool.source=external", "--set pool.path=", "ssat pool import"]),
        ("pool.path=here", ["pool.path=here", "pool.source=external", "pool.source=generate"]),
        ("train.num_steps=9", ["train.num_steps=9", "onecycle", "train.schedule=plateau"]),
        ("train.schedule=cosine", ["cosine", "train.num_steps", "train.num_epochs"]),
        ("train={schedule: cosine, num_steps: 9, num_epochs: 2}", ["not both"]),
        ("train.milestones=[0.5, 1.0]", ["train.milestones.1=1.0", "less than 1"]),
        ("train.none_recipes.long.num_epochs=9", ["train.num_epochs=9", "plateau"]),
        (
            "model.name=resnet-18",
            ["model.name='resnet-18'", "did you mean 'resnet18'", "wrn-28-10-silu", "factory"],
        ),
        ("rows=lcs-km", ["rows='lcs-km'", "for example rows=[lcs-km]"]),
        ("seeds=0", ["seeds=0: it is a list, for example seeds=[0]"]),
        ("rows={a: 1}", ["rows={'a': 1}: it is a list."]),
        ("select=0.1", ["select=0.1: it is a section", "for example select.ratio=0.1."]),
        ("threat=high", ["threat='high'", "for example threat.norm=linf"]),
        ("generate.num_images=1.5e0", ["generate.num_images=1.5", "integer"]),
        (
            "pretrain={channels: [32], norm_num_groups: 16}",
            ["pretrain.norm_num_groups=16", "32", "quarter"],
        ),
        ("pretrain.norm_num_groups=7", ["pretrain.norm_num_groups=7", "divide"]),
        ("train.lr.x=1", ["'train.lr.x'", "train.lr is a value"]),
        ("train.lr", ["train.lr", "key=value"]),
        ("runtime=5", ["runtime=5", "section", "runtime.num_cpus=5"]),
        ("train.none_recipes.slow.lrr=1", ["train.none_recipes.slow", "'lrr'", "'lr'"]),
        ("train.none_recipes.slow.none_recipes={}", ["train.none_recipes.slow", "'none_recipes'"]),
        ("train.none_recipes.slow=5", ["train.none_recipes.slow=5", "dictionary"]),
        ("train.none_recipes.slow.lr=-1", ["train.none_recipes.slow.lr=-1", "greater than 0"]),
        (
            "train.none_recipes.slow.patience=true",
            ["train.none_recipes.slow.patience=True", "integer", "without a rise"],
        ),
        ("train.none_recipes.default.lr=0.01", ["train.none_recipes.default", "another"]),
        ("train.none_recipes.best-of-recipes.lr=0.01", ["train.none_recipes.best-of-recipes"]),
        ("train.none_recipes.half-rate.lr.x=1", ["train.none_recipes.half-rate.lr=0.05", "--set"]),
        ("select.ratio=true", ["select.ratio=True", "number", "float"]),
        ("select.ratio='0.1'", ["select.ratio='0.1'", "number", "float"]),
        ("generate.num_images=true", ["generate.num_images=True", "integer"]),
        ("generate.num_images='3'", ["generate.num_images='3'", "integer"]),
        ("generate.num_images=3.0", ["generate.num_images=3.0", "integer"]),
        ("cluster.k=true", ["cluster.k=True", "integer"]),
        ("seeds=[true]", ["seeds.0=True", "integer"]),
        ("model.widths=['32', 64]", ["model.widths.0='32'", "integer"]),
        ("model.widths=32", ["model.widths=32", "list, for example model.widths=[32]"]),
        ("select.per_class=1", ["select.per_class=1", "boolean", "bool"]),
        ("select.per_class='yes'", ["select.per_class='yes'", "boolean"]),
        ("runtime.store=5", ["runtime.store=5", "string"]),
        ("seeds=2024-13-45", ["seeds=2024-13-45", "YAML"]),
        ("evaluate.attacks=[clean, apgd-ce]", ["evaluate.attacks=['clean', 'apgd-ce']", "pgd"]),
        ("evaluate.attacks=[clean, pgd, pgd]", ["evaluate.attacks", "no attack twice"]),
        ("evaluate.attacks=[clean, pgd, autoattack]", ["evaluate.attacks.2='autoattack'"]),
        ("evaluate.pgd_restarts=0", ["evaluate.pgd_restarts=0", "restarts"]),
        ("evaluate.autoattack_seeds=[0, 3]", ["evaluate.autoattack_seeds=[0, 3]", "seeds=[0]"]),
        (
            "generate.num_inference_steps=1001",
            ["generate.num_inference_steps=1001", "pretrain.num_timesteps=1000"],
        ),
        (
            "generate={sampler: ddim, num_inference_steps: 60}",
            ["generate.num_inference_steps=60 must divide", "pretrain.num_timesteps=1000"],
        ),
        ("select.ratio=0.00005", ["select.ratio=5e-05", "generate.num_images=10000"]),
        ("intermediate.batch_size=64", ["intermediate.bn_group=64", "runtime.train_workers=2"]),
        ("pretrain.batch_size=1", ["pretrain.batch_size=1", "runtime.train_workers=2"]),
        (
            "runtime.train_workers=[1, 3]",
            ["intermediate.batch_size=128", "runtime.train_workers=3"],
        ),
        ("runtime.train_workers=[3, 1]", ["runtime.train_workers=[3, 1]", "least"]),
        ("train.batch_size=96", ["train.batch_size=96", "train.bn_group=64"]),
        ("train.unsup_fraction=0.999", ["train.unsup_fraction=0.999", "no labelled image"]),
        ("train.unsup_fraction=0.001", ["train.unsup_fraction=0.001", "no pool image"]),
        (
            "train.none_recipes.small.batch_size=3",
            ["train.none_recipes.small.batch_size=3", "bn_group=64"],
        ),
    ],
)
def test_mistakes_name_key_value_allowed_and_nearest(override: str, parts: list[str]) -> None:
    if not parts:  # fine by itself, wrong together with a k above it
        message = _message(override, "cluster.k=6")
        parts = ["cluster.k=6", "generate.num_images=5"]
    else:
        message = _message(override)
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message


def test_k_may_equal_the_pool() -> None:
    assert load_config("digits", [SELECTING, "cluster.k=6", "generate.num_images=6"]).cluster.k == 6


def test_the_bounds_themselves_are_fine() -> None:
    config = load_config(
        "digits",
        [
            SELECTING,
            "generate={num_inference_steps: 50, num_images: 20}",
            "pretrain={num_timesteps: 50, batch_size: 3}",
            "select.ratio=0.03",
            "train={batch_size: 6, bn_group: 2, none_recipes: {small: {batch_size: 3, bn_group: 1}}}",
            "intermediate={batch_size: 3, bn_group: 1}",
            "runtime.train_workers=3",
            "seeds=[1, 2]",
            "evaluate.autoattack_seeds=[2]",
        ],
    )
    assert round(config.select.ratio * config.generate.num_images) == 1
    assert config.evaluate.autoattack_seeds == (2,)


def test_an_empty_selection_matters_to_rows_that_select_only() -> None:
    assert load_config("digits", ["rows=[none, full]", "generate.num_images=2"])
    assert "select.ratio=0.2" in _message("rows=[full, random]", "generate.num_images=2")


def test_integers_and_exponents_are_numbers() -> None:
    config = load_config("digits", ["train.lr=1", "pretrain.lr=1e-3", "train.delta=+.5E0"])
    assert (config.train.lr, config.pretrain.lr, config.train.delta) == (1.0, 0.001, 0.5)
    assert isinstance(config.train.lr, float)


def test_a_count_may_have_an_exponent_or_underscores() -> None:
    config = load_config("digits", ["synth.num_images=1e5", "generate.num_images=20_000"])
    assert (config.synth.num_images, config.generate.num_images) == (100_000, 20_000)
    assert type(config.synth.num_images) is int


def test_two_mistakes_in_a_recipe_are_both_named() -> None:
    message = _message("train.none_recipes.half-rate={lr: -1, precision: fp8}")
    assert "train.none_recipes.half-rate.lr=-1" in message
    assert "train.none_recipes.half-rate.precision='fp8'" in message


def test_two_mistakes_are_both_named() -> None:
    message = _message("train.lr=-1", "select.ratio=2")
    assert "train.lr=-1" in message and "select.ratio=2" in message


def test_all_keys_lists_sections_and_leaves_once() -> None:
    keys = all_keys()
    assert len(set(keys)) == len(keys)
    assert set(flatten(Config().model_dump())) <= set(keys)
    assert {"train", "train.lr", "runtime.store"} <= set(keys)


def test_a_yaml_file_is_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("rows: [full]\ntrain: {lr: 0.3}\n")
    config = load_config(str(path), ["train.momentum=0.5"])
    assert (config.preset, config.rows, config.train.lr) == ("mine", ("full",), 0.3)
    assert config.train.momentum == 0.5 and config.select == Config().select
    path.write_text("")
    assert load_config(str(path)).model_dump(exclude={"preset"}) == Config().model_dump(
        exclude={"preset"}
    )


def test_bad_preset_files(tmp_path: Path) -> None:
    missing = str(tmp_path / "no.yaml")
    assert missing in _message(preset=missing)
    path = tmp_path / "bad.yaml"
    path.write_text("rows: [none\n")
    message = _message(preset=str(path))
    assert str(path) in message and "YAML" in message and "\n" not in message
    path.write_bytes("rows: [full]  # für".encode("latin-1"))
    message = _message(preset=str(path))
    assert str(path) in message and "UTF-8" in message and "0xfc" in message
    path.write_text("- a\n- b\n")
    assert "mapping" in _message(preset=str(path)) and "list" in _message(preset=str(path))
    path.write_text("train: {lrr: 1}\n")
    message = _message(preset=str(path))
    assert "'train.lrr'" in message and "'train.lr'" in message


def test_an_unknown_preset_names_the_nearest() -> None:
    message = _message(preset="digit")
    assert "'digit'" in message and "'digits'" in message


def test_an_unparsable_override_is_a_user_error() -> None:
    assert "rows" in _message("rows=[none")


def test_an_override_below_an_empty_section(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("train:\n")
    assert load_config(str(path), ["train.lr=0.3"]).train.lr == 0.3


@pytest.mark.parametrize("found", ["5", "[]", "abc"])
def test_an_override_below_a_value_that_is_no_section(found: str, tmp_path: Path) -> None:
    path = tmp_path / "flat.yaml"
    path.write_text(f"select: {found}\n")
    message = _message("select.ratio=0.1", preset=str(path))
    assert f"select={yaml.safe_load(found)!r}" in message and "select.ratio" in message


def test_negative_seeds_are_refused() -> None:
    message = _message("seeds=[-1]")
    assert "seeds.0=-1" in message and "at least 1 item" not in message


def test_a_right_leaf_in_a_wrong_place_suggests_the_right_place() -> None:
    assert "select.ratio" in _message("ratio=0.1")
    assert "patience" in _message("select.patience=3")


def test_settings_win_over_overrides_and_are_checked_alike() -> None:
    config = load_config("digits", ["select.ratio=0.3"], {"select.ratio": 0.1, "cluster.k": 7})
    assert (config.select.ratio, config.cluster.k) == (0.1, 7)
    with pytest.raises(UserError, match=r"unknown key 'select.ratoi'.*'select.ratio'"):
        load_config("digits", settings={"select.ratoi": 0.1})
    with pytest.raises(UserError, match=r"select.ratio=2"):
        load_config("digits", settings={"select.ratio": 2})
