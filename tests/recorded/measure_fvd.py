"""
Measures the Fréchet video distance of real Moving MNIST against other real clips, shuffled frames and stills.

    python tests/recorded/measure_fvd.py --num-videos 4 8 256 --out tests/recorded/fvd.json

The values tell what a number means at that many clips; `tests/metrics/test_metrics_fvd.py` repeats them.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from video_diffusion.data import MovingMNIST
from video_diffusion.metrics import FVDMetric


def real_clips(start: int, stop: int, num_frames: int = 10) -> torch.Tensor:
    """Classic Moving MNIST, test digits, seed 0: clips `[N, F, 1, H, W]` in [0, 1]."""
    clips = MovingMNIST(split="test", num_frames=num_frames, seed=0).batch(range(start, stop))
    return torch.from_numpy(clips)[:, :, None] / 255.0


def shuffled(clips: torch.Tensor) -> torch.Tensor:
    """The same frames of each clip in a random order (seed 0)."""
    rng = np.random.default_rng(0)
    return torch.stack([clip[torch.from_numpy(rng.permutation(len(clip)))] for clip in clips])


def still(clips: torch.Tensor) -> torch.Tensor:
    """The first frame of each clip, repeated."""
    return clips[:, :1].expand_as(clips)


def measure(num_videos: int, metric: FVDMetric | None = None) -> dict[str, float]:
    """
    FVD against the clips 0…N−1 of real clips, shuffled frames and stills; prints clips per second.

    The three are made of the clips N…2N−1; `shuffled_same` is made of the clips 0…N−1 themselves, which takes the
    difference between two samples of clips out of it.
    """
    metric = metric or FVDMetric()
    same, others = real_clips(0, num_videos), real_clips(num_videos, 2 * num_videos)
    metric.features(others[:1])  # loads the network
    start = time.perf_counter()
    references = metric.features(same)
    print(f"{num_videos / (time.perf_counter() - start):.2f} clips/s through I3D, {torch.get_num_threads()} threads")
    values: dict[str, float] = {"num_videos": num_videos}
    sets = {"real": others, "shuffled": shuffled(others), "shuffled_same": shuffled(same), "still": still(others)}
    for name, clips in sets.items():
        comparison = FVDMetric()
        comparison.add_features(metric.features(clips), references)
        values[name] = round(comparison.compute()["fvd"], 3)
    return values


def main() -> None:
    """Writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-videos", type=int, nargs="+", default=[4, 8, 256])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    metric = FVDMetric()
    record = {
        "command": "python tests/recorded/measure_fvd.py --num-videos 4 8 256 --out tests/recorded/fvd.json",
        "data": "classic Moving MNIST, 10 frames of 64×64, test digits, seed 0",
        "torch": torch.__version__,
        "fvd": [measure(n, metric) for n in args.num_videos],
    }
    args.out.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
