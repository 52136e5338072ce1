"""
Times the vectorised Moving MNIST generator against the per-clip loops that papers publish, on one thread.

    python -m benchmarks.data_generators            # a table, and benchmarks/results/data_generators.json
    python -m benchmarks.data_generators --repeats 5 --batch_sizes 8 64

All loops are our own writing of what OpenSTL (classic) and SVG / MCVD (stochastic) do for each clip: Python loops over
digits and frames that paste one digit at a time into a float32 clip.

* `published`: what their dataset classes do for a batch: draw each clip, bring it to [0, 1] as a tensor (OpenSTL:
  in two halves), collate. The stochastic one resizes and scales a digit at every draw, and turns it to
  numpy at every frame.
* `bare_loop`: only the loop, tidied: digits prepared beforehand, pasted in place, nothing scaled, nothing collated.
* `ours`: `MovingMNIST.batch`, uint8 as our training takes it; `ours_float32`: the same, then float32 in [0, 1].

Runs are interleaved; the figures are medians of the thread's processor time, so other programs on the machine count
little.
"""

import argparse
import json
import math
import os
import platform
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from video_diffusion.data import MovingMNIST, load_digits, resize_images

RESULTS = Path(__file__).parent / "results" / "data_generators.json"
IMAGE_SIZE, NUM_DIGITS = 64, 2
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


def interleaved(runs: dict[str, Callable[[int], object]], repeats: int) -> dict[str, float]:
    """Median processor seconds of each run, all timed once in each repetition. A run gets the repetition's number."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            begin = time.thread_time()
            run(repeat)
            seconds[name].append(time.thread_time() - begin)
    return {name: median(values[1:]) for name, values in seconds.items()}  # the first repetition warms up


def build_runs(variant: str, batch_size: int, num_frames: int) -> dict[str, Callable[[int], object]]:
    """The ways to draw a batch."""
    images = load_digits("test").images
    dataset = MovingMNIST(variant=variant, num_frames=num_frames, split="test")

    def ours(repeat: int) -> NDArray[np.uint8]:
        return dataset.batch(range(repeat * batch_size, (repeat + 1) * batch_size))

    if variant == "classic":
        bare: Callable[[], Clip] = partial(classic_clip, images, num_frames)
        item: Callable[[], tuple[torch.Tensor, ...]] = partial(classic_item, images, num_frames)
    else:
        prepared = resize_images(images, 32).astype(np.float32) / 255
        bare = partial(stochastic_clip, lambda: prepared[np.random.randint(len(prepared))], num_frames)
        item = partial(stochastic_item, images, num_frames)
    return {
        "ours": ours,
        "ours_float32": lambda repeat: torch.from_numpy(ours(repeat)).to(torch.float32).div_(255),
        "bare_loop": lambda _: [bare() for _ in range(batch_size)],
        "published": lambda _: [torch.stack(part) for part in zip(*(item() for _ in range(batch_size)), strict=True)],
    }


def main() -> None:
    """Runs the comparison, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--num_frames", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    random.seed(0)
    np.random.seed(0)
    torch.set_num_threads(1)
    rows = []
    print("microseconds per clip | published / ours, / ours_float32 | bare_loop / ours")
    for variant in ("classic", "stochastic"):
        for batch_size in args.batch_sizes:
            runs = build_runs(variant, batch_size, args.num_frames)
            clip = {k: 1e6 * v / batch_size for k, v in interleaved(runs, args.repeats).items()}
            ratios = {
                f"published / {name}": clip["published"] / clip[name] for name in clip if name.startswith("ours")
            }
            ratios["bare_loop / ours"] = clip["bare_loop"] / clip["ours"]
            columns = "".join(f" {name} {value:6.1f}" for name, value in clip.items())
            print(f"{variant:10} batch {batch_size:3}{columns} | " + "  ".join(f"{r:.1f}×" for r in ratios.values()))
            rows.append(
                {
                    "variant": variant,
                    "batch_size": batch_size,
                    "microseconds_per_clip": {k: round(v, 2) for k, v in clip.items()},
                    "ratios": {k: round(v, 2) for k, v in ratios.items()},
                }
            )
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    settings = {"num_frames": args.num_frames, "image_size": IMAGE_SIZE, "num_digits": NUM_DIGITS, "threads": 1}
    versions = {"numpy": np.__version__, "torch": torch.__version__}
    report = {"command": "python -m benchmarks.data_generators", "repeats": args.repeats, **settings, **machine}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**report, **versions, "rows": rows}, indent=2, ensure_ascii=False) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
