"""Where videos are kept: a folder of files, or a table of `datasets`; each is found and named, and read when asked."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from video_diffusion.data.arrays import MANY_CLIPS, ONE_CLIP, ArrayVideo, axes_of, open_array
from video_diffusion.data.columns import caption_column, caption_text, video_column
from video_diffusion.data.folders import FoundVideo, find_videos, orphan_texts
from video_diffusion.data.frames import LIMITS, Frame, ReadLimits, Video
from video_diffusion.data.pictures import list_pictures, single_picture
from video_diffusion.data.reading import ARRAYS, open_video

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

ENCODED = "an encoded video, the path of one, a list of pictures, or an array"


class StoredVideos(Protocol):
    """A number of places, each with one video or, in an array of many clips, with several."""

    where: str  # for messages

    def __len__(self) -> int:
        """How many places there are."""

    def name(self, place: int) -> str:
        """What a place is called in messages."""

    def identity(self, place: int) -> str:
        """Changes whenever the content of a place does, or how it is read."""

    def open(self, place: int) -> list[Video]:
        """The videos of a place, none of their frames read. Raises ValueError or OSError where there is none."""

    def captions(self, column: str) -> list[str | None]:
        """The caption of each place, None where it has none. Raises ValueError where no place has any."""


# ------------------------------------------------------------------------------------------------------------- folders
class VideoFiles:
    """The videos of a folder, or one file.

    Args:
        path: a folder as `find_videos` reads it, or a file; an npy or npz may hold many clips.
        split: a split of the folder.
        background: black or white, under transparent pixels.
        video_axes: the letters of the axes of arrays, such as FHW or FNHW (see `arrays`); None: recognised.
        limits: what is refused.

    Raises:
        FileNotFoundError: where there is nothing of that name.
        ValueError: for the reasons of `find_videos`.
    """

    def __init__(
        self,
        path: Path,
        split: str = "train",
        background: str = "black",
        video_axes: str | None = None,
        limits: ReadLimits = LIMITS,
    ) -> None:
        self.where, self.root = str(path), path
        self.background, self.video_axes, self.limits = background, video_axes, limits
        if path.is_dir():
            self.found = find_videos(path, split)
        elif path.is_file():
            if split != "train":
                raise ValueError(f"`split` is {split!r}, expected 'train': {path} is one file.")
            self.found = [FoundVideo(path, path.name, None, {})]
        else:
            raise FileNotFoundError(f"there is no folder and no file {path}")

    def __len__(self) -> int:
        return len(self.found)

    def name(self, place: int) -> str:
        """The path, relative to the folder."""
        return self.found[place].name

    def identity(self, place: int) -> str:
        """Paths, sizes and times of the files, and how they are read."""
        path = self.found[place].path
        digest = hashlib.sha256(f"{self.background} {self.video_axes}\n".encode())
        for file in list_pictures(path) if path.is_dir() else [path]:
            state = file.stat()
            digest.update(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def open(self, place: int) -> list[Video]:
        """See `StoredVideos.open`."""
        path, name = self.found[place].path, self.found[place].name
        if path.is_file():
            with path.open("rb") as stream:
                if stream.read(16).startswith(ARRAYS):
                    return _clips_of_array(path, name, self.video_axes, self.background, self.limits)
        video = open_video(path, background=self.background, limits=self.limits, name=name)
        video.name = name
        return [video]

    def captions(self, column: str) -> list[str | None]:
        """What a metadata table says in that column, else the text file beside the video.

        Raises:
            ValueError: where there are neither, or text files that belong to no video.
        """
        columns = sorted({key for found in self.found for key in found.row})
        texts = [found.row.get(column, found.text) for found in self.found]
        if column not in columns and all(text is None for text in texts):
            has = f"its metadata has the columns {columns}" if columns else "it has no metadata table"
            raise ValueError(
                f"`caption_column` is {column!r}, expected a column of metadata.jsonl or metadata.csv, or a text file "
                f"beside each video: in {self.root} there is no text file, and {has}."
            )
        orphans = orphan_texts(self.root, self.found) if column not in columns else []
        if orphans:
            raise ValueError(
                f"{self.root} has {len(orphans)} text files without a video, the first of them {orphans[0]}: expected "
                "a.txt beside a.mp4 or beside the folder of pictures a."
            )
        return [None if text is None else str(text) for text in texts]


@lru_cache(maxsize=2)
def _array(path: Path, changed: int) -> NDArray[Any]:
    return open_array(path)


def _clips_of_array(path: Path, name: str, axes: str | None, background: str, limits: ReadLimits) -> list[Video]:
    """The clips of an npy or npz file, mapped again whenever they are read."""
    array = _array(path, path.stat().st_mtime_ns)
    axes = axes_of(array.shape, name, axes, (*ONE_CLIP, *MANY_CLIPS))
    if "N" not in axes:
        return [FileArray(path, name, axes, None, background, limits)]
    count = array.shape[axes.index("N")]
    return [FileArray(path, f"{name}, clip {i}", axes, i, background, limits) for i in range(count)]


class FileArray(Video):
    """A clip of an array in a file.

    Args:
        path: the npy or npz file.
        name: for messages.
        axes: the letters of the array's axes.
        clip: its number along the axis N; None where there is none.
        background: black or white, under transparent pixels where C = 4.
        limits: what is refused.
    """

    def __init__(
        self, path: Path, name: str, axes: str, clip: int | None, background: str, limits: ReadLimits
    ) -> None:
        self.path, self.name, self.axes, self.clip = path, name, axes, clip
        self.background, self.limits = background, limits
        video = self._video()
        self.num_frames, self.height, self.width = video.num_frames, video.height, video.width

    def _video(self) -> ArrayVideo:
        array = _array(self.path, self.path.stat().st_mtime_ns)
        if self.clip is not None:
            array = array[self.clip] if self.axes[0] == "N" else array[:, self.clip]
        return ArrayVideo(array, self.name, self.axes.replace("N", ""), self.background, self.limits)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """See `Video.frames`."""
        yield from self._video().frames(indices)


# -------------------------------------------------------------------------------------------------------------- tables
class VideoTable:
    """A column of a `datasets.Dataset`, each row a video.

    Args:
        table: the data set.
        column: see `columns.video_column`; holds in each row an encoded video (the `Video` feature, or bytes), the
            path of one, a list of pictures (the `Image` feature, bytes or paths) with one for each frame, or an array
            or nested lists `[F, H, W]`, `[F, H, W, C]` or `[F, C, H, W]` of whole numbers in [0, 255] or floats in
            [0, 1].
        background: black or white, under transparent pixels.
        video_axes: of arrays, FHW, FHWC or FCHW; None: recognised.
        base: the folder that paths are relative to.
        limits: what is refused.

    Raises:
        ValueError: where there is no such column or no row, or it holds something else.
    """

    def __init__(
        self,
        table: "datasets.Dataset",
        column: str = "video",
        background: str = "black",
        video_axes: str | None = None,
        base: Path = Path(),
        limits: ReadLimits = LIMITS,
    ) -> None:
        column = video_column(table.features, column)
        if len(table) == 0:
            raise ValueError("the data set has no rows, expected at least one video.")
        self.table, self.column, self.base, self.where = table, column, base, "the data set"
        self.reading = f"{column} {background} {video_axes}"
        self.cells = table.select_columns([column]).with_format("arrow")
        self.opener = partial(open_cell, base=base, background=background, video_axes=video_axes, limits=limits)
        kind = self.cell(0).type
        if not (_is_text(kind) or _is_bytes(kind) or _is_file(kind) or _is_list(kind)):
            raise ValueError(f"the column {column!r} holds {kind}, expected in each row {ENCODED}.")

    def __len__(self) -> int:
        return len(self.table)

    def name(self, place: int) -> str:
        """The number of the row."""
        return f"row {place}"

    def identity(self, place: int) -> str:
        """The fingerprint that `datasets` gives the table, the row, and how it is read."""
        return f"{self.table._fingerprint} {place} {self.reading}"

    def cell(self, place: int) -> "pa.Array":
        """One row as an Arrow array of length 1."""
        import pyarrow as pa

        chunk = self.cells[[place]][self.column].combine_chunks()
        chunk = chunk.chunk(0) if isinstance(chunk, pa.ChunkedArray) else chunk
        return chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk

    def open(self, place: int) -> list[Video]:
        """See `StoredVideos.open`."""
        return [RowVideo(self, place)]

    def captions(self, column: str) -> list[str | None]:
        """A column of any type as text; see `columns.caption_column`. Raises ValueError where there is none."""
        name, key = caption_column(self.table.features, column)
        return [caption_text(value, key) for value in self.table.select_columns([name])[:][name]]


class RowVideo(Video):
    """The video of a row. What was encoded is not kept: only where its frames are.

    Args:
        table: of the row.
        row: its number.
    """

    def __init__(self, table: VideoTable, row: int) -> None:
        self.source, self.row, self.name = table, row, table.name(row)
        video = self._open()
        self.num_frames, self.height, self.width, self.times = video.num_frames, video.height, video.width, video.times
        self.index: Any = None
        if isinstance(getattr(video, "file", None), bytes | Path):
            self.index = video
            if isinstance(self.index.file, bytes):
                self.index.file = b""

    def _open(self) -> Video:
        return self.source.opener(self.source.cell(self.row), self.name)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """See `Video.frames`."""
        if self.index is None:
            yield from self._open().frames(indices)
            return
        video = self.index
        if video.file == b"":
            video = copy.copy(video)
            video.file = _content(self.source.cell(self.row), self.source.base, self.name)
        yield from video.frames(indices)


class PictureList(Video):
    """Encoded pictures, or paths of pictures, one for each frame.

    Args:
        name: for messages.
        files: the pictures in order.
        background: black or white, under transparent pixels.
        limits: what is refused.

    Raises:
        ValueError: where there is none.
    """

    def __init__(self, name: str, files: Sequence[Path | bytes], background: str, limits: ReadLimits) -> None:
        if not files:
            raise ValueError(f"{name} holds no pictures, expected one for each frame.")
        limits.check_count(name, len(files))
        self.name, self.background, self.limits = name, background, limits
        self.pictures = list(files)
        self.num_frames = len(files)
        self.height, self.width = next(self.frames([0])).shape[:2]

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """See `Video.frames`."""
        for index in indices:
            name = f"{self.name}, picture {index},"
            yield single_picture(self.pictures[index], name, self.background, self.limits)


def open_cell(
    cell: "pa.Array", name: str, *, base: Path, background: str, video_axes: str | None, limits: ReadLimits
) -> Video:
    """The video of one row, an Arrow array of length 1."""
    if cell.null_count:
        raise ValueError(f"{name} is empty, expected {ENCODED}.")
    if not _is_list(cell.type):
        video = open_video(_content(cell, base, name), background=background, limits=limits, name=name)
        video.name = name
        return video
    inner = cell.flatten()
    if _is_text(inner.type) or _is_bytes(inner.type) or _is_file(inner.type):
        files = [_content(inner.slice(i, 1), base, f"{name}, picture {i},") for i in range(len(inner))]
        return PictureList(name, files, background, limits)
    array = _in_range(dense(cell, name), name)
    return ArrayVideo(array, name, axes_of(array.shape, name, video_axes, ONE_CLIP), background, limits)


def _content(cell: "pa.Array", base: Path, name: str) -> Path | bytes:
    """What one cell holds: bytes, or the path of a file."""
    value = cell[0].as_py()
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise ValueError(f"{name} is empty, expected {ENCODED}.")
    return value if isinstance(value, bytes) else base / value


def _in_range(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Whole numbers of any type as uint8; other numbers as they are."""
    if array.dtype.kind not in "iu" or array.dtype in (np.uint8, np.uint16):
        return array
    if array.size and not 0 <= array.min() <= array.max() <= 255:
        raise ValueError(f"{name} runs from {array.min()} to {array.max()}, expected whole numbers in [0, 255].")
    return array.astype(np.uint8)


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_file(kind: "pa.DataType") -> bool:
    """Whether it is what the features `Video` and `Image` store."""
    import pyarrow as pa

    return pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}


def _is_list(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def dense(nested: "pa.Array", name: str) -> NDArray[Any]:
    """One row of nested lists as an array of its own dtype; the formatters of `datasets` would make uint8 int64.

    Raises:
        ValueError: where lists of one axis differ in length, or values are missing or no numbers.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    shape = []
    while _is_list(nested.type):
        lengths = pc.unique(pc.list_value_length(nested)).to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            raise ValueError(f"{name} has lists of the lengths {lengths}, expected one length for each axis.")
        shape.append(lengths[0])
        nested = nested.flatten()
    if not (pa.types.is_integer(nested.type) or pa.types.is_floating(nested.type) or pa.types.is_boolean(nested.type)):
        raise ValueError(f"{name} holds lists of {nested.type}, expected numbers.")
    if nested.null_count:
        raise ValueError(f"{name} has {nested.null_count} empty values, expected none.")
    return nested.to_numpy(zero_copy_only=False).reshape(shape)
