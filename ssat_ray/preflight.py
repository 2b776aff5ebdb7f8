"""Errors of a configuration that only the data shows, before any work starts."""

from __future__ import annotations

from ssat_ray.config import GUIDED, Config
from ssat_ray.diffusion.quality import MOST_IMAGES, NEIGHBOURS
from ssat_ray.errors import UserError
from ssat_ray.plan import Plan
from ssat_ray.store import Store


def preflight(config: Config, plan: Plan, store: Store) -> None:
    """Raise what is wrong, once the labelled set and a DDPM from elsewhere are in the store.

    Raises:
        UserError: the message names the setting and the mend.
    """
    from ssat_ray.models.registry import build_classifier, check_outputs

    record = store.record(next(job for job in plan.unique if job.stage == "labelled"))
    assert record is not None
    shape = (_, height, width) = tuple(record["image_shape"])
    num_classes = record["num_classes"]
    model = build_classifier(config.model, shape, num_classes, seed=0)
    check_outputs(model, config.model.name, shape, num_classes, config.embed.layer)
    down = 2 ** (len(config.pretrain.channels) - 1)
    trained = config.pool.source == "generate" and config.pretrain.checkpoint is None
    if trained and (height % down or width % down):
        raise UserError(
            f"pretrain.channels has {len(config.pretrain.channels)} levels, so images must be multiples of "
            f"{down} pixels; they are {height} x {width}."
        )
    for job in plan.unique:
        found = store.record(job) if job.stage == "ddpm" else None
        if found is None:
            continue
        which = f"the {found['num_timesteps']} timesteps of {config.pretrain.checkpoint}"
        if misfit := config.generate.misfit(found["num_timesteps"], which):
            raise UserError(f"{misfit}.")
    key, size = config.pool_size()
    k = config.cluster.k or num_classes
    stages = {(row, stage) for row, _, stage in plan.jobs}
    selecting = any((row, "cluster") in stages for row in config.rows if row not in GUIDED)
    if size is not None and k > size and selecting:
        raise UserError(
            f"cluster.k=null means one cluster a class, {k} here, which is larger than the pool "
            f"({key}={size}); raise {key} or set cluster.k."
        )
    guided = [row for row in config.rows if row in GUIDED]
    clustering = [row for row in guided if row != "pcg"]
    base = config.guided_images[0]
    if clustering and k > base:
        raise UserError(
            f"cluster.k=null means one cluster a class, {k} here; {clustering[0]} clusters the "
            f"{base} images of the base model that select.ratio and "
            f"select.boundary_fraction leave of {key}={size}: raise {key} or set cluster.k."
        )
    per_class = config.finetune.k_per_class
    wanted = config.finetune.centroids == "per-class" and "lcg-km" in guided
    seen = min(base, MOST_IMAGES)
    if wanted and seen < per_class * num_classes:
        raise UserError(
            f"finetune.k_per_class={per_class}: {seen} base images (at most {MOST_IMAGES} are looked at) are fewer "
            f"than that for each of {num_classes} classes; lower it, raise {key}, or set finetune.centroids=global."
        )
    real = record["rows"]["labelled"] + record["rows"]["validation"] if guided else 0
    if guided and real <= NEIGHBOURS:
        raise UserError(
            f"rows: {guided[0]} is judged against the labelled and validation images, of which there "
            f"are {real}; it takes more than {NEIGHBOURS}."
        )
