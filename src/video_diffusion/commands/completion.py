"""`video-diffusion completion`: what a shell needs to complete commands and arguments."""

import argparse
from typing import Any

SHELLS = ("bash", "zsh", "fish")
INSTALL = """\
bash: video-diffusion completion bash > ~/.local/share/bash-completion/completions/video-diffusion
zsh:  video-diffusion completion zsh > "${fpath[1]}/_video-diffusion"
fish: video-diffusion completion fish > ~/.config/fish/completions/video-diffusion.fish
Then open a new shell."""


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    completion = subparsers.add_parser(
        "completion",
        help="print the completion script of a shell",
        description="Prints a script that makes a shell complete commands and arguments.",
        epilog=INSTALL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=run_completion)


def run_completion(args: argparse.Namespace) -> None:
    """Prints the script."""
    try:
        import shtab
    except ImportError as error:
        raise ImportError(f"Completion needs shtab: pip install 'video-diffusion[completion]' ({error}).") from error
    from video_diffusion.cli import build_parser

    print(shtab.complete(build_parser(), shell=args.shell))
