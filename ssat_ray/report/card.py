"""The model card of an exported classifier: a README.md with the front matter of the Hugging Face Hub.

It says what `model.json` says (docs/export.md lists its fields), and nothing else.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from ssat_ray.report import words

About = dict[str, Any]
SETS = {
    "digits": ("UCI digits", None),
    "cifar10": ("CIFAR-10", "uoft-cs/cifar10"),
    "cifar100": ("CIFAR-100", "uoft-cs/cifar100"),
    "svhn": ("SVHN", "ufldl-stanford/svhn"),
    "tiny-imagenet": ("Tiny ImageNet", "zh-plus/tiny-imagenet"),
}
"""Name for people, and on the Hub, of the sets that have one; an own set is called by its file."""
SECTIONS = {
    "labelled": ("data",),
    "pool": ("pool",),
    "pretrain": ("pretrain",),
    "generate": ("generate",),
    "synth": ("synth",),
    "intermediate": ("intermediate",),
    "score": ("embed",),
    "cluster": ("cluster",),
    "select": ("select",),
    "train": ("model", "threat", "objective", "train"),
    "evaluate": ("evaluate",),
}
"""Sections of the configuration that say how a stage was done."""
STANDARD = "AutoAttack"
"""What only the full standard version is called."""


def model_card(about: About) -> str:
    """The card as Markdown; its Python code runs in the exported folder.

    Args:
        about: the content of an exported `model.json`.
    """
    parts = [
        _front_matter(about),
        f"# {about['name']}",
        summary(about),
        "## Threat model",
        _threat(about),
        "## Measured",
        _measured(about),
        "## Before you trust it",
        "\n".join(f"- {caution}" for caution in cautions(about)),
        "## Loading",
        _loading(about),
        "## How it was trained",
        _training(about),
        "Settings:",
        f"```yaml\n{_settings(about)}```",
        "Artefacts, each named by a digest of everything that determines it:",
        "\n".join(["| what | artefact |", "|---|---|", *_digests(about)]),
        _made_by(about["made_by"]),
    ]
    return "\n\n".join(parts) + "\n"


def summary(about: About) -> str:
    """One paragraph: what the model is, what it was trained on, how it was chosen."""
    images = about["images"]
    pool = f" and {images['pool']:,} images of a pool" if images["pool"] else ""
    channels, height, width = about["image_shape"]
    return (
        f"`{about['model']['name']}` for {height} x {width} images with {channels} channel(s), "
        f"{about['num_classes']} classes. Trained by adversarial training with {_objective(about)} "
        f"on {images['labelled']:,} labelled images of {_set_name(about)}{pool} "
        f"(row `{about['row']}`: {words.ABOUT[about['row']]}; seed {about['seed']}). {about['chosen']}"
    )


def cautions(about: About) -> list[str]:
    """What the numbers do not say, and the warnings of the run."""
    metrics, data = about["metrics"], about["config"]["data"]
    found = []
    name = metrics.get("autoattack", {}).get("name")
    if name is None:
        found.append(
            "AutoAttack was not run on this model. Accuracies under the other attacks are upper bounds of its "
            "robust accuracy, and none of them may be reported as AutoAttack accuracy."
        )
    elif name != STANDARD:
        found.append(
            f"The strongest result is of an {name}: with {about['num_classes']} classes the standard version "
            "cannot run. It must not be reported as AutoAttack accuracy, nor compared with it."
        )
    if data["num_test"] is not None:
        found.append(
            f"The {about['images']['test']:,} test images were drawn from the set (`data.split_seed` "
            f"{data['split_seed']}); they are not a whole published test set, so the numbers do not compare "
            "with a leaderboard's."
        )
    if not data["verify"]:
        found.append("`data.verify` was off: nobody checked that the data are the published files.")
    found += _against_random(about)
    found += [f"Warning of the run: {warning}." for warning in about["warnings"]]
    found.append(
        "Robustness was measured in the threat model above only. It says nothing of larger radii, other "
        "norms, or natural changes of the images."
    )
    return found


def _against_random(about: About) -> list[str]:
    difference = about["against_random"]
    if difference is None or about["row"] not in words.SELECTORS:
        return []
    verdict = {
        1: "better than a random choice",
        -1: "worse than a random choice",
        0: "no difference that 95 % settles",
    }[words.settled(difference)]
    return [
        f"Against a random choice of as many images of the pool, the row `{about['row']}` has "
        f"{words.interval(difference, sign=True)} points of PGD accuracy (paired 95 % interval over "
        f"{_seeds(about['seeds'])} and the test images): {verdict}."
    ]


def _front_matter(about: About) -> str:
    """No license: that is the author's to give."""
    shown, hub = SETS.get(about["config"]["data"]["name"], (_set_name(about), None))
    tags = ["adversarial-robustness", "adversarial-training", "image-classification"]
    threat = words.radius(about["config"]["threat"])
    entries = [
        {
            "type": "accuracy",
            "value": round(entry["accuracy"], 2),
            "name": "clean accuracy"
            if attack == "clean"
            else f"{entry['name']} accuracy, {threat}",
        }
        for attack, entry in about["metrics"].items()
    ]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": shown, "type": hub or about["config"]["data"]["name"]},
        "metrics": entries,
    }
    tree: dict[str, Any] = {"library_name": "ssat_ray", "pipeline_tag": "image-classification"}
    tree |= {"tags": tags, **({"datasets": [hub]} if hub else {}), "metrics": ["accuracy"]}
    tree["model-index"] = [{"name": about["name"], "results": [result]}]
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return f"---\n# license: yours to choose, for example apache-2.0\n{text}---"


