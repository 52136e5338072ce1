"""An argument: its default, its help, what it may be, and what becomes of it when a run is resumed.

All four stand with the field. A group of arguments that has a field without them is refused when it is defined.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast, dataclass_transform

from huggingface_hub.utils import validate_repo_id

Group = TypeVar("Group")
OnResume = Literal["applies", "agrees"]  # the new value is in force from then on, or it must be the old one
NOTHING = "none"  # as a flag, for an argument that may be left out


@dataclasses.dataclass(frozen=True)
class Check:
    """What an argument may be.

    Args:
        expected: the same in words, for errors.
        read: turns a word of the command line into a value; raises ValueError.
        allows: whether a value, read or from a file, may be.
        nargs: as in argparse: how many words make the value.
        optional: whether it may be left out, as None.
        settle: gives values that mean the same one form.
    """

    expected: str
    read: Callable[[str], Any]
    allows: Callable[[Any], bool]
    nargs: str | None = None
    optional: bool = False
    settle: Callable[[Any], Any] = lambda value: value

    def value(self, name: str, given: Any) -> Any:
        """What `given`, of a flag or a file, means for the argument `name`.

        Raises:
            ValueError: if it is not allowed.
        """
        try:
            value = self._read(given)
        except ValueError:
            value = given
        if not (value is None and self.optional) and not self.allows(value):
            raise ValueError(f"`{name}` is {value!r}, expected {self.expected}.")
        return self.settle(value)

    def _read(self, given: Any) -> Any:
        if isinstance(given, list):
            return [self.read(item) if isinstance(item, str) else item for item in given]
        if not isinstance(given, str):
            return given
        return None if self.optional and given.lower() == NOTHING else self.read(given)


def whole(at_least: int, at_most: int = 10**9) -> Check:
    """A whole number."""
    return Check(
        f"a whole number from {at_least} to {at_most}",
        int,
        lambda value: type(value) is int and at_least <= value <= at_most,
    )


def real(
    at_least: float = -math.inf, at_most: float = math.inf, *, above: float = -math.inf, below: float = math.inf
) -> Check:
    """A finite number."""
    ends = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    said = " and ".join(f"{word} {end:g}" for word, end in ends.items() if math.isfinite(end))
    return Check(
        f"a number {said}",
        float,
        lambda value: (
            type(value) in (int, float)
            and math.isfinite(value)
            and at_least <= value <= at_most
            and above < value < below
        ),
    )


def one_of(*values: Any) -> Check:
    """One of some names, or of some numbers."""
    kind = type(values[0])
    return Check(f"one of {', '.join(map(str, values))}", kind, lambda value: type(value) is kind and value in values)


def text() -> Check:
    """A name or a path."""
    return Check(
        "a text that is not empty",
        str,
        lambda value: isinstance(value, str) and value.strip() != "" and value.isprintable(),
    )


def repository() -> Check:
    """The name of a repository of the Hub."""
    return Check("a repository of the Hub, as user/name", str, _is_repository)


def switch() -> Check:
    """Yes or no."""
    return Check("true or false", _to_bool, lambda value: isinstance(value, bool), nargs="?")


def each(check: Check) -> Check:
    """One value or more, all of which `check` allows."""
    return Check(
        f"one or more, each {check.expected}",
        check.read,
        lambda value: isinstance(value, list) and len(value) > 0 and all(map(check.allows, value)),
        nargs="+",
    )


def two(check: Check) -> Check:
    """Two values, both of which `check` allows."""
    return Check(
        f"two, each {check.expected}",
        check.read,
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(check.allows, value)),
        nargs="+",
    )


def shares(number: int) -> Check:
    """So many numbers of at least 0 that sum to 1."""
    part = real(0, 1)
    return Check(
        f"{number} shares that sum to 1",
        float,
        lambda value: (
            isinstance(value, list)
            and len(value) == number
            and all(map(part.allows, value))
            and abs(sum(value) - 1) < 1e-6
        ),
        nargs="+",
    )


def size() -> Check:
    """Pixels along an edge of a square: one number; or height and width: two."""
    edge = whole(1, 4096)

    def allows(value: Any) -> bool:
        edges = value if isinstance(value, list) else [value]
        return 1 <= len(edges) <= 2 and all(map(edge.allows, edges))

    def settle(value: Any) -> Any:
        return value[0] if isinstance(value, list) and len(set(value)) == 1 else value

    return Check(f"{edge.expected}, or two: height and width", int, allows, nargs="+", settle=settle)


def or_none(check: Check) -> Check:
    """What `check` allows, or None."""
    return dataclasses.replace(check, expected=f"{check.expected}, or none", optional=True)


def argument(default: Any, help: str, check: Check, on_resume: OnResume) -> Any:
    """The field of an argument; a list as `default` is copied for each run.

    Args:
        default: its value where nothing else is said.
        help: what it means.
        check: what it may be.
        on_resume: whether a resumed run takes the new value or must have the old one.
    """
    metadata = {"help": help, "check": check, "on_resume": on_resume}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(field_specifiers=(argument,))
def group(cls: type[Group]) -> type[Group]:
    """A dataclass of arguments.

    Raises:
        TypeError: if a field was not made by `argument`.
    """
    made: Any = dataclasses.dataclass(cls)
    for field in dataclasses.fields(made):
        if set(field.metadata) != {"help", "check", "on_resume"}:
            raise TypeError(f"`{field.name}` of {cls.__name__} is a plain field, expected one made by `argument`.")
    return cast(type[Group], made)


def declared(groups: Sequence[type]) -> dict[str, dataclasses.Field]:
    """The fields of all groups by name."""
    return {field.name: field for cls in groups for field in dataclasses.fields(cls)}


def checked(groups: Sequence[type], given: Mapping[str, Any]) -> list[Any]:
    """The groups with the values that are given and defaults for the others, every one of them checked.

    Raises:
        ValueError: if one is not allowed.
    """
    found = []
    for cls in groups:
        instance = cls(**{field.name: given[field.name] for field in dataclasses.fields(cls) if field.name in given})
        for field in dataclasses.fields(cls):
            value = field.metadata["check"].value(field.name, getattr(instance, field.name))
            setattr(instance, field.name, value)
        found.append(instance)
    return found


def _is_repository(value: Any) -> bool:
    try:
        validate_repo_id(value)
    except ValueError:
        return False
    return True


def _to_bool(word: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if word.lower() not in known:
        raise ValueError(word)
    return known[word.lower()]
