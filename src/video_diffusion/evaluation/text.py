"""Protocol `text`: clips made from prompts are read, and what they show is held against what was asked.

Prompts say what test clips show. The same reader reads the real clips (the ceiling), real clips against the prompt of
another clip (the chance level), and clips of the model that was told nothing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from video_diffusion.data import MovingMNIST
from video_diffusion.data.captions import DIRECTIONS, Caption, Fact, compose
from video_diffusion.digit_reader.reader import reader_report
from video_diffusion.digit_reader.tracking import read_clips
from video_diffusion.evaluation.protocols import DATA_SEED
from video_diffusion.evaluation.run import Workers, make_parts, read_parts, versions
from video_diffusion.evaluation.sources import PipelineSource, clip_generator, to_clips
from video_diffusion.sampling import trained_frames

ASKED = ("train", "held_out")  # the templates of the prompts
EMPTY = "empty"  # the column of clips without a prompt
SCALES = (1.0, 2.0, 4.0, 8.0)
NUM_VIDEOS, NUM_DIGITS = 64, 2
TEXT = (
    "Captions of classic Moving MNIST test clips as prompts; a digit classifier with a tracker reads what was made. "
    "Share of the clips that show what was asked."
)
QUESTIONS = {  # of the table: key and what it asks
    "all_digits": "all asked digits are there",
    "one_digit": "at least one asked digit is there",
    "directions": "the asked directions are there, of whatever digit",
    "obeyed": "all asked digits go in their directions",
    "nearly_obeyed": "the same, a neighbouring direction of 8 allowed",
}
COLUMNS = {"real": "real clips", "other_real": "another real clip", "empty": "empty prompt"}


@dataclass(frozen=True)
class TextRun:
    """How the text protocol is run.

    Args:
        num_videos: N, prompts of each set of templates, at least 2.
        scales: of classifier-free guidance, each at least 1.
        batch_size: clips at once.

    Raises:
        ValueError: where a number is too small.
    """

    num_videos: int = NUM_VIDEOS
    scales: tuple[float, ...] = SCALES
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.num_videos < 2:
            raise ValueError(f"`--num-videos` is {self.num_videos}, expected at least 2: one is held against another.")
        if self.batch_size < 1:
            raise ValueError(f"`--batch-size` is {self.batch_size}, expected at least 1.")
        if not self.scales or min(self.scales) < 1 or len(set(self.scales)) < len(self.scales):
            raise ValueError(f"`--guidance-scales` is {list(self.scales)}, expected numbers of at least 1, each once.")


# --------------------------------------------------------------------------------------------------- asked and obeyed
def neighbours(one: str | None, other: str | None) -> bool:
    """Whether two directions are the same or next to each other among the 8."""
    if one not in DIRECTIONS or other not in DIRECTIONS:
        return one == other
    return (DIRECTIONS.index(one) - DIRECTIONS.index(other)) % len(DIRECTIONS) in (0, 1, len(DIRECTIONS) - 1)


def matches(asked: Sequence[Fact], read: Sequence[Fact], agree: Callable[[Fact, Fact], bool]) -> int:
    """How many of the asked digits can be found among those read, each one used once."""
    slots: list[Fact | None] = [*read, *[None] * len(asked)]
    return max(
        sum(found is not None and agree(fact, found) for fact, found in zip(asked, chosen, strict=True))
        for chosen in permutations(slots, len(asked))
    )


def answers(asked: Caption, read: Sequence[Fact]) -> dict[str, bool]:
    """What a clip with these digits says to the `QUESTIONS`; those about motion only where the prompt speaks of it."""
    facts = asked.facts
    same = matches(facts, read, lambda a, b: a.digit == b.digit)
    found = {"all_digits": same == len(facts), "one_digit": same > 0}
    if not asked.motion:
        return found
    rules: dict[str, Callable[[Fact, Fact], bool]] = {
        "directions": lambda a, b: a.direction == b.direction,
        "obeyed": lambda a, b: a.digit == b.digit and a.direction == b.direction,
        "nearly_obeyed": lambda a, b: a.digit == b.digit and neighbours(a.direction, b.direction),
    }
    return found | {name: matches(facts, read, rule) == len(facts) for name, rule in rules.items()}


def shares(asked: Sequence[Caption], read: Sequence[Sequence[Fact]]) -> dict[str, dict[str, float | int | None]]:
    """For each of the `QUESTIONS` the share of clips with a yes, and of how many; None of 0."""
    said = [answers(caption, facts) for caption, facts in zip(asked, read, strict=True)]
    values = {key: [answer[key] for answer in said if key in answer] for key in QUESTIONS}
    return {
        key: {"share": sum(found) / len(found) if found else None, "clips": len(found)}
        for key, found in values.items()
    }


# ----------------------------------------------------------------------------------------------------------- the clips
class TextSource:
    """A pipeline that is told what to make.

    Raises:
        ValueError: where it has no text encoder.
    """

    def __init__(self, source: PipelineSource) -> None:
        self.source, self.pipeline = source, source.pipeline
        if self.pipeline.text_encoder is None or self.pipeline.tokenizer is None:
            raise ValueError("The model has no text encoder, expected one for `--protocol text`.")
        frames = trained_frames(self.pipeline)
        self.videos = MovingMNIST(
            split="test", num_frames=frames, image_size=source.image_size, num_digits=NUM_DIGITS, seed=DATA_SEED
        )

    def prompts(self, count: int, templates: str) -> list[Caption]:
        """What the first test clips show, in words of these templates."""
        clips, span = self.videos.clips(range(count)), self.videos.image_size - self.videos.pixels_per_digit
        return compose(clips, range(count), DATA_SEED, span, templates)

    def make(self, prompts: Sequence[str], indices: Sequence[int], scale: float) -> NDArray[np.uint8]:
        """Clips uint8 `[n, F, H, W]`, each from the noise of its number alone."""
        F, seed = self.videos.num_frames, self.source.seed
        output: Any = self.pipeline(
            prompt=list(prompts),
            num_frames=F,
            num_inference_steps=self.source.steps,
            guidance_scale=scale,
            generator=[clip_generator(seed, i, 0, F) for i in indices],
            output_type="pt",
        )
        return to_clips(output.frames)[..., 0]


def columns_of(run: TextRun, source: TextSource, prompts: Mapping[str, Sequence[Caption]]) -> dict[str, Any]:
    """What is made, by column: the empty prompt, and each set of templates at each guidance scale."""

    def make(indices: list[int], templates: str, scale: float) -> dict[str, NDArray[Any]]:
        start = time.perf_counter()
        texts = [prompts[templates][i].text if templates else "" for i in indices]
        clips = source.make(texts, indices, scale)
        return {"video": clips, "seconds": np.array(time.perf_counter() - start)}

    columns = {EMPTY: partial(make, templates="", scale=1.0)}
    for templates in prompts:
        for scale in run.scales:
            columns[f"{templates}-{scale:g}"] = partial(make, templates=templates, scale=scale)
    return columns


# ------------------------------------------------------------------------------------------------------------- the run
def evaluate_text(
    source: TextSource, run: TextRun, out: Path, *, workers: Workers | None = None, progress: bool = True
) -> dict[str, Any] | None:
    """Runs the protocol to its end, from where an earlier call with the same folder stopped.

    Args:
        source: the model.
        run: how.
        out: the folder for the parts, `text-parts`; all processes must see it.
        workers: the processes that share the work.
        progress: whether a bar counts the clips of this process.

    Returns:
        the report as JSON in the first process, None in the others.

    Raises:
        ValueError: where the folder belongs to other settings.
        OSError: where not all parts are in the folder at the end.
    """
    workers, folder = workers or Workers(), out / "text-parts"
    settings = {
        "protocol": "text",
        "model": {key: value for key, value in source.source.identity.items() if key != "name"},
        "sampling": source.source.settings,
        "num_videos": run.num_videos,
        "guidance_scales": list(run.scales),
        "image_size": source.videos.image_size,
        "num_frames": source.videos.num_frames,
        "data_seed": DATA_SEED,
    }
    prompts = {templates: source.prompts(run.num_videos, templates) for templates in ASKED}
    columns = columns_of(run, source, prompts)
    make_parts(folder, settings, columns, run.num_videos, run.batch_size, workers, progress)
    return summarise(folder, run, source, prompts, settings) if workers.rank == 0 else None


def summarise(
    folder: Path, run: TextRun, source: TextSource, prompts: dict[str, list[Caption]], settings: dict[str, Any]
) -> dict[str, Any]:
    """Reads all clips and counts. Raises an OSError where some are missing."""
    start, seconds = time.perf_counter(), 0.0
    device = str(source.pipeline.device)

    def read(clips: NDArray[np.uint8]) -> list[list[Fact]]:
        return read_clips(clips, NUM_DIGITS, source.videos.pixels_per_digit, device)

    real = read(source.videos.batch(range(run.num_videos)))
    made: dict[str, list[list[Fact]]] = {}
    for column in columns_of(run, source, prompts):
        clips, spent = clips_of(folder, column, run.num_videos)
        made[column], seconds = read(clips), seconds + spent
    figures = {
        templates: {
            "real": shares(asked, real),
            "other_real": shares(asked, [*real[1:], real[0]]),
            "empty": shares(asked, made[EMPTY]),
            **{f"{scale:g}": shares(asked, made[f"{templates}-{scale:g}"]) for scale in run.scales},
        }
        for templates, asked in prompts.items()
    }
    source.pipeline.scheduler.set_timesteps(source.source.steps)
    return {
        **settings,
        "text": TEXT,
        "model": source.source.identity,
        "questions": QUESTIONS,
        "figures": figures,
        "prompts": {templates: [caption.text for caption in asked] for templates, asked in prompts.items()},
        "reader": reader_report(),
        "network_calls_per_clip": len(source.pipeline.scheduler.timesteps),
        "seconds": {"clips": seconds, "scores": time.perf_counter() - start},
        "versions": versions(),
    }


def clips_of(folder: Path, column: str, num_videos: int) -> tuple[NDArray[np.uint8], float]:
    """The clips of a column `[N, F, H, W]`, and the seconds they took. Raises an OSError where some are missing."""
    found: dict[int, NDArray[np.uint8]] = {}
    seconds = 0.0
    for indices, arrays in read_parts(folder, column):
        found |= dict(zip(indices.tolist(), arrays["video"], strict=True))
        seconds += float(arrays["seconds"])
    if len(found) < num_videos:
        raise OSError(
            f"{folder} holds {len(found)} clips of {column}, expected {num_videos}: run the command again; with "
            "several processes `--out` must be a folder that all of them see."
        )
    return np.stack([found[i] for i in range(num_videos)]), seconds


def some_clips(folder: Path, run: TextRun, report: dict[str, Any], count: int) -> tuple[NDArray[np.uint8], list[str]]:
    """The first clips of the training templates at the scale nearest to 4, `[n, F, H, W]`, and what was asked."""
    scale = min(run.scales, key=lambda w: abs(w - 4))
    clips = clips_of(folder, f"train-{scale:g}", run.num_videos)[0][:count]
    return clips, [f"{text} (guidance {scale:g})" for text in report["prompts"]["train"][: len(clips)]]