def _threat(about: About) -> str:
    threat = about["config"]["threat"]
    scale = f" ({255 * threat['eps']:.4g}/255)" if threat["norm"] == "linf" else ""
    return (
        f"{words.radius(threat)[0].upper()}{words.radius(threat)[1:]}{scale}: {words.bound(threat)} on the "
        "image scale [0, 1], and images stay within it. The attacker knows the model and its weights."
    )


def _measured(about: About) -> str:
    lines = ["| measure | accuracy % [95 % interval] |", "|---|---:|"]
    for entry in about["metrics"].values():
        whole = {**entry, "mean": entry["accuracy"]}
        lines.append(f"| {entry['name']} | {words.interval(whole)} |")
    images = about["images"]
    lines += [
        "",
        f"On {images['test']:,} test images that training did not see, in float32; the intervals are over "
        "these images. An image that is wrong without an attack counts as wrong under every attack. "
        + _validation(about),
    ]
    over = about["over_seeds"]
    if over:
        lines += [
            "",
            f"The same row over {_seeds(about['seeds'])}, intervals over seeds and images:",
            "",
        ]
        for entry in over.values():
            fewer = "" if entry["seeds"] == about["seeds"] else f" ({_seeds(entry['seeds'])} only)"
            lines.append(f"- {entry['name']}{fewer}: {words.interval(entry)} %")
    return "\n".join(lines)


def _validation(about: About) -> str:
    return (
        f"On the {about['images']['validation']:,} validation images: {about['validation']['clean']:.1f} % "
        f"clean, {about['validation']['pgd']:.1f} % under PGD."
    )


def _loading(about: About) -> str:
    shape = ", ".join(map(str, about["image_shape"]))
    version = about["made_by"].get("ssat_ray") or "of this project"
    own = ":" in about["model"]["name"]
    text = (
        f"With the package `ssat_ray` {version}, in this folder"
        + (f", and with `{about['model']['name'].partition(':')[0]}` importable" if own else "")
        + f":\n\n```python\nfrom pathlib import Path\n\nimport torch\nfrom ssat_ray.models.files import "
        f'load_classifier\n\nmodel = load_classifier(Path("."))  # in eval mode, frozen\n'
        f"logits = model(torch.rand(2, {shape}))  # images in [0, 1]\n```\n\n"
        f"`{about['name']}.pt` holds the bare state dict. It loads without executing anything:\n\n"
        f'```python\nweights = torch.load("{about["name"]}.pt", weights_only=True)\n'
        "model.load_state_dict(weights, strict=True)\n```"
    )
    elsewhere = robustbench_module(about)
    return text + (f"\n\n{elsewhere}" if elsewhere else "")


def robustbench_module(about: About) -> str:
    """Which module of RobustBench the weights belong into; empty where it has none."""
    model, channels = about["model"], about["image_shape"][0]
    wide = re.fullmatch(r"wrn-(\d+)-(\d+)-(silu|relu)", model["name"])
    narrow = re.fullmatch(r"preact-resnet-18-(silu|relu)", model["name"])
    if not (wide or narrow) or about["image_shape"][1:] != [32, 32]:
        return ""
    found = wide or narrow
    assert found is not None
    activation = {"silu": "SiLU", "relu": "ReLU"}[found.groups()[-1]]
    size = f"depth={found[1]}, width={found[2]}, " if wide else ""
    mean, std = (tuple(v) * (channels if len(v) == 1 else 1) for v in (model["mean"], model["std"]))
    return (
        "RobustBench loads it into "
        f"`{'DMWideResNet' if wide else 'DMPreActResNet'}(num_classes={about['num_classes']}, {size}"
        f"activation_fn=torch.nn.{activation}, mean={mean}, std={std}, num_input_channels={channels})` of "
        "`robustbench.model_zoo.architectures.dm_wide_resnet`."
    )


def _objective(about: About) -> str:
    objective = about["config"]["objective"]
    trades = f"TRADES (beta {objective['beta']:g})"
    return trades if objective["name"] == "trades" else "PGD-AT"


def _training(about: About) -> str:
    training, objective = about["training"], about["config"]["objective"]
    recipe = "" if about["recipe"] == "default" else f", recipe `{about['recipe']}`"
    stop = " It ended at `train.max_steps`, before a plateau." if training["hit_max_steps"] else ""
    averaged = ", averaged over steps," if about["config"]["train"]["ema_decay"] else ""
    return (
        f"{_objective(about)}, {objective['num_steps']} attack steps of {objective['step_size']:g}"
        f"{recipe}, {training['steps']:,} optimisation steps, "
        f"{words.duration(training['seconds'])}; the weights are{averaged} those at step {training['kept_step']:,}.{stop}"
    )


def _settings(about: About) -> str:
    stages = {*about["digests"], *(place.split("/")[0] for place in about["digests"].values())}
    wanted = [s for stage, names in SECTIONS.items() if stage in stages for s in names]
    tree = {section: about["config"][section] for section in wanted}
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=100)


def _digests(about: About) -> list[str]:
    return [f"| {stage} | `{place}` |" for stage, place in about["digests"].items()]


def _made_by(made_by: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {found}" for name, found in made_by["versions"].items())
    return (
        f"Trained with ssat_ray {made_by.get('ssat_ray')}, commit "
        f"{words.short_commit(made_by.get('commit'))}, Python {made_by['python']}, {versions}, on "
        f"{words.machine_name(made_by['machine'])}."
    )


def _set_name(about: About) -> str:
    data = about["config"]["data"]
    return SETS[data["name"]][0] if data["name"] in SETS else str(data["path"])


def _seeds(seeds: list[int]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
