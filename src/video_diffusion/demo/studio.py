"""A pipeline behind a counter: one request at a time, within limits, as a GIF, an MP4 and a contact sheet."""

import contextvars
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_diffusion import VPContinuousScheduler
from video_diffusion.data.fitting import fit
from video_diffusion.data.video_io import Clip, tile, to_channels, write_gif, write_mp4
from video_diffusion.demo.asked import BETWEEN, CONTINUE, CREATE, KINDS, Asked, call_options, python_code
from video_diffusion.demo.limits import Limits, Settings, check_settings, check_work, choice, whole
from video_diffusion.demo.memory import release
from video_diffusion.demo.pictures import FPS, IN_A_ROW, write_sheet, write_shown
from video_diffusion.demo.turns import Tell, Turns
from video_diffusion.hub.finding import variant_of
from video_diffusion.model.guidance import reads_frames
from video_diffusion.model.windows import plan_windows
from video_diffusion.sampling import (
    OWN_SAMPLER,
    SAMPLERS,
    TEST_CLIPS,
    Task,
    choose_sampler,
    dataset_task,
    ends,
    frame_size,
    sample,
    to_model,
    trained_frames,
)

if TYPE_CHECKING:
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

Progress = Callable[[float], object]  # is told the share that is done, 0 to 1
NO_TEXT = "This model has no text encoder: it was trained without text, so it cannot follow a prompt."
KEPT = 32  # results whose files are kept; a page has fetched its own long before
FOLLOW = 4.0  # weight of classifier-free guidance where the model's generation config names none


@dataclass(frozen=True)
class Result:
    """The files of some clips, and what is said about them.

    Args:
        shown: a GIF of all of them side by side, and of what is known, in coloured borders.
        gif: the clips as they are.
        mp4: likewise.
        sheet: a PNG of all frames.
        summary: a sentence.
        query: the end of a link to it; "" where there is none.
        code: a program that makes the same.
    """

    shown: str
    gif: str
    mp4: str
    sheet: str
    summary: str
    query: str
    code: str


