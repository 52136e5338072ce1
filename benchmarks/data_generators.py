"""
Times the Moving MNIST generator against the per-clip loops that papers publish, on one thread.

    python -m benchmarks.data_generators [--quick]

All loops are our own writing of what OpenSTL (classic) and SVG / MCVD (stochastic) do for each clip: Python loops over
digits and frames that paste one digit at a time into a float32 clip.

* `published`: what their dataset classes do for a batch: draw each clip, bring it to [0, 1] as a tensor (OpenSTL:
  in two halves), collate. The stochastic one resizes and scales a digit at every draw, and turns it to
  numpy at every frame.
* `bare_loop`: only the loop, tidied: digits prepared beforehand, pasted in place, nothing scaled, nothing collated.
* `ours`: `MovingMNIST.batch`, uint8 as our training takes it; `ours_float32`: the same, then float32 in [0, 1];
  `ours_numpy`: the same as `ours` without numba.

Each figure is the median over interleaved repetitions of some batches in a row, in the thread's processor time: in a
row, because a training draws with one generator, in the memory that its last batch left.
"""

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measure import Options, interleaved, part_main, rounded
from video_diffusion.data import load_digits, moving_mnist, resize_images

IMAGE_SIZE, NUM_DIGITS, NUM_FRAMES = 64, 2, 20
Clip = NDArray[np.float32]


