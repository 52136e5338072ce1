"""Distils a model to few calls: `accelerate launch training/distill.py --student_calls 4`; see `docs/training.md`."""

import sys

from video_diffusion.training.command import distill

if __name__ == "__main__":
    sys.exit(distill(sys.argv[1:]))
