"""Any data set with a `video` column, behind the two methods that training uses: `len` and `batch`."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from video_diffusion.data import trajectories
from video_diffusion.data.moving_mnist import checked_indices

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_CROPS = 2  # the stream of the crops' random numbers


@dataclass(frozen=True, eq=False)
class VideoColumn:
    """
    The `video` column of a `datasets.Dataset` as uint8 batches of one size.

    A row is a video as an array or nested lists of whole numbers in [0, 255]: `[F, H, W]` (one channel),
    `[F, H, W, C]` or `[F, C, H, W]`. A longer video is cut to `num_frames` neighbouring frames.

    Args:
        table: the data set.
        num_frames: F, frames of a clip, ≥ 1.
        image_size: H = W that the videos must have.
        num_channels: C that the videos must have.
        crop_seed: `None`: the first frames of a longer video; a number: each row's start is drawn, always the
            same for one seed.

    Raises:
        ValueError: if there is no `video` column, no row, or a video that is shorter or of another size.
    """

    table: "datasets.Dataset" = field(repr=False)
    num_frames: int
    image_size: int
    num_channels: int = 1
    crop_seed: int | None = None

    def __post_init__(self) -> None:
        if "video" not in self.table.column_names:
            raise ValueError(f"the data set has the columns {self.table.column_names}; expected one named 'video'")
        if len(self.table) == 0:
            raise ValueError("the data set has no rows; expected at least one video")
        for name in ("num_frames", "image_size", "num_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected at least 1")
        self._arrange(_dense(self._rows([0])[0], 0), 0)
        shortest = int(np.argmin(self._lengths))
        if self._lengths[shortest] < self.num_frames:
            raise ValueError(
                f"the video of row {shortest} has {self._lengths[shortest]} frames; "
                f"expected at least {self.num_frames}"
            )

    @cached_property
    def _column(self) -> "datasets.Dataset":
        return self.table.select_columns(["video"]).with_format("arrow")

    def _rows(self, rows: list[int]) -> list["pa.Array"]:
        """Each of these rows as an Arrow array of length 1."""
        return [chunk.slice(i, 1) for chunk in _storage(self._column[rows]) for i in range(len(chunk))]

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        """Frames of every row; an empty row has 0."""
        import pyarrow.compute as pc

        counts = [pc.fill_null(pc.list_value_length(chunk), 0) for chunk in _storage(self._column[:])]
        return np.concatenate([count.to_numpy(zero_copy_only=False).astype(np.int64) for count in counts])

    def __len__(self) -> int:
        return len(self.table)

    def batch(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """
        Reads videos.

        Args:
            indices: rows, 0 … `len(self)` − 1, `[B]`; a row may be repeated.

        Returns:
            uint8 `[B, F, H, W]`, or `[B, F, H, W, C]` with more than one channel.

        Raises:
            IndexError: if an index is out of range.
            TypeError: if the indices are not integers.
            ValueError: if a row has another size, or values that are not whole numbers in [0, 255].
        """
        rows = checked_indices(indices, len(self))
        starts = self._starts(rows)
        channels = () if self.num_channels == 1 else (self.num_channels,)
        batch = np.empty((len(rows), self.num_frames, self.image_size, self.image_size, *channels), np.uint8)
        videos = self._rows(rows.tolist()) if len(rows) else []
        for clip, video, row, start in zip(batch, videos, rows.tolist(), starts.tolist(), strict=True):
            frames = self._arrange(_dense(video, row), row)[start : start + self.num_frames]
            clip[...] = frames.reshape(clip.shape)
        return batch

    def _starts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first frame to take of each row."""
        if self.crop_seed is None:
            return np.zeros(len(rows), np.int64)
        keys = trajectories.clip_keys(trajectories.stream_key(self.crop_seed, _CROPS), rows)
        spare = self._lengths[rows] - self.num_frames
        return (trajectories.uniform(keys, 0) * (spare + 1)).astype(np.int64)

    def _arrange(self, array: NDArray[Any], row: int) -> NDArray[np.uint8]:
        """The pixels of one row → uint8 `[F, H, W, C]`, all its frames."""
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"the video of row {row} is {array.dtype}; expected whole numbers in [0, 255]")
        if array.dtype != np.uint8 and array.size and not 0 <= array.min() <= array.max() <= 255:
            raise ValueError(f"the video of row {row} spans {array.min()} to {array.max()}; expected [0, 255]")
        size, channels = (self.image_size, self.image_size), self.num_channels
        if array.shape[1:] == size and channels == 1:
            array = array[..., None]
        elif array.shape[1:] == (channels, *size) and array.shape[1:] != (*size, channels):
            array = np.moveaxis(array, 1, -1)
        if array.ndim != 4 or array.shape[1:] != (*size, channels):
            raise ValueError(
                f"the video of row {row} has shape {array.shape}; expected [F, H, W], [F, H, W, C] or [F, C, H, W] "
                f"with H = W = {self.image_size} and {channels} channel(s)"
            )
        return array.astype(np.uint8, copy=False)


def _storage(table: "pa.Table") -> list["pa.Array"]:
    """The chunks of the column `video` as plain nested lists."""
    import pyarrow as pa

    chunks = [c.storage if isinstance(c, pa.ExtensionArray) else c for c in table["video"].chunks]
    if not _is_list(table["video"].type if not chunks else chunks[0].type):
        raise ValueError(
            f"the column 'video' holds {table['video'].type}; expected arrays or nested lists of pixels, [F, H, W], "
            "[F, H, W, C] or [F, C, H, W] (decode video files first)"
        )
    return chunks


def _is_list(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _dense(nested: "pa.Array", row: int) -> NDArray[Any]:
    """One row of nested lists as an array of its own dtype; the formatters of `datasets` would make uint8 int64."""
    import pyarrow.compute as pc

    shape = []
    while _is_list(nested.type):
        lengths = pc.unique(pc.list_value_length(nested)).to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            raise ValueError(
                f"the video of row {row} has lists of the lengths {lengths}; expected one length per axis"
            )
        shape.append(lengths[0])
        nested = nested.flatten()
    if nested.null_count:
        raise ValueError(f"the video of row {row} has {nested.null_count} empty values; expected none")
    return nested.to_numpy(zero_copy_only=False).reshape(shape)


def load_videos(
    name_or_dir: str | Path,
    split: str = "train",
    *,
    num_frames: int,
    image_size: int,
    num_channels: int = 1,
    crop_seed: int | None = None,
) -> VideoColumn:
    """
    Loads the videos of any data set that has a `video` column.

    Args:
        name_or_dir: a Hub id, or a folder of parquet files such as `video-diffusion dataset build` writes.
        split: a split of it.
        num_frames: frames of a clip.
        image_size: H = W that the videos must have.
        num_channels: C that the videos must have.
        crop_seed: see `VideoColumn`.

    Returns:
        An object with `len` and `batch(indices)` → uint8 `[B, F, H, W]` or `[B, F, H, W, C]`.

    Raises:
        ValueError: if the split is unknown, or for the reasons of `VideoColumn`.
        FileNotFoundError: if there is no such data set.
        ImportError: if `datasets` is not installed.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("data sets need datasets: pip install 'video-diffusion[train]'") from error
    return VideoColumn(load_dataset(str(name_or_dir), split=split), num_frames, image_size, num_channels, crop_seed)