def classic_clip(images: NDArray[np.uint8], num_frames: int) -> Clip:
    """One clip in [0, 255]: a trajectory for each digit, then its maximum with each frame."""
    size = images.shape[-1]
    clip = np.zeros((num_frames, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for _ in range(NUM_DIGITS):
        tops, lefts = classic_path(num_frames, IMAGE_SIZE - size)
        digit = images[random.randrange(len(images))]
        for frame, top, left in zip(clip, tops, lefts, strict=True):
            place = frame[top : top + size, left : left + size]
            np.maximum(place, digit, out=place)
    return clip


def classic_path(num_frames: int, span: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """One digit's tops and lefts."""
    x, y, angle = random.random(), random.random(), 2 * math.pi * random.random()
    speed_x, speed_y = 0.1 * math.cos(angle), 0.1 * math.sin(angle)
    xs, ys = np.zeros(num_frames), np.zeros(num_frames)
    for k in range(num_frames):
        x, y = x + speed_x, y + speed_y
        if x <= 0 or x >= 1:
            x, speed_x = min(max(x, 0), 1), -speed_x
        if y <= 0 or y >= 1:
            y, speed_y = min(max(y, 0), 1), -speed_y
        xs[k], ys[k] = x, y
    return (span * ys).astype(np.int32), (span * xs).astype(np.int32)


def classic_item(images: NDArray[np.uint8], num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An item as OpenSTL's dataset gives it: given and future frames as float tensors in [0, 1]."""
    clip = classic_clip(images, num_frames)[:, None]
    half = num_frames // 2
    return (
        torch.from_numpy(clip[:half] / 255.0).contiguous().float(),
        torch.from_numpy(clip[half:] / 255.0).contiguous().float(),
    )


def stochastic_clip(draw_digit: Callable[[], Any], num_frames: int, digit_size: int = 32) -> Clip:
    """One clip in [0, 1]: digits are added frame by frame, with new velocities at each wall."""
    span = IMAGE_SIZE - digit_size
    clip = np.zeros((num_frames, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for _ in range(NUM_DIGITS):
        digit = draw_digit()
        x, y = np.random.randint(span), np.random.randint(span)
        speed_x, speed_y = np.random.randint(-4, 5), np.random.randint(-4, 5)
        for frame in clip:
            if y < 0 or y >= span:
                speed_y = np.random.randint(1, 5) if y < 0 else np.random.randint(-4, 0)
                speed_x = np.random.randint(-4, 5)
                y = 0 if y < 0 else span - 1
            if x < 0 or x >= span:
                speed_x = np.random.randint(1, 5) if x < 0 else np.random.randint(-4, 0)
                speed_y = np.random.randint(-4, 5)
                x = 0 if x < 0 else span - 1
            pixels = digit if isinstance(digit, np.ndarray) else digit.numpy().squeeze()
            frame[y : y + digit_size, x : x + digit_size] += pixels
            x, y = x + speed_x, y + speed_y
    clip[clip > 1] = 1
    return clip


def transformed_digit(images: NDArray[np.uint8]) -> torch.Tensor:
    """A digit as a torchvision MNIST with Resize and ToTensor gives it: float32 `[1, 32, 32]`."""
    picture = Image.fromarray(images[np.random.randint(len(images))]).resize((32, 32), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture, np.uint8))[None].to(torch.float32).div(255)


def stochastic_item(images: NDArray[np.uint8], num_frames: int) -> tuple[torch.Tensor]:
    """An item as SVG's dataset gives it: a float tensor in [0, 1]."""
    return (torch.from_numpy(stochastic_clip(partial(transformed_digit, images), num_frames)),)


@contextmanager
def numpy_only() -> Iterator[None]:
    """Leaves numba out."""
    kernels, moving_mnist.compiled_kernels = moving_mnist.compiled_kernels, lambda: None
    try:
        yield
    finally:
        moving_mnist.compiled_kernels = kernels


def build_runs(variant: str, batch_size: int, num_frames: int) -> dict[str, Callable[[], object]]:
    """The ways to draw a batch."""
    images = load_digits("test").images
    dataset = moving_mnist.MovingMNIST(variant=variant, num_frames=num_frames, split="test")
    first = itertools.count(step=batch_size)

    def ours() -> NDArray[np.uint8]:
        return dataset.batch(np.arange(batch_size) + next(first))

    def ours_numpy() -> NDArray[np.uint8]:
        with numpy_only():
            return ours()

    if variant == "classic":
        bare: Callable[[], Clip] = partial(classic_clip, images, num_frames)
        item: Callable[[], tuple[torch.Tensor, ...]] = partial(classic_item, images, num_frames)
    else:
        prepared = resize_images(images, 32).astype(np.float32) / 255
        bare = partial(stochastic_clip, lambda: prepared[np.random.randint(len(prepared))], num_frames)
        item = partial(stochastic_item, images, num_frames)
    runs: dict[str, Callable[[], object]] = {
        "ours": ours,
        "ours_float32": lambda: torch.from_numpy(ours()).to(torch.float32).div_(255),
        "bare_loop": lambda: [bare() for _ in range(batch_size)],
        "published": lambda: [torch.stack(part) for part in zip(*(item() for _ in range(batch_size)), strict=True)],
    }
    return runs if moving_mnist.compiled_kernels() is None else {**runs, "ours_numpy": ours_numpy}


def run(options: Options) -> dict[str, Any]:
    """Microseconds a clip of each way, and how many times more the loops take than ours."""
    random.seed(0)
    np.random.seed(0)
    rows = []
    for variant in ("classic", "stochastic"):
        for batch_size in (64,) if options.quick else (8, 64, 256):
            runs = build_runs(variant, batch_size, NUM_FRAMES)
            seconds = interleaved(runs, options.repeats, time.thread_time, calls=max(512 // batch_size, 2))
            clip = {name: 1e6 * median(values) / batch_size for name, values in seconds.items()}
            ratios = {
                f"{theirs} / {name}": rounded(clip[theirs] / clip[name], 3)
                for theirs in ("published", "bare_loop")
                for name in clip
                if name.startswith("ours")
            }
            clip = {name: rounded(value) for name, value in clip.items()}
            rows.append(
                {"variant": variant, "batch_size": batch_size, "microseconds_per_clip": clip, "ratios": ratios}
            )
    numba = moving_mnist.compiled_kernels() is not None
    return {"num_frames": NUM_FRAMES, "image_size": IMAGE_SIZE, "num_digits": NUM_DIGITS, "numba": numba, "rows": rows}


if __name__ == "__main__":
    part_main(run, __doc__)
