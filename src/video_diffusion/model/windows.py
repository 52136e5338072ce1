"""The window plan of a long video: which frames each run of the model sees and which it makes.

Pure arithmetic on frame numbers, without a network. It travels to the Hub beside `pipeline.py`, so it imports nothing
local.
"""

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

SCHEMES = ("autoregressive", "hierarchy-2", "interpolate")
ENDLESS = sys.maxsize  # more frames than anyone waits for


@dataclass(frozen=True)
class Window:
    """One run of the model.

    Args:
        given: the frames it is conditioned on, ascending; all of them were given by the user or made before.
        made: the frames it makes, ascending.
    """

    given: tuple[int, ...]
    made: tuple[int, ...]

    @property
    def frames(self) -> list[int]:
        """All of its frames in the order of time, which is their order on the model's frame axis."""
        return sorted(self.given + self.made)


def plan_windows(
    num_frames: int | None,
    length: int | None,
    overlap: int | None = None,
    scheme: str = "autoregressive",
    given: Collection[int] = (),
) -> Iterator[Window]:
    """Splits a video into windows that a model can make, one after the other.

    Within the model's length there is one window. Beyond it each scheme is a list of levels, sparse to dense. A level
    is swept away from its first known frame, first forwards and then backwards; each window begins with `overlap`
    frames that are known by then (fewer where there are fewer, more at the end of the video) and reaches a known frame
    on its other side where there is one near enough.

    * `autoregressive`: one level, all frames. n windows for a free video of length + (n − 1)·(length − overlap).
    * `hierarchy-2` (after Harvey et al. 2022): every (length − overlap)-th frame, then those in between, each window
      ending at a frame of the sparse level.
    * `interpolate`: as many frames as fit one window, evenly spaced by a power of two; then the spacing is halved down
      to 1, each window making the frames half-way between known ones.

    The sparse levels contain the first given frame and see only the given frames that lie on them. The model is not
    told the spacing, so it must know videos of that speed.

    Args:
        num_frames: F of the video; None: it has no end. Then the scheme is `autoregressive`, `length` is a number, and
            frame 0 is given if any is: the windows go forwards only.
        length: the longest window; None: any.
        overlap: 1 to length − 1; None: half the length.
        scheme: one of `SCHEMES`.
        given: frames known from the beginning, each in 0..F−1.

    Yields:
        windows; each missing frame is made by exactly one of them. Those of a video without end are found one by one,
        in constant memory.

    Raises:
        ValueError: where an argument is out of its range.
    """
    overlap = check_plan(num_frames, length, overlap, scheme)
    last = (ENDLESS if num_frames is None else num_frames) - 1
    if any(not 0 <= place <= last for place in given):
        raise ValueError(f"`given` is {sorted(given)}, expected places in 0..{last}.")
    if num_frames is not None:
        return _windows(num_frames, length, overlap, scheme, set(given))
    if given and 0 not in given:
        raise ValueError(f"`given` is {sorted(given)}, expected 0 among them: a video without end goes forwards only.")
    assert length is not None, "of check_plan"
    return _endless(length, overlap, set(given))


def with_horizon(windows: Iterable[Window]) -> Iterator[tuple[Window, int]]:
    """Each window, and the first frame that a later window may still see.

    Args:
        windows: a list, or a plan without end, whose windows never see a frame before the first of an earlier one.
    """
    if not isinstance(windows, list):
        for window in windows:
            yield window, window.frames[0]
        return
    firsts = accumulate((window.frames[0] for window in windows[:0:-1]), min, initial=ENDLESS)
    yield from zip(windows, [*firsts][::-1], strict=True)


