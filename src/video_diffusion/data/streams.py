"""Clips of a data set that is read from its first row on, as from the Hub without a copy on the disk.

The stream is endless: the epochs of the data set one after the other, each shuffled by (seed, epoch). What stands at
a position is a pure function of the seed and the position, as long as the data set gives the same rows in the same
order. So nothing is saved with a checkpoint; to go on at a position, the rows before it in its epoch are read once
more, but not decoded.
"""

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from video_diffusion.data.clips import ON_BAD, ClipShape, channels_of
from video_diffusion.data.columns import caption_column, caption_text, video_column
from video_diffusion.data.frames import LIMITS, Video
from video_diffusion.data.stored import open_cell
from video_diffusion.data.trajectories import clip_keys, stream_key, uniform
from video_diffusion.data.video_io import Clip

if TYPE_CHECKING:
    import datasets

PROBED = 8  # rows that are looked at before the first step
NAMED = 20  # bad videos that are named, at most
TRIED = 100  # rows after a bad one that may take its place
_PLACES = 18  # a stream of random numbers
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """A clip of the stream.

    Args:
        clip: uint8 `[F, H, W, C]`.
        row: that it is of.
    """

    clip: Clip
    row: Row


class VideoStream:
    """Clips of one shape from the rows of an iterable data set.

    A video that is too short, too slow or broken is found when its turn comes; the next one that is not takes its
    place (`on_bad_video` "skip"), or it is an error ("fail"). That keeps all other positions as they are.

    Args:
        table: a `datasets.IterableDataset`; its column holds what `stored.VideoTable` reads.
        shape: of the clips.
        seed: of the order, windows, crops and mirroring.
        buffer: rows that are held in memory, as they are stored, to be shuffled; 1: in the order of the data set.
        on_bad_video: see above.
        column: see `columns.video_column`.
        background: black or white, under transparent pixels.
        video_axes: of arrays, the letters of their axes; None: recognised.
        base: the folder that paths are relative to.

    Attributes:
        shape: as given, `num_channels` resolved by the first rows.
        notes: what a user should know of the first rows, each a sentence.

    Raises:
        ValueError: where there is no such column or no row, none of the first rows serves, or one does not and
            `on_bad_video` is "fail"; or some of them are grey and others in colour and the shape does not say which.
    """

    def __init__(
        self,
        table: "datasets.IterableDataset",
        shape: ClipShape,
        *,
        seed: int = 0,
        buffer: int = 256,
        on_bad_video: str = "skip",
        column: str = "video",
        background: str = "black",
        video_axes: str | None = None,
        base: Path = Path(),
    ) -> None:
        if on_bad_video not in ON_BAD:
            raise ValueError(f"`on_bad_video` is {on_bad_video!r}, expected one of {', '.join(ON_BAD)}.")
        if buffer < 1:
            raise ValueError(f"`buffer` is {buffer}, expected at least 1.")
        table = table if table.features is not None else table._resolve_features()
        self.features = table.features
        self.column = video_column(self.features, column)
        self.table = table.decode(False)
        self.shape, self.seed, self.buffer, self.on_bad_video = shape, seed, buffer, on_bad_video
        self.base, self.background, self.video_axes = base, background, video_axes
        self.length: int | None = None  # rows of an epoch, once one was read to its end
        self._named: set[str] = set()
        self.first_rows = list(islice(self.table, PROBED))
        self._look()

    def _look(self) -> None:
        """Opens the first rows: what is wrong with all of them is wrong with the call."""
        if not self.first_rows:
            raise ValueError("the stream has no rows, expected at least one video.")
        videos: list[Video] = []
        reasons, digest = [], hashlib.sha256()
        for number, row in enumerate(self.first_rows):
            try:
                video = self._open(row, f"row {number}")
                videos.append(video)
                digest.update(f"{video.num_frames} {video.height} {video.width}\n".encode())
            except (ValueError, OSError) as error:
                reasons.append(" ".join(str(error).split()))
                digest.update(b"bad\n")
        if reasons and (not videos or self.on_bad_video == "fail"):
            raise ValueError(
                f"{len(reasons)} of the first {len(self.first_rows)} videos of the stream cannot be used: {reasons[0]}"
            )
        self.notes = [f"of the first {len(self.first_rows)} videos of the stream {len(reasons)} are left out:"]
        self.notes = [*self.notes, *(f"  {reason}" for reason in reasons)] if reasons else []
        if self.shape.num_channels is None:
            self.shape = replace(self.shape, num_channels=channels_of(videos))
        self.description = f"a stream, its first {len(self.first_rows)} videos sha256 {digest.hexdigest()[:16]}"

    @property
    def num_channels(self) -> int:
        """C of the clips."""
        return self.shape.num_channels or 1

    def captions(self, column: str) -> list[str]:
        """Those of the first rows. Raises ValueError where there is no such column, or none of them has one."""
        texts = [text for row in self.first_rows if (text := self.captioner(column)(row)) is not None]
        if not texts:
            raise ValueError(f"none of the first videos of the stream has a caption in `caption_column` {column!r}.")
        return texts

    def captioner(self, column: str) -> Callable[[Row], str | None]:
        """Gives a row's caption. Raises ValueError where there is no such column; see `columns.caption_column`."""
        name, key = caption_column(self.features, column)
        return lambda row: caption_text(row[name], key)

    # -------------------------------------------------------------------------------------------------------- clips
    def first(self, count: int) -> NDArray[np.uint8]:
        """The middle windows of the first so many videos that serve, in the order of the data set, `[B, F, H, W, C]`.

        Raises:
            ValueError: where none does.
        """
        clips: list[Clip] = []
        for number, row in enumerate(self.table):
            try:
                video = self._open(row, f"row {number}")
                clips.append(self.shape.read(video, (self.shape.starts(video) - 1) // 2))
            except (ValueError, OSError):
                continue
            if len(clips) == count:
                break
        if not clips:
            raise ValueError("the stream has no video that can be used, expected at least one.")
        return np.stack(clips)

    def draw(self, groups: Iterable[Sequence[int]], pool: ThreadPoolExecutor | None = None) -> Iterator[list[Drawn]]:
        """The clips at positions of the endless stream.

        Args:
            groups: positions ≥ 0, ascending within a group and from group to group.
            pool: decodes the clips of a group at once.

        Yields:
            the clips of each group.

        Raises:
            ValueError: where too many videos in a row are bad, or one is and `on_bad_video` is "fail".
        """
        rows: Iterator[Row] | None = None
        ahead: deque[Row] = deque()  # rows from position `at` on
        at = 0
        for positions in groups:
            if rows is None:
                at, rows = positions[0], self.rows(positions[0])
            while at < positions[0]:
                if ahead:
                    ahead.popleft()
                else:
                    next(rows)
                at += 1
            while len(ahead) <= positions[-1] - at:
                ahead.append(next(rows))
            tasks = [(position, ahead[position - at]) for position in positions]
            attempts = (map if pool is None else pool.map)(self._attempt, tasks)
            drawn = []
            for position, attempt in zip(positions, attempts, strict=True):
                step = position - at
                while not isinstance(attempt, Drawn):
                    self._complain(attempt, position, step + at - position)
                    step += 1
                    while len(ahead) <= step:
                        ahead.append(next(rows))
                    attempt = self._attempt((position, ahead[step]))
                drawn.append(attempt)
            yield drawn

    def rows(self, start: int) -> Iterator[Row]:
        """The rows of the endless stream from a position on, not decoded."""
        epoch, skip = 0, start
        if self.length is not None:
            epoch, skip = divmod(start, self.length)
        shuffled = self.table.shuffle(seed=self.seed, buffer_size=self.buffer) if self.buffer > 1 else self.table
        while True:
            shuffled.set_epoch(epoch)
            count = 0
            for row in shuffled:
                count += 1
                if count > skip:
                    yield row
            if not count:
                raise ValueError("the stream has no rows, expected at least one video.")
            self.length = count
            if skip >= count:  # the first epoch was read to learn its length
                epoch, skip = divmod(start, count)
            else:
                epoch, skip = epoch + 1, 0

    def _attempt(self, task: tuple[int, Row]) -> Drawn | Exception:
        """The clip of a row for a position, or why there is none."""
        position, row = task
        keys = clip_keys(stream_key(self.seed, _PLACES), np.array([position]))
        share, y, x, mirrored = uniform(keys, np.arange(4))[0]
        if self.shape.crop != "random":
            y = x = 0.5
        try:
            video = self._open(row, f"video {position} of the stream")
            start = int(share * self.shape.starts(video))
            return Drawn(self.shape.read(video, start, y, x, self.shape.flip and mirrored < 0.5), row)
        except (ValueError, OSError) as error:
            return error

    def _complain(self, error: Exception, position: int, tried: int) -> None:
        if self.on_bad_video == "fail":
            raise error
        if tried >= TRIED:
            raise ValueError(f"{tried} videos of the stream in a row cannot be used, the last: {error}") from error
        said = " ".join(str(error).split())
        if said not in self._named and len(self._named) < NAMED:
            self._named.add(said)
            warnings.warn(f"video {position} of the stream is replaced by a later one: {said}", stacklevel=3)

    def _open(self, row: Row, name: str) -> Video:
        """The video of a row, with at least one window. Raises ValueError or OSError where there is none."""
        import pyarrow as pa

        value = row[self.column]
        if isinstance(value, dict) and value.get("bytes") is None and "://" in str(value.get("path")):
            from datasets.utils.file_utils import xopen

            with xopen(value["path"], "rb") as file:
                value = {"bytes": file.read(), "path": None}
        cell = pa.array([value])
        axes, background = self.video_axes, self.background
        video = open_cell(cell, name, base=self.base, background=background, video_axes=axes, limits=LIMITS)
        complaint = self.shape.complaint(video)
        if complaint is not None:
            raise ValueError(complaint[1])
        return video
