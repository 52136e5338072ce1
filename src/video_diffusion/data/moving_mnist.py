"""Moving MNIST, drawn on the fly: clip i is a pure function of the settings, the seed, the split and i."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import ArrayLike, NDArray

from video_diffusion.data import trajectories
from video_diffusion.data.digits import SPLITS, Digits, load_digits, resize_images

VARIANTS = ("classic", "stochastic")
UNBOUNDED = 2**31 - 1
_MAX_FRAMES = 2**16
_CACHE = 2**19  # bytes of video drawn before the next: they stay in the processor's cache

# The numbers of the draws within a clip. Each digit has its own multiple of `_DIGIT`, and within it each frame its own
# four draws, so that a clip with more frames or more digits begins like the shorter one.
_COUNT = 0
_DIGIT = 2**20
_SOURCE, _START, _VELOCITY, _FIRST_REDRAW = 0, slice(1, 3), slice(3, 5), 8


@dataclass(frozen=True, eq=False)
class MovingMNIST:
    """
    Moving MNIST as a map-style dataset, in the two variants of the literature.

    `"classic"` (Srivastava et al. 2015; OpenSTL): 28-pixel digits in straight lines that bounce, overlaps by maximum.
    `"stochastic"` (SVG, Denton & Fergus 2018; MCVD): digits resized to 32 pixels, new random velocities at each wall,
    overlaps by clipped sum. See `trajectories` for the exact rules. Order, batch size, workers and processes never
    change a clip, and a clip with more frames or more digits starts with the frames or digits of the smaller one.

    Args:
        split: `"train"` or `"test"`: whose digits are used. The same index gives unrelated clips in the two splits.
        num_frames: F, 1 to 65536.
        image_size: height and width H = W in pixels.
        num_digits: digits per clip, or `(low, high)`: a number drawn for each clip, both ends included.
        variant: `"classic"` or `"stochastic"`.
        speed: classic: the fraction of the range a digit moves per frame, in [0, 1] (default 0.1); stochastic: the
            largest velocity in whole pixels per frame and axis, ≥ 1 (default 4).
        digit_size: size of a digit in pixels (default 28 for classic, 32 for stochastic), resized with Pillow's
            bilinear filter where the source has another size.
        seed: 0 to 2⁶⁴ − 1.
        num_videos: number of clips; `None`: 2³¹ − 1, that is as many as you like. Use your own sampler then, not
            `shuffle=True`, which lists all indices.
        digits: `Digits`, or the `source` of `load_digits` (`None`: the embedded MNIST).
        digit_range: `(start, stop)`: use only these digits of the split; `(0, 256)` of the test split is MCVD's.

    Raises:
        ValueError: if an argument is out of its range.
    """

    split: str = "train"
    num_frames: int = 10
    image_size: int = 64
    num_digits: int | tuple[int, int] = 2
    variant: str = "classic"
    speed: float | None = None
    digit_size: int | None = None
    seed: int = 0
    num_videos: int | None = None
    digits: Digits | str | Path | None = field(default=None, repr=False)
    digit_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_choice("split", self.split, SPLITS)
        _check_choice("variant", self.variant, VARIANTS)
        _check_integer("num_frames", self.num_frames, 1, _MAX_FRAMES)
        _check_integer("seed", self.seed, 0, 2**64 - 1)
        if self.num_videos is not None:
            _check_integer("num_videos", self.num_videos, 1, UNBOUNDED)
        if self.digit_size is not None:
            _check_integer("digit_size", self.digit_size, 1, 2**15)
        _check_pair("num_digits", self.digit_counts, 1, 256)
        if self.digit_range is not None:
            _check_pair("digit_range", self.digit_range, 0, UNBOUNDED)
            if self.digit_range[0] == self.digit_range[1]:
                raise ValueError(f"`digit_range` is {self.digit_range}; expected at least one digit")
        _check_integer("image_size", self.image_size, self.pixels_per_digit + (self.variant == "stochastic"), 2**15)
        self._check_speed()

    def _check_speed(self) -> None:
        if self.variant == "stochastic":
            if not 1 <= self.step <= self.image_size or self.step != int(self.step):
                raise ValueError(f"`speed` is {self.speed}; expected 1 to {self.image_size} whole pixels (stochastic)")
        elif not 0 <= self.step <= 1:
            raise ValueError(f"`speed` is {self.speed}; expected a fraction of the range in [0, 1] (classic)")

    @property
    def digit_counts(self) -> tuple[int, int]:
        """Smallest and largest number of digits in a clip; the largest is D."""
        return (self.num_digits, self.num_digits) if isinstance(self.num_digits, int) else self.num_digits

    @property
    def pixels_per_digit(self) -> int:
        """The size of a digit as drawn."""
        return self.digit_size or (28 if self.variant == "classic" else 32)

    @property
    def step(self) -> float:
        """The speed as used: `speed`, or the variant's own."""
        return self.speed if self.speed is not None else (0.1 if self.variant == "classic" else 4)

    @cached_property
    def source(self) -> Digits:
        """The digits drawn from, at the size they are drawn in."""
        digits = self.digits if isinstance(self.digits, Digits) else load_digits(self.split, self.digits)
        start, stop = self.digit_range or (0, len(digits))
        if stop > len(digits):
            raise ValueError(f"`digit_range` is {self.digit_range}; the source has {len(digits)} digits")
        images = np.ascontiguousarray(resize_images(digits.images[start:stop], self.pixels_per_digit)).view()
        images.flags.writeable = False  # always, as the embedded digits are: one type to compile loops for
        return Digits(images, digits.labels[start:stop])

    def __len__(self) -> int:
        return UNBOUNDED if self.num_videos is None else self.num_videos

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
        """
        One clip: `video` uint8 `[F, H, W]`, `labels` int64 `[D]` and `positions` int64 `[F, D, 2]`.

        Positions are y and x of the digits' top-left corners. Where the number of digits varies, labels and positions
        of the digits that a clip lacks are −1.
        """
        return {name: values[0] for name, values in self.clips([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, NDArray[Any]]]:
        """The clips of one batch; PyTorch's `DataLoader` calls this."""
        clips = self.clips(indices)
        return [{name: values[b] for name, values in clips.items()} for b in range(len(indices))]

    def batch(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """
        Draws a batch of videos.

        Args:
            indices: numbers of the clips, 0 … `len(self)` − 1, `[B]`.

        Returns:
            uint8 `[B, F, H, W]` in [0, 255].

        Raises:
            IndexError: if an index is out of range.
            TypeError: if the indices are not integers.
        """
        return self._draw(checked_indices(indices, len(self)))[0]

    def clips(self, indices: ArrayLike) -> dict[str, NDArray[Any]]:
        """A batch with what is known of it: the entries of `__getitem__` with an axis B in front."""
        video, chosen, positions, count = self._draw(checked_indices(indices, len(self)))
        present = np.arange(chosen.shape[1]) < count
        return {
            "video": video,
            "labels": np.where(present, self.source.labels[chosen], -1),
            "positions": np.where(present[:, None, :, None], positions.transpose(0, 2, 1, 3), -1),
        }

    def _draw(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray, NDArray]:
        """Videos `[B, F, H, W]`, their digits' numbers `[B, D]`, positions `[B, D, F, 2]`, digits shown `[B, 1]`."""
        low, high = self.digit_counts
        slots = _DIGIT * np.arange(1, high + 1)
        u = self._uniform(indices, slots, _FIRST_REDRAW)
        chosen = trajectories.integers(u[..., _SOURCE], 0, len(self.source) - 1)
        count = np.full((len(indices), 1), high)
        if low < high:
            count = trajectories.integers(self._uniform(indices, np.array([_COUNT]), 1)[..., 0], low, high)
        positions = self._classic(u) if self.variant == "classic" else self._stochastic(u, indices, slots)
        images, add = self.source.images, self.variant == "stochastic"
        if (kernels := compiled_kernels()) is not None:
            video = kernels.render(images, chosen, count, positions, self.image_size, add)
        else:
            digits = images[chosen]
            digits[np.arange(high) >= count] = 0
            video = render(digits, positions, self.image_size, add=add)
        return video, chosen, positions, count

    def _uniform(self, indices: NDArray[np.int64], slots: NDArray[np.int64], number: int) -> NDArray[np.float64]:
        """The first draws behind each slot of each clip, `[B, slots, number]`."""
        if (kernels := compiled_kernels()) is not None:
            return kernels.draws(self._stream[0], indices, slots, number)
        return trajectories.uniform(trajectories.clip_keys(self._stream, indices), slots[:, None] + np.arange(number))

    def _classic(self, u: NDArray[np.float64]) -> NDArray[np.int64]:
        """Corners of the digits, `[..., F, 2]`, from their draws `[..., draws]`."""
        span = self.image_size - self.pixels_per_digit
        start, angle = u[..., _START], 2 * np.pi * u[..., _VELOCITY.start]
        if (kernels := compiled_kernels()) is None:
            return trajectories.classic_positions(start, angle, self.num_frames, span, self.step)
        velocity = trajectories.classic_velocity(angle, self.step)
        positions = kernels.classic_positions(start.reshape(-1, 2), velocity.reshape(-1, 2), self.num_frames, span)
        return positions.reshape(*angle.shape, self.num_frames, 2)

    def _stochastic(
        self, u: NDArray[np.float64], indices: NDArray[np.int64], slots: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Corners of the digits, `[B, D, F, 2]`, from their draws `[B, D, draws]` and those of the walls they meet."""
        span, fastest, F = self.image_size - self.pixels_per_digit, int(self.step), self.num_frames
        start = trajectories.integers(u[..., _START], 0, span - 1)
        velocity = trajectories.integers(u[..., _VELOCITY], -fastest, fastest)
        walls = slots + _FIRST_REDRAW
        if (kernels := compiled_kernels()) is not None:
            return kernels.stochastic_positions(self._stream[0], indices, walls, start, velocity, F, span, fastest)
        redraws = self._uniform(indices, walls, 4 * F).reshape(*start.shape[:2], F, 2, 2)
        away = trajectories.integers(redraws[..., 0], 1, fastest)
        other = trajectories.integers(redraws[..., 1], -fastest, fastest)
        return trajectories.stochastic_positions(start, velocity, np.stack([away, other], -1), span)

    @cached_property
    def _stream(self) -> NDArray[np.uint64]:
        return trajectories.stream_key(self.seed, SPLITS.index(self.split))


@lru_cache(maxsize=1)
def compiled_kernels() -> ModuleType | None:
    """The loops of `compiled`, which draw the same bytes faster; `None` where numba is missing or switched off."""
    try:
        import numba
    except ImportError:
        return None
    return None if numba.config.DISABLE_JIT else import_module("video_diffusion.data.compiled")


def render(
    digits: NDArray[np.uint8], positions: NDArray[np.int64], image_size: int, *, add: bool = False
) -> NDArray[np.uint8]:
    """
    Draws digits into black frames.

    A digit written with the row length of the frame is one run of bytes, and moving it by (y, x) is moving that run by
    `y · image_size + x`: one copy for each digit and frame, all of them in one indexed assignment.

    Args:
        digits: uint8 `[B, D, h, h]`.
        positions: y and x of the top-left corners, 0 … `image_size − h`, `[B, D, F, 2]`.
        image_size: H = W.
        add: where digits overlap, the sum clipped to 255; otherwise the maximum.

    Returns:
        uint8 `[B, F, H, W]`.
    """
    B, D, F, _ = positions.shape
    size = digits.shape[-1]
    length = (size - 1) * image_size + size
    rows = np.zeros((B, D, size, image_size), np.uint8)
    rows[..., :size] = digits
    runs = rows.reshape(B, D, size * image_size)[..., None, :length]  # [B, D, 1, length]
    video = np.empty((B, F, image_size, image_size), np.uint8)
    windows = as_strided(
        video.reshape(-1), (max(video.size - length + 1, 0), length), (1, 1)
    )  # every run of its bytes
    frames = np.arange(B * F).reshape(B, 1, F) * image_size**2
    places = frames + positions[..., 0] * image_size + positions[..., 1]
    clips_at_once = max(_CACHE // (F * image_size**2), 1)
    for first in range(0, B, clips_at_once):
        clips = slice(first, first + clips_at_once)
        video[clips] = 0
        windows[places[clips, 0]] = runs[clips, 0]
        for d in range(1, D):
            below, run = windows[places[clips, d]], runs[clips, d]
            if add:
                np.minimum(below, 255 - run, out=below)
                below += run
            else:
                np.maximum(below, run, out=below)
            windows[places[clips, d]] = below
    return video


def checked_indices(indices: ArrayLike, length: int) -> NDArray[np.int64]:
    """Integers `[B]` in 0 … `length` − 1 as int64; TypeError for anything else, IndexError out of range."""
    array = np.asarray(indices)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise TypeError(f"`indices` is {array.dtype} of shape {array.shape}; expected integers of shape [B]")
    if array.size and not 0 <= array.min() <= array.max() < length:
        raise IndexError(f"`indices` spans {array.min()} to {array.max()}; expected 0 to {length - 1}")
    return array.astype(np.int64)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; expected one of {', '.join(map(repr, choices))}")


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"`{name}` is {value!r}; expected an integer")
    if not low <= value <= high:
        raise ValueError(f"`{name}` is {value}; expected {low} to {high}")


def _check_pair(name: str, pair: tuple[int, int], low: int, high: int) -> None:
    if len(pair) != 2:
        raise ValueError(f"`{name}` is {pair}; expected two integers")
    for value in pair:
        _check_integer(name, value, low, high)
    if pair[0] > pair[1]:
        raise ValueError(f"`{name}` is {pair}; expected its first number to be at most its second")
