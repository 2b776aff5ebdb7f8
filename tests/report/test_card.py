"""The model card: its front matter, its cautions, and which module of RobustBench it names."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml

from ssat_ray.config import Config
from ssat_ray.report.card import cautions, model_card, robustbench_module, summary


def metric(name: str, accuracy: float) -> dict[str, Any]:
    return {
        "name": name,
        "accuracy": accuracy,
        "low": accuracy - 1.26,
        "high": accuracy + 1.24,
        "images": 10_000,
    }


@pytest.fixture
def about() -> dict[str, Any]:
    config = Config().model_dump(mode="json", exclude={"runtime", "preset"})
    config["data"] |= {"name": "cifar10", "path": "cifar", "num_test": None}
    config["threat"]["eps"] = 8 / 255
    config["pool"] |= {"source": "external", "path": "edm-1m"}
    return {
        "model": {"name": "wrn-28-10-silu", "mean": [0.5], "std": [0.25]},
        "image_shape": [3, 32, 32],
        "num_classes": 10,
        "name": "edm-lcs-km-seed0",
        "row": "lcs-km",
        "seed": 0,
        "recipe": "default",
        "chosen": "It is the best of 4.",
        "config": config,
        "digests": {
            "labelled": "labelled/a",
            "pool": "pool/b",
            "intermediate": "intermediate/c",
            "cluster": "cluster/d",
            "score": "score/e",
            "select": "select/f",
            "train": "train/g",
            "evaluate:pgd": "evaluate/h",
        },
        "images": {"labelled": 48_976, "pool": 200_000, "validation": 1_024, "test": 10_000},
        "training": {
            "steps": 9000,
            "kept_step": 8600,
            "plateau_step": 7200,
            "hit_max_steps": False,
            "seconds": 7260,
        },
        "validation": {"clean": 91.0, "pgd": 66.25},
        "metrics": {
            "clean": metric("clean", 90.123),
            "pgd": metric("PGD-40", 65.5),
            "autoattack": metric("AutoAttack", 62.0),
        },
        "seeds": [0],
        "over_seeds": {},
        "against_random": {"mean": 0.1, "low": -0.4, "high": 0.6},
        "warnings": [],
        "made_by": {
            "ssat_ray": "0.1.0",
            "commit": "0123456789abcdef",
            "python": "3.11.7",
            "versions": {"torch": "2.14.1"},
            "machine": {"cpu": "EPYC", "cores": 2},
        },
    }


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_front_matter_leaves_the_license_to_the_author(about: dict[str, Any]) -> None:
    card = model_card(about)
    found = front_matter(card)
    assert card.startswith("---\n# license: yours to choose")
    assert "license" not in found and found["datasets"] == ["uoft-cs/cifar10"]
    result = found["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "CIFAR-10", "type": "uoft-cs/cifar10"}
    assert [entry["value"] for entry in result["metrics"]] == [90.12, 65.5, 62.0]
    about["config"]["data"] |= {"name": "npz", "path": "scans.npz"}
    found = front_matter(model_card(about))
    assert "datasets" not in found
    dataset = found["model-index"][0]["results"][0]["dataset"]
    assert dataset == {"name": "scans.npz", "type": "npz"}


def test_numbers_intervals_and_images(about: dict[str, Any]) -> None:
    card = model_card(about)
    assert "| PGD-40 | 65.5 [64.2, 66.7] |" in card
    assert "10,000 test images" in card
    assert "1,024 validation images: 91.0 % clean, 66.2 % under PGD" in card
    assert "Eps 0.03137" in card and "(8/255)" in card
    assert "The same row over" not in card
    assert "the weights are, averaged over steps, those at step 8,600." in card
    about["config"]["train"]["ema_decay"] = 0.0
    assert "the weights are those at step 8,600." in model_card(about)
    about |= {
        "seeds": [0, 1],
        "over_seeds": {
            "pgd": {"name": "PGD-40", "mean": 65, "low": 64, "high": 66, "seeds": [0, 1]},
            "autoattack": {"name": "AutoAttack", "mean": 62, "low": 61, "high": 63, "seeds": [0]},
        },
    }
    card = model_card(about)
    assert "over seeds 0, 1, intervals" in card and "- PGD-40: 65.0 [64.0, 66.0] %" in card
    assert "- AutoAttack (seed 0 only): 62.0 [61.0, 63.0] %" in card


def test_what_may_be_called_autoattack(about: dict[str, Any]) -> None:
    assert not any("AutoAttack" in text for text in cautions(about))
    about["metrics"]["autoattack"]["name"] = "ensemble (not standard AutoAttack)"
    about["num_classes"] = 3
    assert "with 3 classes the standard version cannot run" in cautions(about)[0]
    del about["metrics"]["autoattack"]
    assert cautions(about)[0].startswith("AutoAttack was not run on this model")
    assert "AutoAttack accuracy" not in yaml.safe_dump(front_matter(model_card(about)))


def test_cautions(about: dict[str, Any]) -> None:
    assert len(cautions(about)) == 2  # against random, and the threat model
    about["config"]["data"] |= {"num_test": 797, "verify": False}
    about["warnings"] = ["pgd accuracy 0.7 exceeds autoattack 0.5"]
    found = "\n".join(cautions(about))
    assert "not a whole published test set" in found and "`data.verify` was off" in found
    assert "Warning of the run: pgd accuracy 0.7 exceeds autoattack 0.5." in found
    assert all(f"- {text}" in model_card(about) for text in cautions(about))


@pytest.mark.parametrize(
    ("row", "low", "high", "said"),
    [
        ("lcs-km", -0.4, 0.6, "no difference that 95 % settles"),
        ("lcs-km", 0.1, 0.6, "better than a random choice"),
        ("pcs", -0.6, -0.1, "worse than a random choice"),
        ("full", 0.1, 0.6, None),
    ],
)
def test_a_selector_is_compared_with_chance(
    row: str, low: float, high: float, said: str | None, about: dict[str, Any]
) -> None:
    about |= {"row": row, "against_random": {"mean": (low + high) / 2, "low": low, "high": high}}
    found = [text for text in cautions(about) if "random choice" in text]
    assert len(found) == (said is not None) and all(str(said) in text for text in found)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("wrn-28-10-silu", [3, 32, 32], "DMWideResNet(num_classes=10, depth=28, width=10, "),
        ("preact-resnet-18-relu", [3, 32, 32], "DMPreActResNet(num_classes=10, activation_fn="),
        ("wrn-28-10-silu", [3, 64, 64], ""),  # its last pooling is of 8 x 8
        ("resnet18", [3, 32, 32], ""),
        ("my.models:wrn-28-10-silu", [3, 32, 32], ""),
    ],
)
def test_the_module_of_robustbench(
    name: str, shape: list[int], expected: str, about: dict[str, Any]
) -> None:
    about["model"]["name"], about["image_shape"] = name, shape
    found = robustbench_module(about)
    assert expected in found and bool(expected) == bool(found)
    if found:
        assert f"torch.nn.{'SiLU' if 'silu' in name else 'ReLU'}" in found
        assert "mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), num_input_channels=3" in found


def test_settings_are_of_the_stages_that_took_part(about: dict[str, Any]) -> None:
    text = re.findall(r"```yaml\n(.*?)```", model_card(about), re.DOTALL)[0]
    shown = yaml.safe_load(text)
    assert {"data", "pool", "cluster", "select", "train", "threat", "embed"} < set(shown)
    assert not {"synth", "generate", "pretrain"} & set(shown)
    assert shown["select"] == about["config"]["select"]
    alone = copy.deepcopy(about)
    alone["digests"] = {key: about["digests"][key] for key in ("labelled", "train")}
    alone |= {"row": "none", "images": {**about["images"], "pool": 0}}
    text = re.findall(r"```yaml\n(.*?)```", model_card(alone), re.DOTALL)[0]
    assert set(yaml.safe_load(text)) == {"data", "model", "threat", "objective", "train"}
    assert "of a pool" not in summary(alone) and "200,000 images of a pool" in summary(about)


def test_an_own_module_must_be_importable(about: dict[str, Any]) -> None:
    about["model"]["name"] = "my_models:net"
    assert "with `my_models` importable" in model_card(about)
