"""
Draws docs/samples/hero.gif: clips of the test set in rows; the truth, then four futures that the model predicts.

    python docs/samples/hero.py

Frames that were given have a coloured border. Where the four futures differ, the given frames do not tell.
"""

from pathlib import Path

import numpy as np
import torch

from video_diffusion.data import MovingMNIST
from video_diffusion.data.video_io import FRAME_COLOUR, tile, to_channels, to_uint8, write_gif
from video_diffusion.sampling import load_pipeline

CLIPS, GIVEN, FRAMES, FUTURES, GAP = (4, 8, 9), 5, 20, 4, 3


def framed(video: np.ndarray) -> np.ndarray:
    """RGB frames `[F, H, W, 3]` in a border that is coloured while frames are given."""
    wide = np.full((len(video), video.shape[1] + 2 * GAP, video.shape[2] + 2 * GAP, 3), 24, np.uint8)
    wide[:GIVEN] = FRAME_COLOUR
    wide[:, GAP:-GAP, GAP:-GAP] = to_channels(video, 3)
    return wide


def main() -> None:
    """Writes the GIF."""
    pipeline = load_pipeline("moving-mnist")
    truth = MovingMNIST(split="test", num_frames=FRAMES).batch(CLIPS)[..., None]
    rows = []
    for clip in truth:
        seeds = [torch.Generator().manual_seed(seed) for seed in range(FUTURES)]
        options = {"num_frames": FRAMES, "num_videos_per_prompt": FUTURES, "generator": seeds, "output_type": "np"}
        rows += [framed(clip), *(framed(to_uint8(video)) for video in pipeline(video=clip[:GIVEN], **options).frames)]
    write_gif(tile(rows, 1 + FUTURES), Path(__file__).with_name("hero.gif"), fps=8, scale=2)


if __name__ == "__main__":
    main()
