"""Protocols on published data sets that a user has on the disk: KTH and BAIR (docs/protocols.md)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from video_diffusion.data import bair, kth
from video_diffusion.data.bair import bair_root, open_bair
from video_diffusion.data.clips import ClipShape, VideoClips
from video_diffusion.data.kth import KTHVideos, is_kth
from video_diffusion.evaluation.protocols import DATA_SEED, IMAGE_SIZE, Protocol, known_of

MAGVIT = "as MAGVIT (Yu et al. 2023, arXiv 2212.05199, tables 2 and 3) has them, not measured here"
PHENAKI = "as Phenaki (Villegas et al. 2022, arXiv 2210.02399, table 5) has them, not measured here"
GRID = (
    "as the leaderboard of OpenCodePapers quotes Gao et al. (2021, arXiv 2107.13170), not measured here; the size of "
    "the frames, the test clips and the choice among samples are not said there"
)


class FolderClips:
    """Clips of videos that lie in a folder.

    Attributes:
        videos: those with at least F frames.
        order: in which clips are taken, rows of `videos`.
        num_files: test videos there.
        description: which clips these are, to tell another folder from it.
    """

    videos: VideoClips
    order: NDArray[np.int64]
    num_files: int
    description: str

    def clips(self, indices: Sequence[int], image_size: int, last: bool) -> NDArray[np.uint8]:
        """`[n, F, H, W, C]`: the first F frames of the i-th video or, `last`, the last F of the i-th from the end."""
        videos = copy.copy(self.videos)
        videos.shape = replace(videos.shape, height=image_size, width=image_size)
        places = np.asarray(indices)
        return videos.ends(self.order[-1 - places] if last else self.order[places], last)


class PublishedClips(FolderClips):
    """The test clips of a data set in a folder.

    Args:
        name: "KTH" or "BAIR".
        folder: with the published layout.
        num_frames: F.
        channels: C.

    Raises:
        ValueError: where the folder is not there, has another layout, or a video that cannot be read.
    """

    def __init__(self, name: str, folder: Path, num_frames: int, channels: int) -> None:
        is_layout, open_test, layout = {
            "KTH": (is_kth, KTHVideos, kth.LAYOUT),
            "BAIR": (bair_root, open_bair, bair.LAYOUT),
        }[name]
        if not folder.is_dir() or not is_layout(folder):
            there = "a folder without them" if folder.is_dir() else "no folder"
            raise ValueError(f"`--data` is {str(folder)!r}, {there}: expected {name} with {layout}.")
        shape = ClipShape(num_frames, IMAGE_SIZE, IMAGE_SIZE, channels, crop="none")
        self.videos = VideoClips(open_test(folder, "test"), shape)
        unreadable = [reason for kind, reason in self.videos.left_out if kind == "unreadable"]
        if unreadable:
            raise ValueError(f"{len(unreadable)} test videos in {folder} cannot be read: {unreadable[0]}")
        self.videos.on_bad_video = "fail"
        order = np.arange(len(self.videos))
        self.order = np.random.default_rng(DATA_SEED).permutation(order) if name == "KTH" else order
        self.num_files = len(self.videos.stored) if name == "KTH" else len(self.videos)
        self.description = f"{name}: {self.videos.description}"


@dataclass(frozen=True)
class PublishedProtocol(Protocol):
    """A protocol on data that lie in a folder; `on` gives the one to run.

    Args:
        channels: C of the clips.
        files: test videos that the published data set has.
        clips: the test clips, once a folder is named.
    """

    channels: int = 1
    files: int = 0
    clips: FolderClips | None = field(default=None, repr=False, compare=False)

    def on(self, folder: str | Path) -> "PublishedProtocol":
        """The protocol on the data in a folder. Raises ValueError, naming the layout, where they are not there."""
        clips = PublishedClips(self.variant, Path(folder), max(self.lengths), self.channels)
        return replace(self, clips=clips)

    @property
    def _there(self) -> FolderClips:
        if self.clips is None:
            raise ValueError(f"the protocol {self.name} needs a folder: PUBLISHED[{self.name!r}].on(folder).")
        return self.clips

    @property
    def available(self) -> int | None:
        """Clips that the folder has."""
        return len(self._there.order)

    @property
    def settings(self) -> dict[str, Any]:
        """What tells the data in a folder from others."""
        return {"data": self._there.description}

    def truth(self, indices: Sequence[int], image_size: int) -> NDArray[np.uint8]:
        """As `Protocol.truth`: the first frames of each test video, `[n, F, H, W, C]`."""
        return self._there.clips(indices, image_size, last=False)

    def real(self, indices: Sequence[int], image_size: int) -> NDArray[np.uint8]:
        """As `Protocol.real`: the last frames of the same videos in reversed order, `[n, F, H, W, C]`."""
        return self._there.clips(indices, image_size, last=True)

    def departures(self, num_videos: int, num_samples: int, image_size: int, lengths: Sequence[int]) -> list[str]:
        """As `Protocol.departures`."""
        found = super().departures(num_videos, num_samples, image_size, lengths)
        there = self._there.num_files
        what = f"{there} test videos in the folder; {self.variant} has {self.files}"
        return found if there == self.files else [*found, what]


PUBLISHED = {
    protocol.name: protocol
    for protocol in (
        PublishedProtocol(
            name="kth",
            text="KTH actions, persons 17 to 25, 10 given and 40 predicted frames, grey, 64×64; PSNR, SSIM and LPIPS, "
            "best of 10 predictions; FVD of 10 + 40 frames.",
            variant="KTH",
            num_given=10,
            lengths=(50,),
            num_videos=256,
            num_samples=10,
            metrics=("psnr", "ssim", "lpips", "mse"),
            headline="best_of_samples",
            files=216,
            known=(
                *known_of(f"Grid keypoints; {GRID}", fvd__50="144.2", psnr="27.11", ssim=".837", lpips=".092"),
                *known_of(f"SVG-LP; {GRID}", fvd__50="157.9", psnr="23.91", ssim=".800", lpips=".129"),
            ),
        ),
        PublishedProtocol(
            name="bair",
            text="BAIR robot pushing, the test split, 1 given and 15 predicted frames, RGB, 64×64; PSNR, SSIM and "
            "LPIPS, best of 10 predictions; FVD of 1 + 15 frames.",
            variant="BAIR",
            num_given=1,
            lengths=(16,),
            num_videos=256,
            num_samples=10,
            metrics=("psnr", "ssim", "lpips", "mse"),
            headline="best_of_samples",
            channels=3,
            files=256,
            known=(
                *known_of(f"MAGVIT-L; {MAGVIT}", fvd__16="62", psnr="19.3", ssim=".787", lpips=".123"),
                *known_of(f"MCVD; {MAGVIT}", fvd__16="90", psnr="16.9", ssim=".780"),
                *known_of(f"RaMViD; {PHENAKI}", fvd__16="84.2"),
                *known_of(f"VideoGPT; {PHENAKI}", fvd__16="103.3"),
            ),
        ),
    )
}
