"""The clips of every step: a pure function of the step, so that resuming and sharing need no state."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from huggingface_hub import cached_assets_path
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from video_diffusion.data import MovingMNIST, VideoClips, load_videos, stream_videos
from video_diffusion.data.captions import captions
from video_diffusion.data.streams import Row, VideoStream
from video_diffusion.training.arguments import DataArguments
from video_diffusion.training.latents import LatentClips

T = TypeVar("T")


class Batch(NamedTuple):
    """What one process sees in one pass.

    Args:
        clips: uint8 `[B, F + num_images, H, W, C]`; or latents, float32.
        captions: one a clip, or None where there is no text.
    """

    clips: Tensor
    captions: list[str] | None = None


class StepBatches(Dataset):
    """Item k is what one process sees in pass k.

    Args:
        source: `VideoClips` or `LatentClips`, of which windows are drawn; or has `__len__` and `batch(indices)` →
            uint8 `[B, F, H, W]` or `[B, F, H, W, C]`.
        local_batch: clips of one process in one pass.
        rank: which process.
        world: number of processes.
        num_images: independent images appended to each clip as frames; each is a frame of a clip of its own.
        seed: of the order in which a finite source is visited, a new permutation in each epoch.
        captions: gives the captions of clips by their numbers in the source; left out: no text.
    """

    def __init__(
        self,
        source: Any,
        local_batch: int,
        rank: int,
        world: int,
        num_images: int,
        seed: int,
        captions: Callable[[Any], Any] | None = None,
    ) -> None:
        self.source, self.local_batch, self.rank, self.world = source, local_batch, rank, world
        self.num_images, self.seed, self.captions = num_images, seed, captions
        self.shuffled = not isinstance(source, MovingMNIST)

    def __getitem__(self, index: int) -> Batch:
        """The clips of pass `index` and their captions."""
        group = 1 + self.num_images  # clips drawn for one row: the video, and one for each image
        numbers, epochs = self._numbers(self._positions(index))
        if isinstance(self.source, VideoClips | LatentClips):
            drawn, numbers = self.source.draw(numbers, epochs)
        else:
            drawn = self.source.batch(numbers)
        captions = None if self.captions is None else self.captions(numbers[::group])
        return Batch(self._joined(drawn, index), captions)

    def _positions(self, index: int) -> NDArray[np.int64]:
        """Those of pass `index` in the endless sequence of clips."""
        group, first = 1 + self.num_images, (index * self.world + self.rank) * self.local_batch
        return np.arange(first * group, (first + self.local_batch) * group)

    def _joined(self, drawn: NDArray[Any], index: int) -> Tensor:
        """Clips, and of those that were drawn beside each a frame as an image: `[B, F + num_images, H, W, C]`."""
        group, first = 1 + self.num_images, (index * self.world + self.rank) * self.local_batch
        drawn = drawn if drawn.ndim == 5 else drawn[..., None]
        drawn = drawn.reshape(self.local_batch, group, *drawn.shape[1:])
        frames = drawn.shape[2]  # of which the first alone is an image, where latents compress time
        frames = 1 if isinstance(self.source, LatentClips) and self.source.compressed else frames
        rows, k = np.arange(self.local_batch)[:, None], np.arange(1, group)
        images = drawn[rows, k, (first + rows + k) % frames]
        return torch.from_numpy(np.concatenate([drawn[:, 0], images], axis=1))

    def _numbers(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which clips of the source stand at these positions of the endless sequence, and in which epoch."""
        size = len(self.source)
        epochs, places = np.divmod(positions, size)
        if not self.shuffled:
            return places, epochs
        orders = {epoch: np.random.default_rng((self.seed, int(epoch))).permutation(size) for epoch in set(epochs)}
        return np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)]), epochs


