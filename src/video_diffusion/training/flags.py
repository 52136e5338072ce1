"""Arguments of a run from a preset or a YAML file, and then from flags."""

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from video_diffusion.training.fields import checked, declared

HERE = Path(__file__).resolve().parent
SHELVES = (HERE / "presets", HERE.parents[2] / "training" / "presets")  # in an installed package, in the repository
PRESETS = next((shelf for shelf in SHELVES if shelf.is_dir()), SHELVES[0])


class _Parser(argparse.ArgumentParser):
    """A parser that raises what others print before they end the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def resolve(
    parser: argparse.ArgumentParser,
    groups: Sequence[type],
    argv: Sequence[str],
    defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> list[Any]:
    """The groups of arguments that flags and files make, each value checked for itself.

    Args:
        parser: of `flag_parser`.
        groups: of arguments.
        argv: the flags.
        defaults: further defaults, for what is given neither in a file nor by a flag; it gets what is.

    Raises:
        ValueError: if a flag or a key is unknown, or a value is not allowed.
    """
    given, unknown = parser.parse_known_args(argv)
    fields = declared(groups)
    if unknown:
        raise ValueError(_unknown(unknown[0], [*parser._option_string_actions]))
    flags = vars(given)
    values: dict[str, Any] = {}
    for path in _files(flags.pop("preset", None), flags.pop("config", None)):
        values |= _read(path, list(fields))
    values |= flags
    return checked(groups, values if defaults is None else {**defaults(values), **values})


def as_dict(arguments: Sequence[Any]) -> dict[str, Any]:
    """The resolved run as one flat mapping, as it is saved beside the weights."""
    return {key: value for each_group in arguments for key, value in dataclasses.asdict(each_group).items()}


def flag_parser(prog: str, does: str, groups: Sequence[type], presets: bool = True) -> argparse.ArgumentParser:
    """A parser that takes flags as words; what they mean is read by their checks, as what stands in a file is.

    Args:
        prog: the name of the program.
        does: what it does, in a sentence.
        groups: of its arguments.
        presets: whether a preset can be named.
    """
    files = "--preset NAME and --config FILE.yaml set" if presets else "--config FILE.yaml sets"
    parser = _Parser(
        prog=prog,
        usage=f"%(prog)s {'[--preset NAME] ' if presets else ''}[--config FILE.yaml] [flags]",
        description=f"{does} {files} defaults for the flags.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    if presets:
        parser.add_argument("--preset", help=f"One of {', '.join(_presets())}.")
    parser.add_argument("--config", help="A YAML file of arguments.")
    for cls in groups:
        section = parser.add_argument_group(str(cls.__doc__).rstrip("."))
        for name, field in declared([cls]).items():
            check = field.metadata["check"]
            default = field.default_factory() if field.default is dataclasses.MISSING else field.default  # type: ignore
            words = f"{field.metadata['help']} Expected: {check.expected}. Default: {default}."
            constant = "true" if check.nargs == "?" else None
            section.add_argument(f"--{name}", nargs=check.nargs, const=constant, help=words.replace("%", "%%"))
    return parser


def _unknown(word: str, known: list[str]) -> str:
    flag = word.partition("=")[0]
    near = difflib.get_close_matches(flag.replace("-", "_"), [name.replace("-", "_") for name in known], n=1)
    hint = f"; the nearest name is --{near[0].strip('_')}" if near else ""
    return f"`{flag}` is no argument{hint}. --help lists all of them."


def _presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _files(preset: str | None, config: str | None) -> list[Path]:
    files = []
    if preset is not None:
        if preset not in _presets():
            raise ValueError(f"`preset` is {preset!r}, expected one of {_presets()}.")
        files.append(PRESETS / f"{preset}.yaml")
    if config is not None:
        files.append(Path(config))
        if not files[-1].is_file():
            raise ValueError(f"`config` is {config!r}, expected a YAML file.")
    return files


def _read(path: Path, known: list[str]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected a mapping of arguments.")
    for key in values:
        if key not in known:
            raise ValueError(f"In {path}: {_unknown(str(key), known)}")
    return values
