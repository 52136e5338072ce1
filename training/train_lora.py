"""Trains an adapter: `accelerate launch training/train_lora.py --videos FOLDER`; see `docs/tutorials/lora.md`."""

import sys

from video_diffusion.training.command import train_lora

if __name__ == "__main__":
    sys.exit(train_lora(sys.argv[1:]))
