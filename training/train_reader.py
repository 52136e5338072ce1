"""Trains the network that reads generated clips: `python training/train_reader.py`, minutes on one CPU core.

Writes the weights that `video_diffusion.digit_reader.reader` loads, and beside them a JSON with what they reach on
test digits. Every batch is a pure function of the seed and the step: 28×28 windows of pictures of one or two digits
(28 or 32 pixels, overlaps by maximum or by clipped sum), shifted, blurred, faded and noisy, among them empty ones,
ones with a digit off their middle, ones with a digit whose quadrants are exchanged, which is none, and ones of noise
and clouds.
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from video_diffusion.data import MovingMNIST, load_digits, resize_images
from video_diffusion.data.moving_mnist import render
from video_diffusion.digit_reader.reader import REACH, WEIGHTS, WINDOW, DigitReader, classify

SIZES = (28, 32)  # of a digit: classic and stochastic Moving MNIST
DOUBT = 5  # pixels from the middle up to which nothing is asked of "a digit in the middle"
CANVAS = 96  # the digits stay inside it
EDGE = (CANVAS - WINDOW) // 2


class Batch(NamedTuple):
    """Windows and what is true of them.

    Args:
        pictures: `[B, 1, 28, 28]` in [0, 1].
        classes: of the digit nearest to the middle, `[B]`.
        offsets: y and x of its middle from the window's in units of `REACH` pixels, `[B, 2]`.
        present: whether it is in the middle, `[B]`.
        asked: whether that is beyond doubt, `[B]`.
    """

    pictures: Tensor
    classes: Tensor
    offsets: Tensor
    present: Tensor
    asked: Tensor


class Windows:
    """Batches of windows with digits of the training split."""

    def __init__(self, seed: int, batch_size: int) -> None:
        digits = load_digits("train")
        self.images = {size: resize_images(digits.images, size) for size in SIZES}
        self.labels, self.seed, self.batch_size = digits.labels, seed, batch_size

    def batch(self, step: int) -> Batch:
        """The windows of a step."""
        rng, B = np.random.default_rng([self.seed, step]), self.batch_size
        size = SIZES[int(rng.random() < 0.3)]
        chosen = rng.integers(0, len(self.labels), (B, 2))
        images = self.images[size][chosen]
        offsets = rng.integers(-WINDOW, WINDOW + 1, (B, 2, 2))
        offsets[:, 0] = np.where(
            rng.random((B, 1)) < 0.75, rng.integers(-REACH, REACH + 1, (B, 2)), rng.integers(-20, 21, (B, 2))
        )
        shown = np.stack([rng.random(B) < 0.97, rng.random(B) < 0.7], -1)
        cluttered = rng.random(B) < 0.08
        shown[cluttered] = False
        images[~shown] = 0
        broken = rng.random((B, 2)) < 0.06
        images[broken] = np.roll(images[broken], (size // 2, size // 2), (1, 2))
        video = render(images, offsets[:, :, None] + (CANVAS - size) // 2, CANVAS, add=bool(rng.random() < 0.5))
        pictures = torch.from_numpy(video[:, 0, EDGE:-EDGE, EDGE:-EDGE].astype(np.float32) / 255)[:, None]
        distance = np.where(shown & ~broken, np.abs(offsets).max(-1), CANVAS)
        nearest = distance.argmin(-1)
        rows = np.arange(B)
        near, labels = distance[rows, nearest], self.labels[chosen[rows, nearest]]
        pictures = spoil(pictures, rng)
        if cluttered.any():
            pictures[cluttered] = clutter(int(cluttered.sum()), rng)
        return Batch(
            pictures,
            torch.from_numpy(labels),
            torch.from_numpy(offsets[rows, nearest] / REACH).float(),
            torch.from_numpy(near <= REACH),
            torch.from_numpy((near <= REACH) | (near > DOUBT)),
        )


def spoil(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Blurs, fades and adds noise, each picture by its own amount; a third of them stay as they are."""
    B = len(pictures)

    def amount(low: float, high: float) -> Tensor:
        drawn = np.where(spoiled, rng.uniform(low, high, B), 0)
        return torch.from_numpy(drawn).float()[:, None, None, None]

    spoiled = rng.random(B) < 2 / 3
    pictures = torch.lerp(pictures, blur(pictures), amount(0, 0.8)) * (1 - amount(0, 0.5))
    noise = torch.from_numpy(rng.standard_normal(pictures.shape, np.float32))
    return (pictures + noise * amount(0, 0.12)).clamp(0, 1)


