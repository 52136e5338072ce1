"""The `video-diffusion` command. Each subcommand lives in a module of `video_diffusion.commands`."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = ("generate", "dataset", "metrics", "evaluate", "hub", "demo", "export", "train")


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser; every command module adds its own subparsers through `register(subparsers)`."""
    parser = argparse.ArgumentParser(
        prog="video-diffusion", description="Train, sample, measure and publish video diffusion models."
    )
    subparsers = parser.add_subparsers(required=True, metavar="command")
    for name in COMMANDS:
        importlib.import_module(f"video_diffusion.commands.{name}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after the program's name; `None` reads them from the shell.

    Returns:
        0 on success, 2 where the input was refused (the reason goes to standard error), 130 on Ctrl-C; `train` has
        more.
    """
    args = build_parser().parse_args(argv)
    try:
        code = args.run(args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"video-diffusion: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("video-diffusion: interrupted", file=sys.stderr)
        return 130
    return code or 0