class Studio:
    """Makes clips with one pipeline, for several people one after the other.

    Args:
        pipeline: its own sampler stays as it is.
        limits: what is refused.
        model: its name, for programs; the test clips are of the variant that it was trained on.

    Raises:
        ValueError: where the model makes clips too short to interpolate in.
    """

    def __init__(
        self, pipeline: "VideoDiffusionPipeline", limits: Limits | None = None, model: str = "moving-mnist"
    ) -> None:
        self.pipeline, self.limits, self.model = pipeline, limits or Limits(), model
        self.scheduler = pipeline.scheduler
        self.height, self.width = frame_size(pipeline)
        self.trained, self.variant = trained_frames(pipeline), variant_of(model)
        if self.trained < 3:
            raise ValueError(f"The model makes clips of {self.trained} frames, expected 3 or more for the demo.")
        self.turns = Turns()
        self.worker = ThreadPoolExecutor(1, "model")  # PyTorch keeps memory for each thread that it ever ran in
        self.folder = tempfile.TemporaryDirectory(prefix="video-diffusion-demo-")
        self.results: deque[list[Path]] = deque()

    @property
    def uploads(self) -> str:
        """A folder for uploads that nobody else can read or write; it goes away with the studio's."""
        return str(Path(self.folder.name) / "uploads")

    @property
    def samplers(self) -> tuple[str, ...]:
        """The samplers that this model has: its own alone, if it is not our scheduler or was distilled for it."""
        ours = isinstance(self.scheduler, VPContinuousScheduler) and not self.scheduler.config.deterministic
        return tuple(SAMPLERS) if ours else (OWN_SAMPLER,)

    @property
    def gamma(self) -> float | None:
        """The γ that the model was saved with, or None where its scheduler knows none."""
        return self.scheduler.config.gamma if len(self.samplers) > 1 else None

    @property
    def reads_text(self) -> bool:
        """Whether a prompt means anything to the model."""
        return self.pipeline.text_encoder is not None

    @property
    def usual(self) -> Settings:
        """The settings that the page opens with: those of the model's generation config, within the limits."""
        config, limits, plain = self.pipeline.generation_config, self.limits, Settings()
        sampler = config.get("sampler", plain.sampler)
        return Settings(
            sampler=sampler if sampler in self.samplers else OWN_SAMPLER,
            steps=min(config.get("num_inference_steps", plain.steps), limits.steps),
            gamma=plain.gamma if self.gamma is None else self.gamma,
            history=min(max(config.get("history_guidance_scale", 1.0), 1.0), limits.history),
            follow=min(max(config.get("guidance_scale", FOLLOW), 1.0), limits.guidance),
        )

    # ------------------------------------------------------------------------------------------------ the given frames
    def task(self, asked: Asked, clip: Clip | None = None) -> Task:
        """What is asked of the model.

        Args:
            asked: checked by `check`.
            clip: the visitor's own `[F, H, W, C]`, where `asked.clip` is None: its first and its last frames are
                given, resized and cut to the model's size as in training.

        Raises:
            ValueError: where it has too few frames, or the test clips do not fit the model.
        """
        if asked.kind == CREATE:
            return Task([], asked.frames)
        at_end = asked.given if asked.kind == BETWEEN else 0
        if asked.clip is not None:
            size = self.height, self.width
            return dataset_task([asked.clip], asked.given, at_end, asked.frames, *size, self.variant)
        if clip is None or len(clip) < asked.given + at_end:
            there = 0 if clip is None else len(clip)
            raise ValueError(f"There are {there} frames, expected at least the {asked.given + at_end} given ones.")
        given = fit(clip[ends(len(clip), asked.given, at_end)], self.height, self.width)
        return Task(asked.places, asked.frames, given[None])

    def check(self, asked: Asked) -> Asked:
        """The request with its proper types; raises ValueError where something of it is outside its limits."""
        kind = choice("kind", asked.kind, KINDS)
        frames = whole("frames", asked.frames, 2, self.limits.frames)
        settings = check_settings(asked.settings, self.limits)
        if settings.sampler not in self.samplers:
            raise ValueError(f"`sampler` is {settings.sampler}, expected {OWN_SAMPLER}: the model has its own.")
        if settings.prompt and not self.reads_text:
            raise ValueError(NO_TEXT)
        if kind == CREATE:
            return Asked(kind, frames, settings=settings)
        given = whole("first frames", asked.given, 1, self.trained - 1)
        known = given * (2 if kind == BETWEEN else 1)
        if known >= frames:
            raise ValueError(f"{known} frames are given of {frames}, expected fewer than all of them.")
        clip = None if asked.clip is None else whole("clip", asked.clip, 0, TEST_CLIPS - 1)
        return Asked(kind, frames, given, clip, settings)

    # -------------------------------------------------------------------------------------------------------- the clip
    def make(
        self,
        asked: Asked,
        clip: Clip | None = None,
        progress: Progress = lambda done: None,
        waiting: Tell = lambda place, seconds: None,
    ) -> Result:
        """Makes the clips of a request and writes their files; arguments and errors as in `clips`."""
        asked = self.check(asked)
        try:
            return self.write(asked, *self.clips(asked, clip, progress, waiting))
        finally:
            release()

    def clips(
        self,
        asked: Asked,
        clip: Clip | None = None,
        progress: Progress = lambda done: None,
        waiting: Tell = lambda place, seconds: None,
    ) -> tuple[Clip, float]:
        """Makes the clips of a request when its turn has come.

        Args:
            asked: checked by `check`.
            clip: the visitor's own frames, see `task`.
            progress: is told how much is done.
            waiting: is told how many requests are before it, and for how many seconds.

        Returns:
            uint8 `[N, F, H, W, C]`, and the seconds that they took.

        Raises:
            ValueError: where it is too much, or guidance by given frames is asked for and there are none.
        """
        settings, windows = asked.settings, self.windows(asked)
        frames = min(asked.frames, self.trained)
        cost = check_work(settings, windows, frames, self.height, self.width, self.limits)
        if asked.kind == CREATE and windows == 1:
            check_nothing_guides(settings)
        task = to_model(self.task(asked, clip), self.pipeline.pixel_channels, settings.clips)
        with self.turns.turn(cost, waiting):
            start = time.perf_counter()
            context = contextvars.copy_context()  # how gradio knows whose progress it is
            work = self.worker.submit(context.run, self.sample, task, settings, self.options(asked), progress)
            return work.result(), time.perf_counter() - start

    def windows(self, asked: Asked) -> int:
        """How often the model runs for a clip of a request."""
        plan = plan_windows(asked.frames, self.trained, None, asked.settings.order, asked.places)
        return sum(1 for _ in plan)

    def options(self, asked: Asked) -> dict[str, Any]:
        """Arguments of the pipeline's call."""
        told = reads_frames(self.pipeline.unet.config)
        known = asked.kind != CREATE or self.windows(asked) > 1
        return call_options(asked, replaces=known and not told)

    def sample(self, task: Task, settings: Settings, options: dict[str, Any], progress: Progress) -> Clip:
        """Runs the pipeline, which nobody else does meanwhile; uint8 `[N, F, H, W, C]`."""

        def step_end(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            progress((step + 1) / pipeline.num_timesteps)
            return {}

        seeds = range(settings.seed, settings.seed + settings.clips)
        options = {name: value for name, value in options.items() if name != "num_frames"}  # the task's
        gamma = settings.gamma if settings.sampler == OWN_SAMPLER and self.gamma is not None else None
        self.pipeline.scheduler = choose_sampler(self.scheduler, settings.sampler, gamma)
        return sample(self.pipeline, task, seeds, bar={"disable": True}, callback_on_step_end=step_end, **options)

    def write(self, asked: Asked, clips: Clip, seconds: float | None) -> Result:
        """Writes the files of clips `[N, F, H, W, C]`; those of old results go away.

        Args:
            asked: what they are.
            clips: as `clips` makes them.
            seconds: that they took, where it is known.
        """
        stem = Path(self.folder.name) / uuid.uuid4().hex
        shown, gif, mp4, sheet = (Path(f"{stem}{ending}") for ending in ("-shown.gif", ".gif", ".mp4", ".png"))
        videos = self.videos(asked, clips)
        made = tile(list(clips), min(IN_A_ROW, len(clips)))
        scale = max(1, 256 // self.height)
        write_shown(videos, asked.places, shown)
        write_gif(made, gif, FPS, scale)
        write_mp4(made, mp4, FPS, scale)
        write_sheet(videos, asked.places, self.trained, sheet)
        self.results.append([shown, gif, mp4, sheet])
        while len(self.results) > KEPT:
            for file in self.results.popleft():
                file.unlink(missing_ok=True)
        summary = summarise(asked, list(videos), seconds)
        code = python_code(asked, self.options(asked), self.model, self.height, self.gamma)
        return Result(str(shown), str(gif), str(mp4), str(sheet), summary, asked.query, code)

    def videos(self, asked: Asked, clips: Clip) -> dict[str, Clip]:
        """The clips by their names, and before them what is known of a test clip: the truth, and where it could go."""
        videos: dict[str, Clip] = {}
        task = self.task(asked) if asked.clip is not None else None
        if task is not None and task.truth is not None:
            videos["truth"] = to_channels(task.truth[0], clips.shape[-1])
            if asked.kind == CONTINUE and self.variant == "classic":  # what the posterior knows
                videos["could go"] = to_channels(self.could_go(asked), clips.shape[-1])
        names = ["model"] if len(clips) == 1 else [f"model {i + 1}" for i in range(len(clips))]
        return videos | dict(zip(names, clips, strict=True))

    def could_go(self, asked: Asked) -> Clip:
        """Where the digits of a test clip can go, by the exact posterior: the brighter, the likelier."""
        from video_diffusion.data import MovingMNIST
        from video_diffusion.evaluation.limit import best_possible

        dataset = MovingMNIST(split="test", num_frames=asked.frames, image_size=self.height, seed=0)
        return best_possible(dataset, [asked.clip or 0], asked.given)["best_mean"][0]


def check_nothing_guides(settings: Settings) -> None:
    """Refuses guidance by given frames where there are none. Raises ValueError."""
    if settings.guidance > 0:
        raise ValueError(f"`guidance` is {settings.guidance:g}, expected 0: no frames are given.")
    if settings.history > 1:
        raise ValueError(f"`history guidance` is {settings.history:g}, expected 1: no frames are given.")


def summarise(asked: Asked, names: list[str], seconds: float | None) -> str:
    """What is shown and how it was made, in a line."""
    known = {"truth": "what happened", "could go": "all that could happen, the likelier the brighter"}
    count = asked.settings.clips
    if asked.kind == CONTINUE:
        made = "the model's guess" if count == 1 else f"{count} guesses of the model"
    else:
        made = "the model's clip" if count == 1 else f"{count} clips of the model"
    parts = [known[name] for name in names if name in known] + [made]
    how = (
        f"{asked.frames} frames, {asked.settings.steps} steps of {asked.settings.sampler}, seed {asked.settings.seed}"
    )
    took = "" if seconds is None else f": {seconds:.1f} s"
    return f"{'; '.join(parts).capitalize()}. {how}{took}."