def blur(pictures: Tensor) -> Tensor:
    """The mean of each pixel's neighbours, `[B, 1, H, W]`, with weights that fall to 0 at 3 pixels."""
    tent = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0]) / 9
    return F.conv2d(pictures, (tent[:, None] * tent)[None, None], padding=2)


def clutter(count: int, rng: np.random.Generator) -> Tensor:
    """Pictures without digits, `[count, 1, 28, 28]`: noise and clouds of any strength on any grey."""
    noise = torch.from_numpy(rng.standard_normal((count, 1, WINDOW, WINDOW), np.float32))
    for _ in range(2):
        noise = torch.where(torch.from_numpy(rng.random(count) < 0.5)[:, None, None, None], blur(noise), noise)
    noise = noise / noise.std((1, 2, 3), keepdim=True)
    strength, grey = torch.from_numpy(rng.uniform([[0.0], [-0.4]], [[0.8], [0.4]], (2, count)).astype(np.float32))
    return (noise * strength[:, None, None, None] + grey[:, None, None, None]).clamp(0, 1)


def loss_of(said: Tensor, batch: Batch) -> Tensor:
    """Class and place where a digit is in the middle, presence where it is beyond doubt."""
    there = batch.present
    classes = F.cross_entropy(said[there, :10], batch.classes[there])
    places = 2 * F.smooth_l1_loss(said[there, 11:], batch.offsets[there], beta=0.1)
    asked = batch.asked
    return classes + places + F.binary_cross_entropy_with_logits(said[asked, 10], there[asked].float())


def crops_of_clips(variant: str, num_videos: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The 28×28 pixels around each digit of test clips of two digits, and the digits' classes."""
    videos = MovingMNIST(split="test", variant=variant, seed=1)
    clips = videos.clips(range(num_videos))
    edge = (videos.pixels_per_digit - WINDOW) // 2
    corners = clips["positions"].transpose(0, 2, 1, 3) + edge  # [B, D, F, 2]
    crops = [
        clip[frame, y : y + WINDOW, x : x + WINDOW]
        for clip, paths in zip(clips["video"], corners, strict=True)
        for path in paths
        for frame, (y, x) in enumerate(path)
    ]
    return np.stack(crops), clips["labels"].repeat(videos.num_frames)


def main() -> None:
    """Trains, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="the highest (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="default: %(default)s")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    start, windows = time.process_time(), Windows(args.seed, args.batch_size)
    reader = DigitReader().train()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.steps, pct_start=0.2)
    for step in range(args.steps):
        batch = windows.batch(step)
        loss = loss_of(reader(batch.pictures)[:, :, 0, 0], batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}, {time.process_time() - start:.0f} s", flush=True)
    seconds = time.process_time() - start
    weights = {name: (w.half() if w.is_floating_point() else w) for name, w in reader.state_dict().items()}
    save_file(weights, args.out)
    args.out.chmod(0o644)

    if args.out.resolve() == WEIGHTS:  # what is measured is what is loaded
        test = load_digits("test")
        report = {
            "command": f"python training/train_reader.py --steps {args.steps} --batch-size {args.batch_size} "
            f"--learning-rate {args.learning_rate:g} --seed {args.seed}",
            "processor_seconds": round(seconds),
            "threads": torch.get_num_threads(),
            "test_digits": len(test),
            "accuracy": float((classify(test.images).argmax(-1) == test.labels).mean()),
        }
        for variant in ("classic", "stochastic"):
            crops, labels = crops_of_clips(variant, 500)
            accuracy = float((classify(crops).argmax(-1) == labels.reshape(-1)).mean())
            report[f"accuracy_in_{variant}_clips"] = accuracy
        args.out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
