"""`video-diffusion distill`: what `training/distill.py` does, on one device."""

import argparse
from typing import Any


def register(subparsers: Any) -> None:
    """Adds the `distill` command. It hands its flags on, as `train` does."""
    no_prefix = "\0"  # of this parser: nothing is a flag of its own
    parser = subparsers.add_parser(
        "distill", help="distil a model to few calls", add_help=False, prefix_chars=no_prefix
    )
    parser.add_argument("flags", nargs="*", metavar="--student_calls N, --help and more")
    parser.set_defaults(run=run_distill)


def run_distill(args: argparse.Namespace) -> int:
    """Distils; returns the exit code."""
    from video_diffusion.training.command import distill

    return distill(args.flags)
