"""How a command tells what it did: sentences for people, or with `--json` one JSON object for programs."""

import argparse
import json
from typing import Any


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`, for every command that reports."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, nothing else")


def report(args: argparse.Namespace, text: str, **facts: Any) -> None:
    """Prints `facts` as JSON where `--json` asks for it, else the text. Paths become strings."""
    print(json.dumps(facts, default=str) if args.json else text)
