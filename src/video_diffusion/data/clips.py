"""Clips of stored videos: windows of frames at one size, a new one in each epoch from (seed, epoch, video) alone."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from video_diffusion.data.decoded import Decoded, decode_to_disk, decode_to_memory, disk_key
from video_diffusion.data.fitting import CROPS, covering_size, cut
from video_diffusion.data.frames import Frame, Video
from video_diffusion.data.moving_mnist import checked_indices
from video_diffusion.data.stored import StoredVideos, VideoTable
from video_diffusion.data.trajectories import clip_keys, stream_key, uniform
from video_diffusion.data.video_io import Clip, to_channels

T = TypeVar("T")
ON_BAD = ("skip", "fail")
CACHES = ("none", "memory", "disk")
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, fill the unit interval evenly from the first few on
PROBED = 16  # videos whose frames are looked at for colour
GREY = 4  # levels by which red, green and blue may differ in a grey video: compression rounds
_STARTS, _PLACES = 16, 17  # streams of the random numbers
_UNREADABLE, _SHORT, _SLOW = "unreadable", "too short", "too slow"


@dataclass(frozen=True)
class ClipShape:
    """What is taken of a video.

    Args:
        num_frames: F, frames of a clip, ≥ 1.
        height: H, pixels.
        width: W, pixels.
        num_channels: C, 1 or 3: colour becomes luma, grey is repeated; None: as the videos are, if all are alike.
        frame_stride: every so many-th frame, ≥ 1.
        fps: frames a second, the nearest ones by their times; None: by the stride.
        crop: "center" or "random": the frame is resized to cover H×W, and what is too much is cut off; "none": it is
            resized to H×W whatever its shape.
        flip: whether half of the clips that are drawn are mirrored left to right.
    """

    num_frames: int
    height: int
    width: int
    num_channels: int | None = None
    frame_stride: int = 1
    fps: float | None = None
    crop: str = "center"
    flip: bool = False

    def __post_init__(self) -> None:
        for name in ("num_frames", "height", "width", "frame_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, expected at least 1.")
        if self.num_channels not in (None, 1, 3):
            raise ValueError(f"`num_channels` is {self.num_channels}, expected 1, 3 or None.")
        if self.crop not in CROPS:
            raise ValueError(f"`crop` is {self.crop!r}, expected one of {', '.join(CROPS)}.")
        if self.fps is not None and not (self.fps > 0 and self.frame_stride == 1):
            raise ValueError(f"`fps` is {self.fps}, expected a rate above 0, and `frame_stride` 1 beside it.")

    def cover(self, height: int, width: int) -> tuple[int, int]:
        """The size to which a frame is resized before it is cut to H×W."""
        if self.crop == "none":
            return self.height, self.width
        return covering_size(height, width, self.height, self.width)

    def read(self, video: Video, start: int, y: float = 0.5, x: float = 0.5, mirrored: bool = False) -> Clip:
        """The window of a video that begins with frame `start`, cut where y and x say: uint8 `[F, H, W, C]`."""
        return self.place(self.covering(video, self.indices(video, start)), y, x, mirrored)

    def covering(self, video: Video, indices: NDArray[np.int64] | None) -> Clip:
        """Frames of a video, None: all, at the size that covers H×W, with C channels."""
        frames = video.read(None if indices is None else indices.tolist(), self.cover(video.height, video.width))
        return to_channels(frames, self.num_channels or 1)

    def place(self, frames: Clip, y: float, x: float, mirrored: bool) -> Clip:
        """Frames cut to H×W, and mirrored."""
        frames = cut(frames, self.height, self.width, y, x)
        return frames[:, :, ::-1] if mirrored else frames

    def starts(self, video: Video) -> int:
        """How many windows there are in a video; 0 or less: it is too short."""
        if self.fps is None:
            return video.num_frames - (self.num_frames - 1) * self.frame_stride
        if self.num_frames == 1 or video.times is None or video.num_frames == 1:
            return video.num_frames + 1 - self.num_frames
        reach = video.times[-1] * (1 + 0.5 / (video.num_frames - 1))  # half a frame past the last
        return int(np.searchsorted(video.times, reach - (self.num_frames - 1) / self.fps, side="right"))

    def indices(self, video: Video, start: int) -> NDArray[np.int64]:
        """The numbers of the frames of the window that begins with frame `start`, `[F]`."""
        if self.fps is None or self.num_frames == 1:
            return start + self.frame_stride * np.arange(self.num_frames)
        assert video.times is not None
        between = (video.times[1:] + video.times[:-1]) / 2
        return np.searchsorted(between, video.times[start] + np.arange(self.num_frames) / self.fps).astype(np.int64)

    def complaint(self, video: Video) -> tuple[str, str] | None:
        """Why there is no window in a video: of which kind that is, and in words; None where there is one."""
        if self.fps is not None and self.num_frames > 1:
            if video.times is None:
                return _UNREADABLE, f"{video.name} does not say when its frames are shown: `fps` needs that."
            if video.num_frames > 1 and (video.num_frames - 1) / video.times[-1] < 0.99 * self.fps:
                rate = (video.num_frames - 1) / video.times[-1]
                return _SLOW, f"{video.name} shows {rate:.3g} frames a second, expected at least `fps`, {self.fps:g}."
        if self.starts(video) > 0:
            return None
        if self.fps is None:
            span = 1 + (self.num_frames - 1) * self.frame_stride
            by = f" with `frame_stride` {self.frame_stride}" if self.frame_stride > 1 else ""
            return _SHORT, f"{video.name} has {video.num_frames} frames, expected at least {span}{by}."
        last = 0.0 if video.times is None else float(video.times[-1])
        least = (self.num_frames - 1) / self.fps
        return _SHORT, f"{video.name} spans {last:.3g} s, expected at least {least:.3g} s with `fps` {self.fps:g}."


def channels_of(videos: Iterable[Video]) -> int:
    """1 where all of these videos are grey in the frames that are looked at, 3 where none is.

    Raises:
        ValueError: where some are and others are not.
    """
    found: dict[int, list[str]] = {1: [], 3: []}
    for video in videos:
        look = sorted({0, video.num_frames // 2, video.num_frames - 1})
        try:
            frames = video.read(look, (32, 32)).astype(int)
        except (ValueError, OSError):
            continue  # is found again when it is decoded
        found[3 if np.ptp(frames, axis=-1).max() > GREY else 1].append(video.name)
    if found[1] and found[3]:
        raise ValueError(
            f"`num_channels` is not given, but {found[1][0]} is grey and {found[3][0]} is in colour: expected 3 "
            "(grey is repeated) or 1 (colour becomes luma)."
        )
    return 1 if found[1] else 3


class VideoClips:
    """Clips of one shape from videos of any size, rate and length.

    All videos are opened when this is made; one that cannot serve is left out, or refused. One that turns out to be
    damaged when it is read later is replaced by the next one, so that a clip stays a pure function of its numbers.

    Args:
        stored: where the videos are.
        shape: of the clips.
        seed: of windows, crops and mirroring.
        on_bad_video: "skip" leaves out what cannot be read, is too short or too slow; "fail" refuses it.
        cache: "memory" or "disk": whole videos are decoded and resized once, and kept as uint8.
        cache_dir: where "disk" keeps them.

    Attributes:
        shape: as given, `num_channels` resolved.
        videos: what is used.
        places: of each, its number in `stored`.
        notes: what a user should know, each a sentence: videos that were left out, or are enlarged.

    Raises:
        ValueError: where no video serves, one does not and `on_bad_video` is "fail", some videos are grey and others
            in colour and the shape does not say which, or the cache has not enough room.
    """

    def __init__(
        self,
        stored: StoredVideos,
        shape: ClipShape,
        *,
        seed: int = 0,
        on_bad_video: str = "skip",
        cache: str = "none",
        cache_dir: Path | None = None,
    ) -> None:
        for name, value, known in (("on_bad_video", on_bad_video, ON_BAD), ("cache", cache, CACHES)):
            if value not in known:
                raise ValueError(f"`{name}` is {value!r}, expected one of {', '.join(known)}.")
        self.stored, self.seed, self.on_bad_video = stored, seed, on_bad_video
        self.threads = 1 if isinstance(stored, VideoTable) else min(8, os.cpu_count() or 1)
        self.videos: list[Video] = []
        self.places: list[int] = []
        self.left_out: list[tuple[str, str]] = []  # kind and reason
        self.notes: list[str] = []
        self.decoded: Decoded | None = None
        self._open(shape)
        self.shape = replace(shape, num_channels=self._channels(shape.num_channels))
        if cache != "none":
            self._decode(cache, cache_dir)
        self._settle()
        self.starts = np.array([self.shape.starts(video) for video in self.videos])
        self._named: set[int] = set()

    # ---------------------------------------------------------------------------------------------------- at the start
    def _open(self, shape: ClipShape) -> None:
        def opened(place: int) -> list[Video] | Exception:
            try:
                return self.stored.open(place)
            except (ValueError, OSError) as error:
                return error

        for place, found in enumerate(self._each(opened, range(len(self.stored)), "opening")):
            if isinstance(found, Exception):
                self._leave_out(_UNREADABLE, self.stored.name(place), str(found))
                continue
            for video in found:
                complaint = shape.complaint(video)
                if complaint is None:
                    self.videos.append(video)
                    self.places.append(place)
                else:
                    self._leave_out(complaint[0], video.name, complaint[1])
        self._check_left()

    def _channels(self, asked: int | None) -> int:
        """C as asked, or as the videos are. Frames of a few of them are looked at."""
        if asked is not None:
            return asked
        chosen = np.unique(np.linspace(0, len(self.videos) - 1, PROBED).astype(int)).tolist()
        return channels_of([self.videos[i] for i in chosen])

    def _decode(self, cache: str, cache_dir: Path | None) -> None:
        """Decodes all videos, and leaves out those that are damaged."""
        shape, channels = self.shape, self.num_channels
        sizes = [self._kept_size(video) for video in self.videos]
        total = sum(
            video.num_frames * height * width * channels
            for video, (height, width) in zip(self.videos, sizes, strict=True)
        )
        if cache == "memory":
            store = decode_to_memory(total)
        else:
            if cache_dir is None:
                raise ValueError('`cache_dir` is None, expected a folder for `cache` "disk".')
            twins = Counter[int]()  # clips of one array
            keys = []
            for place, size in zip(self.places, sizes, strict=True):
                key = [self.stored.identity(place), twins[place], *size, channels, shape.crop == "random"]
                keys.append(disk_key(key))
                twins[place] += 1
            store = decode_to_disk(cache_dir, keys, total)
        videos, places, kept = self.videos, self.places, []

        def decoded(number: int) -> Any:
            try:
                return store(number, lambda: self._whole(videos[number]))
            except (ValueError, OSError) as error:
                return error

        results = list(self._each(decoded, range(len(videos)), "decoding"))
        self.videos, self.places = [], []
        for video, place, result in zip(videos, places, results, strict=True):
            if isinstance(result, Exception):
                self._leave_out(_UNREADABLE, video.name, str(result))
                continue
            self.videos.append(video)
            self.places.append(place)
            kept.append(result)
        self._check_left()
        self.decoded = Decoded(kept)

    def _each(self, function: Callable[[int], T], numbers: range, what: str) -> Iterable[T]:
        """The results in order, made by threads: FFmpeg works outside of Python's lock."""
        bar: Any = tqdm(total=len(numbers), desc=what, unit="video", leave=False, disable=None)
        with bar, ThreadPoolExecutor(self.threads) as pool:
            for result in pool.map(function, numbers):
                bar.update()
                yield result

    def _leave_out(self, kind: str, name: str, reason: str) -> None:
        said = " ".join(reason.split()).rstrip(".") + "."
        self.left_out.append((kind, said if name in said else f"{name}: {said}"))

    def _check_left(self) -> None:
        if not self.left_out or (self.videos and self.on_bad_video == "skip"):
            return
        few = " ".join(reason for _, reason in self.left_out[:3])
        if len(self.left_out) > 3:
            few += f" And {len(self.left_out) - 3} more."
        if not self.videos:
            raise ValueError(f"no video of {self.stored.where} can be used ({self._kinds()}): {few}")
        raise ValueError(
            f"{self._summary()} cannot be used: {few} Expected none of these with `on_bad_video` fail; skip leaves "
            "them out."
        )

    def _kinds(self) -> str:
        counts = Counter(kind for kind, _ in self.left_out)
        return ", ".join(f"{count} {kind}" for kind, count in counts.items())

    def _summary(self) -> str:
        total = len(self.left_out) + len(self.videos)
        return f"{len(self.left_out)} of {total} videos of {self.stored.where} ({self._kinds()})"

    def _settle(self) -> None:
        """Writes the notes."""
        if self.left_out:
            self.notes.append(f"{self._summary()} are left out:")
            self.notes += [f"  {reason}" for _, reason in self.left_out]
        shape = self.shape
        small = [video for video in self.videos if video.height < shape.height or video.width < shape.width]
        if small:
            first = f"{small[0].name} with {small[0].height}×{small[0].width}"
            self.notes.append(
                f"{len(small)} of {len(self.videos)} videos are enlarged to {shape.height}×{shape.width} pixels "
                f"(height × width), the first of them {first}."
            )

    # ---------------------------------------------------------------------------------------------------------- clips
    def __len__(self) -> int:
        return len(self.videos)

    @property
    def num_channels(self) -> int:
        """C of the clips."""
        return self.shape.num_channels or 1

    @property
    def num_windows(self) -> int:
        """Windows of all videos."""
        return int(self.starts.sum())

    @property
    def description(self) -> str:
        """How many videos and windows there are, and a digest of the videos' names and lengths."""
        digest = hashlib.sha256()
        for video in self.videos:
            digest.update(f"{video.name}\t{video.num_frames}\n".encode())
        return f"{len(self)} videos, {self.num_windows} windows, sha256 {digest.hexdigest()[:16]}"

    def batch(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """The window in the middle of each of these videos, cut at the centre: always the same.

        Args:
            indices: 0 … `len(self)` − 1, `[B]`.

        Returns:
            uint8 `[B, F, H, W, C]`.

        Raises:
            IndexError: if an index is out of range.
            TypeError: if the indices are not integers.
            ValueError: if too many videos turn out to be damaged, or one does and `on_bad_video` is "fail".
        """
        rows = checked_indices(indices, len(self)).tolist()
        return self._stack([self._sound(row, self._middle)[0] for row in rows])

    def ends(self, indices: ArrayLike, last: bool = False) -> NDArray[np.uint8]:
        """The first window of each of these videos, or the last, cut at the centre; all else as `batch`."""
        rows = checked_indices(indices, len(self)).tolist()
        starts = self.starts - 1 if last else np.zeros_like(self.starts)
        read = partial(self._clip, y=0.5, x=0.5, mirrored=False)
        return self._stack([self._sound(row, lambda used: read(used, int(starts[used])))[0] for row in rows])

    def draw(self, indices: ArrayLike, epochs: ArrayLike) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """A random window of each of these videos.

        Over the epochs the windows of a video move through it evenly (the fractional parts of multiples of the golden
        ratio, from a start that differs by video), so that all of a video is seen soon.

        Args:
            indices: 0 … `len(self)` − 1, `[B]`.
            epochs: in which epoch each is drawn, `[B]`, ≥ 0.

        Returns:
            clips uint8 `[B, F, H, W, C]`, and `[B]` the videos that they are of: others than were asked for where
            those are damaged.

        Raises:
            as `batch`.
        """
        rows, turns = checked_indices(indices, len(self)), np.asarray(epochs, np.int64)
        pairs = zip(rows.tolist(), turns.tolist(), strict=True)
        drawn = [self._sound(row, partial(self._window, epoch=epoch)) for row, epoch in pairs]
        return self._stack([clip for clip, _ in drawn]), np.array([used for _, used in drawn], np.int64)

    def captions(self, column: str) -> list[str]:
        """The caption of each video.

        Args:
            column: of the metadata table or the data set.

        Raises:
            ValueError: where a video has none.
        """
        of_places = self.stored.captions(column)
        texts = [of_places[place] for place in self.places]
        lacking = [video.name for video, text in zip(self.videos, texts, strict=True) if text is None]
        if lacking:
            raise ValueError(
                f"{len(lacking)} of {len(self)} videos of {self.stored.where} have no caption in "
                f"`caption_column` {column!r} and no text file, the first of them {lacking[0]}."
            )
        return [text for text in texts if text is not None]

    def _middle(self, video: int) -> NDArray[np.uint8]:
        return self._clip(video, (int(self.starts[video]) - 1) // 2, 0.5, 0.5, False)

    def _window(self, video: int, epoch: int) -> NDArray[np.uint8]:
        number = np.array([video])
        offset = uniform(clip_keys(stream_key(self.seed, _STARTS), number), 0)[0]
        start = int((offset + epoch * GOLDEN) % 1 * self.starts[video])
        keys = clip_keys(clip_keys(stream_key(self.seed, _PLACES), number), np.array([epoch]))
        y, x, mirrored = uniform(keys, np.arange(3))[0]
        if self.shape.crop != "random":
            y = x = 0.5
        return self._clip(video, start, y, x, self.shape.flip and mirrored < 0.5)

    def _clip(self, video: int, start: int, y: float, x: float, mirrored: bool) -> NDArray[np.uint8]:
        """One clip `[F, H, W, C]`, cut where y and x in [0, 1] say: 0 at the top or left, 1 at the other end."""
        if self.decoded is None:
            return self.shape.read(self.videos[video], start, y, x, mirrored)
        indices = self.shape.indices(self.videos[video], start)
        return self.shape.place(self.decoded.frames(video, indices), y, x, mirrored)

    def _kept_size(self, video: Video) -> tuple[int, int]:
        """Height and width at which a cache keeps a video."""
        if self.shape.crop == "random":
            return self.shape.cover(video.height, video.width)
        return self.shape.height, self.shape.width

    def _whole(self, video: Video) -> Frame:
        """All frames of a video as a cache keeps them."""
        frames = self.shape.covering(video, None)
        if self.shape.crop == "random":
            return frames
        return np.ascontiguousarray(self.shape.place(frames, 0.5, 0.5, False))

    def _sound(self, video: int, read: Callable[[int], NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], int]:
        """What is read of a video or, where it is damaged, of the next one that is not; and which that is."""
        error: Exception = ValueError("there is no video")
        for used in ((video + step) % len(self) for step in range(min(len(self), 100))):
            try:
                return read(used), used
            except (ValueError, OSError) as reason:
                if self.on_bad_video == "fail":
                    raise
                error = reason
                if used not in self._named:
                    self._named.add(used)
                    said = " ".join(str(reason).split())
                    warnings.warn(f"{self.videos[used].name} is replaced by the next video: {said}", stacklevel=3)
        raise ValueError(f"many videos of {self.stored.where} are damaged, the last of them: {error}") from error

    def _stack(self, clips: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        if clips:
            return np.stack(clips)
        shape = self.shape
        return np.empty((0, shape.num_frames, shape.height, shape.width, self.num_channels), np.uint8)
