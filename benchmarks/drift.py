"""What becomes of a long video: is it still digits, do they still move, frame by frame."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from video_diffusion.digit_reader.reader import find_digits
from video_diffusion.digit_reader.tracking import track_digits
from video_diffusion.metrics import ssim

MEASURES = {
    "ssim": "SSIM of a frame and the next",
    "confidence": "confidence of the digit classifier",
    "digits": "digits found in a frame",
    "speed": "speed, pixels a frame",
    "ink": "ink, sum of the pixels",
}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Drift:
    """What was measured of N videos of F frames.

    Args:
        frames: for each of `MEASURES` the mean over the videos by frame, `[F]`; NaN where there is none. SSIM and
            speed are those of a frame and the next, so the last is NaN.
        speeds: of each digit from frame to frame, with the frame: `[n, 2]`.
    """

    frames: Mapping[str, NDArray[np.float64]]
    speeds: NDArray[np.float64]

    def summary(self, first: int, last: int) -> dict[str, object]:
        """Means over the frames `first` … `last` − 1, and the quantiles of the speeds; None where nothing is."""
        here = (self.speeds[:, 0] >= first) & (self.speeds[:, 0] < last)
        chosen = self.speeds[here, 1]
        quantiles = np.quantile(chosen, QUANTILES).round(3).tolist() if len(chosen) else None
        return {
            **{name: _mean(values[first:last]) for name, values in self.frames.items()},
            "speed_quantiles": quantiles,
        }


def _mean(values: NDArray[np.float64]) -> float | None:
    there = values[~np.isnan(values)]
    return round(float(there.mean()), 4) if len(there) else None


def neighbour_ssim(clips: NDArray[np.uint8]) -> NDArray[np.float64]:
    """SSIM of each frame and the next, `[N, F − 1]`, of uint8 `[N, F, H, W]`; a video at a time."""
    found = []
    for clip in clips:
        frames = torch.from_numpy(clip.astype(np.float32) / 255)[None, :, None]
        found.append(ssim(frames[:, 1:], frames[:, :-1], reduction="none")[0].double().numpy())
    return np.stack(found)


def measure_drift(clips: NDArray[np.uint8], device: str = "cpu") -> Drift:
    """
    Measures videos frame by frame.

    Args:
        clips: uint8 `[N, F, H, W]` in [0, 255], F at least 2.
        device: where the reader runs.

    Raises:
        ValueError: if dtype or shape is another.
    """
    if clips.dtype != np.uint8 or clips.ndim != 4 or clips.shape[1] < 2:
        raise ValueError(f"`clips` is {clips.dtype} of shape {clips.shape}; expected uint8 [N, F, H, W] with F ≥ 2")
    N, F = clips.shape[:2]
    digits, confidence, speeds = np.zeros((N, F)), np.full((N, F), np.nan), []
    for n, clip in enumerate(clips):
        findings = find_digits(clip, device)
        digits[n] = [len(found.present) for found in findings]
        confidence[n] = [found.confidence.mean() if len(found.present) else np.nan for found in findings]
        for track in track_digits(findings):
            together = np.flatnonzero(np.diff(track.frames) == 1)
            speeds += list(zip(np.array(track.frames)[together], track.speeds, strict=True))
    moves = np.array(speeds, float).reshape(-1, 2)
    ssims = np.pad(neighbour_ssim(clips), ((0, 0), (0, 1)), constant_values=np.nan)
    return Drift(
        {
            "ssim": _over_videos(ssims),
            "confidence": _over_videos(confidence),
            "digits": digits.mean(0),
            "speed": _by_frame(moves, F),
            "ink": clips.sum((2, 3), dtype=np.float64).mean(0) / 255,
        },
        moves[np.argsort(moves[:, 0], kind="stable")],
    )


def _over_videos(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each column, NaN where a column has no number."""
    there = ~np.isnan(values)
    count = there.sum(0)
    return np.where(count > 0, np.where(there, values, 0).sum(0) / np.maximum(count, 1), np.nan)


def _by_frame(moves: NDArray[np.float64], F: int) -> NDArray[np.float64]:
    frames = moves[:, 0].astype(int)
    count, total = np.bincount(frames, minlength=F), np.bincount(frames, moves[:, 1], minlength=F)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def smooth(values: Sequence[float] | NDArray[np.float64], width: int) -> list[float | None]:
    """The mean over up to `width` frames around each, None where none of them has a number."""
    array, half = np.asarray(values, float), width // 2
    means = (_mean(array[max(i - half, 0) : i + half + 1]) for i in range(len(array)))
    return list(means)
