"""Rows, stage order and digests: every artefact that a configuration asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssat_ray.config import GUIDED, Config
from ssat_ray.data.folder import file_digest
from ssat_ray.data.pool import Pool
from ssat_ray.data.published import fingerprint
from ssat_ray.diffusion.files import pipeline_digest
from ssat_ray.stages import (
    checkpoint,
    cluster,
    ddpm,
    evaluate,
    finetune,
    generate,
    intermediate,
    labelled,
    pool,
    pretrain,
    quality,
    report,
    score,
    select,
    synth,
    train,
)
from ssat_ray.stages.base import Stage
from ssat_ray.start import check_inputs
from ssat_ray.store import Job

STAGES: dict[str, Stage] = {
    module.STAGE.name: module.STAGE
    for module in (
        labelled,
        pool,
        checkpoint,
        ddpm,
        intermediate,
        pretrain,
        generate,
        synth,
        cluster,
        score,
        finetune,
        quality,
        select,
        train,
        evaluate,
        report,
    )
}
"""All stages in the order in which the pipeline runs them."""


JUDGE_SEEDS = 1_000_000
"""Added to a run's seed for the classifier that judges its guided images."""


@dataclass(frozen=True)
class Plan:
    """Every artefact that a configuration asks for.

    Args:
        jobs: (row, seed, stage) -> job; evaluate's stage is `evaluate:<attack>`; a pool that was
            appended to has further `pool.1`, `score.1`, ….
        report: the job that needs all others, in a comparison; None where the goal is the selection.
    """

    jobs: dict[tuple[str, int, str], Job]
    report: Job | None

    @property
    def last(self) -> Job:
        """The report's job, of a comparison."""
        assert self.report is not None, "its goal is the selection"
        return self.report

    @property
    def unique(self) -> list[Job]:
        """Every job once, after those it needs."""
        found: dict[str, Job] = {}
        for job in self.jobs.values():
            found |= {j.digest: j for j in job.closure()}
        if self.report is not None:
            found[self.report.digest] = self.report
        return list(found.values())


def build_plan(config: Config) -> Plan:
    """Jobs of every row and seed; equal work has equal digests and is done once.

    Raises:
        UserError: a file that the configuration names is missing or cannot be used.
    """
    check_inputs(config)
    jobs: dict[tuple[str, int, str], Job] = {}
    data = _labelled_job(config)
    adopted = _checkpoint_job(config, data)
    for seed in config.seeds:
        shared = _shared_jobs(config, seed, data, adopted)
        for row in config.rows:
            for stage, job in _row_jobs(config, row, seed, shared).items():
                jobs[row, seed, stage] = job
    if config.goal == "selection":
        return Plan(jobs, None)
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


def _labelled_job(config: Config) -> Job:
    """Another file under the same name is another labelled set."""
    params = {"sha256": fingerprint(config.data)} if config.data.path else {}
    return _job("labelled", params, _part(config, "data"), {})


def _checkpoint_job(config: Config, data: Job) -> Job | None:
    """The intermediate model of every seed, if a file has it."""
    path = config.intermediate.checkpoint
    if path is None:
        return None
    params = {"sha256": file_digest(Path(path))}
    version, part = STAGES["checkpoint"].version, _part(config, "model")
    return Job("checkpoint", version, params, part, {"labelled": data}, Path(path).name, path)


def _shared_jobs(config: Config, seed: int, data: Job, adopted: Job | None) -> dict[str, Job]:
    """Jobs that several rows of one seed read."""
    of, about = {"seed": seed}, f"seed {seed}"
    part = _part(config, "model", "intermediate", "threat")
    inter = adopted or _job("intermediate", of, part, {"labelled": data}, about)
    shared = {"labelled": data, "intermediate": inter}
    shared |= _pool_jobs(config, seed, shared)
    shared |= _scoring_jobs(config, seed, shared, about)
    for row in config.rows:
        if row in GUIDED:
            shared |= _guided_jobs(config, row, seed, shared)
    return shared


