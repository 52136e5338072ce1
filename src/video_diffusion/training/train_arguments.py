"""The arguments of a training, resolved; what starts from a saved pipeline has that one's network."""

from collections.abc import Mapping, Sequence
from typing import Any

from video_diffusion.training.arguments import (
    GROUPS,
    Arguments,
    DataArguments,
    ModelArguments,
    TrainArguments,
    check_data,
    check_frame_noise,
    check_train,
)
from video_diffusion.training.flags import flag_parser, resolve
from video_diffusion.training.pretrained import OF_PARTS, SIZES, architecture, described, named

OF_SAVED = ("mask_probabilities", "caption_dropout", "weighting")  # that a training shares with what it starts from


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Resolves a training: the arguments' defaults, those of a saved pipeline that it starts from (`of_saved`), then
    `--preset NAME`, then `--config FILE.yaml`, then flags.

    Raises:
        ValueError: if a flag or a key is unknown, a value is not allowed, or two do not fit each other.
        OSError: if there is no such pipeline.
    """
    parser = flag_parser("train", "Trains a video diffusion model.", GROUPS)
    model, data, train = resolve(parser, GROUPS, argv, of_saved)
    if model.logsnr_min >= model.logsnr_max:
        raise ValueError(f"`logsnr_min` is {model.logsnr_min}, expected less than `logsnr_max`, {model.logsnr_max}.")
    check_data(data)
    if model.vae is None:
        _check_size(model, data)
    check_frame_noise(train, model.given_frames == "time")
    check_train(train)
    return model, data, train


def of_saved(values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of a training that starts from a saved pipeline: its network, schedule, text encoder, sizes and shares;
    its data, where no other are named.
    """
    if named(values, TrainArguments) is None:
        return {}
    found = described(values, TrainArguments, (*OF_PARTS, *OF_SAVED))
    if values.get("videos") is not None or values.get("dataset_name") is not None:
        found = {key: value for key, value in found.items() if key in (*SIZES, *OF_PARTS, *OF_SAVED)}
    return {**architecture(values, TrainArguments), **found}


def _check_size(model: ModelArguments, data: DataArguments) -> None:
    """Raises ValueError where the network cannot take the frames."""
    factor = model.patch_size * 2 ** (len(model.block_out_channels) - 1)
    for name, edge in zip(("height", "width"), data.height_width, strict=True):
        if edge % factor:
            near = " or ".join(str(n) for n in (edge // factor * factor, (edge // factor + 1) * factor) if n)
            raise ValueError(
                f"`image_size` gives a {name} of {edge}, expected a multiple of {factor}, such as {near}: "
                f"`patch_size` {model.patch_size}, halved between {len(model.block_out_channels)} levels."
            )
