"""`video-diffusion train`: the same as `accelerate launch training/train.py`, on one process."""

import argparse
import sys
from typing import Any


def register(subparsers: Any) -> None:
    """Adds the subcommand; its arguments are those of the training."""
    train = subparsers.add_parser(
        "train",
        help="train a model: --preset NAME, and any argument of the training",
        description="Trains a model in this process. `video-diffusion train --preset tiny-cpu` is what "
        "`accelerate launch training/train.py --preset tiny-cpu` is on one process; `--help` after it lists all "
        "arguments. For several devices use accelerate.",
    )
    train.add_argument("arguments", nargs="*", help="arguments of the training")
    train.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> None:
    """Trains; the exit code is the training's: 3 asks for the same command again."""
    try:
        from video_diffusion.training.loop import main
    except ImportError as error:
        raise ImportError(f"Training needs more packages: pip install 'video-diffusion[train]' ({error}).") from error
    code = main(args.arguments)
    if code:
        sys.exit(code)
