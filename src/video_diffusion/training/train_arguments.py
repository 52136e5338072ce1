"""The arguments of a training, resolved; what starts from a saved pipeline has that one's network."""

from collections.abc import Mapping, Sequence
from typing import Any

from video_diffusion.training.arguments import (
    GROUPS,
    Arguments,
    TrainArguments,
    check_data,
    check_frame_noise,
    check_multiple,
    check_train,
)
from video_diffusion.training.flags import flag_parser, resolve
from video_diffusion.training.pretrained import OF_PARTS, SHARES, architecture, described, named, without_data


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
        levels = len(model.block_out_channels)
        halved = f"`patch_size` {model.patch_size}, halved between {levels} levels"
        check_multiple(data, model.patch_size * 2 ** (levels - 1), halved)
    check_frame_noise(train, model.given_frames == "time")
    check_train(train)
    return model, data, train


def of_saved(values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of a training that starts from a saved pipeline: its network, schedule, text encoder, sizes and shares;
    its data, where no other are named.
    """
    if named(values, TrainArguments) is None:
        return {}
    found = without_data(values, described(values, TrainArguments, (*OF_PARTS, *SHARES)))
    return {**architecture(values, TrainArguments), **found}
