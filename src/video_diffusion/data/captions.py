"""
Captions of Moving MNIST, from what the generator knows: which digits, where they go, which walls they meet.

What a caption says is what can be seen: directions and walls come from the whole pixels that the digits are drawn at.
So they hold for both variants, and for any other pictures in the digits' place.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from video_diffusion.data.trajectories import clip_keys, integers, stream_key, uniform

DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
STILL = "still"
WALLS = (("top", "bottom"), ("left", "right"))  # by axis (y, x): the low and the high wall
MAX_WALLS = 2  # walls that a caption names for one digit, the first that it meets
_STREAM = 2  # of `stream_key`; the splits have 0 and 1
_NO_MOTION, _STILL = -1, len(DIRECTIONS)


class Fact(NamedTuple):
    """
    What is known of one digit of a clip.

    Args:
        digit: its class, 0 to 9.
        direction: one of `DIRECTIONS`, `STILL`, or None where the clip has one frame.
        walls: the walls it bounces off, in order, of "top", "bottom", "left" and "right".
    """

    digit: int
    direction: str | None = None
    walls: tuple[str, ...] = ()


# ----------------------------------------------------------------------------------------------------------- the facts
def describe(labels: ArrayLike, positions: ArrayLike, span: int) -> list[Fact]:
    """
    What is known of one clip, digit by digit; digits that it lacks (label −1) are left out.

    The direction is that of the displacement from the first frame to the last one before a wall (to the second frame,
    where that is at a wall), in the nearest of 8 directions: exact in whole pixels, hence the direction of the
    velocity wherever the cut to whole pixels (less than one along each axis) leaves no doubt. A digit bounces where it
    comes to a wall and is seen to leave it.

    Args:
        labels: integers `[D]`, −1 to 9.
        positions: y and x of the top-left corners in whole pixels, `[F, D, 2]`.
        span: image size less digit size: the largest position (classic), or the largest and one (stochastic).

    Returns:
        up to D facts, in the order of the digits.

    Raises:
        ValueError: if a shape, a label or the span is another.
    """
    labels, positions = np.asarray(labels), np.asarray(positions)
    if labels.ndim != 1 or positions.ndim != 3:
        raise ValueError(
            f"`labels` and `positions` have shapes {labels.shape} and {positions.shape}; expected [D] and [F, D, 2]"
        )
    return describe_clips(labels[None], positions[None], span)[0]


def describe_clips(labels: NDArray[np.int64], positions: NDArray[np.int64], span: int) -> list[list[Fact]]:
    """`describe` for a batch: labels `[B, D]`, positions `[B, F, D, 2]`."""
    B, D = labels.shape
    if positions.ndim != 4 or positions.shape[::2] != (B, D) or positions.shape[3] != 2 or not positions.shape[1]:
        raise ValueError(f"`positions` has shape {positions.shape}; expected [{B}, F, {D}, 2] with F ≥ 1")
    if labels.size and not -1 <= labels.min() <= labels.max() <= 9:
        raise ValueError(f"`labels` spans {labels.min()} to {labels.max()}; expected −1 to 9")
    if span < 0:
        raise ValueError(f"`span` is {span}; expected 0 or more")
    path = np.moveaxis(positions.astype(np.int64), 1, -1).reshape(B * D, 2, -1)  # [n, 2, F]
    names = (*DIRECTIONS, STILL, None)  # −1, no motion, is the last
    directions = [names[sector] for sector in start_sectors(path, span)]
    walls = _bounces(path, span)
    digits = labels.reshape(-1).tolist()
    facts = [Fact(digits[i], directions[i], tuple(walls[i])) for i in range(B * D)]
    return [[fact for fact in facts[b * D : (b + 1) * D] if fact.digit >= 0] for b in range(B)]


def sectors(dy: ArrayLike, dx: ArrayLike) -> NDArray[np.int64]:
    """
    The nearest of 8 directions: indices into `DIRECTIONS`, and 8 (`STILL`) for no displacement.

    Args:
        dy: displacement downwards; whole numbers are compared exactly.
        dx: displacement to the right, of the same shape.
    """
    dy, dx = np.asarray(dy), np.asarray(dx)
    down, across = np.abs(dy), np.abs(dx)
    # tan 22.5° = √2 − 1: an axis wins where (smaller + larger)² < 2 larger²; whole numbers never tie
    straight = (down + across) ** 2 < 2 * np.maximum(down, across) ** 2
    horizontal = np.where(dx > 0, 0, 4)
    vertical = np.where(dy > 0, 2, 6)
    diagonal = np.where(dy > 0, np.where(dx > 0, 1, 3), np.where(dx > 0, 7, 5))
    found = np.where(straight, np.where(across > down, horizontal, vertical), diagonal)
    return np.where((down == 0) & (across == 0), _STILL, found)


def start_sectors(path: NDArray[np.int64], span: int) -> NDArray[np.int64]:
    """The direction at the start, `[n]`: an index of `sectors`, −1 for a single frame; `path` is `[n, 2, F]`."""
    n, _, F = path.shape
    if F == 1:
        return np.full(n, _NO_MOTION)
    step = np.diff(path)
    arrived = ((path[..., 1:] <= 0) & (step < 0)) | ((path[..., 1:] >= span - 1) & (step > 0))
    # A straight path cut to whole pixels stays within one pixel of k·v: where no v does, it has turned.
    frame, moved = np.arange(1, F), path[..., 1:] - path[..., :1]
    least = np.maximum.accumulate((moved - 1) / frame, -1)
    most = np.minimum.accumulate((moved + 1) / frame, -1)
    over = (arrived | (least >= most)).any(1)  # [n, F − 1]
    first = np.where(over.any(-1), over.argmax(-1), F - 1)  # steps before the one that ends the run
    last = np.maximum(first, 1)
    end = np.take_along_axis(moved, np.broadcast_to(last[:, None, None] - 1, (n, 2, 1)), -1)[..., 0]
    moves = step.any(1)
    first_step = np.take_along_axis(step, np.broadcast_to(moves.argmax(-1)[:, None, None], (n, 2, 1)), -1)[..., 0]
    return sectors(*np.where(end.any(-1, keepdims=True), end, first_step).T)  # it may wait in a corner for a frame


def _bounces(path: NDArray[np.int64], span: int) -> list[list[str]]:
    """The walls that each digit comes to and leaves, in the order of its arrivals; `path` is `[n, 2, F]`."""
    n, _, F = path.shape
    found: list[list[str]] = [[] for _ in range(n)]
    if F < 3:
        return found
    sign = np.sign(np.diff(path))  # step k leads from frame k to k + 1
    steps = np.arange(F - 1)
    moving = np.maximum.accumulate(np.where(sign != 0, steps, -1), -1)  # the last step with motion, up to each
    before = moving[..., :-1]
    came = np.where(before >= 0, np.take_along_axis(sign, np.maximum(before, 0), -1), 0)
    leaves = sign[..., 1:]
    at = path[..., 1:-1]
    low = (came < 0) & (leaves > 0) & (at <= 0)
    high = (came > 0) & (leaves < 0) & (at >= span - 1)
    which, axis, k = np.nonzero(low | high)
    order = np.lexsort((axis, before[which, axis, k], which))
    for i, a, up in zip(which[order], axis[order], high[which, axis, k][order], strict=True):
        found[i].append(WALLS[a][int(up)])
    return found


# ------------------------------------------------------------------------------------------------------- the sentences
class Template(NamedTuple):
    """
    One way to say what is known.

    Args:
        say: facts, in the order in which they are named, to a caption.
        motion: whether it says where digits go; it can't be used for a single frame.
        single: whether it says anything of the first digit only.
    """

    say: Callable[[Sequence[Fact]], str]
    motion: bool = True
    single: bool = False


def _where(fact: Fact) -> str:
    """Gives "right", "up and to the left", …"""
    return (fact.direction or "").replace(" ", " and to the ")


def _moves(fact: Fact, verb: str = "moves", still: str = "stands still") -> str:
    return still if fact.direction == STILL else f"{verb} {_where(fact)}"


def _moving(fact: Fact) -> str:
    return _moves(fact, "moving", "standing still")


def _bounced(fact: Fact) -> str:
    walls = " and ".join(f"the {wall}" for wall in fact.walls[:MAX_WALLS])
    return f" and bounces off {walls}" if walls else ""


def _moves_first(fact: Fact, name: str) -> str:
    """Says the direction before the digit."""
    return f"still stands {name}" if fact.direction == STILL else f"{_where(fact)} moves {name}"


def _and(parts: Sequence[str]) -> str:
    """Joins them as "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _count(facts: Sequence[Fact]) -> str:
    return {1: "one digit", 2: "two digits", 3: "three digits"}.get(len(facts), "many digits")


