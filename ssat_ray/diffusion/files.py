"""DDPMs as diffusers pipeline folders: model_index.json, unet/ and scheduler/, or both at the top."""

from __future__ import annotations

import hashlib
import inspect
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ssat_ray.data.folder import file_digest
from ssat_ray.errors import UserError
from ssat_ray.places import Place, local_folder

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")
"""Whose configurations hold a DDPM's noise schedule."""
PLAIN: dict[str, Any] = {"low_cpu_mem_usage": False}
"""How a U-Net is read: without accelerate, which diffusers would otherwise tell everybody to install."""
_PATTERNS = ["*.json", "*.safetensors", "*.bin"]


def pipeline_files(unet: UNet2DModel, scheduler: DDPMScheduler) -> dict[str, bytes]:
    """The files of the folder: path within it -> content; the same for the same model, wherever it came from."""
    import diffusers

    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", type(unet).__name__],
    }
    with tempfile.TemporaryDirectory() as scratch:
        unet.save_pretrained(Path(scratch) / "unet")
        scheduler.save_pretrained(Path(scratch) / "scheduler")
        files = {
            str(p.relative_to(scratch)): _without_origin(p)
            if p.suffix == ".json"
            else p.read_bytes()
            for p in Path(scratch).rglob("*")
            if p.is_file()
        }
    return {**files, "model_index.json": json.dumps(index, indent=1).encode()}


def _without_origin(path: Path) -> bytes:
    """A configuration without the folder that its model was once loaded from, which diffusers notes."""
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    return json.dumps(config, indent=2, sort_keys=True).encode()


def load_ddpm(folder: Place) -> tuple[UNet2DModel, DDPMScheduler]:
    """The frozen U-Net (eval mode, channels-last) and the scheduler of a folder of ours."""
    from diffusers import DDPMScheduler, UNet2DModel

    local = local_folder(folder)
    unet = UNet2DModel.from_pretrained(local / "unet", **PLAIN).eval()
    unet = unet.requires_grad_(False).to(memory_format=torch.channels_last)
    return unet, DDPMScheduler.from_pretrained(local / "scheduler")


def find_pipeline(location: str) -> Path:
    """The folder of a pipeline: `location` itself, or where the hub's repository of this id is downloaded to.

    Raises:
        UserError: there is no such folder and the hub cannot be read.
    """
    if Path(location).is_dir():
        return Path(location)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(location, allow_patterns=_PATTERNS))
    except Exception as error:  # the hub's own types, and those of whatever library it calls
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"pretrain.checkpoint: {location} is no folder, and the hub did not give it: {reason}"
        ) from error


def pipeline_digest(folder: Path) -> str:
    """SHA-256 over names and contents of the configurations and weights that `load_pipeline` may read.

    Raises:
        UserError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    for part in dict.fromkeys(_parts(folder)):
        for path in sorted(p for pattern in _PATTERNS for p in part.glob(pattern)):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(file_digest(path).encode())
    return digest.hexdigest()


def _parts(folder: Path) -> tuple[Path, Path]:
    """Where the U-Net and the scheduler are: the first DDPMs of the hub have both at the top."""
    split = (folder / "unet").is_dir()
    return (folder / "unet", folder / "scheduler") if split else (folder, folder)


def load_pipeline(folder: Path) -> tuple[UNet2DModel, DDPMScheduler]:
    """The U-Net and the scheduler of anybody's folder; nothing in it is executed.

    Raises:
        UserError: it is no pipeline with a UNet2DModel, or its weights do not fit.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    unet, scheduler = _parts(folder)
    try:
        kind = json.loads((unet / "config.json").read_text()).get("_class_name")
        if kind != "UNet2DModel":
            raise UserError(f"{folder}: its model is {kind}; only UNet2DModel can be guided.")
        if not (scheduler / "scheduler_config.json").is_file():
            raise UserError(f"{folder} is no diffusers pipeline: it has no scheduler_config.json.")
        schedule = json.loads((scheduler / "scheduler_config.json").read_text()).get("_class_name")
        if schedule not in SCHEDULERS:
            raise UserError(
                f"{folder}: its scheduler is {schedule}, which is no DDPM's: {', '.join(SCHEDULERS)} are."
            )
        # without its own unpickler: diffusers reads .bin files with weights_only
        model, loaded = UNet2DModel.from_pretrained(unet, output_loading_info=True, **PLAIN)
        _check_keys(folder, loaded)
        return model, _own_settings(DDPMScheduler.from_pretrained(scheduler))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is no diffusers pipeline: it has neither unet/config.json nor config.json."
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} cannot be loaded as a diffusers pipeline: {reason}") from error


def _own_settings(scheduler: DDPMScheduler) -> DDPMScheduler:
    """Without those of the sampler that the folder was saved with, such as `use_karras_sigmas`: diffusers keeps them
    in the configuration, and a sampler that is built from it would take them up again."""
    from diffusers import DDPMScheduler

    known = inspect.signature(DDPMScheduler).parameters
    return DDPMScheduler(**{k: v for k, v in scheduler.config.items() if k in known})


def _check_keys(folder: Path, loaded: dict[str, list[str]]) -> None:
    """UserError unless every weight came from the file: diffusers would leave the others random."""
    for what, why in (("missing", "lack"), ("unexpected", "have besides")):
        keys = sorted(loaded[f"{what}_keys"])
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(
                f"{folder}: its weights are not those of its config.json: they {why} "
                f"{', '.join(keys[:3])}{more}."
            )


def check_ddpm(
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    image_shape: tuple[int, int, int],
    num_classes: int,
    location: str,
) -> None:
    """UserError unless the model makes images like the labelled ones, its output one image."""
    channels, height, width = image_shape
    config = unet.config
    size = config["sample_size"]
    if (size if isinstance(size, list | tuple) else [size, size]) != [height, width]:
        raise UserError(
            f"pretrain.checkpoint: {location} makes images of {size} pixels, the labelled ones are "
            f"{height} x {width}."
        )
    if config["in_channels"] != channels:
        raise UserError(
            f"pretrain.checkpoint: {location} makes images of {config['in_channels']} channels, the "
            f"labelled ones have {channels}."
        )
    learned = str(scheduler.config.get("variance_type", "")).startswith("learned")
    if config["out_channels"] != channels or learned:
        raise UserError(
            f"pretrain.checkpoint: {location} predicts its variance too (learned variance), which "
            "guidance does not support."
        )
    kind = scheduler.config["prediction_type"]
    if kind not in PREDICTION_TYPES:
        raise UserError(
            f"pretrain.checkpoint: {location} has prediction_type {kind!r}; one of "
            f"{', '.join(PREDICTION_TYPES)} is supported."
        )
    if kind == "epsilon" and float(scheduler.alphas_cumprod[-1]) == 0:
        raise UserError(
            f"pretrain.checkpoint: {location} predicts epsilon and its last timestep has no signal "
            "(rescale_betas_zero_snr), so no image follows from its output there."
        )
    if config.get("class_embed_type") is not None:
        raise UserError(
            f"pretrain.checkpoint: {location} has class_embed_type={config['class_embed_type']!r}; only "
            "an embedding a class (num_class_embeds) or none is supported."
        )
    classes = config["num_class_embeds"]
    if classes is not None and classes != num_classes:
        raise UserError(
            f"pretrain.checkpoint: {location} is conditioned on {classes} classes, the labelled set "
            f"has {num_classes}."
        )
