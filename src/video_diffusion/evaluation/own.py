"""The protocol `videos`: a folder of one's own, its videos cut as those were that the model was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from video_diffusion.data.videos import load_videos
from video_diffusion.evaluation.protocols import Protocol
from video_diffusion.evaluation.published import FolderClips, PublishedProtocol
from video_diffusion.metrics.i3d import MIN_FRAMES

if TYPE_CHECKING:
    from video_diffusion.model.autoencoding import FrameGrid

NAME = "videos"
SPLIT = "validation"
SMALL = 64  # pixels along an edge; LPIPS looks at smaller frames enlarged


class OwnClips(FolderClips):
    """The clips of a split of a folder, one of each video that is long enough.

    Args:
        folder: with videos; see `open_videos`.
        split: of it.
        num_frames: F.
        image_size: H = W, in pixels.
        cut: further keywords of `load_videos`.

    Raises:
        ValueError: as `load_videos`.
    """

    def __init__(self, folder: Path, split: str, num_frames: int, image_size: int, cut: Mapping[str, Any]) -> None:
        self.videos = load_videos(folder, split, num_frames=num_frames, image_size=image_size, **cut)
        self.videos.on_bad_video = "fail"  # which clips are compared is not left to chance
        self.order = np.arange(len(self.videos))
        self.num_files = len(self.videos)
        self.channels = self.videos.shape.num_channels or 1
        self.description = f"the split {split}: {self.videos.description}"


@dataclass(frozen=True)
class OwnProtocol(PublishedProtocol):
    """A protocol that is nobody else's: no run departs from it, and no numbers of others stand beside it."""

    def departures(self, num_videos: int, num_samples: int, image_size: int, lengths: Sequence[int]) -> list[str]:
        """As `Protocol.departures`: none."""
        return []


def usual_given(num_frames: int, grid: "FrameGrid") -> int:
    """How many of F frames are given where nobody says: about half of them, in whole frames of the latents."""
    whole = [grid.start(place) for place in range(1, num_frames + 1) if grid.start(place) < num_frames]
    return min(whole, key=lambda given: abs(2 * given - num_frames), default=0)


def own_protocol(
    folder: str | Path,
    split: str,
    num_given: int,
    num_frames: int,
    image_size: int,
    cut: Mapping[str, Any] | None = None,
) -> Protocol:
    """The protocol on the videos of a folder: their first F frames, of which the first k are given.

    Args:
        folder: with videos in any layout that training reads.
        split: of it.
        num_given: k, from 1 to F − 1.
        num_frames: F.
        image_size: H = W, in pixels.
        cut: how the videos become clips, keywords of `load_videos`; None: its defaults.

    Returns:
        PSNR, SSIM, LPIPS and MSE of one prediction of each video that is long enough; FVD where there are two of
        them or more, of nine frames or more.

    Raises:
        ValueError: where k does not fit, there is no such folder, or as `load_videos`.
    """
    if not 0 < num_given < num_frames:
        raise ValueError(f"`--given` is {num_given}, expected 1 to {num_frames - 1} of the {num_frames} frames.")
    if not Path(folder).exists():
        raise ValueError(f"`--data` is {str(folder)!r}, which is not there: expected a folder of videos.")
    clips = OwnClips(Path(folder), split, num_frames, image_size, cut or {})
    lpips = "lpips" if image_size >= SMALL else "lpips_128"
    fvd = num_frames >= MIN_FRAMES and clips.num_files > 1
    text = f"Own videos, {num_given} given and {num_frames - num_given} predicted frames of {image_size}×{image_size}"
    return OwnProtocol(
        name=NAME,
        text=f"{text}; PSNR, SSIM, LPIPS and MSE of one prediction" + ("; FVD of the whole clips." if fvd else "."),
        variant=NAME,
        num_given=num_given,
        lengths=(num_frames,),
        num_videos=clips.num_files,
        metrics=("psnr", "ssim", lpips, "mse"),
        fvd=fvd,
        channels=clips.channels,
        files=clips.num_files,
        clips=clips,
    )


def cut_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """How a training cut its videos, from its `run.json`, as keywords of `load_videos`."""
    names = {"fps": "fps", "frame_stride": "frame_stride", "crop": "crop"}
    names |= {"video_background": "background", "video_axes": "video_axes", "video_column": "column"}
    return {ours: run[theirs] for theirs, ours in names.items() if theirs in run}
