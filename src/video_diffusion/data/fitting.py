"""Frames at a size that is asked for: resized to cover it, and cut. Training and prediction do it alike."""

from collections.abc import Sequence

import numpy as np

from video_diffusion.data.frames import Video
from video_diffusion.data.video_io import Clip, check_clip, resize

CROPS = ("center", "random", "none")


def covering_size(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
    """The smallest size of the same shape that covers `to_height` × `to_width`, up to rounding."""
    scale = max(to_height / height, to_width / width)
    return max(to_height, round(height * scale)), max(to_width, round(width * scale))


def cut(frames: Clip, height: int, width: int, y: float = 0.5, x: float = 0.5) -> Clip:
    """`[F, height, width, C]` out of larger frames, where y and x in [0, 1] say: 0 is the top or left."""
    top, left = (
        min(int(share * (spare + 1)), spare)
        for share, spare in ((y, frames.shape[1] - height), (x, frames.shape[2] - width))
    )
    return frames[:, top : top + height, left : left + width]


def fit(clip: Clip, height: int, width: int) -> Clip:
    """A clip at another size: resized to cover it, and what is too much is cut off evenly.

    Args:
        clip: uint8 `[F, H, W, C]`.
        height: pixels.
        width: likewise.

    Raises:
        ValueError: where it is no clip.
    """
    _, from_height, from_width, _ = check_clip(clip).shape
    covering = covering_size(from_height, from_width, height, width)
    return np.ascontiguousarray(cut(resize(clip, *covering), height, width))


def read_fitted(video: Video, indices: Sequence[int] | None, height: int, width: int) -> Clip:
    """Frames of a video as `fit` makes them; each is resized as it is read. All else as in `Video.read`."""
    frames = video.read(indices, covering_size(video.height, video.width, height, width))
    return np.ascontiguousarray(cut(frames, height, width))
