"""`video-diffusion latents build`: the latents of a training's clips, made once."""

import argparse
from typing import Any


def register(subparsers: Any) -> None:
    """Adds the `latents` command. It hands its flags on, as `train` does."""
    no_prefix = "\0"  # of this parser: nothing is a flag of its own
    latents = subparsers.add_parser("latents", help="encode the clips of a training once")
    actions = latents.add_subparsers(required=True, metavar="action")
    build = actions.add_parser("build", help="encode them into shards", add_help=False, prefix_chars=no_prefix)
    build.add_argument("flags", nargs="*", metavar="--vae ID_OR_FOLDER --videos FOLDER, --help and more")
    build.set_defaults(run=run_build)


def run_build(args: argparse.Namespace) -> int:
    """Builds latents; returns the exit code."""
    from video_diffusion.training.build_latents import main

    return main(args.flags)