def _scoring_jobs(config: Config, seed: int, shared: dict[str, Job], about: str) -> dict[str, Job]:
    """The jobs that cluster and score the pool among `shared`."""
    of = {"seed": seed}
    data, inter = shared["labelled"], shared["intermediate"]
    found: dict[str, Job] = {}
    pools = _numbered(shared, "pool")
    fields = config.cluster.model_dump(mode="json")
    common = ("k", "sample_rows", "refine_rows", "refine_iterations", "tolerance", "storage")
    only = {"kmeans": ("restarts", "iterations"), "gmm": ("covariance", "pca_dims")}
    reading = {**_part(config, "embed"), "on_bad_shard": config.pool.on_bad_shard}
    scorers: dict[str, dict[str, Job]] = {"confidence": {}}
    for method, keys in only.items():
        part = {**reading, "cluster": {key: fields[key] for key in (*common, *keys)}}
        fitted_on = dict(list(pools.items())[: config.pool.cluster_generations])
        inputs = {"labelled": data, "intermediate": inter, **fitted_on}
        fitted = _job("cluster", {**of, "method": method}, part, inputs, f"{method} {about}")
        found[f"cluster:{method}"] = fitted
        scorers[method] = {"clusters": fitted}
    for scorer, clusters in scorers.items():
        for name, images in pools.items():
            inputs = {"intermediate": inter, "pool": images, **clusters}
            number = name.removeprefix("pool")
            label = f"{scorer} {about}" + (f" generation {number[1:]}" if number else "")
            found[f"score:{scorer}{number}"] = _job(
                "score", {**of, "scorer": scorer}, reading, inputs, label
            )
    return found


def _guided_jobs(config: Config, row: str, seed: int, shared: dict[str, Job]) -> dict[str, Job]:
    """`<row>:<stage>` -> job of what a guided row makes: images of the base model, and guided ones.

    The base images are clustered and scored as a pool of their own: nothing of the comparison's pool is
    used, which need not exist then.
    """
    of, about, data = {"seed": seed}, f"{row} seed {seed}", shared["labelled"]
    num_base, num_guided = config.guided_images
    embed = _part(config, "embed")
    source, labeller = {"labelled": data, "ddpm": shared["pretrain"]}, _labeller(config, shared)
    part = {"generate": _few(config, num_base)}
    base = _job("generate", of, part, {**source, **labeller}, f"base images seed {seed}")
    scorer = score.SCORERS[row]
    guide = _guide(config, seed, {**shared, "pool": base}, scorer, f"seed {seed}")
    guided_by, found = {**of, "guide": row}, {"base": base}
    per_class = row == "lcg-km" and config.finetune.centroids == "per-class"
    if per_class:
        guide_inputs = {"intermediate": guide["intermediate"], "base": base}
    else:
        guide_inputs = guide
        found |= {"score": guide["scores"]}
        found |= {"cluster": guide["clusters"]} if "clusters" in guide else {}
    made = _few(config, num_guided)
    if config.generate.guidance:
        part = {"generate": {**made, "guidance": config.generate.guidance}, **embed}
        part |= {"finetune": {"k_per_class": config.finetune.k_per_class}} if per_class else {}
        params = {**guided_by, "first_id": num_base}
        found["guided"] = _job("generate", params, part, {**source, **guide_inputs}, about)
    else:
        part = {"finetune": _finetuning(config, row), **embed}
        found["finetune"] = _job("finetune", guided_by, part, {**source, **guide_inputs}, about)
        inputs = {"labelled": data, "ddpm": found["finetune"], **labeller}
        params = {**of, "first_id": num_base}
        found["guided"] = _job("generate", params, {"generate": made}, inputs, about)
    seen = {**shared, **_judge(config, seed, data), "pool": base}
    judge = _guide(config, seed + JUDGE_SEEDS, seen, scorer, f"judge of {about}")
    seen_by = {"guide": guide["intermediate"], "judge": judge["intermediate"]}
    if "clusters" in guide:
        seen_by |= {"guide_clusters": guide["clusters"], "judge_clusters": judge["clusters"]}
    inputs = {**source, "base": base, "guided": found["guided"], **seen_by}
    found["quality"] = _job("quality", of, {"generate": made, **embed}, inputs, about)
    return {f"{row}:{name}": job for name, job in found.items()}


