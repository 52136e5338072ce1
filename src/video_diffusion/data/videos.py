"""Videos of any source as clips of one shape: a folder of files, or a data set with a column of videos."""

import hashlib
from pathlib import Path
from typing import Any

from video_diffusion.data.bair import bair_root, open_bair
from video_diffusion.data.clips import ClipShape, VideoClips
from video_diffusion.data.folders import NO_VIDEOS, is_video_folder
from video_diffusion.data.kth import KTHVideos, is_kth
from video_diffusion.data.stored import StoredVideos, VideoFiles, VideoTable
from video_diffusion.data.streams import VideoStream

TAR = ".tar"  # of WebDataset


def open_videos(
    name_or_path: str | Path,
    split: str = "train",
    *,
    column: str = "video",
    background: str = "black",
    video_axes: str | None = None,
) -> StoredVideos:
    """Finds the videos of a source; none is read yet.

    Args:
        name_or_path: a folder of video files (see `folders.find_videos`), one file, KTH or BAIR in their published
            layouts (`kth.LAYOUT`, `bair.LAYOUT`), a folder of a dataset such as `video-diffusion dataset build`
            writes or of WebDataset's tar files, one of these, or a dataset's Hub id.
        split: a split of it.
        column: of a dataset; see `VideoTable`.
        background: black or white, under transparent pixels.
        video_axes: of arrays, the letters of their axes; None: recognised.

    Raises:
        ValueError: where the split or the column is unknown, or there are no videos.
        FileNotFoundError: where there is no such folder or data set.
        ImportError: where `datasets` is needed and not installed.
    """
    path = Path(name_or_path)
    if path.is_dir() and is_kth(path):
        return KTHVideos(path, split)
    if path.is_dir() and bair_root(path) is not None:
        return open_bair(path, split)
    if (path.is_file() and path.suffix != TAR) or (path.is_dir() and is_video_folder(path)):
        return VideoFiles(path, split, background, video_axes)
    table = _load(path, str(name_or_path), split)
    return VideoTable(table, column, background, video_axes, path if path.is_dir() else Path())


def _load(path: Path, name: str, split: str, **options: Any) -> Any:
    """A split of a folder, a tar file of WebDataset or a Hub id, by `datasets`."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("data sets need datasets: pip install 'video-diffusion[train]'") from error
    if path.exists() and not options.get("streaming"):
        options["cache_dir"] = _cache_of(path)
    try:
        if path.is_file():
            return load_dataset("webdataset", data_files={split: name}, split=split, **options)
        return load_dataset(name, split=split, **options)
    except FileNotFoundError as error:
        if path.is_dir():
            raise ValueError(f"{path} {NO_VIDEOS}") from error
        raise


def _cache_of(source: Path) -> str:
    """A cache for the files as they are now: `datasets` takes two folders of one name for the same, changed or not."""
    from datasets.config import HF_DATASETS_CACHE

    digest = hashlib.sha256(str(source.resolve()).encode())
    for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
        state = file.stat()
        digest.update(f"{file.relative_to(source)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return str(Path(HF_DATASETS_CACHE) / "video_diffusion" / digest.hexdigest()[:24])


def load_videos(
    name_or_path: str | Path,
    split: str = "train",
    *,
    num_frames: int,
    image_size: int | tuple[int, int],
    num_channels: int | None = None,
    frame_stride: int = 1,
    fps: float | None = None,
    crop: str = "center",
    flip: bool = False,
    seed: int = 0,
    on_bad_video: str = "skip",
    cache: str = "none",
    cache_dir: Path | None = None,
    column: str = "video",
    background: str = "black",
    video_axes: str | None = None,
) -> VideoClips:
    """Clips of one shape from videos of any size, rate and length.

    Args:
        name_or_path: see `open_videos`, as for `split`, `column`, `background` and `video_axes`.
        split: see there.
        num_frames: frames of a clip.
        image_size: H = W, or (H, W), in pixels.
        num_channels: see `ClipShape`, as for `frame_stride`, `fps`, `crop` and `flip`.
        frame_stride: see there.
        fps: see there.
        crop: see there.
        flip: see there.
        seed: see `VideoClips`, as for `on_bad_video`, `cache` and `cache_dir`.
        on_bad_video: see there.
        cache: see there.
        cache_dir: see there.
        column: see `open_videos`.
        background: see there.
        video_axes: see there.

    Returns:
        An object with `len`, `batch(indices)` and `draw(indices, epochs)` → uint8 `[B, F, H, W, C]`.

    Raises:
        ValueError: for the reasons of `open_videos` and `VideoClips`.
        FileNotFoundError: where there is no such folder or data set.
        ImportError: where `datasets` is needed and not installed.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    stored = open_videos(name_or_path, split, column=column, background=background, video_axes=video_axes)
    shape = ClipShape(num_frames, height, width, num_channels, frame_stride, fps, crop, flip)
    return VideoClips(stored, shape, seed=seed, on_bad_video=on_bad_video, cache=cache, cache_dir=cache_dir)


def stream_videos(
    name_or_path: str | Path,
    split: str = "train",
    *,
    num_frames: int,
    image_size: int | tuple[int, int],
    num_channels: int | None = None,
    frame_stride: int = 1,
    fps: float | None = None,
    crop: str = "center",
    flip: bool = False,
    seed: int = 0,
    buffer: int = 256,
    on_bad_video: str = "skip",
    column: str = "video",
    background: str = "black",
    video_axes: str | None = None,
) -> VideoStream:
    """Clips of one shape from a data set that is read as it comes, without a copy of it on the disk.

    Args:
        name_or_path: a dataset's Hub id; a folder of a dataset, or of WebDataset's tar files; or one of these.
        split: as in `load_videos`, as are all others but `buffer`.
        num_frames: see there.
        image_size: see there.
        num_channels: see there; None: as the first videos are.
        frame_stride: see there.
        fps: see there.
        crop: see there.
        flip: see there.
        seed: see `VideoStream`, as for `buffer` and `on_bad_video`.
        buffer: see there.
        on_bad_video: see there.
        column: see `open_videos`.
        background: see there.
        video_axes: see there.

    Raises:
        ValueError: where it is a folder of video files, or for the reasons of `VideoStream`.
        FileNotFoundError: where there is no such data set.
        ImportError: where `datasets` is not installed.
    """
    path = Path(name_or_path)
    if (path.is_file() and path.suffix != TAR) or (path.is_dir() and is_video_folder(path)):
        raise ValueError(f"`streaming` is true, expected a data set: {path} holds video files, which need no stream.")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    shape = ClipShape(num_frames, height, width, num_channels, frame_stride, fps, crop, flip)
    return VideoStream(
        _load(path, str(name_or_path), split, streaming=True),
        shape,
        seed=seed,
        buffer=buffer,
        on_bad_video=on_bad_video,
        column=column,
        background=background,
        video_axes=video_axes,
        base=path if path.is_dir() else Path(),
    )
