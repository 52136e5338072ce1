"""`video-diffusion train`: what `training/train.py` does, on one device."""

import argparse
from typing import Any


def register(subparsers: Any) -> None:
    """Adds the `train` command. It hands its flags on: what they are is known where training is installed."""
    no_prefix = "\0"  # of this parser: nothing is a flag of its own
    parser = subparsers.add_parser("train", help="train a model", add_help=False, prefix_chars=no_prefix)
    parser.add_argument("flags", nargs="*", metavar="--preset NAME, --help and more")
    parser.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> int:
    """Trains; returns the exit code."""
    from video_diffusion.training.command import main

    return main(args.flags)
