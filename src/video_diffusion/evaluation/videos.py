"""A folder of videos that any system made, as something that is scored."""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from video_diffusion.evaluation.protocols import IMAGE_SIZE, Protocol
from video_diffusion.evaluation.sources import Clips, Source
from video_diffusion.video_io import check_clip, read_video, resize, to_channels, to_uint8

VIDEO_ENDINGS = (".npy", ".npz", ".gif", ".mp4")


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sorts "clip-2" before "clip-10"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def list_videos(folder: Path) -> list[Path]:
    """The video files of a folder, in natural order. Raises a ValueError where they are of several kinds."""
    files = [file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in VIDEO_ENDINGS]
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise ValueError(f"`--model` is the folder {folder} with {' and '.join(kinds)} files, expected one kind.")
    return sorted((file for file in files if not file.name.startswith(".")), key=natural_order)


@lru_cache(maxsize=4)
def read_clips(path: Path) -> list[Clips]:
    """The clips of one file, uint8 `[F, H, W, C]`: one, or as many as an npz array has. Raises ValueError, OSError."""
    if path.suffix.lower() != ".npz":
        return [read_video(path)]
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except Exception as error:  # zipfile, zlib and numpy each have errors of their own for a damaged file
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{path} is not a readable npz file: {error}") from error
    if len(arrays) != 1:
        raise ValueError(f"{path} holds the arrays {sorted(arrays)}, expected one [N, F, H, W] or [N, F, H, W, C].")
    videos = next(iter(arrays.values()))
    if videos.ndim not in (4, 5) or not videos.size:
        raise ValueError(f"{path} holds an array of shape {videos.shape}, expected [N, F, H, W] or [N, F, H, W, C].")
    videos = videos[..., None] if videos.ndim == 4 else videos
    try:
        videos = to_uint8(videos) if videos.dtype.kind == "f" else videos
        return [check_clip(video, str(path)) for video in videos]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class FolderSource(Source):
    """A folder of videos: one file a clip, in the order of the numbers in their names.

    The i-th file (npy, GIF or MP4; or the i-th row of the arrays in npz files) is the i-th clip of the protocol. It
    holds the predicted frames only, or all frames; given frames are then taken from the truth. Several predictions of
    each clip: one subfolder each. Frames are 64×64 or a whole multiple, which is averaged down; uint8, or floats in
    [0, 1] in arrays.

    Args:
        folder: where they are.

    Raises:
        ValueError: where there are no videos, of several kinds, or not equally many in each subfolder.
    """

    image_size = IMAGE_SIZE

    def __init__(self, folder: Path) -> None:
        direct = list_videos(folder)
        subfolders = sorted((path for path in folder.iterdir() if path.is_dir()), key=natural_order)
        found = [files for files in ([direct] if direct else map(list_videos, subfolders)) if files]
        if not found:
            raise ValueError(
                f"`--model` is the folder {folder}, expected one with a model_index.json, or with videos "
                f"({', '.join(VIDEO_ENDINGS)}), or with subfolders of videos."
            )
        self.rows = [[(file, i) for file in files for i in range(self._count(file))] for files in found]
        if len({len(rows) for rows in self.rows}) > 1:
            raise ValueError(
                f"{folder} has subfolders with {[len(rows) for rows in self.rows]} videos, expected equal."
            )
        digest = hashlib.sha256()
        for file in (file for files in found for file in files):
            digest.update(f"{file.relative_to(folder)}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
        self.identity = {"kind": "videos", "name": str(folder), "revision": None, "sha256": digest.hexdigest()}
        self.settings = {"files": found[0][0].suffix.lower()}

    @staticmethod
    def _count(file: Path) -> int:
        return len(read_clips(file)) if file.suffix.lower() == ".npz" else 1

    @property
    def num_videos(self) -> int:
        """How many clips there are."""
        return len(self.rows[0])

    @property
    def num_samples(self) -> int:
        """How many predictions of each."""
        return len(self.rows)

    def check(self, protocol: Protocol, num_videos: int, num_samples: int, lengths: Sequence[int]) -> None:
        """Raises a ValueError where there are too few videos or samples."""
        for name, asked, there in (
            ("num-videos", num_videos, self.num_videos),
            ("num-samples", num_samples, self.num_samples),
        ):
            if asked > there:
                raise ValueError(
                    f"`--{name}` is {asked}, expected at most the {there} that {self.identity['name']} has."
                )

    def clips(
        self, indices: Sequence[int], given: Clips, num_samples: int, lengths: Sequence[int]
    ) -> dict[int, Clips]:
        """As `Source.clips`. Raises a ValueError where a video has other frames than the protocol's."""
        return {
            length: np.stack(
                [
                    np.stack([self._clip(*self.rows[s][i], first, length) for s in range(num_samples)])
                    for i, first in zip(indices, given, strict=True)
                ]
            )
            for length in lengths
        }

    def _clip(self, file: Path, row: int, given: Clips, length: int) -> Clips:
        """One clip uint8 `[F, H, W, 1]` of F = `length` frames, the true given frames in front."""
        clip, k, size = read_clips(file)[row], len(given), self.image_size
        height, width = clip.shape[1:3]
        if height != width or height % size:
            raise ValueError(f"{file} has frames of {width}×{height}, expected {size}×{size} or a multiple.")
        if k == 0 and len(clip) >= length:
            clip = clip[:length]
        elif len(clip) not in (length, length - k):
            wanted = f"{length - k} (predicted) or {length} (all)" if k else f"at least {length}"
            raise ValueError(f"{file} has {len(clip)} frames, expected {wanted}.")
        predicted = to_channels(resize(clip, size, size), 1)[len(clip) - (length - k) :]
        return np.concatenate([given, predicted])
