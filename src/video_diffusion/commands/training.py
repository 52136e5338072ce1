"""What the scripts in `training/` do, on one device: `train`, `train-lora`, `distill`, `latents build`.

These commands hand their flags on: what they are is known where training is installed.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any


def register(subparsers: Any) -> None:
    """Adds the commands."""
    _add(subparsers, "train", "train a model", "--preset NAME", _train)
    _add(subparsers, "train-lora", "train an adapter of a model", "--videos FOLDER", _train_lora)
    _add(subparsers, "distill", "distil a model to few calls", "--student_calls N", _distill)
    latents = subparsers.add_parser("latents", help="encode the clips of a training once")
    actions = latents.add_subparsers(required=True, metavar="action")
    _add(actions, "build", "encode them into shards", "--vae ID_OR_FOLDER --videos FOLDER", _build_latents)


def _add(subparsers: Any, name: str, does: str, example: str, main: Callable[[Sequence[str]], int]) -> None:
    """Adds a command whose flags `main` gets; its exit code is the command's."""
    no_prefix = "\0"  # of this parser: nothing is a flag of its own
    parser = subparsers.add_parser(name, help=does, add_help=False, prefix_chars=no_prefix)
    parser.add_argument("flags", nargs="*", metavar=f"{example}, --help and more")

    def run(args: argparse.Namespace) -> int:
        return main(args.flags)

    parser.set_defaults(run=run)


def _train(flags: Sequence[str]) -> int:
    from video_diffusion.training.command import main

    return main(flags)


def _train_lora(flags: Sequence[str]) -> int:
    from video_diffusion.training.command import train_lora

    return train_lora(flags)


def _distill(flags: Sequence[str]) -> int:
    from video_diffusion.training.command import distill

    return distill(flags)


def _build_latents(flags: Sequence[str]) -> int:
    from video_diffusion.training.build_latents import main

    return main(flags)