_ASKED: Mapping[str, tuple[Template, ...]] = {
    "train": (
        Template(lambda facts: "; ".join(f"the digit {f.digit} {_moves(f)}{_bounced(f)}" for f in facts)),
        Template(lambda facts: "; ".join(f"the digit {f.digit} {_moves(f)}" for f in facts)),
        Template(lambda facts: f"the digit {facts[0].digit} {_moves(facts[0])}", single=True),
        Template(lambda facts: _and([f"a {f.digit} {_moving(f)}" for f in facts])),
        Template(lambda facts: ", ".join(f"{f.digit} {_moves(f, 'goes')}{_bounced(f)}" for f in facts)),
        Template(lambda facts: f"{_count(facts)}: " + _and([f"the {f.digit} {_moves(f)}" for f in facts])),
        Template(
            lambda facts: f"there is a {facts[0].digit} that {_moves(facts[0], 'goes')}{_bounced(facts[0])}",
            single=True,
        ),
        Template(
            lambda facts: f"the digit{'s' if len(facts) > 1 else ''} " + _and([str(f.digit) for f in facts]),
            motion=False,
        ),
        Template(lambda facts: _and([f"a {f.digit}" for f in facts]), motion=False),
    ),
    "held_out": (
        Template(lambda facts: "; ".join(f"there is a {f.digit} {_moving(f)}" for f in facts)),
        Template(lambda facts: "; ".join(f"{_moving(f)}: the digit {f.digit}" for f in facts)),
        Template(lambda facts: _and([f"the digit {f.digit} that {_moves(f, 'goes')}{_bounced(f)}" for f in facts])),
        Template(lambda facts: f"{_count(facts)}: " + ", ".join(str(f.digit) for f in facts), motion=False),
    ),
}

