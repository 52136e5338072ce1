"""A saved pipeline that a run starts from: what it was trained on, and its parts, checked."""

import json
from collections.abc import Mapping
from typing import Any

from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.hub.finding import find_base, find_folder, is_adapter
from video_diffusion.training.arguments import DataArguments
from video_diffusion.training.checkpoints import RECORD
from video_diffusion.training.fields import declared

ARGUMENT = "pretrained_model_name_or_path"
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
    known = declared([group])[ARGUMENT]
    name = known.metadata["check"].value(known.name, values.get(known.name, known.default))
    folder = find_folder(VideoDiffusionPipeline, name, {})
    base = folder
    while is_adapter(base):
        base = find_base(base)
    config = json.loads((base / "unet" / "config.json").read_text(encoding="utf-8"))
    sizes = {"num_frames": "num_frames", "image_size": "sample_size", "num_channels": "out_channels"}
    found = {ours: config[theirs] for ours, theirs in sizes.items() if isinstance(config.get(theirs), int | list)}
    if (folder / RECORD).is_file():
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        keys = [*declared([DataArguments]), *shared]
        found |= {key: record[key] for key in keys if key in record and key not in NOT_SHARED}
    return found


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
