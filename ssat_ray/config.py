"""The whole configuration as one tree: typed, bounded, documented (loading.py reads it)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ssat_ray.addresses import without_password
from ssat_ray.mistakes import moved, nearest

Row = Literal[
    "none",
    "random",
    "pcs",
    "lcs-km",
    "lcs-gmm",
    "gmm-ll",
    "easy",
    "pcg",
    "lcg-km",
    "lcg-gmm",
    "full",
]
ROWS: tuple[Row, ...] = get_args(Row)
"""In the order of the method's tables."""
GuidedRow = Literal["pcg", "lcg-km", "lcg-gmm"]
GUIDED: tuple[GuidedRow, ...] = get_args(GuidedRow)
"""Rows whose images are made for them by a guided DDPM, not selected from the pool."""
TimestepWeight = Literal["uniform", "alpha-bar", "cut-off", "min-snr"]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
RESERVED_RECIPES = {
    "default": "the section itself",
    "best-of-recipes": "the choice among all recipes",
}


class Section(BaseModel):
    """A branch of the tree: frozen, unknown keys are errors, types are strict.

    An integer may stand for a float and, where a field says `strict=False`, a list for a tuple;
    nothing else is converted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class DataConfig(Section):
    """The labelled set and how it is split. The split is fixed by `split_seed`, not by the run's seeds."""

    name: Literal["digits", "npz", "cifar10", "cifar100", "svhn", "tiny-imagenet", "folder"] = (
        "digits"
    )
    path: str | None = Field(
        None,
        description="npz with `image` (N,H,W[,C]) and `label` (N,), or the folder of a published set",
    )
    verify: bool = Field(True, description="refuse files that are not the published ones (MD5)")
    size: tuple[Positive, Positive] | None = Field(
        None,
        strict=False,
        description="folder: height and width to resize to; null: all have one size",
    )
    channels: Literal[1, 3] | None = Field(
        None, description="folder: 1 grey, 3 colour; null: as in the first image"
    )
    num_test: Positive | None = Field(
        797, description="images that only `evaluate` sees; null: the set's own test images"
    )
    num_labelled: Positive | None = Field(
        300, description="labelled training images; null: all but the others"
    )
    num_validation: Positive = Field(700, description="images for the stopping rule only")
    split_seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _path_unless_digits(self) -> DataConfig:
        if self.name != "digits" and not self.path:
            raise ValueError(
                f"data.name={self.name} needs data.path, the file or folder to read "
                "(--set data.path=PATH)"
            )
        if self.name == "digits" and self.path:
            raise ValueError(f"data.path={self.path} needs a data.name other than digits")
        if self.num_test is None and self.name in ("digits", "npz"):
            raise ValueError(
                f"data.num_test=null: data.name={self.name} has no test images of its own"
            )
        return self


ARCHITECTURES = (
    r"preact-small|wrn-\d+-\d+(-silu|-relu)|preact-resnet-18(-silu|-relu)|resnet(18|34|50|101|152)"
)
MODEL_NAMES = (
    "preact-small",
    *(f"wrn-28-10-{activation}" for activation in ("silu", "relu")),
    *(f"preact-resnet-18-{activation}" for activation in ("silu", "relu")),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
)
"""One name of each kind, for messages."""


class ModelConfig(Section):
    """The classifier: one of ours by name, or `package.module:factory` for your own."""

    name: str = Field(
        "preact-small",
        description="preact-small, wrn-28-10-silu, preact-resnet-18-relu, resnet18 or alike, or an "
        "import path",
    )
    widths: tuple[Positive, ...] = Field(
        (32, 64, 128), min_length=1, strict=False, description="preact-small: channels by group"
    )
    strides: tuple[Positive, ...] = Field(
        (1, 2, 2), strict=False, description="preact-small: stride of each group's first block"
    )
    blocks: Positive = Field(1, description="preact-small: residual blocks in a group")
    mean: tuple[float, ...] = Field(
        (0.5,), min_length=1, strict=False, description="of the input: one number, or one a channel"
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5,), min_length=1, strict=False, description="of the input, likewise"
    )

    @field_validator("name")
    @classmethod
    def _a_model_has_this_name(cls, name: str) -> str:
        if not re.fullmatch(rf"{ARCHITECTURES}|[\w.]+:\w+", name):
            raise ValueError(
                f"model.name={name!r}: there is no such model{nearest(name, list(MODEL_NAMES))}; the names "
                f"are {', '.join(MODEL_NAMES)} (WRN-depth-width in any size), or package.module:factory"
            )
        return name

    @model_validator(mode="after")
    def _one_stride_a_width(self) -> ModelConfig:
        if len(self.widths) != len(self.strides):
            raise ValueError(
                f"model.strides has {len(self.strides)} entries, model.widths {len(self.widths)}"
            )
        return self


