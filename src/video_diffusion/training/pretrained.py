"""A saved pipeline that a run starts from: what it was trained on, and its parts, checked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.hub.finding import RECORD, find_base, find_folder, is_adapter
from video_diffusion.training.arguments import DataArguments
from video_diffusion.training.fields import declared

ARGUMENT = "pretrained_model_name_or_path"
NETWORK = (
    *("patch_size", "block_out_channels", "layers_per_block", "attention_head_dim", "norm_num_groups"),
    *("temporal_shift", "spatial_attention", "temporal_attention", "transformer_layers", "attention_pattern"),
    "cross_attention_every",
)
BY_LEVEL = ("layers_per_block", "spatial_attention", "temporal_attention")
SCHEDULE = ("schedule", "logsnr_min", "logsnr_max", "shift", "prediction_type", "gamma")
SIZES = ("num_frames", "image_size", "num_channels")
SHARES = ("mask_probabilities", "caption_dropout", "weighting")  # of the tasks, and of the noise levels
OF_PARTS = ("vae", "text_encoder", "train_text_encoder", "max_text_length")  # what reads text and makes latents
NOT_SHARED = ("num_images", "dataloader_num_workers", "video_cache", "video_cache_dir", "text_cache", "text_cache_dir")


def described(values: Mapping[str, Any], group: type, shared: tuple[str, ...]) -> dict[str, Any]:
    """What a saved pipeline says of its training, as defaults for a run that starts from it.

    Args:
        values: the run's arguments as far as they are given; they may name the pipeline.
        group: the run's arguments; its default names the pipeline otherwise.
        shared: arguments beside those of the data that the run shall have in common with the pipeline's training.

    Raises:
        ValueError: if the name is no text.
        OSError: if there is no such pipeline, or an adapter without its base.
    """
    folder, base = _folders(values, group)
    config = _read(base / "unet" / "config.json")
    sizes = {"num_frames": "num_frames", "image_size": "sample_size", "num_channels": "out_channels"}
    found = {ours: config[theirs] for ours, theirs in sizes.items() if isinstance(config.get(theirs), int | list)}
    if _read(base / "model_index.json").get("vae", [None])[0] is not None:
        found = {}  # they are those of latents
    record: dict[str, Any] = {}
    for place in (base, folder):  # an adapter's record says nothing of the text encoder
        record |= _read(place / RECORD) if (place / RECORD).is_file() else {}
    keys = [*declared([DataArguments]), *shared]
    return found | {key: record[key] for key in keys if key in record and key not in NOT_SHARED}


def without_data(values: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What `described` found, without the data where the arguments name their own; the sizes stay."""
    if values.get("videos") is None and values.get("dataset_name") is None:
        return found
    of_data = {*declared([DataArguments])} - {*SIZES}
    return {key: value for key, value in found.items() if key not in of_data}


def architecture(values: Mapping[str, Any], group: type) -> dict[str, Any]:
    """The network and the schedule of a saved pipeline, as arguments of a training; see `described`."""
    _, base = _folders(values, group)
    config = _read(base / "unet" / "config.json")
    found = {key: config[key] for key in NETWORK if config.get(key) is not None}
    for key in BY_LEVEL:
        found[key] = [int(value) for value in (found[key] if isinstance(found[key], list) else [found[key]])]
    found["given_frames"] = "time" if config.get("frame_timesteps") else "channels"
    schedule = _read(base / "scheduler" / "scheduler_config.json")
    return found | {key: schedule[key] for key in SCHEDULE if key in schedule}


def named(values: Mapping[str, Any], group: type) -> Any:
    """The name of the pipeline that the arguments give, or the group's default; ValueError if it is no text."""
    known = declared([group])[ARGUMENT]
    return known.metadata["check"].value(known.name, values.get(known.name, known.default))


def _folders(values: Mapping[str, Any], group: type) -> tuple[Path, Path]:
    """The folder of the pipeline that the arguments name, and, where that is an adapter, its base's; else it again."""
    folder = base = find_folder(VideoDiffusionPipeline, named(values, group), {})
    while is_adapter(base):
        base = find_base(base)
    return folder, base


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def open_pipeline(name: str) -> VideoDiffusionPipeline:
    """A saved pipeline, for a run that starts from it.

    Raises:
        ValueError: if its parts are not those that a training makes.
        OSError: if there is no such pipeline.
    """
    pipe = VideoDiffusionPipeline.from_pretrained(find_folder(VideoDiffusionPipeline, name, {}))
    own = {"unet": VideoUNet3DConditionModel, "scheduler": VPContinuousScheduler}
    for part, cls in own.items():
        found = type(getattr(pipe, part)).__name__
        if found != cls.__name__:
            raise ValueError(f"`{ARGUMENT}` is {name!r}, whose {part} is a {found}, expected a {cls.__name__}.")
    if pipe.vae is not None:
        raise ValueError(f"`{ARGUMENT}` is {name!r}, which has a `vae`, expected a model of pixels.")
    pipe.set_progress_bar_config(disable=True)
    return pipe
