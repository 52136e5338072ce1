"""A small network that finds and reads the digits of a frame; its weights come with the package.

It sees 28×28 pixels and says which digit they show, whether one is in their middle, and how far from it. There is no
padding in it, so on a larger picture it says the same of every fourth 28×28 window. `training/train_reader.py` makes
the weights from the embedded MNIST.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).parent / "digit_reader.safetensors"
WINDOW, STRIDE = 28, 4
REACH = 3  # pixels: a digit is in the middle of a window if its own is no farther from it, along each axis
PRESENT = 0.5  # the network's probability from which a digit counts as found
APART = 7  # pixels: findings closer than this along both axes are one digit
_FRAMES_AT_ONCE = 64


class DigitReader(nn.Module):
    """Convolutions without padding, `[N, 1, H, W]` in [0, 1] → `[N, 13, (H − 28) / 4 + 1, (W − 28) / 4 + 1]`.

    Channels: 10 logits of the digit's class, the logit of a digit in the middle of the window, and y and x of the
    digit's middle from the window's, in units of `REACH` pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, size, pool in ((1, 16, 5, 2), (16, 32, 3, 1), (32, 48, 3, 2), (48, 128, 4, 1)):
            layers += [nn.Conv2d(inputs, outputs, size, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.MaxPool2d(pool)] if pool > 1 else []
        self.layers = nn.Sequential(*layers, nn.Dropout(0.3), nn.Conv2d(128, 13, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """What it says of each window."""
        return self.layers(pictures)


class Findings(NamedTuple):
    """The digits found in one frame, n of them, the most certain first.

    Args:
        centres: y and x of their middles in pixels, float64 `[n, 2]`; a 28-pixel digit at corner (0, 0) has (14, 14).
        classes: log-probabilities of the digits 0 … 9, float64 `[n, 10]`.
        present: probabilities that there is a digit, float64 `[n]`, `PRESENT` to 1.
    """

    centres: NDArray[np.float64]
    classes: NDArray[np.float64]
    present: NDArray[np.float64]

    @property
    def confidence(self) -> NDArray[np.float64]:
        """For each digit the probability of its likeliest class, `[n]`."""
        return np.exp(self.classes.max(-1)) if len(self.classes) else np.zeros(0)


@cache
def load_reader(device: str = "cpu") -> DigitReader:
    """The trained network in float32, in evaluation mode."""
    reader = DigitReader()
    reader.load_state_dict(load_file(WEIGHTS))
    return reader.to(device).eval()


def reader_report() -> dict[str, Any]:
    """What the network reaches on test digits, and the command that made it."""
    return json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))


@torch.no_grad()
def classify(crops: NDArray[np.uint8], device: str = "cpu") -> NDArray[np.float64]:
    """Probabilities of the ten classes, `[N, 10]`, of pictures of one digit each, uint8 `[N, 28, 28]`."""
    if crops.ndim != 3 or crops.shape[1:] != (WINDOW, WINDOW):
        raise ValueError(f"`crops` has shape {crops.shape}; expected [N, {WINDOW}, {WINDOW}]")
    reader, found = load_reader(device), []
    for part in torch.tensor(crops).split(1024):
        logits = reader(part.to(device)[:, None].float() / 255)[:, :10, 0, 0]
        found.append(logits.double().softmax(-1).cpu())
    return torch.cat(found).numpy()


@torch.no_grad()
def find_digits(frames: NDArray[np.uint8], device: str = "cpu") -> list[Findings]:
    """
    Finds and reads the digits of frames.

    Args:
        frames: uint8 `[N, H, W]` in [0, 255]; H and W multiples of 4, at least 28.
        device: where the network runs.

    Returns:
        the findings of each frame. Digits whose middles are less than `APART` pixels apart are found as one.

    Raises:
        ValueError: if dtype or shape is another.
    """
    if (
        frames.dtype != np.uint8
        or frames.ndim != 3
        or min(frames.shape[1:]) < WINDOW
        or any(size % STRIDE for size in frames.shape[1:])
    ):
        raise ValueError(
            f"`frames` is {frames.dtype} of shape {frames.shape}; expected uint8 [N, H, W], multiples of {STRIDE}, "
            f"at least {WINDOW}"
        )
    reader, found = load_reader(device), []
    for part in torch.tensor(frames).split(_FRAMES_AT_ONCE):
        padded = F.pad(part.to(device)[:, None].float() / 255, [WINDOW // 2] * 4, mode="replicate")
        said = reader(padded).double().cpu()
        classes, present = said[:, :10].log_softmax(1).numpy(), said[:, 10].sigmoid().numpy()
        grid = STRIDE * np.stack(np.meshgrid(*map(np.arange, present.shape[1:]), indexing="ij"))
        centres = grid + REACH * said[:, 11:].numpy()
        found += [_peaks(*frame) for frame in zip(present, centres, classes, strict=True)]
    return found


def _peaks(present: NDArray[np.float64], centres: NDArray[np.float64], classes: NDArray[np.float64]) -> Findings:
    """One finding for each group of windows that see the same digit: maps `[h, w]`, `[2, h, w]`, `[10, h, w]`."""
    windows = np.argwhere(present > PRESENT)
    certain = present[tuple(windows.T)]
    windows = windows[np.argsort(-certain, kind="stable")]
    where, what = centres[:, *windows.T].T, classes[:, *windows.T].T
    sure = present[tuple(windows.T)]
    peaks: list[int] = []
    for i, centre in enumerate(where):
        if all(np.abs(centre - where[peak]).max() >= APART for peak in peaks):
            peaks.append(i)
    middles = np.zeros((len(peaks), 2))
    for number, peak in enumerate(peaks):  # the windows around a peak vote for its place
        near = np.abs(where - where[peak]).max(-1) < REACH
        middles[number] = np.average(where[near], axis=0, weights=sure[near])
    return Findings(middles, what[peaks], sure[peaks])
