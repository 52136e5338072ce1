"""What a visitor asked for, as one value: it makes a link, is read from a link, and is written as a call in Python."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import parse_qsl, urlencode

from video_diffusion.demo.limits import Limits, Settings, check_settings, choice, whole
from video_diffusion.hub.finding import variant_of
from video_diffusion.sampling import OWN_SAMPLER, TEST_CLIPS, ends

CREATE, CONTINUE, BETWEEN = "generate", "predict", "interpolate"
KINDS = (CONTINUE, CREATE, BETWEEN)
LONGEST_QUERY = 2000  # characters
USUAL = Settings()


@dataclass(frozen=True)
class Asked:
    """A request.

    Args:
        kind: one of `KINDS`.
        frames: of each clip, given and made.
        given: how many frames are given, at each end for `BETWEEN`; 0 for `CREATE`.
        clip: the number of the test clip that they are of; None where they are the visitor's own, or there are none.
        settings: how it is sampled.
    """

    kind: str
    frames: int
    given: int = 0
    clip: int | None = None
    settings: Settings = field(default_factory=Settings)

    @property
    def places(self) -> list[int]:
        """The places of the given frames in the clip."""
        return ends(self.frames, self.given, self.given if self.kind == BETWEEN else 0)

    @property
    def query(self) -> str:
        """The end of a link to it, without `?`; "" where frames of the visitor's own are given: no link holds them."""
        if self.kind != CREATE and self.clip is None:
            return ""
        where = {} if self.kind == CREATE else {"clip": self.clip, "given": self.given}
        unread = () if self.settings.prompt else ("away_from", "follow")
        values = {name: value for name, value in vars(self.settings).items() if name not in unread}
        always = ("sampler", "steps", "seed")
        chosen = {name: value for name, value in values.items() if name in always or value != getattr(USUAL, name)}
        return urlencode({"kind": self.kind, "frames": self.frames, **where, **chosen})


def read_query(query: Any, limits: Limits, trained: int) -> Asked | None:
    """What a link asks for.

    Args:
        query: the address from `?` on.
        limits: what is refused.
        trained: the number of frames that the model was trained on.

    Returns:
        the request; None where the link has no `kind`, so that it is not one of ours.

    Raises:
        ValueError: where a value is outside its limits.
    """
    if not isinstance(query, str) or len(query) > LONGEST_QUERY:
        raise ValueError(f"The link has more than {LONGEST_QUERY} characters.")
    values = dict(parse_qsl(query.removeprefix("?"), max_num_fields=50))
    if "kind" not in values:
        return None
    kind = choice("kind", values["kind"], KINDS)
    frames = whole("frames", read(values, "frames", trained), 2, limits.frames)
    settings = check_settings(
        Settings(**{item.name: read(values, item.name, item.default) for item in fields(Settings)}), limits
    )
    if kind == CREATE:
        return Asked(kind, frames, settings=settings)
    given = whole("given", read(values, "given", 1), 1, trained - 1)
    return Asked(kind, frames, given, whole("clip", read(values, "clip", 0), 0, TEST_CLIPS - 1), settings)


def read(values: Mapping[str, str], name: str, default: Any) -> Any:
    """A value of a link in the type of its default, or the default where it is missing; raises ValueError."""
    if name not in values:
        return default
    try:
        return type(default)(values[name])
    except ValueError as error:
        raise ValueError(f"`{name}` is {values[name][:40]!r} in the link, expected a number.") from error


def call_options(asked: Asked, replaces: bool) -> dict[str, Any]:
    """Arguments of the pipeline's call, without those that are usual, the given frames and the seeds.

    Args:
        asked: what is made.
        replaces: whether frames are known to a model that is not told them: they then replace what it makes there.
    """
    settings = asked.settings
    options: dict[str, Any] = {"num_frames": asked.frames, "num_inference_steps": settings.steps}
    if settings.prompt:
        options |= {"prompt": settings.prompt, "guidance_scale": settings.follow}
        options |= {"negative_prompt": settings.away_from} if settings.away_from else {}
    if settings.order != USUAL.order:
        options["window_scheme"] = settings.order
    if settings.guidance or replaces:
        options["reconstruction_guidance_scale"] = settings.guidance
    return options | {"history_guidance_scale": settings.history}


def python_code(asked: Asked, options: Mapping[str, Any], model: str, size: int, gamma: float | None) -> str:
    """A program that makes the same clips.

    Args:
        asked: what is made.
        options: of `call_options`.
        model: as `load_pipeline` takes it.
        size: of a frame, in pixels.
        gamma: of the model; None where its sampler has none.
    """
    settings, given = asked.settings, asked.kind != CREATE
    noise = f", gamma={settings.gamma:g}" if settings.sampler == OWN_SAMPLER and gamma is not None else ""
    seeds = f"range({settings.seed}, {settings.seed + settings.clips})"
    lines = [
        "import torch",
        "from video_diffusion.sampling import load_pipeline",
        *(given_frames(asked, size, variant_of(model)) if given else []),
        "",
        f"pipe = load_pipeline({model!r}, sampler={settings.sampler!r}{noise})",
        "frames = pipe(",
        *([f"    video=clip[{known_places(asked)}],", f"    frame_indices={asked.places},"] if given else []),
        *(f"    {name}={value!r}," for name, value in options.items()),
        f"    num_videos_per_prompt={settings.clips},",
        f"    generator=[torch.Generator().manual_seed(seed) for seed in {seeds}],",
        ").frames  # a list of PIL images for each clip",
    ]
    return "\n".join(lines)


def given_frames(asked: Asked, size: int, variant: str) -> list[str]:
    """The lines that read the clip that the given frames are of."""
    if asked.clip is None:
        lines = [
            "from video_diffusion.data.fitting import fit",
            "from video_diffusion.data.reading import read_video",
            "",
        ]
        return [*lines, f'clip = fit(read_video("mine.gif"), {size}, {size})  # a file with your frames']
    other = "" if variant == "classic" else f", variant={variant!r}"
    test = f'MovingMNIST(split="test", num_frames={asked.frames}, image_size={size}{other}, seed=0)'
    lines = ["from video_diffusion.data import MovingMNIST", ""]
    return [*lines, f"clip = {test}.batch([{asked.clip}])[0][..., None]"]


def known_places(asked: Asked) -> str:
    """The given frames of a clip of any length, as an index."""
    return f"[*range({asked.given}), *range(-{asked.given}, 0)]" if asked.kind == BETWEEN else f":{asked.given}"