def check_plan(num_frames: int | None, length: int | None, overlap: int | None, scheme: str) -> int:
    """The overlap, resolved; arguments and errors as in `plan_windows`."""
    if scheme not in SCHEMES:
        raise ValueError(f"`window_scheme` is {scheme!r}, expected one of {SCHEMES}.")
    wanted = {"num_frames": num_frames, "window_overlap": overlap}
    for name, value in wanted.items():
        if value is not None and (isinstance(value, bool) or not hasattr(value, "__index__") or value < 1):
            raise ValueError(f"`{name}` is {value!r}, expected an integer of at least 1.")
    if num_frames is None:
        if scheme != SCHEMES[0]:
            raise ValueError(f"`window_scheme` is {scheme!r}, expected {SCHEMES[0]!r} for a video without end.")
        if length is None:
            raise ValueError("`num_frames` is None, expected a number: there is no longest window.")
        num_frames = ENDLESS
    if length is None:
        return overlap or 1
    if overlap is not None and overlap >= length:
        raise ValueError(f"`window_overlap` is {overlap}, expected less than {length}, the length of a window.")
    if length < 2 <= num_frames:
        raise ValueError(f"`num_frames` is {num_frames}, expected 1: the model was trained on single frames.")
    return max(1, length // 2) if overlap is None else overlap


def _windows(num_frames: int, length: int | None, overlap: int, scheme: str, known: set[int]) -> Iterator[Window]:
    """`plan_windows` after its checks; adds to `known`."""
    if length is None or num_frames <= length:
        if len(known) < num_frames:
            yield Window(tuple(sorted(known)), tuple(i for i in range(num_frames) if i not in known))
        return
    for spacing in _spacings(num_frames, length, overlap, scheme):
        level = range(min(known, default=0) % spacing, num_frames, spacing)
        first = next((i for i, place in enumerate(level) if place in known), 0)
        for line in (level[first:], level[::-1]):
            yield from _sweep(line, length, overlap, known)


def _endless(length: int, overlap: int, known: set[int]) -> Iterator[Window]:
    """`plan_windows` of a video without end, after its checks; forgets the known frames that lie behind."""
    for window in _sweep(range(ENDLESS), length, overlap, known):
        yield window
        known.difference_update([place for place in known if place < window.frames[0]])


def _spacings(num_frames: int, length: int, overlap: int, scheme: str) -> list[int]:
    """The distance of neighbouring frames in each level, sparse to dense."""
    if scheme == "autoregressive":
        return [1]
    if scheme == "hierarchy-2":
        return [length - overlap, 1] if length - overlap > 1 else [1]
    halvings = 0
    while (num_frames - 1) // 2**halvings + 1 > length:
        halvings += 1
    return [2**i for i in range(halvings, -1, -1)]


def _sweep(line: Sequence[int], length: int, overlap: int, known: set[int]) -> Iterator[Window]:
    """Windows along a line of frames, which begins with known ones or is wholly unknown; adds what it makes."""
    start = 0
    while (start := next((i for i in range(start, len(line)) if line[i] not in known), len(line))) < len(line):
        frames = line[slice(*_reach(line, start, length, overlap, known))]
        window = Window(
            tuple(sorted(place for place in frames if place in known)),
            tuple(sorted(place for place in frames if place not in known)),
        )
        known.update(window.made)
        yield window


def _reach(line: Sequence[int], start: int, length: int, overlap: int, known: set[int]) -> tuple[int, int]:
    """First and behind last index on the line of the window that makes frame `start` of it, the first missing one."""
    first = max(0, min(start - overlap, len(line) - length))
    ahead = [i for i in range(start + 1, min(len(line), start + 2 * length)) if line[i] in known]
    if ahead and first + length <= ahead[0] < start + length - 1:
        first = ahead[0] - length + 1  # less overlap, and a known frame on the other side
    stop = min(first + length, len(line))
    inside = [i for i in ahead if i < stop]
    beyond = [i for i in ahead if i >= stop]
    if inside and beyond and beyond[0] - inside[-1] < length:
        stop = inside[-1] + 1  # what follows has known frames on both sides in the next window
    return first, stop
