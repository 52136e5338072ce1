"""Trains a video diffusion model: `accelerate launch training/train.py --preset tiny-cpu`; see `docs/training.md`."""

import sys

from video_diffusion.training.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