_NAMES = ("{}", "a {}", "the {}", "the digit {}", "a digit {}")
_ACTS = ("moves", "goes", "moving", "that moves", "that goes", "is moving")
_JOINTS = ("; ", ", ", " and ")
_NOT_SAID = {  # name, act and beginning of held-out templates, however the digits are joined
    ("a {}", "moving", "there is "),
    ("the digit {}", "that goes", ""),
    ("the digit {}", "that moves", ""),  # of a digit that stands still the same
    ("{}", "", "count"),
}


def _act(fact: Fact, act: str) -> str:
    """Gives "that moves left", "is standing still", … ; nothing where `act` is empty."""
    if not act:
        return ""
    *before, verb = act.split()
    still = "standing still" if verb == "moving" else "stands still"
    return " " + " ".join((*before, _moves(fact, verb, still)))


def _reworded(name: str, act: str, joint: str, start: str, bounced: bool) -> Template:
    """One sentence of the grammar: a beginning, then for each digit its name and what it does."""

    def say(facts: Sequence[Fact]) -> str:
        beginning = f"{_count(facts)}: " if start == "count" else start
        parts = [name.format(f.digit) + _act(f, act) + (_bounced(f) if bounced else "") for f in facts]
        return beginning + joint.join(parts)

    return Template(say, motion=bool(act))


def _turned(name: str, joint: str) -> Template:
    """One sentence that says the direction before the digit."""
    return Template(lambda facts: joint.join(_moves_first(f, name.format(f.digit)) for f in facts))


def _grammar() -> tuple[Template, ...]:
    """All sentences of the grammar but the held-out ones; those without motion are there four times."""
    moving: list[Template] = []
    plain: list[Template] = []
    for name, act, joint in product(_NAMES, ("", *_ACTS), _JOINTS):
        there = name in ("a {}", "a digit {}") and act in ("", "moving", "that moves", "that goes")
        for start in ("", "count", "there is ")[: 3 if there else 2]:
            if (name, act, start) in _NOT_SAID:
                continue
            found = moving if act else plain
            found.append(_reworded(name, act, joint, start, bounced=False))
            if act not in ("", "moving") and not start:  # with a beginning it would be longer than all others
                found.append(_reworded(name, act, joint, start, bounced=True))
    moving += [_turned(name, joint) for name, joint in product(_NAMES[1:], _JOINTS)]
    return (*moving, *plain * 4)