class ThreatConfig(Section):
    """The perturbation that training and evaluation allow."""

    norm: Literal["linf", "l2"] = "linf"
    eps: float = Field(0.15, gt=0, description="radius, in units of the [0, 1] image scale")

    @model_validator(mode="after")
    def _some_pixel_stays(self) -> ThreatConfig:
        if self.norm == "linf" and self.eps >= 1:
            raise ValueError(
                f"threat.eps={self.eps}: with threat.norm=linf it must be less than 1, the image scale"
            )
        return self


class ObjectiveConfig(Section):
    """The adversarial training objective and its inner attack (method: TRADES, PGD-AT)."""

    name: Literal["trades", "pgd-at"] = "trades"
    beta: float = Field(5.0, ge=0, description="weight of the TRADES KL term")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    pool_weight: float = Field(
        1.0, gt=0, description="weight of a pool image in the loss; a labelled one's is 1"
    )
    num_steps: Positive = Field(10, description="steps of the training attack")
    step_size: float = Field(0.03, gt=0, description="step of the training attack, image scale")


class OptimiserConfig(Section):
    """What every gradient descent here shares."""

    batch_size: Positive = Field(128, description="images a step over all workers")
    bn_group: Positive = Field(
        64, description="images whose BatchNorm statistics are one; divides batch_size"
    )
    lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    warmup_steps: int = Field(20, ge=0)
    ema_decay: float = Field(0.99, ge=0, lt=1)
    augment_shift: int = Field(1, ge=0, description="random translation, pixels each way")
    augment_flip: bool = Field(False, description="mirror every other image, left to right")
    precision: Literal["float32", "bf16"] = "bf16"


class IntermediateConfig(OptimiserConfig):
    """The model whose latent space is clustered: standard training on the labelled set."""

    num_steps: Positive = 200
    checkpoint: str | None = Field(
        None,
        description="file of a trained model (`model.*` says which) to use instead of training",
    )


