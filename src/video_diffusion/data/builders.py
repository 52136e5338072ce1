"""Moving MNIST as `datasets` objects, and as a folder of parquet files that `datasets.load_dataset` reads."""

import itertools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from video_diffusion.data.captions import captions as make_captions
from video_diffusion.data.modes import as_usual
from video_diffusion.data.moving_mnist import MovingMNIST

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_CLIPS_AT_ONCE = 100  # drawn together, and the rows of a parquet row group


def build_features(videos: MovingMNIST, captions: str | None = None) -> "datasets.Features":
    """The columns of a clip: `video` uint8 `[F, H, W]`, `labels` int64 `[D]`, `positions` int16 `[F, D, 2]` (y, x).

    With `captions`, "train" or "held_out" templates, also `caption`: of `captions.captions`, for the clips' seed.
    """
    datasets = _import_datasets()
    frames, size, digits = videos.num_frames, videos.image_size, videos.digit_counts[1]
    columns = {
        "video": datasets.Array3D((frames, size, size), "uint8"),
        "labels": datasets.List(datasets.Value("int64")),
        "positions": datasets.Array3D((frames, digits, 2), "int16"),
    }
    return datasets.Features(columns if captions is None else columns | {"caption": datasets.Value("string")})


def build_dataset(videos: MovingMNIST, captions: str | None = None) -> "datasets.Dataset":
    """
    Draws every clip into a map-style `datasets.Dataset`, row i = clip i, with the columns of `build_features`.

    The clips stay in memory, F · H · W bytes each: for a large number use `write_parquet` and `load_dataset`.

    Args:
        videos: the clips; its `num_videos` must be set.
        captions: as in `build_features`.

    Raises:
        ValueError: if `num_videos` is None, or there are no such captions.
        ImportError: if `datasets` is not installed.
    """
    datasets = _import_datasets()
    import pyarrow as pa

    tables = list(_tables(videos, range(_count(videos)), build_features(videos, captions), captions))
    return datasets.Dataset(pa.concat_tables(tables), split=datasets.NamedSplit(videos.split))


def build_iterable_dataset(
    videos: MovingMNIST, num_shards: int = 8, captions: str | None = None
) -> "datasets.IterableDataset":
    """
    A `datasets.IterableDataset` that draws clips as they are asked for: endless memory is not needed.

    Args:
        videos: the clips; `num_videos` may be None.
        num_shards: parts that data workers and processes share between them, 1 to `len(videos)`. A part holds
            neighbouring clips; reading them in one process gives clips 0, 1, 2, …
        captions: as in `build_features`.

    Raises:
        ValueError: if `num_shards` is out of its range, or there are no such captions.
        ImportError: if `datasets` is not installed.
    """
    datasets = _import_datasets()
    if not 1 <= num_shards <= len(videos):
        raise ValueError(f"`num_shards` is {num_shards}; expected 1 to {len(videos)}, the number of clips")
    bounds = [len(videos) * shard // num_shards for shard in range(num_shards + 1)]
    parts = [range(low, high) for low, high in itertools.pairwise(bounds)]
    return datasets.IterableDataset.from_generator(
        _examples,
        features=build_features(videos, captions),
        gen_kwargs={"videos": videos, "parts": parts, "captions": captions},
    )


def write_parquet(
    out_dir: str | Path,
    *splits: MovingMNIST,
    videos_per_file: int = 1000,
    progress: Callable[[int], object] | None = None,
    captions: str | None = None,
) -> Path:
    """
    Writes clips as `data/<split>-00000-of-000NN.parquet` with a data card, for `datasets.load_dataset(out_dir)`.

    The folder gets its name when all is written, and not before: an interrupted run leaves nothing that loads.

    Args:
        out_dir: the folder to make. It must not exist, or be empty.
        splits: the clips of each split, one `MovingMNIST` each, with `num_videos` set and all of one shape.
        videos_per_file: clips in one file, ≥ 1.
        progress: called with the number of clips written since the last call.
        captions: as in `build_features`.

    Returns:
        `out_dir` as a path.

    Raises:
        ValueError: if no split or a split twice is given, their shapes differ, `num_videos` is None,
            `videos_per_file` < 1 or there are no such captions.
        FileExistsError: if `out_dir` exists and is not an empty folder.
        ImportError: if `datasets` is not installed.
    """
    out_dir = Path(out_dir)
    names = [videos.split for videos in splits]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"`splits` has the splits {names}; expected each at most once, and at least one")
    if videos_per_file < 1:
        raise ValueError(f"`videos_per_file` is {videos_per_file}; expected at least 1")
    for videos in splits:
        _count(videos)
    shapes = [(videos.num_frames, videos.image_size, videos.digit_counts[1]) for videos in splits]
    if len(set(shapes)) > 1:
        raise ValueError(f"`splits` has the (frames, image size, digits) {shapes}; expected the same for all")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise FileExistsError(f"`out_dir` {str(out_dir)!r} exists; expected a new name or an empty folder")
    _import_datasets()
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
    try:
        hidden = partial / ".data"  # `load_dataset` passes hidden folders over
        hidden.mkdir()
        for videos in splits:
            _write_split(hidden, videos, videos_per_file, progress or (lambda _: None), captions)
        hidden.rename(partial / "data")
        (partial / "README.md").write_text(dataset_card(*splits, captions=captions), encoding="utf-8")
        as_usual(partial)  # mkdtemp's folder is for its owner only
        if out_dir.exists():
            out_dir.rmdir()
        partial.rename(out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out_dir


def _write_split(
    folder: Path, videos: MovingMNIST, videos_per_file: int, progress: Callable[[int], object], captions: str | None
) -> None:
    import pyarrow.parquet as pq

    features = build_features(videos, captions)
    number = math.ceil(_count(videos) / videos_per_file)
    for file in range(number):
        indices = range(file * videos_per_file, min((file + 1) * videos_per_file, _count(videos)))
        name = f"{videos.split}-{file:05d}-of-{number:05d}.parquet"
        with pq.ParquetWriter(
            folder / name, features.arrow_schema, compression="zstd", use_dictionary=False
        ) as writer:
            for table in _tables(videos, indices, features, captions):
                writer.write_table(table)
                progress(len(table))


def _tables(
    videos: MovingMNIST, indices: range, features: "datasets.Features", captions: str | None
) -> Iterator["pa.Table"]:
    """Arrow tables of up to `_CLIPS_AT_ONCE` clips each."""
    import pyarrow as pa

    schema = features.arrow_schema
    for clips in _clips(videos, indices, captions):
        columns = []
        for field in schema:
            if field.name == "caption":
                columns.append(pa.array(clips["caption"].tolist(), field.type))
                continue
            extension = isinstance(field.type, pa.ExtensionType)
            storage = _nested(clips[field.name].astype(features[field.name].dtype if extension else np.int64))
            columns.append(pa.ExtensionArray.from_storage(field.type, storage) if extension else storage)
        yield pa.Table.from_arrays(columns, schema=schema)


def _nested(array: NDArray[Any]) -> "pa.Array":
    """A numpy array as nested Arrow lists of its rows, without a copy of its values."""
    import pyarrow as pa

    values = pa.array(array.reshape(-1))
    for size in array.shape[:0:-1]:
        values = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, size, dtype=np.int32), values)
    return values


