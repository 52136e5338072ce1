"""What a visitor of the demo may ask for. A slider stops only the polite: each value is checked here once more."""

import math
from dataclasses import dataclass
from typing import Any

from video_diffusion.model.windows import SCHEMES
from video_diffusion.sampling import SAMPLERS

SEEDS = 2**32  # a seed is one of 0..SEEDS−1
OWN_SAMPLER = "ancestral"  # the one that knows γ and reconstruction guidance


@dataclass(frozen=True)
class Limits:
    """The largest values that the demo takes.

    Args:
        frames: of a clip.
        steps: network calls of a window.
        calls: network calls of a clip, over all of its windows.
        guidance: of text and of reconstruction.
        history: guidance on the given frames.
        characters: of a prompt.
        upload_bytes: of an upload, all of its files together.
        upload_files: of an upload.
        upload_frames: of an upload, as often as they are shown.
        upload_edge: pixels along an edge of an uploaded frame.
        upload_pixels: of all frames of an upload.
    """

    frames: int = 60
    steps: int = 50
    calls: int = 300
    guidance: float = 20.0
    history: float = 5.0
    characters: int = 200
    upload_bytes: int = 8 * 2**20
    upload_files: int = 60
    upload_frames: int = 300
    upload_edge: int = 1024
    upload_pixels: int = 32 * 2**20


@dataclass(frozen=True)
class Settings:
    """How a clip is sampled; the defaults are fast on two CPU cores.

    Args:
        sampler: one of `SAMPLERS`.
        steps: network calls of a window.
        gamma: noise of the ancestral sampler, 0 to 1; the other samplers have none and do not look at it.
        seed: of the noise.
        guidance: weight of reconstruction guidance; 0 is none.
        history: guidance on the given frames, with any sampler; 1 is none, another takes a second call a step.
    """

    sampler: str = "dpm++"
    steps: int = 10
    gamma: float = 0.3
    seed: int = 0
    guidance: float = 0.0
    history: float = 1.0

    @property
    def calls(self) -> int:
        """Network calls of a window."""
        return self.steps if self.history == 1 else 2 * self.steps


def whole(name: str, value: Any, low: int, high: int) -> int:
    """The integer of a JSON number, `low` to `high`; raises ValueError where it is none."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not low <= value <= high
        or value != int(value)
    ):
        raise ValueError(f"`{name}` is {shortened(value)}, expected a whole number from {low} to {high}.")
    return int(value)


def number(name: str, value: Any, low: float, high: float) -> float:
    """The float of a JSON number, `low` to `high`; raises ValueError where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"`{name}` is {shortened(value)}, expected a number from {low:g} to {high:g}.")
    return float(value)


def choice(name: str, value: Any, known: tuple[str, ...]) -> str:
    """One of the known words; raises ValueError where it is none."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"`{name}` is {shortened(value)}, expected one of {', '.join(known)}.")
    return value


def words(name: str, value: Any, longest: int) -> str:
    """A text of one line, "" for None; raises ValueError where it is too long or no text."""
    text = "" if value is None else value
    if not isinstance(text, str):
        raise ValueError(f"`{name}` is {shortened(value)}, expected text.")
    if len(text) > longest:
        raise ValueError(f"`{name}` has {len(text)} characters, expected at most {longest}.")
    return " ".join(text.split())


def scheme(value: Any) -> str:
    """The name of a window plan; raises ValueError where it is none."""
    return choice("window scheme", value, SCHEMES)


def check_settings(settings: Settings, limits: Limits) -> Settings:
    """The settings with their proper types.

    Raises:
        ValueError: where one of them is outside its limits, guidance is asked of a sampler that has none, or two kinds
            of it at once.
    """
    checked = Settings(
        sampler=choice("sampler", settings.sampler, tuple(SAMPLERS)),
        steps=whole("steps", settings.steps, 1, limits.steps),
        gamma=number("γ", settings.gamma, 0, 1),
        seed=whole("seed", settings.seed, 0, SEEDS - 1),
        guidance=number("guidance", settings.guidance, 0, limits.guidance),
        history=number("history guidance", settings.history, 1, limits.history),
    )
    if checked.guidance > 0 and checked.sampler != OWN_SAMPLER:
        raise ValueError(
            f"`guidance` is {checked.guidance:g}, expected 0 with the sampler {checked.sampler}: choose {OWN_SAMPLER}."
        )
    if checked.guidance > 0 and checked.history > 1:
        raise ValueError(
            f"`history guidance` is {checked.history:g}, expected 1 with `guidance` {checked.guidance:g}."
        )
    return checked


def check_calls(settings: Settings, windows: int, limits: Limits) -> None:
    """Refuses a clip that would take more network calls than the limit. Raises ValueError."""
    calls = settings.calls * windows
    if calls > limits.calls:
        raise ValueError(
            f"This clip takes {settings.steps} steps in each of {windows} windows, {calls} network calls; the demo "
            f"makes at most {limits.calls}. Ask for fewer steps or frames."
        )


def shortened(value: Any, longest: int = 40) -> str:
    """What came, for a message; not more of it than fits there."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}"
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"
