"""What the actors share that embed pool images: the model, the clusters and the pools, loaded once."""

from __future__ import annotations

import torch

from ssat_ray.config import EmbedConfig
from ssat_ray.models.embedding import Embedder
from ssat_ray.models.files import load_classifier
from ssat_ray.runtime import exact_on_gpu
from ssat_ray.selection.clusters import Clusters, load_clusters
from ssat_ray.stages.base import Task
from ssat_ray.stages.parts import PartActor
from ssat_ray.stages.shards import Pools


class EmbeddingActor(PartActor):
    """Base of the actors whose jobs read `intermediate` and one or more pools."""

    unit = "images"
    on_gpu = True

    def embedder(self, task: Task) -> Embedder:
        """The intermediate model, on a GPU where the actor has one."""
        config, folder = EmbedConfig(**task.job.config["embed"]), task.inputs["intermediate"]
        device = "cuda" if torch.cuda.is_available() else "cpu"

        def make() -> Embedder:
            exact_on_gpu()
            model = load_classifier(folder).to(device)
            return Embedder(model, config.layer, config.precision, device)

        embedder: Embedder = self.cached((folder, config), make)
        return embedder

    def pools(self, task: Task) -> Pools:
        pools: Pools = self.cached(task.folder, lambda: Pools(task))
        return pools

    def clusters(self, task: Task) -> Clusters | None:
        """The clusters of the job, None if it has none."""
        if "clusters" not in task.inputs:
            return None
        folder = task.inputs["clusters"]
        clusters: Clusters = self.cached(folder, lambda: load_clusters(folder))
        return clusters
