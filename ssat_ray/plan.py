"""Rows, stage order and digests: every artefact that a configuration asks for."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssat_ray.config import Config, load_config
from ssat_ray.errors import UserError
from ssat_ray.stages import (
    cluster,
    evaluate,
    generate,
    intermediate,
    labelled,
    pretrain,
    report,
    score,
    select,
    train,
)
from ssat_ray.stages.base import Stage
from ssat_ray.store import Job, canonical_json

STAGES: dict[str, Stage] = {
    module.STAGE.name: module.STAGE
    for module in (
        labelled,
        intermediate,
        pretrain,
        generate,
        cluster,
        score,
        select,
        train,
        evaluate,
        report,
    )
}
"""All stages in the order in which the pipeline runs them."""


@dataclass(frozen=True)
class Plan:
    """Every artefact that a configuration asks for.

    Args:
        jobs: (row, seed, stage) -> job; evaluate's stage is `evaluate:<attack>`.
        report: the job that needs all others.
    """

    jobs: dict[tuple[str, int, str], Job]
    report: Job

    @property
    def unique(self) -> list[Job]:
        return list(self.report.closure())


def build_plan(config: Config) -> Plan:
    """Jobs of every row and seed; equal work has equal digests and is done once."""
    jobs: dict[tuple[str, int, str], Job] = {}
    for seed in config.seeds:
        shared = _shared_jobs(config, seed)
        for row in config.rows:
            for stage, job in _row_jobs(config, row, seed, shared).items():
                jobs[row, seed, stage] = job
    tree = config.model_dump(mode="json", exclude={"runtime"})
    inputs = {f"{row}/{seed}/{stage}": job for (row, seed, stage), job in jobs.items()}
    return Plan(jobs, _job("report", {}, tree, inputs))


def _job(
    stage: str,
    params: dict[str, Any],
    config: dict[str, Any],
    inputs: dict[str, Job],
    about: str = "",
) -> Job:
    return Job(stage, STAGES[stage].version, params, config, inputs, about)


def _part(config: Config, *sections: str) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    return {section: tree[section] for section in sections}


def _shared_jobs(config: Config, seed: int) -> dict[str, Job]:
    """Jobs that several rows of one seed read."""
    of, about = {"seed": seed}, f"seed {seed}"
    data = _job("labelled", {}, _part(config, "data"), {})
    if config.data.path:  # another file under the same name is another labelled set
        if not Path(config.data.path).is_file():
            raise UserError(f"data.path: {config.data.path} does not exist.")
        digest = hashlib.sha256(Path(config.data.path).read_bytes()).hexdigest()
        data = _job("labelled", {"sha256": digest}, _part(config, "data"), {})
    inter = _job(
        "intermediate",
        of,
        _part(config, "model", "intermediate", "threat"),
        {"labelled": data},
        about,
    )
    ddpm = _job("pretrain", of, _part(config, "pretrain"), {"labelled": data}, about)
    pool = _job("generate", of, _part(config, "generate"), {"labelled": data, "ddpm": ddpm}, about)
    embedded = {"labelled": data, "intermediate": inter, "pool": pool}
    shared = {"labelled": data, "intermediate": inter, "pretrain": ddpm, "generate": pool}
    layer = {"layer": config.cluster.layer}
    scored = {"intermediate": inter, "pool": pool}
    shared["score:confidence"] = _job(
        "score", {**of, "scorer": "confidence"}, layer, scored, f"confidence {about}"
    )
    fields = config.cluster.model_dump(mode="json")
    only = {
        "kmeans": ("k", "layer", "restarts", "iterations"),
        "gmm": ("k", "layer", "covariance", "pca_dims"),
    }
    for method, keys in only.items():
        part = {"cluster": {key: fields[key] for key in keys}}
        fitted = _job("cluster", {**of, "method": method}, part, embedded, f"{method} {about}")
        shared[f"cluster:{method}"] = fitted
        inputs = {**scored, "clusters": fitted}
        shared[f"score:{method}"] = _job(
            "score", {**of, "scorer": method}, layer, inputs, f"{method} {about}"
        )
    return shared


def _row_jobs(config: Config, row: str, seed: int, shared: dict[str, Job]) -> dict[str, Job]:
    """stage -> job of one row and seed, only the stages that the row needs."""
    of, about, data = {"seed": seed}, f"{row} seed {seed}", shared["labelled"]
    jobs = {"labelled": data}
    if row != "none":
        jobs |= {"pretrain": shared["pretrain"], "generate": shared["generate"]}
    pool = shared["generate"]
    if row not in ("none", "full"):
        inputs = {"pool": pool}
        if row in score.SCORERS:
            scorer = score.SCORERS[row]
            jobs |= {"intermediate": shared["intermediate"], "score": shared[f"score:{scorer}"]}
            if scorer != "confidence":
                jobs["cluster"] = shared[f"cluster:{scorer}"]
            inputs["score"] = jobs["score"]
        pool = jobs["select"] = _job(
            "select", {**of, "method": row}, _part(config, "select"), inputs, about
        )
    jobs["train"] = _train_job(config, row, seed, data, pool)
    attacks = ["clean", "pgd", "apgd-ce"] + (
        ["autoattack"] if seed in config.evaluate.autoattack_seeds else []
    )
    for attack in attacks:
        inputs = {"labelled": data, "classifier": jobs["train"]}
        settings = _attack_settings(config, attack)
        jobs[f"evaluate:{attack}"] = _job(
            "evaluate", {"attack": attack}, settings, inputs, f"{about} {attack}"
        )
    return jobs


def _train_job(config: Config, row: str, seed: int, data: Job, pool: Job) -> Job:
    part, about = _part(config, "model", "objective", "threat"), f"{row} seed {seed}"

    def one(recipe: str, inputs: dict[str, Job], about: str, **params: Any) -> Job:
        settings = {**part, "train": config.train.recipe(recipe).model_dump(mode="json")}
        return _job("train", {"seed": seed, "recipe": recipe, **params}, settings, inputs, about)

    if row != "none":
        return one("default", {"labelled": data, "unlabelled": pool}, about)
    if not config.train.none_recipes:
        return one("default", {"labelled": data}, about)
    recipes = {
        name: one(name, {"labelled": data}, f"{about} recipe {name}", search=True)
        for name in ("default", *sorted(config.train.none_recipes))
    }
    return _job("train", {"seed": seed, "recipe": train.BEST}, {}, recipes, about)


def _attack_settings(config: Config, attack: str) -> dict[str, Any]:
    options = config.evaluate
    settings: dict[str, Any] = {"batch_size": options.batch_size}
    if attack == "clean":
        return settings
    settings |= {"eps": config.threat.eps, "seed": options.attack_seed}
    if attack == "pgd":
        settings |= {"num_steps": options.pgd_steps, "step_size": options.pgd_step_size}
    elif attack == "apgd-ce":
        settings["num_steps"] = options.apgd_steps
    return settings


def check_name(name: str) -> str:
    """The run name, if it is a plain file name: `ssat gc` looks for runs one folder deep.

    Raises:
        UserError: it is not.
    """
    if not name.strip() or name.startswith(".") or set(name) & set("/\\"):
        raise UserError(
            f"--name {name!r}: a run name must be a plain file name: not empty, no / or \\, no dot in front."
        )
    return name


def default_name(config: Config) -> str:
    """Run name: the preset's, with 8 hex digits where overrides change a result."""
    own = config.model_dump(mode="json", exclude={"runtime"})
    with contextlib.suppress(UserError):
        if load_config(config.preset).model_dump(mode="json", exclude={"runtime"}) == own:
            return config.preset
    return f"{config.preset}-{hashlib.sha256(canonical_json(own).encode()).hexdigest()[:8]}"