class StreamBatches(StepBatches):
    """The same of a `VideoStream`, for passes in their order. `captions` gives that of a row."""

    def __getitem__(self, index: int) -> Batch:
        """The clips of pass `index`; what stands before them in the stream is read over."""
        return next(self.between(index, index + 1))

    def between(self, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
        """The passes start … stop − 1; with workers, threads that decode, four passes are prepared ahead."""
        if not workers:
            yield from self._prepared(start, stop, None)
            return
        with ThreadPoolExecutor(workers) as pool:
            yield from ahead(self._prepared(start, stop, pool), 4)

    def _prepared(self, start: int, stop: int, pool: ThreadPoolExecutor | None) -> Iterator[Batch]:
        groups = (self._positions(index).tolist() for index in range(start, stop))
        for index, drawn in enumerate(self.source.draw(groups, pool), start=start):
            captions = None
            if self.captions is not None:
                captions = [self.captions(item.row) for item in drawn[:: 1 + self.num_images]]
            yield Batch(self._joined(np.stack([item.clip for item in drawn]), index), captions)


def ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """The same items, so many of them made ahead by a thread; what it raises is raised here."""
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(count)
    stopped = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                return made.put(item, timeout=0.1)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield cast(T, item)
    finally:
        stopped.set()
        thread.join()


def open_source(data: DataArguments, split: str, seed: int) -> Any:
    """The clips of a split: of the videos that `videos` or `dataset_name` names, or Moving MNIST on the fly.

    Raises:
        ValueError: if there are none, or they do not fit the arguments.
        OSError: if there is no such folder or dataset.
    """
    height, width = data.height_width
    if data.source is not None:
        if data.videos is not None and not Path(data.videos).exists():
            raise ValueError(f"`videos` is {data.videos!r}, expected a folder of videos: there is none of that name.")
        options: dict[str, Any] = {
            "num_frames": data.num_frames,
            "image_size": (height, width),
            "num_channels": data.num_channels,
            "frame_stride": data.frame_stride,
            "fps": data.fps,
            "crop": data.crop,
            "flip": data.random_flip,
            "seed": seed,
            "on_bad_video": data.on_bad_video,
            "column": data.video_column,
            "background": data.video_background,
            "video_axes": data.video_axes,
        }
        if data.streaming:
            return stream_videos(data.source, split, buffer=data.shuffle_buffer, **options)
        cache_dir = _cache_folder(data) if data.video_cache == "disk" else None
        return load_videos(data.source, split, cache=data.video_cache, cache_dir=cache_dir, **options)
    if data.num_channels not in (None, 1):
        raise ValueError(f"`num_channels` is {data.num_channels}, expected 1 for Moving MNIST.")
    if height != width:
        raise ValueError(f"`image_size` is {data.image_size}, expected one number for Moving MNIST.")
    return MovingMNIST(
        split=split,
        num_frames=data.num_frames,
        image_size=height,
        num_digits=data.num_digits,
        variant=data.variant,
        seed=seed,
        digits=data.digits,
    )


def channels_of(source: Any) -> int:
    """Channels of a source's clips."""
    return source.num_channels if isinstance(source, VideoClips | VideoStream) else 1


def _cache_folder(data: DataArguments) -> Path:
    """Where videos are kept that were decoded once.

    Raises:
        ValueError: if it is among the videos, where its files would be taken for more of them.
    """
    if data.video_cache_dir is None:
        return cached_assets_path(library_name="video_diffusion", namespace="videos", subfolder="decoded")
    folder = Path(data.video_cache_dir)
    if data.source is not None and folder.resolve().is_relative_to(Path(data.source).resolve()):
        raise ValueError(f"`video_cache_dir` is {str(folder)!r}, expected a folder outside of {data.source!r}.")
    return folder


def text_folder(data: DataArguments) -> Path:
    """Where the states of texts are kept that a frozen encoder has read."""
    if data.text_cache_dir is not None:
        return Path(data.text_cache_dir)
    return cached_assets_path(library_name="video_diffusion", namespace="texts", subfolder="states")


def open_captions(source: Any, data: DataArguments, seed: int) -> Callable[[Any], Any]:
    """The captions of a source's clips: what the generator knows of them, or what is said of the videos.

    Returns:
        gives those of the clips of some numbers; of a stream, that of a row, empty where it has none.

    Raises:
        ValueError: if a video has none, or there are captions without a video.
    """
    if isinstance(source, MovingMNIST):
        return partial(_describe, source, seed)
    try:
        if isinstance(source, VideoStream):
            source.captions(data.caption_column)
            return partial(_of_row, source.captioner(data.caption_column))
        return partial(_look_up, source.captions(data.caption_column))
    except ValueError as error:
        raise ValueError(f"{error} Without captions, train with `text_encoder` none.") from error


def _describe(source: MovingMNIST, seed: int, numbers: NDArray[np.int64]) -> list[str]:
    return captions(source.clips(numbers), numbers, seed, source.image_size - source.pixels_per_digit, "varied")


def _of_row(caption: Callable[[Row], str | None], row: Row) -> str:
    return caption(row) or ""


def _look_up(texts: list[str], numbers: NDArray[np.int64]) -> list[str]:
    return [texts[number] for number in numbers]


def passes(batches: StepBatches, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """The passes start … stop − 1 in order, prepared ahead by worker processes; of a stream, by threads."""
    if isinstance(batches, StreamBatches):
        return batches.between(start, stop, workers)
    return iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
    )


def to_model(clips: Tensor, device: torch.device) -> Tensor:
    """Stored clips uint8 `[B, F, H, W, C]` → `[B, C, F, H, W]` in [-1, 1] on the device."""
    return clips.to(device, non_blocking=True).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)
