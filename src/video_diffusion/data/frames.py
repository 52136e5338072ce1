"""Frames of a video that are read when they are asked for, and the bounds on what is unpacked."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from video_diffusion.data.video_io import Clip, drop_equal_channels, resize, to_channels

Frame = NDArray[np.uint8]
BACKGROUNDS = {"black": 0, "white": 255}


@dataclass(frozen=True)
class ReadLimits:
    """The largest video that is unpacked; a small file can claim to be a very large one.

    Args:
        frames: of a video, as often as they are shown.
        edge: pixels along an edge of a frame.
        frame_pixels: of one frame.
        pixels: of all frames that are held at once, at the size they are asked for.
    """

    frames: int = 1_000_000
    edge: int = 16_384
    frame_pixels: int = 2**26
    pixels: int = 2**30

    def check_frame(self, name: str, height: int, width: int) -> None:
        """Raises ValueError where a frame is too large."""
        if height < 1 or width < 1:
            raise ValueError(f"{name} has {width}×{height} pixels, expected at least one.")
        if max(height, width) > self.edge:
            raise ValueError(f"{name} has {width}×{height} pixels, expected at most {self.edge} along an edge.")
        if height * width > self.frame_pixels:
            raise ValueError(f"{name} has {width}×{height} pixels, expected at most {self.frame_pixels} in a frame.")

    def check_count(self, name: str, frames: int) -> None:
        """Raises ValueError where there are too many frames."""
        if frames > self.frames:
            raise ValueError(f"{name} has more than {self.frames} frames, expected at most as many.")

    def check_clip(self, name: str, frames: int, height: int, width: int) -> None:
        """Raises ValueError where frames that are to be held at once have too many pixels."""
        if frames * height * width > self.pixels:
            raise ValueError(
                f"{name} has {frames} frames of {width}×{height} pixels, expected at most {self.pixels} pixels in "
                "all. Ask for fewer frames or a smaller size."
            )


LIMITS = ReadLimits()


class Video(ABC):
    """A video; its frames are read when they are asked for.

    Args:
        name: of the file, for messages.
        num_frames: frames, as often as they are shown.
        height: of a frame, pixels.
        width: likewise.
        times: when each frame is shown, seconds, `[num_frames]`, ascending; None where the file does not say.
    """

    name: str
    num_frames: int
    height: int
    width: int
    times: NDArray[np.float64] | None = None

    @abstractmethod
    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The frames of these numbers, one by one.

        Args:
            indices: 0 … `num_frames` − 1, in ascending order; a number may be repeated.

        Yields:
            uint8 `[H, W, C]`, C = 1 (grey) or 3 (RGB).

        Raises:
            ValueError: where a frame cannot be read, naming the file.
        """

    def read(
        self,
        indices: Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
        limits: ReadLimits = LIMITS,
    ) -> Clip:
        """Reads frames into one array. One frame at a time is held at its full size.

        Args:
            indices: as in `frames`; None: all.
            size: height and width to which each frame is resized as it is read; None: as it is.
            limits: what is refused.

        Returns:
            uint8 `[F, H, W, C]`; C = 1 where all of these frames are grey.

        Raises:
            ValueError: where a frame cannot be read, frames have several sizes, or a limit is passed.
        """
        indices = range(self.num_frames) if indices is None else indices
        limits.check_clip(self.name, len(indices), *(size or (self.height, self.width)))
        kept = []
        for frame in self.frames(indices):
            if frame.shape[:2] != (self.height, self.width):
                sizes = sorted({(self.height, self.width), frame.shape[:2]})
                raise ValueError(f"{self.name} has frames of sizes {sizes}, expected one size for all.")
            frame = frame if size is None else resize(frame[None], *size)[0]
            kept.append(drop_equal_channels(frame[None]))
        if not kept:
            raise ValueError(f"{self.name} holds no frames, expected at least one.")
        channels = max(frame.shape[-1] for frame in kept)
        return np.concatenate([to_channels(frame, channels) for frame in kept])


class Excerpt(Video):
    """Consecutive frames of another video.

    Args:
        video: the whole.
        start: the first frame, 0 … `video.num_frames` − 1.
        stop: the frame after the last; one beyond the end is the end.
        name: for messages.
    """

    def __init__(self, video: Video, start: int, stop: int, name: str) -> None:
        self.video, self.start, self.name = video, start, name
        self.height, self.width = video.height, video.width
        self.num_frames = min(stop, video.num_frames) - start
        if video.times is not None:
            self.times = video.times[start : start + self.num_frames] - video.times[start]

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """See `Video.frames`."""
        yield from self.video.frames([self.start + index for index in indices])


def check_background(background: str) -> None:
    """Raises ValueError where it is not a name in `BACKGROUNDS`."""
    if background not in BACKGROUNDS:
        raise ValueError(f"`background` is {background!r}, expected one of {', '.join(BACKGROUNDS)}.")


def on_background(rgba: NDArray[np.uint8], background: str) -> Frame:
    """A frame `[H, W, 4]` with transparency, laid over a plain background: `[H, W, 3]`."""
    under = Image.new("RGBA", (rgba.shape[1], rgba.shape[0]), (BACKGROUNDS[background],) * 3 + (255,))
    return np.asarray(Image.alpha_composite(under, Image.fromarray(rgba)).convert("RGB"))


def natural_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sorts "clip-2" before "clip-10"."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)], path.name