def _clips(videos: MovingMNIST, indices: Sequence[int], captions: str | None) -> Iterator[dict[str, NDArray[Any]]]:
    for first in range(0, len(indices), _CLIPS_AT_ONCE):
        numbers = indices[first : first + _CLIPS_AT_ONCE]
        clips = videos.clips(numbers)
        if captions is not None:
            span = videos.image_size - videos.pixels_per_digit
            clips["caption"] = np.array(make_captions(clips, numbers, videos.seed, span, captions), object)
        yield clips


def _examples(
    videos: MovingMNIST, parts: list[range], captions: str | None = None
) -> Iterator[dict[str, NDArray[Any]]]:
    for indices in parts:
        for index in indices:
            clip = next(_clips(videos, [index], captions))
            yield {name: values[0] for name, values in clip.items()}


def dataset_card(*splits: MovingMNIST, captions: str | None = None) -> str:
    """The README.md of a folder of clips: the metadata that `load_dataset` reads, and how the clips were made."""
    licence = "license: cc-by-sa-3.0\n" if all(videos.digits is None for videos in splits) else ""
    files = "".join(f"  - split: {videos.split}\n    path: data/{videos.split}-*.parquet\n" for videos in splits)
    first = splits[0]
    rows = "".join(f"| {v.split} | {len(v)} | {v.seed} | {_digits_used(v)} |\n" for v in splits)
    low, high = first.digit_counts
    said = "" if captions is None else f"\n`caption`: which digits, where they go ({captions} templates)."
    digits = str(low) if low == high else f"{low} to {high}"
    return f"""---
{licence}pretty_name: Moving MNIST ({first.variant})
tags:
- video
- moving-mnist
- video-prediction
configs:
- config_name: default
  data_files:
{files}---
# Moving MNIST ({first.variant})

{first.num_frames} frames of {first.image_size}×{first.image_size}, {digits} digits of {first.pixels_per_digit} pixels,
speed {first.step:g}, drawn by the package `video_diffusion`. Row i is clip i of the seed.

| split | clips | seed | digits |
|---|---|---|---|
{rows}
Columns: `video` uint8 `[F, H, W]`; `labels` `[D]`, the digits' classes; `positions` `[F, D, 2]`, y and x
of each digit's top-left corner in pixels. −1: no such digit in this clip.{said}

```python
from datasets import load_dataset

videos = load_dataset("<this folder or its Hub id>", split="{first.split}").with_format("numpy")
```
"""


def _digits_used(videos: MovingMNIST) -> str:
    name = "MNIST" if videos.digits is None else str(videos.digits)
    return name if videos.digit_range is None else f"{name}, {videos.digit_range[0]} to {videos.digit_range[1] - 1}"


def _count(videos: MovingMNIST) -> int:
    if videos.num_videos is None:
        raise ValueError("`num_videos` is None; expected the number of clips to draw")
    return videos.num_videos


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError("this needs datasets: pip install 'video-diffusion[train]'") from error
    return datasets
