"""The clips of every step: a pure function of the step, so that resuming and sharing need no state."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from video_diffusion.data import MovingMNIST, load_videos
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
        source: has `__len__` and `batch(indices)` → uint8 `[B, F, H, W]` or `[B, F, H, W, C]`.
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
        numbers = self._numbers(np.arange(first * group, (first + self.local_batch) * group))
        drawn = self.source.batch(numbers)
        drawn = drawn if drawn.ndim == 5 else drawn[..., None]
        drawn = drawn.reshape(self.local_batch, group, *drawn.shape[1:])
        frames = drawn.shape[2]
        rows, k = np.arange(self.local_batch)[:, None], np.arange(1, group)
        images = drawn[rows, k, (first + rows + k) % frames]
        clips = torch.from_numpy(np.concatenate([drawn[:, 0], images], axis=1))
        return Batch(clips, None if self.captions is None else self.captions(numbers[::group]))

    def _numbers(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which clips of the source stand at these positions of the endless sequence."""
        size = len(self.source)
        if not self.shuffled:
            return positions % size
        epochs, places = np.divmod(positions, size)
        orders = {epoch: np.random.default_rng((self.seed, int(epoch))).permutation(size) for epoch in set(epochs)}
        return np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)])


def open_source(data: DataArguments, split: str, seed: int) -> Any:
    """The clips of a split: Moving MNIST on the fly, or the dataset that `dataset_name` names."""
    if data.dataset_name is not None:
        return load_videos(
            data.dataset_name,
            split,
            num_frames=data.num_frames,
            image_size=data.image_size,
            num_channels=data.num_channels,
        )
    if data.num_channels != 1:
        raise ValueError(f"`num_channels` is {data.num_channels}, expected 1 for Moving MNIST.")
    return MovingMNIST(
        split=split,
        num_frames=data.num_frames,
        image_size=data.image_size,
        num_digits=data.num_digits,
        variant=data.variant,
        seed=seed,
        digits=data.digits,
    )


def open_captions(source: Any, data: DataArguments, seed: int) -> Callable[[NDArray[np.int64]], list[str]]:
    """The captions of a source's clips: what the generator knows of them, or a column of the dataset.

    Raises:
        ValueError: if the dataset has no such column.
    """
    if isinstance(source, MovingMNIST):
        return partial(_describe, source, seed)
    if data.caption_column not in source.table.column_names:
        names = source.table.column_names
        raise ValueError(
            f"`caption_column` is {data.caption_column!r}, expected one of {names} for text conditioning."
        )
    return partial(_read, source.table.select_columns([data.caption_column]), data.caption_column)


def _describe(source: MovingMNIST, seed: int, numbers: NDArray[np.int64]) -> list[str]:
    return captions(source.clips(numbers), numbers, seed, source.image_size - source.pixels_per_digit)


def _read(table: Any, column: str, numbers: NDArray[np.int64]) -> list[str]:
    return [str(row[column]) for row in table.select(numbers)]


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