TEMPLATES: Mapping[str, tuple[Template, ...]] = {**_ASKED, "varied": _ASKED["train"] * 8 + _grammar()}
"""
"train": of the published dataset's captions; "held_out": never trained on; "varied": what trainings draw from, "train"
and a few hundred that a grammar makes of the same words, so that a sentence that is not among them is understood.
"""

VOCABULARY: tuple[str, ...] = (
    *("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", ";", ",", ":"),
    *("a", "and", "bounces", "bottom", "digit", "digits", "down", "goes", "is", "left", "many", "moves", "moving"),
    *("off", "one", "right", "standing", "stands", "still", "that", "the", "there", "three", "to", "top", "two", "up"),
)
"""All words, numerals and marks of all captions: enough for a tokenizer that splits at spaces and marks."""


def max_words(num_digits: int) -> int:
    """The length of the longest caption of so many digits, words and marks counted."""
    worst = Fact(0, "up left", ("top", "left") * MAX_WALLS)
    said = (t.say([worst] * num_digits) for templates in TEMPLATES.values() for t in templates)
    return max(len(re.findall(r"\w+|[^\w\s]", text)) for text in said)


class Caption(NamedTuple):
    """
    What is said of a clip.

    Args:
        text: the caption.
        facts: of the digits that it names, in its order.
        motion: whether it says where they go.
    """

    text: str
    facts: tuple[Fact, ...]
    motion: bool


def captions(
    clips: Mapping[str, NDArray[Any]], indices: ArrayLike, seed: int, span: int, templates: str = "train"
) -> list[str]:
    """
    Captions of a batch of clips, each a pure function of the seed, the clip's number and the clip.

    Args:
        clips: of `MovingMNIST.clips`: `labels` `[B, D]` and `positions` `[B, F, D, 2]` are used.
        indices: the clips' numbers, `[B]`.
        seed: 0 to 2⁶⁴ − 1: chooses template and order of the digits.
        span: image size less digit size, `videos.image_size − videos.pixels_per_digit`.
        templates: a key of `TEMPLATES`: "train", "held_out" or "varied".

    Returns:
        B captions in lower case, of words in `VOCABULARY`; a clip of one frame is said to have digits, not to move.

    Raises:
        ValueError: if `templates` is another, a clip is not as `describe` wants it, or it has no digit.
    """
    return [caption.text for caption in compose(clips, indices, seed, span, templates)]


def compose(
    clips: Mapping[str, NDArray[Any]], indices: ArrayLike, seed: int, span: int, templates: str = "train"
) -> list[Caption]:
    """`captions` with what they say, to hold clips against; arguments and errors are the same."""
    if templates not in TEMPLATES:
        raise ValueError(f"`templates` is {templates!r}; expected one of {', '.join(map(repr, TEMPLATES))}")
    numbers = np.asarray(indices)
    if numbers.shape != clips["labels"].shape[:1]:
        raise ValueError(f"`indices` has shape {numbers.shape}; expected [{len(clips['labels'])}], one for each clip")
    facts = describe_clips(clips["labels"], clips["positions"], span)
    if not all(facts):
        raise ValueError(f"clip {numbers[facts.index([])]} has no digit; expected at least one")
    moving = clips["positions"].shape[1] > 1
    choices = [template for template in TEMPLATES[templates] if moving or not template.motion]
    draws = uniform(clip_keys(stream_key(seed, _STREAM), numbers), np.arange(clips["labels"].shape[1] + 1))
    chosen = integers(draws[:, 0], 0, len(choices) - 1).tolist()
    said = []
    for known, choice, keys in zip(facts, chosen, draws[:, 1:].tolist(), strict=True):
        template, order = choices[choice], sorted(range(len(known)), key=keys.__getitem__)
        named = tuple(known[i] for i in (order[:1] if template.single else order))
        said.append(Caption(template.say(named), named, template.motion))
    return said
