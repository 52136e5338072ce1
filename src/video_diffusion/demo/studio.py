"""A pipeline behind a counter: one clip at a time, within limits, as a GIF, an MP4 and a contact sheet."""

import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from video_diffusion import VPContinuousScheduler
from video_diffusion.data.video_io import Clip, contact_sheet, resize, to_uint8, write_gif, write_mp4
from video_diffusion.demo.limits import (
    OWN_SAMPLER,
    Limits,
    Settings,
    check_calls,
    check_settings,
    number,
    scheme,
    whole,
    words,
)
from video_diffusion.model.windows import SCHEMES, plan_windows
from video_diffusion.sampling import SAMPLERS, Task, choose_sampler, ends, frame_size, to_model

if TYPE_CHECKING:
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

Progress = Callable[[float], object]  # is told the share that is done, 0 to 1
NO_TEXT = "This model has no text encoder: it was trained without text, so it cannot follow a prompt."
TEST_CLIPS = 10000  # the clips of Moving MNIST that can be picked
KEPT = 32  # results whose files are kept; a page has fetched its own long before
FPS = 8  # of the files


@dataclass(frozen=True)
class Result:
    """The files of a clip, and a line about it."""

    gif: str
    mp4: str
    sheet: str
    summary: str


class Studio:
    """Makes clips with one pipeline, for several people one after the other.

    Args:
        pipeline: its own sampler stays as it is.
        limits: what is refused.

    Raises:
        ValueError: where the model makes clips too short to interpolate in.
    """

    def __init__(self, pipeline: "VideoDiffusionPipeline", limits: Limits | None = None) -> None:
        self.pipeline, self.limits = pipeline, limits or Limits()
        self.scheduler = pipeline.scheduler
        self.height, self.width = frame_size(pipeline)
        self.trained = int(pipeline.unet.config.get("num_frames") or 10)
        if self.trained < 3:
            raise ValueError(f"The model makes clips of {self.trained} frames, expected 3 or more for the demo.")
        self.lock = threading.Lock()
        self.folder = tempfile.TemporaryDirectory(prefix="video-diffusion-demo-")
        self.results: deque[list[Path]] = deque()
        pipeline.set_progress_bar_config(disable=True)

    @property
    def samplers(self) -> tuple[str, ...]:
        """The samplers that this model has; a scheduler that is not ours has no other beside it."""
        return tuple(SAMPLERS) if isinstance(self.scheduler, VPContinuousScheduler) else (OWN_SAMPLER,)

    @property
    def gamma(self) -> float | None:
        """The γ that the model was saved with, or None where its scheduler knows none."""
        return self.scheduler.config.gamma if len(self.samplers) > 1 else None

    @property
    def reads_text(self) -> bool:
        """Whether a prompt means anything to the model."""
        return self.pipeline.text_encoder is not None

    # ------------------------------------------------------------------------------------------------ the given frames
    def from_dataset(self, index: Any, at_start: Any, at_end: int, num_frames: Any) -> Task:
        """The task of one test clip of Moving MNIST, by its number: some of its frames are given, all are known.

        Raises:
            ValueError: where a number is outside its limits.
        """
        from video_diffusion.data import MovingMNIST

        index = whole("clip", index, 0, TEST_CLIPS - 1)
        at_start, num_frames = self.check_ends(at_start, at_end, num_frames)
        if self.height != self.width:
            raise ValueError(f"The data set has square frames and the model {self.width}×{self.height}: upload some.")
        dataset = MovingMNIST(split="test", num_frames=num_frames, image_size=self.height, seed=0)
        truth = dataset.batch(np.array([index]))[..., None]
        places = ends(num_frames, at_start, at_end)
        return Task(places, num_frames, truth[:, places], truth)

    def from_clip(self, clip: Clip, at_start: Any, at_end: int, num_frames: Any) -> Task:
        """The task of a visitor's clip `[F, H, W, C]`: its first and its last frames are given, at the model's size.

        Raises:
            ValueError: where it has too few frames, or a number is outside its limits.
        """
        at_start, num_frames = self.check_ends(at_start, at_end, num_frames)
        if len(clip) < at_start + at_end:
            raise ValueError(f"There are {len(clip)} frames, expected at least the {at_start + at_end} given ones.")
        chosen = clip[ends(len(clip), at_start, at_end)]
        given = resize(chosen, self.height, self.width)
        return Task(ends(num_frames, at_start, at_end), num_frames, given[None])

    def check_ends(self, at_start: Any, at_end: int, num_frames: Any) -> tuple[int, int]:
        """How many frames are given at the start, and how many there are; raises ValueError where none is to make."""
        num_frames = whole("frames", num_frames, 2, self.limits.frames)
        at_start = whole("given frames", at_start, 1, self.trained - 1)
        if at_start + at_end >= num_frames:
            raise ValueError(f"{at_start + at_end} frames are given of {num_frames}, expected fewer than all of them.")
        return at_start, num_frames

    # -------------------------------------------------------------------------------------------------------- the clip
    def make(
        self,
        task: Task,
        settings: Settings,
        progress: Progress = lambda done: None,
        window_scheme: Any = SCHEMES[0],
    ) -> Result:
        """Makes the clip of a task.

        Args:
            task: one clip, or none given.
            settings: as the visitor set them.
            progress: is told how much is done.
            window_scheme: the order of the windows of a long clip.

        Raises:
            ValueError: where something is outside its limits.
        """
        settings = check_settings(settings, self.limits)
        num_frames = whole("frames", task.num_frames, 2, self.limits.frames)
        plan = plan_windows(num_frames, self.trained, None, scheme(window_scheme), task.places)
        windows = sum(1 for _ in plan)
        check_calls(settings, windows, self.limits)
        options: dict[str, Any] = {"window_scheme": window_scheme}
        if task.given is not None:
            task = to_model(task, self.pipeline.pixel_channels, 1)
            options |= {"video": task.given, "frame_indices": task.places}
        if task.given is not None or windows > 1:
            options["reconstruction_guidance_scale"] = self.guidance(settings)
            options["history_guidance_scale"] = settings.history
        else:
            check_nothing_guides(settings)
        return self.sample(replace(task, num_frames=num_frames), settings, options, progress)

    def make_from_text(
        self, prompt: Any, negative_prompt: Any, scale: Any, num_frames: Any, settings: Settings, progress: Progress
    ) -> Result:
        """Makes a clip from a prompt; raises ValueError where the model reads none, or as `make` does."""
        if not self.reads_text:
            raise ValueError(NO_TEXT)
        settings = check_settings(settings, self.limits)
        check_nothing_guides(settings)
        num_frames = whole("frames", num_frames, 2, self.trained)
        check_calls(settings, 1, self.limits)
        options = {
            "prompt": words("prompt", prompt, self.limits.characters),
            "negative_prompt": words("negative prompt", negative_prompt, self.limits.characters) or None,
            "guidance_scale": number("guidance", scale, 1, self.limits.guidance),
        }
        return self.sample(Task([], num_frames), settings, options, progress)

    def guidance(self, settings: Settings) -> float | None:
        """The weight of reconstruction guidance as the pipeline takes it; a model without given frames needs one."""
        told = self.pipeline.unet.config.in_channels > self.pipeline.latent_channels
        return settings.guidance or (None if told else 0.0)

    def sample(self, task: Task, settings: Settings, options: dict[str, Any], progress: Progress) -> Result:
        """Runs the pipeline, alone, and writes the files."""
        import torch

        calls = 0

        def step_end(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal calls
            calls = step + 1
            progress(calls / pipeline.num_timesteps)
            return {}

        with self.lock:
            start = time.perf_counter()
            gamma = settings.gamma if settings.sampler == OWN_SAMPLER and self.gamma is not None else None
            self.pipeline.scheduler = choose_sampler(self.scheduler, settings.sampler, gamma)
            output: Any = self.pipeline(
                num_frames=task.num_frames,
                num_inference_steps=settings.steps,
                generator=torch.Generator().manual_seed(settings.seed),
                output_type="np",
                callback_on_step_end=step_end,
                **options,
            )
            clip = to_uint8(output.frames)[0]
            seconds = time.perf_counter() - start
        summary = f"{len(clip)} frames, {calls} steps of {settings.sampler}, seed {settings.seed}: {seconds:.1f} s"
        return self.write(clip, task, summary)

    def write(self, clip: Clip, task: Task, summary: str) -> Result:
        """Writes the files of a clip, uint8 `[F, H, W, C]`; those of old results go away."""
        stem = Path(self.folder.name) / uuid.uuid4().hex
        gif, mp4, sheet = (stem.with_suffix(ending) for ending in (".gif", ".mp4", ".png"))
        scale = max(1, 256 // clip.shape[1])
        write_gif(clip, gif, FPS, scale)
        write_mp4(clip, mp4, FPS, scale)
        write_sheet(clip, task, self.trained, sheet)
        self.results.append([gif, mp4, sheet])
        while len(self.results) > KEPT:
            for file in self.results.popleft():
                file.unlink(missing_ok=True)
        return Result(str(gif), str(mp4), str(sheet), summary)


def check_nothing_guides(settings: Settings) -> None:
    """Refuses guidance by given frames where there are none. Raises ValueError."""
    if settings.guidance > 0:
        raise ValueError(f"`guidance` is {settings.guidance:g}, expected 0: no frames are given.")
    if settings.history > 1:
        raise ValueError(f"`history guidance` is {settings.history:g}, expected 1: no frames are given.")


def write_sheet(clip: Clip, task: Task, columns: int, path: Path) -> None:
    """Writes the frames of a clip, in as many rows as it is longer than `columns`, below those of the truth."""
    rows, labels, masks = [], [], []
    given = np.isin(np.arange(len(clip)), task.places)
    kinds = {"model": clip} if task.truth is None else {"truth": task.truth[0], "model": clip}
    for first in range(0, len(clip), columns):
        for kind, frames in kinds.items():
            rows.append(frames[first : first + columns])
            labels.append(f"{kind}, from {first}" if len(clip) > columns else kind)
            part = given[first : first + columns]
            masks.append(np.pad(part, (0, min(columns, len(clip)) - len(part))))
    contact_sheet(rows, np.stack(masks), path, labels)