class TrainConfig(OptimiserConfig):
    """SSAT: constant rate with weight averaging to a plateau and a cool-down, or a published recipe's length."""

    unsup_fraction: float = Field(0.5, ge=0, lt=1, description="share of a batch from the pool")
    window_mib: float = Field(
        4096.0,
        gt=0,
        description="pool images that a worker holds and shuffles together, in MiB; a larger pool is "
        "streamed in windows of as many, its shards shuffled",
    )
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix's Beta(alpha, alpha); 0: none")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = Field(True, description="Nesterov's momentum, where momentum is above 0")
    schedule: Literal["plateau", "onecycle", "cosine", "multistep"] = Field(
        "plateau",
        description="plateau ends by validation, the others after num_steps or num_epochs",
    )
    num_steps: Positive | None = Field(None, description="length of a schedule with an end")
    num_epochs: Positive | None = Field(
        None, description="the same in epochs of ceil(labelled images / batch_size) steps"
    )
    pct_start: Fraction = Field(0.025, description="onecycle: share of the run in which it rises")
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.75, 0.9), strict=False, description="multistep: shares of the run; each divides it by 10"
    )
    keep: Literal["best", "last"] | None = Field(
        None, description="which averaged model; null: last with plateau, else best by validation"
    )
    max_steps: Positive = Field(
        2000, description="plateau: steps before the cool-down at the latest"
    )
    eval_every: Positive = Field(40, description="steps between validations")
    val_pgd_steps: Positive = Field(10, description="steps of PGD in a validation")
    patience: Positive = Field(
        4, description="plateau: evaluations without a rise that make a plateau"
    )
    delta: float = Field(0.5, ge=0, description="plateau: rise that counts, in points of accuracy")
    cooldown_fraction: Fraction = Field(
        0.25, description="plateau: cool-down steps / steps run so far"
    )
    none_recipes: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="further recipes for the row `none`, which keeps its best by validation: "
        "name -> overrides of this section",
    )

    @property
    def pool_rows(self) -> int:
        """Rows of a batch that come from the pool, where there is one."""
        return round(self.batch_size * self.unsup_fraction)

    @model_validator(mode="after")
    def _both_kinds_are_in_a_batch(self) -> TrainConfig:
        if self.pool_rows == self.batch_size or (self.pool_rows == 0 < self.unsup_fraction):
            kind = "pool" if self.pool_rows == 0 else "labelled"
            raise ValueError(
                f"train.unsup_fraction={self.unsup_fraction} of train.batch_size={self.batch_size} leaves no "
                f"{kind} image in a batch"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        given = [k for k in ("num_steps", "num_epochs") if getattr(self, k) is not None]
        if self.schedule == "plateau" and given:
            raise ValueError(
                f"train.{given[0]}={getattr(self, given[0])} goes with train.schedule=onecycle, cosine "
                "or multistep; train.schedule=plateau ends by itself, at train.max_steps at the latest"
            )
        if self.schedule != "plateau" and len(given) != 1:
            raise ValueError(
                f"train.schedule={self.schedule} needs a length: set one of train.num_steps and "
                f"train.num_epochs{' and not both' if given else ''}"
            )
        return self

    @model_validator(mode="after")
    def _recipes_are_valid(self) -> TrainConfig:
        for name in self.none_recipes:
            if name in RESERVED_RECIPES:
                raise ValueError(
                    f"train.none_recipes.{name}: this name is taken by {RESERVED_RECIPES[name]}; "
                    "choose another"
                )
            try:
                self.recipe(name)
            except ValidationError as error:
                raise moved(error, ("none_recipes", name)) from error
        return self

    def recipe(self, name: str) -> TrainConfig:
        """This section with the overrides of the named recipe (`default`: none)."""
        values = self.model_dump() | {"none_recipes": {}}
        if name != "default":
            overrides = self.none_recipes[name]
            allowed = [key for key in values if key != "none_recipes"]
            unknown = sorted(set(overrides) - set(allowed))
            if unknown:
                raise ValueError(
                    f"train.none_recipes.{name}: unknown key {unknown[0]!r}"
                    + nearest(unknown[0], allowed)
                )
            values |= overrides
        return TrainConfig(**values)


class DenoiserConfig(Section):
    """What every training of a DDPM shares."""

    num_steps: Positive = 1000
    batch_size: Positive = 64
    lr: float = Field(2e-3, gt=0)
    warmup_steps: int = Field(50, ge=0)
    ema_decay: float = Field(0.995, ge=0, lt=1)
    augment_shift: int = Field(0, ge=0, description="random translation, pixels each way")
    precision: Literal["float32", "bf16"] = "float32"


class PretrainConfig(DenoiserConfig):
    """The class-conditional DDPM (diffusers UNet2DModel), trained on the labelled images only."""

    channels: tuple[Positive, ...] = Field(
        (32, 64), min_length=1, strict=False, description="U-Net, by level"
    )
    layers_per_block: Positive = 1
    norm_num_groups: Positive = Field(8, description="at most channels / 4: see docs/method.md")
    num_timesteps: Positive = 1000
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"
    checkpoint: str | None = Field(
        None,
        description="diffusers pipeline folder, or hub id, of a trained DDPM to use instead of training",
    )

    @model_validator(mode="after")
    def _groups_fit(self) -> PretrainConfig:
        for width in self.channels:
            if width % self.norm_num_groups or self.norm_num_groups * 4 > width:
                raise ValueError(
                    f"pretrain.norm_num_groups={self.norm_num_groups} must divide every entry of "
                    f"pretrain.channels and be at most a quarter of it (found {width}): with one "
                    "channel a group the time and class embeddings cancel"
                )
        return self


class FinetuneConfig(DenoiserConfig):
    """Guided fine-tuning of the DDPM for the rows `pcg`, `lcg-km` and `lcg-gmm`.

    The loss is L_DDPM + weight * guidance / (the base images' median score) + anchor * L2.
    """

    num_steps: Positive = 300
    lr: float = Field(2e-4, gt=0)
    warmup_steps: int = Field(20, ge=0)
    ema_decay: float = Field(0.98, ge=0, lt=1)
    weight: float = Field(0.2, ge=0, description="lambda, of the guidance; 0: plain fine-tuning")
    pcg_weight: float | None = Field(
        None, ge=0, description="lambda of the row `pcg`, whose score is flat; null: weight"
    )
    weight_warmup_steps: int = Field(50, ge=0, description="steps in which the weight rises from 0")
    timestep_weight: TimestepWeight = Field(
        "min-snr", description="how much the guidance of a noisy image counts"
    )
    cut_off: float = Field(
        0.5, gt=0, lt=1, description="cut-off: least share of the signal that counts"
    )
    anchor: float = Field(
        0.0, ge=0, description="weight of the squared distance to the base model's output"
    )
    centroids: Literal["global", "per-class"] = Field(
        "global",
        description="of `lcg-km`: those of `cluster`, or `k_per_class` of each class's logits",
    )
    k_per_class: int = Field(
        5,
        ge=2,
        description="centroids a class on the base images' logits, with per-class centroids",
    )


class PoolConfig(Section):
    """Where the unlabelled images come from, and what happens to shards that cannot be read."""

    source: Literal["generate", "synth", "external"] = Field(
        "generate", description="the DDPM, distorted labelled images, or a pool that exists"
    )
    path: str | None = Field(
        None, description="folder or URI of a pool (`ssat pool import`), with source=external"
    )
    cluster_generations: Positive = Field(
        1, description="generations of an appended pool that the clusters are fitted on"
    )
    on_bad_shard: Literal["fail", "quarantine"] = Field(
        "fail", description="quarantine: leave the shard out and say so"
    )

    @field_validator("path")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        return without_password(uri)

    @model_validator(mode="after")
    def _path_with_external(self) -> PoolConfig:
        if self.source == "external" and self.path is None:
            raise ValueError(
                "pool.source=external needs pool.path, the folder or URI of a pool that "
                "`ssat pool import` has made (--set pool.path=PATH)"
            )
        if self.source != "external" and self.path is not None:
            raise ValueError(
                f"pool.path={self.path} goes with pool.source=external; found pool.source={self.source}"
            )
        return self


class SynthConfig(Section):
    """A pool of distorted labelled images, of any size: every image is a function of (seed, id)."""

    num_images: Positive = 10_000
    shard_rows: int | None = Field(
        None, ge=1, description="images a shard; null: 64 MiB, at most 262,144"
    )
    rotation: float = Field(10.0, ge=0, le=90, description="largest angle either way, degrees")
    translation: float = Field(0.5, ge=0, description="largest shift either way, pixels")
    scale: float = Field(0.08, ge=0, lt=1, description="largest change of size, a share")
    shear: float = Field(0.08, ge=0, description="largest shear either way, pixels a row")
    mix: float = Field(0.35, ge=0, le=0.5, description="largest weight of a second image")
    other_class: Fraction = Field(0.1, description="share whose second image is of any class")
    contrast: float = Field(0.15, ge=0, le=1, description="largest change either way, a share")
    brightness: float = Field(10.0, ge=0, description="largest change either way, grey levels")
    noise: float = Field(8.0, ge=0, description="standard deviation, grey levels")
    offset: float = Field(0.0, description="grey levels added to all: a shifted distribution")
    invert: bool = Field(False, description="dark for bright: a shifted distribution")
    blur: int = Field(0, ge=0, description="3x3 blurs of the base images: a shifted distribution")


class GenerateConfig(Section):
    """Sampling the pool from the DDPM."""

    num_images: Positive = 10_000
    sampler: Literal["dpmsolver++", "ddim", "ancestral"] = Field(
        "dpmsolver++",
        description="ancestral: the DDPM's own, for as many steps as it has timesteps",
    )
    num_inference_steps: Positive = 20
    guidance: float = Field(
        0.0,
        ge=0,
        description="guided rows: weight of the score's gradient at sampling; above 0 they sample the "
        "base model and nothing is fine-tuned",
    )
    labels: Literal["condition", "intermediate"] = Field(
        "condition",
        description="the class asked for (an unconditional model's images have none), or the most probable "
        "one of the intermediate model",
    )
    shard_rows: Positive = Field(1_000, description="images a Parquet shard")
    batch_size: Positive = Field(1_000, description="most images sampled at once, of one shard")
    precision: Literal["float32", "bf16"] = "float32"

    def misfit(self, timesteps: int, which: str) -> str | None:
        """What is wrong with the number of steps for a DDPM of so many timesteps, called `which`."""
        steps = self.num_inference_steps
        if steps > timesteps:
            return f"generate.num_inference_steps={steps} must be at most {which}"
        if self.sampler == "ddim" and timesteps % steps:  # diffusers steps by the rounded quotient
            return f"generate.num_inference_steps={steps} must divide {which} for ddim"
        return None


class EmbedConfig(Section):
    """How the intermediate model turns an image into a point, for `cluster` and `score`."""

    layer: Literal["pooled", "logits", "unpooled"] = "pooled"
    precision: Literal["float32", "bf16"] = "float32"


class ClusterConfig(Section):
    """Clusters of the pool's embeddings: a start on a sample, then exact refinement on many more."""

    k: int | None = Field(None, ge=2, le=10_000, description="clusters; null: number of classes")
    sample_rows: Positive = Field(100_000, description="images the start is fitted on")
    restarts: Positive = Field(20, description="k-means++ starts on the sample")
    iterations: Positive = Field(50, description="most Lloyd iterations of a start")
    refine_rows: int | None = Field(
        None, ge=1, description="images of the refinement; null: the whole pool"
    )
    refine_iterations: int = Field(100, ge=0, description="most refinements over these images")
    tolerance: float = Field(
        1e-5, ge=0, description="relative fall of the inertia, or nats a point, that ends it"
    )
    storage: Literal["float32", "float16"] = Field("float32", description="of the embeddings")
    covariance: Literal["diag", "tied", "full"] = "diag"
    pca_dims: int | None = Field(None, ge=1, description="PCA before the mixture; null: none")

    @model_validator(mode="after")
    def _the_sample_suffices(self) -> ClusterConfig:
        if self.k is not None and self.k > self.sample_rows:
            raise ValueError(
                f"cluster.k={self.k} is larger than cluster.sample_rows={self.sample_rows}"
            )
        if self.refine_rows is not None and self.refine_rows < self.sample_rows:
            raise ValueError(
                f"cluster.refine_rows={self.refine_rows} is smaller than "
                f"cluster.sample_rows={self.sample_rows}: the sample is a part of them"
            )
        return self


class SelectConfig(Section):
    """How many images of the pool are kept, and which share of them by score."""

    ratio: float = Field(0.2, gt=0, le=1, description="selected images / pool images")
    boundary_fraction: Fraction = Field(
        0.4, description="share taken by lowest score, the rest at random"
    )
    per_class: bool = Field(False, description="the same choice within every class")
    dedup: bool = Field(False, description="never choose an image twice: only its lowest id counts")


class EvaluateConfig(Section):
    """Attacks on the whole test set, in float32, at `threat.eps`."""

    attacks: tuple[Literal["clean", "pgd", "apgd-ce"], ...] = Field(
        ("clean", "pgd", "apgd-ce"), strict=False, description="what every classifier undergoes"
    )
    pgd_restarts: Positive = Field(1, description="independent random starts of PGD")
    pgd_steps: Positive = 40
    pgd_step_size: float = Field(0.015, gt=0)
    apgd_steps: Positive = 100
    autoattack_seeds: tuple[int, ...] = Field(
        (), strict=False, description="run seeds that get AutoAttack too"
    )
    attack_seed: int = Field(0, ge=0)
    batch_size: Positive = Field(100, description="images an attack batch; part of the result")

    @model_validator(mode="after")
    def _clean_and_pgd(self) -> EvaluateConfig:
        if len(set(self.attacks)) != len(self.attacks) or not {"clean", "pgd"} <= set(self.attacks):
            raise ValueError(
                f"evaluate.attacks={list(self.attacks)} must have clean and pgd, which rows are "
                "compared by, and no attack twice"
            )
        return self


class RuntimeConfig(Section):
    """Where and with how much; nothing here enters a digest.

    Nothing here changes a result by more than rounding. Workers and actors change no bit on CPUs, as long
    as `exact`, `compile`, `channels_last` and `cpus_per_worker` stay; but `pretrain` and `finetune` sum their
    gradients in float32, in an order that depends on the number of workers.
    """

    store: str = Field("store", description="folder or URI of all artefacts")
    runs: str = Field("runs", description="folder or URI of reports and results")
    address: str | None = Field(None, description="Ray cluster to join; null: start one here")
    num_cpus: int | None = Field(None, ge=1, description="CPUs of a local Ray; null: all")
    max_cpus: Positive | None = Field(
        None, description="CPUs that a cluster's autoscaler may bring it to; null: no more come"
    )
    max_gpus: Positive | None = Field(
        None, description="GPUs that a cluster's autoscaler may bring it to; null: no more come"
    )
    object_store_mib: int = Field(512, ge=80)
    train_workers: Positive | Annotated[tuple[Positive, Positive], Field(strict=False)] = Field(
        2,
        description="DDP workers of each Ray Train group; [min, max]: as many as there is room for",
    )
    cpus_per_worker: Positive = Field(1, description="CPUs, and threads, of each DDP worker")
    gpus_per_worker: Literal[0, 1] = Field(0, description="GPUs of each DDP worker; NCCL with one")
    micro_batch: Positive | None = Field(
        None, description="most images of a forward and backward on a worker; null: all of its part"
    )
    exact: bool | None = Field(
        None, description="a pass a BatchNorm group, gradients summed in float64; null: on CPUs"
    )
    compile: bool | None = Field(None, description="torch.compile the model; null: on GPUs")
    channels_last: bool | None = Field(
        None, description="train on images and weights in channels-last memory; null: yes"
    )
    checkpoints: str | None = Field(
        None, description="folder or URI of training states; null: in the store"
    )
    checkpoint_minutes: float = Field(5.0, ge=0, description="most time between training states")
    checkpoints_kept: Positive = Field(2, description="newest training states that stay")
    max_failures: int = Field(3, ge=-1, description="restarts of a worker group; -1: no limit")
    actors: Positive = Field(2, description="actors of each Ray Data stage, and for clustering")
    read_retries: int = Field(2, ge=0, description="further attempts to read a pool shard")
    gpus_per_actor: float = Field(
        0.0, ge=0, description="GPUs of each actor that samples, embeds or attacks"
    )
    resident_mib: int = Field(
        4096, ge=1, description="embeddings that the clustering actors keep in memory, in total"
    )
    tracking_uri: str | None = Field(None, description="MLflow; null: <store>/mlflow.db")
    log_format: Literal["text", "json"] = Field(
        "text", description="what a command prints: lines for people, or a JSON object each"
    )

    @field_validator("tracking_uri", "checkpoints", "store", "runs")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        return without_password(uri)

    @model_validator(mode="after")
    def _least_first(self) -> RuntimeConfig:
        if self.most_workers < self.least_workers:
            raise ValueError(
                f"runtime.train_workers={list(self.train_workers)}: the least comes first"  # type: ignore[arg-type]
            )
        return self

    @property
    def least_workers(self) -> int:
        return self.train_workers if isinstance(self.train_workers, int) else self.train_workers[0]

    @property
    def most_workers(self) -> int:
        return self.train_workers if isinstance(self.train_workers, int) else self.train_workers[1]


class Config(Section):
    """One comparison: rows x seeds over one labelled set and one pool."""

    preset: str = Field("digits", description="name of the preset this tree came from")
    goal: Literal["comparison", "selection"] = Field(
        "comparison", description="selection: end with the selected images, train nothing on them"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1, strict=False)
    rows: tuple[Row, ...] = Field(
        ("none", "random", "pcs", "lcs-km", "lcs-gmm", "easy", "full"), min_length=1, strict=False
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    threat: ThreatConfig = ThreatConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    intermediate: IntermediateConfig = IntermediateConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    pool: PoolConfig = PoolConfig()
    generate: GenerateConfig = GenerateConfig()
    synth: SynthConfig = SynthConfig()
    embed: EmbedConfig = EmbedConfig()
    cluster: ClusterConfig = ClusterConfig()
    select: SelectConfig = SelectConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for name in ("seeds", "rows"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} has duplicates: {list(values)}")
        if set(self.rows) == {"none"}:
            raise ValueError("rows=['none'] compares nothing: add a row that uses the pool")
        idle = [row for row in self.rows if row in ("none", "full", *GUIDED)]
        if self.goal == "selection" and idle:
            raise ValueError(f"goal=selection selects nothing for the row {idle[0]!r}: take it out")
        guided = [row for row in self.rows if row in GUIDED]
        if guided and self.pool.source != "generate":
            raise ValueError(
                f"rows: {guided[0]} fine-tunes the DDPM that makes the pool; found "
                f"pool.source={self.pool.source}, set pool.source=generate or take the row out"
            )
        stray = [seed for seed in self.evaluate.autoattack_seeds if seed not in self.seeds]
        if stray:
            raise ValueError(
                f"evaluate.autoattack_seeds={list(self.evaluate.autoattack_seeds)} has {stray[0]}, "
                f"which is not in seeds={list(self.seeds)}"
            )
        return self

    @model_validator(mode="after")
    def _the_pool_suffices(self) -> Config:
        key, size = self.pool_size()
        if size is not None:
            self.check_pool(key, size)
        timesteps = self.pretrain.num_timesteps
        misfit = self.generate.misfit(timesteps, f"pretrain.num_timesteps={timesteps}")
        if misfit is not None and self.pretrain.checkpoint is None:
            raise ValueError(misfit)
        return self

    def pool_size(self) -> tuple[str, int | None]:
        """The key that sets the number of pool images, and the number; None if the pool says it."""
        if self.pool.source == "external":
            return "pool.path", None
        key = self.pool.source
        return f"{key}.num_images", getattr(self, key).num_images

    def check_pool(self, key: str, size: int) -> None:
        """ValueError if a pool of `size` images, which `key` says, is too small."""
        k, ratio = self.cluster.k, self.select.ratio
        if k is not None and k > size:
            raise ValueError(f"cluster.k={k} is larger than the pool ({key}={size})")
        if set(self.rows) - {"none", "full"} and round(ratio * size) < 1:
            raise ValueError(f"select.ratio={ratio} of {key}={size} rounds to no image; raise one")
        if set(self.rows) & set(GUIDED):
            base, guided = self.guided_images
            clustering = set(self.rows) & set(GUIDED) - {"pcg"}
            k = k if clustering else None
            if guided < 2:
                raise ValueError(
                    f"select.boundary_fraction={self.select.boundary_fraction} leaves {guided} guided "
                    "images, and it takes 2: raise it or generate.num_images"
                )
            if base < max(2, k or 2):
                raise ValueError(
                    f"select.boundary_fraction={self.select.boundary_fraction} leaves {base} images of the "
                    "base model, which are clustered to guide the others"
                    + (f", fewer than cluster.k={k}" if k else "")
                    + "; lower it or raise generate.num_images"
                )

    @property
    def guided_images(self) -> tuple[int, int]:
        """Images that a guided row has in place of a selection: of the base model, and guided ones."""
        total = round(self.select.ratio * self.generate.num_images)
        guided = round(self.select.boundary_fraction * total)
        return total - guided, guided

    @model_validator(mode="after")
    def _every_worker_has_a_group(self) -> Config:
        sizes = {
            "pretrain": (self.pretrain.batch_size, 1),
            "finetune": (self.finetune.batch_size, 1),
        }
        for name, section in {"intermediate": self.intermediate, "train": self.train}.items():
            sizes[name] = section.batch_size, section.bn_group
        for name in self.train.none_recipes:
            recipe = self.train.recipe(name)
            sizes[f"train.none_recipes.{name}"] = recipe.batch_size, recipe.bn_group
        workers = self.runtime.most_workers
        for key, (size, group) in sizes.items():
            stated = f"{key}.batch_size={size}" + (f", {key}.bn_group={group}" if group > 1 else "")
            if size % group:
                raise ValueError(f"{stated}: a batch is made of whole BatchNorm groups")
            if size // group < workers:
                raise ValueError(
                    f"{stated}: too few for runtime.train_workers={workers}; every worker needs an image"
                    + (", and a whole BatchNorm group" if group > 1 else "")
                )
        return self
