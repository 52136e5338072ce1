"""Protocol `text`: clips made from prompts are read, and what they show is held against what was asked.

Prompts say what test clips show. The same reader reads the real clips (the ceiling), real clips against the prompt of
another clip (the chance level), and clips of the model that was told nothing.
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from video_diffusion.data import MovingMNIST
from video_diffusion.data.captions import DIRECTIONS, TEMPLATES, Caption, Fact, compose
from video_diffusion.data.video_io import atomic_path
from video_diffusion.digit_reader.reader import reader_report
from video_diffusion.digit_reader.tracking import read_clips
from video_diffusion.evaluation.protocols import DATA_SEED
from video_diffusion.evaluation.run import LIBRARIES, Workers, library_version, open_parts
from video_diffusion.evaluation.sources import PipelineSource, clip_generator

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
        frames = self.pipeline.unet.config.get("num_frames") or 10
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
        return self.source.to_grey(output.frames)[..., 0]


@dataclass(frozen=True)
class Job:
    """Some clips of one column.

    Args:
        templates: whose prompts; "" for the empty prompt.
        scale: of the guidance.
        indices: numbers of the clips.
    """

    templates: str
    scale: float
    indices: tuple[int, ...]

    @property
    def column(self) -> str:
        """As in the report."""
        return f"{self.scale:g}" if self.templates else "empty"

    @property
    def file(self) -> str:
        """Name of its part."""
        return f"part-{self.templates or 'empty'}-{self.scale:g}-{self.indices[0]:07d}.npz"


def jobs_of(run: TextRun) -> Iterator[Job]:
    """All that must be made."""
    columns = [("", 1.0), *((templates, scale) for templates in TEMPLATES for scale in run.scales)]
    for templates, scale in columns:
        for first in range(0, run.num_videos, run.batch_size):
            yield Job(templates, scale, tuple(range(first, min(first + run.batch_size, run.num_videos))))


def make_part(folder: Path, job: Job, source: TextSource, prompts: Sequence[Caption] | None) -> None:
    """Makes the clips of a job and writes them; a prompt for each clip, or None for the empty one."""
    start = time.perf_counter()
    texts = [prompts[i].text if prompts else "" for i in job.indices]
    clips = source.make(texts, job.indices, job.scale)
    seconds = time.perf_counter() - start
    with atomic_path(folder / job.file) as draft:
        np.savez_compressed(draft, indices=np.array(job.indices), clips=clips, seconds=seconds)


def read_part(folder: Path, job: Job) -> tuple[NDArray[np.uint8], float] | None:
    """The clips of a job and the seconds they took; None, and no file, where they cannot be read."""
    try:
        with np.load(folder / job.file, allow_pickle=False) as part:
            if part["indices"].tolist() == list(job.indices):
                return part["clips"], float(part["seconds"])
    except FileNotFoundError:
        return None
    except Exception:  # zipfile, zlib and numpy each have errors of their own for a damaged file
        pass
    (folder / job.file).unlink(missing_ok=True)
    return None


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
    if workers.rank == 0:
        open_parts(folder, settings | {"batch_size": run.batch_size})
    workers.wait()
    missing = [job for job in jobs_of(run) if read_part(folder, job) is None]
    workers.wait()  # nobody writes before everybody has looked
    prompts = {templates: source.prompts(run.num_videos, templates) for templates in TEMPLATES}
    mine = missing[workers.rank :: workers.count]
    with tqdm(total=sum(len(job.indices) for job in mine), unit="clip", desc="text", disable=not progress) as bar:
        for job in mine:
            make_part(folder, job, source, prompts.get(job.templates))
            bar.update(len(job.indices))
    workers.wait()
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
    made: dict[tuple[str, str], list[list[Fact]]] = {}
    for job in jobs_of(run):
        part = read_part(folder, job)
        if part is None:
            raise OSError(
                f"{folder / job.file} is missing: run the command again; with several processes `--out` must be a "
                "folder that all of them see."
            )
        made.setdefault((job.templates, job.column), []).extend(read(part[0]))
        seconds += part[1]
    figures = {
        templates: {
            "real": shares(asked, real),
            "other_real": shares(asked, [*real[1:], real[0]]),
            "empty": shares(asked, made["", "empty"]),
            **{f"{scale:g}": shares(asked, made[templates, f"{scale:g}"]) for scale in run.scales},
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
        "versions": {"python": platform.python_version(), **{name: library_version(name) for name in LIBRARIES}},
    }


def some_clips(folder: Path, run: TextRun, report: dict[str, Any], count: int) -> tuple[NDArray[np.uint8], list[str]]:
    """The first clips of the training templates at the scale nearest to 4, `[n, F, H, W]`, and what was asked."""
    scale, found = min(run.scales, key=lambda w: abs(w - 4)), []
    for job in jobs_of(run):
        part = read_part(folder, job) if (job.templates, job.scale) == ("train", scale) else None
        if part is not None:
            found.append(part[0])
    clips = np.concatenate(found)[:count]
    return clips, [f"{text} (guidance {scale:g})" for text in report["prompts"]["train"][: len(clips)]]