def _finetuning(config: Config, row: str) -> dict[str, Any]:
    """The section `finetune` with the row's own lambda in it."""
    section = config.finetune.model_dump(mode="json")
    own = section.pop("pcg_weight")
    return section | ({"weight": own} if row == "pcg" and own is not None else {})


def _guide(
    config: Config, seed: int, shared: dict[str, Job], scorer: str, about: str
) -> dict[str, Job]:
    """What images are judged by: a classifier, its clusters (none for `confidence`) and its scores."""
    scored = _scoring_jobs(config, seed, shared, about)
    found = {"intermediate": shared["intermediate"], "scores": scored[f"score:{scorer}"]}
    return found | ({"clusters": scored[f"cluster:{scorer}"]} if scorer != "confidence" else {})


def _judge(config: Config, seed: int, data: Job) -> dict[str, Job]:
    """A classifier that guidance never sees: trained as the intermediate model, from another seed."""
    part = _part(config, "model", "intermediate", "threat")
    part["intermediate"]["checkpoint"] = None  # which it does not come from
    params, about = {"seed": seed + JUDGE_SEEDS}, f"judge seed {seed}"
    return {"intermediate": _job("intermediate", params, part, {"labelled": data}, about)}


def _pool_jobs(config: Config, seed: int, shared: dict[str, Job]) -> dict[str, Job]:
    """The jobs that yield the pool: `pool` (`pool.1`, … where it was appended to), and what they need."""
    of, about, data = {"seed": seed}, f"seed {seed}", shared["labelled"]
    if config.pool.source == "generate":
        model = _ddpm_job(config, seed, data)
        inputs = {"labelled": data, "ddpm": model, **_labeller(config, shared)}
        return {
            "pretrain": model,
            "pool": _job("generate", of, {"generate": _unguided(config)}, inputs, about),
        }
    if config.pool.source == "synth":
        return {"pool": _job("synth", of, _part(config, "synth"), {"labelled": data}, about)}
    jobs = {}
    for i, generation in enumerate(Pool(str(config.pool.path)).manifest["generations"]):
        job = Job(
            "pool",
            STAGES["pool"].version,
            {"digest": generation["digest"], "generation": i},
            {},
            {"labelled": data},
            f"generation {i}",
            config.pool.path,
        )
        jobs[f"pool.{i}" if i else "pool"] = job
    return jobs


def _labeller(config: Config, shared: dict[str, Job]) -> dict[str, Job]:
    """What generated images are labelled by, but for the classes that were asked for."""
    by_model = config.pool.source == "generate" and config.generate.labels == "intermediate"
    return {"intermediate": shared["intermediate"]} if by_model else {}


def _ddpm_job(config: Config, seed: int, data: Job) -> Job:
    """The DDPM: trained, or taken from where the configuration says."""
    location = config.pretrain.checkpoint
    if location is None:
        part = _part(config, "pretrain")
        del part["pretrain"]["checkpoint"]
        return _job("pretrain", {"seed": seed}, part, {"labelled": data}, f"seed {seed}")
    folder = Path(location)
    params = {"sha256": pipeline_digest(folder)} if folder.is_dir() else {"hub": location}
    return Job(
        "ddpm", STAGES["ddpm"].version, params, {}, {"labelled": data}, folder.name, location
    )


def _unguided(config: Config, **changes: Any) -> dict[str, Any]:
    """The settings by which images are made without guidance."""
    return {**config.generate.model_dump(mode="json"), "guidance": 0.0, **changes}


