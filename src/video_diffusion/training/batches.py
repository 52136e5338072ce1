"""The clips of every step: a pure function of the step, so that resuming and sharing need no state."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub import cached_assets_path
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from video_diffusion.data import MovingMNIST, VideoClips, load_videos
from video_diffusion.data.captions import captions
from video_diffusion.training.arguments import DataArguments


class Batch(NamedTuple):
    """What one process sees in one pass.

    Args:
        clips: uint8 `[B, F + num_images, H, W, C]`.
        captions: one a clip, or None where there is no text.
    """

    clips: Tensor
    captions: list[str] | None = None


class StepBatches(Dataset):
    """Item k is what one process sees in pass k.

    Args:
        source: `VideoClips`, of which windows are drawn; or has `__len__` and `batch(indices)` → uint8 `[B, F, H, W]`
            or `[B, F, H, W, C]`.
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
        captions: Callable[[NDArray[np.int64]], list[str]] | None = None,
    ) -> None:
        self.source, self.local_batch, self.rank, self.world = source, local_batch, rank, world
        self.num_images, self.seed, self.captions = num_images, seed, captions
        self.shuffled = not isinstance(source, MovingMNIST)

    def __getitem__(self, index: int) -> Batch:
        """The clips of pass `index` and their captions."""
        group = 1 + self.num_images  # clips drawn for one row: the video, and one for each image
        first = (index * self.world + self.rank) * self.local_batch
        numbers, epochs = self._numbers(np.arange(first * group, (first + self.local_batch) * group))
        if isinstance(self.source, VideoClips):
            drawn, numbers = self.source.draw(numbers, epochs)
        else:
            drawn = self.source.batch(numbers)
        drawn = drawn if drawn.ndim == 5 else drawn[..., None]
        drawn = drawn.reshape(self.local_batch, group, *drawn.shape[1:])
        frames = drawn.shape[2]
        rows, k = np.arange(self.local_batch)[:, None], np.arange(1, group)
        images = drawn[rows, k, (first + rows + k) % frames]
        clips = torch.from_numpy(np.concatenate([drawn[:, 0], images], axis=1))
        return Batch(clips, None if self.captions is None else self.captions(numbers[::group]))

    def _numbers(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which clips of the source stand at these positions of the endless sequence, and in which epoch."""
        size = len(self.source)
        epochs, places = np.divmod(positions, size)
        if not self.shuffled:
            return places, epochs
        orders = {epoch: np.random.default_rng((self.seed, int(epoch))).permutation(size) for epoch in set(epochs)}
        return np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)]), epochs


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
        return load_videos(
            data.source,
            split,
            num_frames=data.num_frames,
            image_size=(height, width),
            num_channels=data.num_channels,
            frame_stride=data.frame_stride,
            fps=data.fps,
            crop=data.crop,
            flip=data.random_flip,
            seed=seed,
            on_bad_video=data.on_bad_video,
            cache=data.video_cache,
            cache_dir=_cache_folder(data) if data.video_cache == "disk" else None,
            column=data.video_column,
            background=data.video_background,
            video_axes=data.video_axes,
        )
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
    return source.num_channels if isinstance(source, VideoClips) else 1


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


def open_captions(source: Any, data: DataArguments, seed: int) -> Callable[[NDArray[np.int64]], list[str]]:
    """The captions of a source's clips: what the generator knows of them, or what is said of the videos.

    Raises:
        ValueError: if a video has none, or there are captions without a video.
    """
    if isinstance(source, MovingMNIST):
        return partial(_describe, source, seed)
    try:
        return partial(_look_up, source.captions(data.caption_column))
    except ValueError as error:
        raise ValueError(f"{error} Without captions, train with `text_encoder` none.") from error


def _describe(source: MovingMNIST, seed: int, numbers: NDArray[np.int64]) -> list[str]:
    return captions(source.clips(numbers), numbers, seed, source.image_size - source.pixels_per_digit)


def _look_up(texts: list[str], numbers: NDArray[np.int64]) -> list[str]:
    return [texts[number] for number in numbers]


def passes(batches: StepBatches, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """The passes start … stop − 1 in order, prepared ahead by worker processes."""
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
