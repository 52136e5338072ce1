"""`video-diffusion train-lora`: what `training/train_lora.py` does, on one device."""

import argparse
from typing import Any


def register(subparsers: Any) -> None:
    """Adds the `train-lora` command. It hands its flags on, as `train` does."""
    no_prefix = "\0"  # of this parser: nothing is a flag of its own
    parser = subparsers.add_parser(
        "train-lora", help="train an adapter of a model", add_help=False, prefix_chars=no_prefix
    )
    parser.add_argument("flags", nargs="*", metavar="--videos FOLDER, --help and more")
    parser.set_defaults(run=run_train_lora)


def run_train_lora(args: argparse.Namespace) -> int:
    """Trains; returns the exit code."""
    from video_diffusion.training.command import train_lora

    return train_lora(args.flags)
