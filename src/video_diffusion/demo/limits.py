"""What a visitor of the demo may ask for. A slider stops only the polite: each value is checked here once more."""

import math
from dataclasses import dataclass
from typing import Any

from video_diffusion.model.windows import SCHEMES
from video_diffusion.sampling import OWN_SAMPLER, SAMPLERS

SEEDS = 2**32  # a seed is one of 0..SEEDS−1


@dataclass(frozen=True)
class Limits:
    """The largest values that the demo takes.

    Args:
        frames: of a clip.
        clips: made at once.
        steps: network calls of a window.
        work: pixels that the network sees in all: pixels of a frame × frames of a window × calls of all windows and
            clips. The default is 300 calls on 20 frames of 64×64 pixels.
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
    clips: int = 4
    steps: int = 50
    work: int = 300 * 20 * 64 * 64
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
    """How clips are sampled.

    Args:
        clips: how many; clip i comes from the seed `seed` + i.
        sampler: one of `SAMPLERS`.
        steps: network calls of a window.
        gamma: noise of the ancestral sampler, 0 to 1; the other samplers have none and do not look at it.
        guidance: weight of reconstruction guidance; 0 is none.
        history: guidance on the given frames, with any sampler; 1 is none.
        order: of the windows of a long clip, one of `SCHEMES`.
        seed: of the noise.
        prompt: what the clip shows; "" is no text.
        away_from: what the guidance leads away from.
        follow: weight of classifier-free guidance, used with a prompt; 1 is none.
    """

    clips: int = 1
    sampler: str = "dpm++"
    steps: int = 20
    gamma: float = 0.3
    guidance: float = 0.0
    history: float = 1.0
    order: str = SCHEMES[0]
    seed: int = 0
    prompt: str = ""
    away_from: str = ""
    follow: float = 1.0

    @property
    def calls(self) -> int:
        """Network calls of one clip in one window: each kind of guidance costs another call a step."""
        kinds = (self.guidance > 0, self.history != 1, bool(self.prompt) and self.follow != 1)
        return self.steps * (1 + sum(kinds))


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


def check_settings(settings: Settings, limits: Limits) -> Settings:
    """The settings with their proper types.

    Raises:
        ValueError: where one of them is outside its limits, guidance is asked of a sampler that has none, or two kinds
            of it at once.
    """
    checked = Settings(
        clips=whole("clips", settings.clips, 1, limits.clips),
        sampler=choice("sampler", settings.sampler, tuple(SAMPLERS)),
        steps=whole("steps", settings.steps, 1, limits.steps),
        gamma=number("γ", settings.gamma, 0, 1),
        guidance=number("guidance", settings.guidance, 0, limits.guidance),
        history=number("history guidance", settings.history, 1, limits.history),
        order=choice("order", settings.order, SCHEMES),
        seed=whole("seed", settings.seed, 0, SEEDS - 1),
        prompt=words("prompt", settings.prompt, limits.characters),
        away_from=words("away from", settings.away_from, limits.characters),
        follow=number("follow", settings.follow, 1, limits.guidance),
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


def check_work(settings: Settings, windows: int, frames: int, height: int, width: int, limits: Limits) -> int:
    """The work of a request, pixels × frames × calls; refuses what would keep the machine busy for too long.

    Args:
        settings: of the clips.
        windows: of a clip.
        frames: of a window.
        height: of a frame, in pixels.
        width: likewise.
        limits: of the work.

    Raises:
        ValueError: where it is too much, with what is possible.
    """
    calls, most = settings.calls * windows * settings.clips, limits.work // (frames * height * width)
    if calls > most:
        parts = f"{settings.calls} calls in each of {windows} windows for each of {settings.clips} clips"
        raise ValueError(
            f"This takes {calls} network calls ({parts}); the demo makes at most {most} with {frames} frames of "
            f"{width}×{height} pixels. Ask for fewer frames, clips or steps."
        )
    return calls * frames * height * width


def shortened(value: Any, longest: int = 40) -> str:
    """What came, for a message; not more of it than fits there."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}"
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"
