"""Checks of videos before anything is measured: refused with a reason, never corrected in silence."""

from collections.abc import Sequence

import numpy as np
import torch


def check_video(name: str, video: torch.Tensor | np.ndarray, *, min_frames: int = 1) -> torch.Tensor:
    """
    Returns the video as a tensor after checking that a metric may read it.

    Args:
        name: the argument's name, for the error.
        video: `[N, F, C, H, W]`, C 1 or 3, floating point, values in [0, 1].
        min_frames: the smallest F allowed.

    Returns:
        The same values as a tensor, on the same device; a numpy array is not copied.

    Raises:
        TypeError: if `video` is no tensor or array, or holds integers.
        ValueError: if the shape, the range or the number of frames is wrong, or a value is NaN.
    """
    if isinstance(video, np.ndarray):
        video = torch.from_numpy(video if video.flags.writeable else video.copy())
    if not isinstance(video, torch.Tensor):
        raise TypeError(f"`{name}` must be a tensor or a numpy array, got {type(video).__name__}")
    if not video.is_floating_point():
        raise TypeError(f"`{name}` must hold floats in [0, 1], got {video.dtype}; divide 8-bit pixels by 255 first")
    if video.ndim != 5 or 0 in video.shape:
        raise ValueError(f"`{name}` must be [N, F, C, H, W] with no empty axis, got shape {tuple(video.shape)}")
    if video.shape[2] not in (1, 3):
        raise ValueError(f"`{name}` must be [N, F, C, H, W] with 1 or 3 channels C, got shape {tuple(video.shape)}")
    if video.shape[1] < min_frames:
        raise ValueError(f"`{name}` has {video.shape[1]} frames, at least {min_frames} are needed")
    low, high = (bound.item() for bound in torch.aminmax(video.detach()))
    if not (low == low and high == high):
        raise ValueError(f"`{name}` holds NaN")
    if low < 0.0 or high > 1.0:
        raise ValueError(
            f"`{name}` must lie in [0, 1], got [{low:.4g}, {high:.4g}]; a video in [-1, 1] becomes (x + 1) / 2"
        )
    return video


def check_pair(
    predictions: torch.Tensor | np.ndarray, references: torch.Tensor | np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Checks two batches that are compared frame by frame; arguments as in `check_video`.

    Raises:
        TypeError: if one of them is no tensor or array, or holds integers.
        ValueError: if the shapes differ or a batch is refused by `check_video`.
    """
    for name, videos in (("predictions", predictions), ("references", references)):
        if not isinstance(videos, np.ndarray | torch.Tensor):
            raise TypeError(f"`{name}` must be a tensor or a numpy array, got {type(videos).__name__}")
    if tuple(predictions.shape) != tuple(references.shape):
        raise ValueError(
            "`predictions` and `references` must have one shape, "
            f"got {tuple(predictions.shape)} and {tuple(references.shape)}"
        )
    predictions = check_video("predictions", predictions)
    return predictions, check_video("references", references).to(predictions.device)


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raises a ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(repr(v) for v in allowed)}, got {value!r}")