def _few(config: Config, num_images: int) -> dict[str, Any]:
    """The settings of a guided row's own images: about four shards or more, so that a few actors share them evenly."""
    shard_rows = min(config.generate.shard_rows, -(-num_images // 4))
    return _unguided(config, num_images=num_images, shard_rows=shard_rows)


def _numbered(jobs: dict[str, Job], name: str) -> dict[str, Job]:
    """The jobs `name`, `name.1`, … under these names."""
    return {key: job for key, job in jobs.items() if key == name or key.startswith(f"{name}.")}


def _row_jobs(config: Config, row: str, seed: int, shared: dict[str, Job]) -> dict[str, Job]:
    """stage -> job of one row and seed, only the stages that the row needs."""
    of, about, data = {"seed": seed}, f"{row} seed {seed}", shared["labelled"]
    jobs, pools = {"labelled": data}, _numbered(shared, "pool")
    if row in GUIDED:
        own = {
            name.removeprefix(f"{row}:"): job
            for name, job in shared.items()
            if name.startswith(f"{row}:")
        }
        jobs |= {"pretrain": shared["pretrain"], "intermediate": shared["intermediate"], **own}
        pools = {}
    elif row != "none":
        jobs |= {name: shared[name] for name in ("pretrain",) if name in shared} | pools
        jobs |= _labeller(config, shared)
    unlabelled = {name.replace("pool", "unlabelled"): job for name, job in pools.items()}
    if row in GUIDED:
        unlabelled = {"unlabelled": own["base"], "unlabelled.1": own["guided"]}
    elif row not in ("none", "full"):
        inputs = dict(pools)
        if row in score.SCORERS:
            scorer = score.SCORERS[row]
            scored = {
                name.replace(f"score:{scorer}", "score"): job
                for name, job in _numbered(shared, f"score:{scorer}").items()
            }
            jobs |= {"intermediate": shared["intermediate"], **scored}
            if scorer != "confidence":
                jobs["cluster"] = shared[f"cluster:{scorer}"]
            inputs |= scored
        part = {**_part(config, "select"), "on_bad_shard": config.pool.on_bad_shard}
        if row == "random":
            del part["select"]["boundary_fraction"]  # it ranks nothing
        jobs["select"] = _job("select", {**of, "method": row}, part, inputs, about)
        unlabelled = {"unlabelled": jobs["select"]}
    if config.goal == "selection":
        return jobs
    jobs["train"] = _train_job(config, row, seed, data, unlabelled)
    full = ["autoattack"] if seed in config.evaluate.autoattack_seeds else []
    for attack in [*config.evaluate.attacks, *full]:
        inputs = {"labelled": data, "classifier": jobs["train"]}
        settings = _attack_settings(config, attack)
        jobs[f"evaluate:{attack}"] = _job(
            "evaluate", {"attack": attack}, settings, inputs, f"{about} {attack}"
        )
    return jobs


def _train_job(config: Config, row: str, seed: int, data: Job, unlabelled: dict[str, Job]) -> Job:
    part, about = _part(config, "model", "objective", "threat"), f"{row} seed {seed}"
    if not unlabelled or config.objective.pool_weight == 1:
        del part["objective"]["pool_weight"]  # it weighs nothing
    if row == "full":  # it reads the pool itself
        part["on_bad_shard"] = config.pool.on_bad_shard

    def one(recipe: str, inputs: dict[str, Job], about: str, **params: Any) -> Job:
        settings = {**part, "train": config.train.recipe(recipe).model_dump(mode="json")}
        return _job("train", {"seed": seed, "recipe": recipe, **params}, settings, inputs, about)

    if row != "none":
        return one("default", {"labelled": data, **unlabelled}, about)
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
    settings |= {**config.threat.model_dump(mode="json"), "seed": options.attack_seed}
    if attack == "pgd":
        settings |= {
            "num_steps": options.pgd_steps,
            "step_size": options.pgd_step_size,
            "restarts": options.pgd_restarts,
        }
    elif attack == "apgd-ce":
        settings["num_steps"] = options.apgd_steps
    return settings
