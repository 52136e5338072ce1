"""The `video-diffusion` command. Each subcommand lives in a module of `video_diffusion.commands`."""

import argparse
import importlib
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any, NoReturn

COMMANDS = (
    *("generate", "training", "dataset", "metrics", "evaluate", "hub", "demo", "export", "doctor"),
    "completion",
)
REFUSALS = (ValueError, TypeError, OSError, ImportError, OverflowError)  # each says what is wrong with the input
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # how PyTorch says it


class Parser(argparse.ArgumentParser):
    """A parser whose errors name what was probably meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As its base; an argument that this command does not have is refused here, where its own ones are known."""
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            name = rest[0].split("=")[0]
            self.error(f"there is no argument {name}{suggestion(name, self._option_string_actions)}")
        return namespace, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"{value!r} is none of {', '.join(known)}{suggestion(str(value), known)}"
            )

    def error(self, message: str) -> NoReturn:
        """Ends with code 2, the reason and where the help is."""
        self.exit(2, f"{self.prog}: {message}\nSee `{self.prog} --help`.\n")


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a message: the nearest known name as a question, or nothing where none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f". Did you mean {near[0]}?" if near else ""


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser; every command module adds its own subparsers through `register(subparsers)`."""
    parser = Parser(prog="video-diffusion", description="Train, sample, measure and publish video diffusion models.")
    parser.add_argument("--version", action="version", version=f"video-diffusion {version('video-diffusion')}")
    subparsers = parser.add_subparsers(required=True, metavar="command")
    for name in COMMANDS:
        importlib.import_module(f"video_diffusion.commands.{name}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after the program's name; `None` reads them from the shell.

    Returns:
        0 on success, 2 where the input was refused or the memory did not suffice (the reason goes to standard error),
        130 on Ctrl-C; `train`, `train-lora` and `distill` have more.
    """
    args = build_parser().parse_args(argv)
    try:
        code = args.run(args)
    except REFUSALS as error:
        print(f"video-diffusion: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        print("video-diffusion: the memory does not suffice: ask for fewer or shorter clips at once.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("video-diffusion: interrupted", file=sys.stderr)
        return 130
    return code or 0
