"""Trains a VAE for latents: `accelerate launch training/train_vae.py --videos FOLDER`; see `docs/latents.md`."""

import sys

from video_diffusion.training.command import train_vae

if __name__ == "__main__":
    sys.exit(train_vae(sys.argv[1:]))
