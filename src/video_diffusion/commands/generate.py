"""`video-diffusion generate | predict | interpolate`: clips from a model, as GIF, MP4 and one contact sheet."""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from video_diffusion.windows import SCHEMES

if TYPE_CHECKING:
    from video_diffusion.pipeline import VideoDiffusionPipeline

SAMPLERS = {  # the stock solvers of diffusers, beside our own
    "ancestral": None,
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
GUIDANCE_SCALE = 8.0  # with a prompt: what the embedded model obeys best
Clips = NDArray[np.uint8]


@dataclass
class Task:
    """What is asked of the model.

    Args:
        places: the places of the k given frames in a clip of `num_frames`.
        num_frames: F.
        given: the given frames of N clips, uint8 `[N, k, H, W, C]`, or None for free generation.
        truth: the N whole clips, uint8 `[N, F, H, W, C]`, where they are known.
    """

    places: list[int]
    num_frames: int
    given: Clips | None = None
    truth: Clips | None = None


# ------------------------------------------------------------------------------------------------------- the arguments
def register(subparsers: Any) -> None:
    """Adds the three subcommands."""
    generate = subparsers.add_parser("generate", help="make clips from noise")
    _add_common(generate)
    generate.set_defaults(run=run_generate)
    predict = subparsers.add_parser("predict", help="continue clips from their first frames")
    _add_source(predict, "the first frames that are given", 5)
    _add_common(predict)
    predict.set_defaults(run=run_predict)
    interpolate = subparsers.add_parser("interpolate", help="fill the gap between the first and the last frames")
    _add_source(interpolate, "the frames that are given at each end", 1)
    _add_common(interpolate)
    interpolate.set_defaults(run=run_interpolate)


def _add_source(parser: argparse.ArgumentParser, given: str, default: int) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("video_file", nargs="?", metavar="VIDEO_FILE", help="GIF, MP4, npy array or folder of PNGs")
    source.add_argument("--from-dataset", type=int, metavar="N", help="take the first N test clips of Moving MNIST")
    parser.add_argument("--given", type=int, default=default, help=f"{given} (default: %(default)s)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="moving-mnist", help="embedded model, folder or Hub id (default: %(default)s)")
    add("--num-videos", type=int, metavar="N", help="clips, or samples of each given clip (default: 4 and 1)")
    add("--num-frames", type=int, default=10, metavar="F", help="frames of a clip, any number (default: %(default)s)")
    add("--prompt", metavar="TEXT", help="what the clips show, for a model that reads (default: no text)")
    add("--negative-prompt", metavar="TEXT", help="what the guidance leads away from (default: no text)")
    add(
        "--guidance-scale",
        type=float,
        metavar="S",
        help="of classifier-free guidance, 1: none; costs a second call a step (default: 8 with a prompt, else 1)",
    )
    add("--steps", type=int, default=50, help="network calls of a clip or window (default: %(default)s)")
    add("--window-overlap", type=int, metavar="K", help="known frames that a window begins with (default: half of it)")
    add("--window-scheme", choices=SCHEMES, default=SCHEMES[0], help="order of the windows (default: %(default)s)")
    add(
        "--reconstruction-guidance",
        type=float,
        metavar="W",
        help="weight of the given frames while sampling (default: none)",
    )
    add_history_guidance(parser)
    add("--seed", type=int, default=0, help="clip i is drawn from seed + i (default: %(default)s)")
    add("--sampler", choices=SAMPLERS, default="ancestral", help="default: %(default)s, the model's own")
    add("--gamma", type=float, help="noise of the ancestral sampler: 0 (posterior) to 1 (default: the model's)")
    add("--batch-size", type=int, default=16, help="clips at once; does not change them (default: %(default)s)")
    add("--out", type=Path, default=Path("samples"), metavar="DIR", help="folder for the files (default: %(default)s)")
    add("--fps", type=float, default=8, help="frames a second of the files (default: %(default)s)")
    add("--device", help="cpu, cuda, mps (default: the fastest there is)")


def add_history_guidance(parser: argparse.ArgumentParser) -> None:
    """Adds `--history-guidance`, for every command that calls a pipeline with given frames."""
    parser.add_argument(
        "--history-guidance",
        type=float,
        default=1.0,
        metavar="W",
        help="of guidance on the given frames; 1: none, more costs a second call a step (default: %(default)s)",
    )


# -------------------------------------------------------------------------------------------------------- the commands
def run_generate(args: argparse.Namespace) -> None:
    """Makes clips from noise."""
    start = time.perf_counter()
    check_arguments(args)
    task = Task([], args.num_frames)
    write(sample(load_pipeline(args), task, args), task, args, "generate", start)


def run_predict(args: argparse.Namespace) -> None:
    """Continues clips from their first frames."""
    run_conditional(args, "predict", at_end=0)


def run_interpolate(args: argparse.Namespace) -> None:
    """Fills the gap between the first and the last frames."""
    run_conditional(args, "interpolate", at_end=args.given)


def run_conditional(args: argparse.Namespace, name: str, at_end: int) -> None:
    """Makes a clip from its first `--given` frames and its last `at_end`."""
    from video_diffusion.video_io import read_video

    start = time.perf_counter()
    check_arguments(args)
    if args.given < 1 or args.given + at_end >= args.num_frames:
        raise ValueError(
            f"`--given` is {args.given}, expected at least 1, given frames fewer than all {args.num_frames}."
        )
    clip = None if args.video_file is None else read_video(args.video_file)
    pipeline = load_pipeline(args)
    height, width = frame_size(pipeline)
    if clip is None:
        task = dataset_task(args.from_dataset, args.given, at_end, args.num_frames, height, width)
    else:
        task = file_task(clip, args.given, at_end, args.num_frames, height, width)
    task = to_model(task, pipeline.pixel_channels, args.num_videos or 1)
    write(sample(pipeline, task, args), task, args, name, start)


# --------------------------------------------------------------------------------------------------- the given frames
def ends(length: int, at_start: int, at_end: int) -> list[int]:
    """The places of the first and the last frames of a clip."""
    return [*range(at_start), *range(length - at_end, length)]


def file_task(clip: Clips, at_start: int, at_end: int, num_frames: int, height: int, width: int) -> Task:
    """The task of one clip `[F, H, W, C]`: its frames at the start and at the end are given, at the model's size."""
    from video_diffusion.video_io import resize

    if len(clip) < at_start + at_end:
        raise ValueError(f"`VIDEO_FILE` has {len(clip)} frames, expected the {at_start + at_end} given ones at least.")
    if clip.shape[1:3] != (height, width):
        print(f"Resized the given frames from {clip.shape[2]}×{clip.shape[1]} to {width}×{height}, the model's size.")
        clip = resize(clip, height, width)
    given = clip[ends(len(clip), at_start, at_end)]
    whole = clip if at_end else clip[:num_frames]
    truth = whole[None] if len(whole) == num_frames else None
    return Task(ends(num_frames, at_start, at_end), num_frames, given[None], truth)


def dataset_task(count: int, at_start: int, at_end: int, num_frames: int, height: int, width: int) -> Task:
    """The task of the first `count` test clips of Moving MNIST."""
    from video_diffusion.data import MovingMNIST

    if count < 1:
        raise ValueError(f"`--from-dataset` is {count}, expected at least 1 clip.")
    if height != width:
        raise ValueError(f"`--from-dataset` makes square frames, expected a file: the model's are {width}×{height}.")
    dataset = MovingMNIST(split="test", num_frames=num_frames, image_size=height, seed=0)
    truth = dataset.batch(np.arange(count))[..., None]
    places = ends(num_frames, at_start, at_end)
    return Task(places, num_frames, truth[:, places], truth)


def to_model(task: Task, channels: int, samples: int) -> Task:
    """The task with the model's number of channels, each of its clips `samples` times."""
    from video_diffusion.video_io import to_channels

    given, truth = (
        None if clips is None else np.repeat([to_channels(clip, channels) for clip in clips], samples, axis=0)
        for clips in (task.given, task.truth)
    )
    return Task(task.places, task.num_frames, given, truth)


# ----------------------------------------------------------------------------------------------------------- the model
def check_arguments(args: argparse.Namespace) -> None:
    """Refuses, before anything is loaded, the numbers that no model takes."""
    for name in ("num_videos", "num_frames", "steps", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"`--{name.replace('_', '-')}` is {value}, expected at least 1.")
    if args.window_overlap is not None and args.window_overlap < 1:
        raise ValueError(f"`--window-overlap` is {args.window_overlap}, expected at least 1.")
    if args.reconstruction_guidance is not None and not 0 <= args.reconstruction_guidance < math.inf:
        raise ValueError(
            f"`--reconstruction-guidance` is {args.reconstruction_guidance}, expected a number from 0 up."
        )
    check_history_guidance(args)
    if args.guidance_scale is not None and not 1 <= args.guidance_scale < math.inf:
        raise ValueError(f"`--guidance-scale` is {args.guidance_scale}, expected a number from 1 up.")
    if args.prompt is None and (args.negative_prompt is not None or args.guidance_scale is not None):
        raise ValueError("`--prompt` is missing, expected one with `--negative-prompt` or `--guidance-scale`.")
    if not 0 < args.fps <= 100:
        raise ValueError(f"`--fps` is {args.fps}, expected a number above 0 and up to 100.")
    if args.seed < 0:
        raise ValueError(f"`--seed` is {args.seed}, expected 0 or more.")
    if args.gamma is not None and args.sampler != "ancestral":
        raise ValueError(f"`--gamma` is {args.gamma}, expected none with `--sampler {args.sampler}`.")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"`--out` is the file {args.out}, expected a folder.")


def check_history_guidance(args: argparse.Namespace) -> None:
    """Refuses a `--history-guidance` that is no scale. Raises a ValueError."""
    if not 0 <= args.history_guidance < math.inf:
        raise ValueError(f"`--history-guidance` is {args.history_guidance}, expected a number from 0 up.")


def load_pipeline(args: argparse.Namespace) -> "VideoDiffusionPipeline":
    """The pipeline that the arguments name, with its sampler, on its device."""
    import torch
    from diffusers.utils import logging

    from video_diffusion import VideoDiffusionPipeline
    from video_diffusion.hub import resolve_model

    logging.disable_progress_bar()
    pipeline = VideoDiffusionPipeline.from_pretrained(resolve_model(args.model))
    pipeline.scheduler = choose_sampler(pipeline.scheduler, args.sampler, args.gamma)
    device = args.device
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return pipeline.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device` is {device!r}, expected one that PyTorch has here: {error}") from error


def choose_sampler(scheduler: Any, sampler: str, gamma: float | None) -> Any:
    """The model's own ancestral scheduler, with another γ if asked, or a stock solver on its schedule."""
    import diffusers

    from video_diffusion import VPContinuousScheduler

    solver = SAMPLERS[sampler]
    if solver is None and gamma is None:
        return scheduler
    if not isinstance(scheduler, VPContinuousScheduler):
        raise ValueError(f"The model's scheduler is a {type(scheduler).__name__}: expected no `--sampler`, `--gamma`.")
    if solver is None:
        return VPContinuousScheduler.from_config(scheduler.config, gamma=gamma)
    return scheduler.as_diffusers(getattr(diffusers, solver))


def frame_size(pipeline: "VideoDiffusionPipeline") -> tuple[int, int]:
    """The model's height and width in pixels."""
    return pipeline.resolve_shape(1, None, None)[1:]


def sample(pipeline: "VideoDiffusionPipeline", task: Task, args: argparse.Namespace) -> Clips:
    """The clips of a task, uint8 `[N, F, H, W, C]`; clip i comes from the seed `--seed` + i."""
    import torch

    from video_diffusion.video_io import to_uint8

    count = len(task.given) if task.given is not None else args.num_videos or 4
    batches = []
    for first in range(0, count, args.batch_size):
        clips = range(first, min(first + args.batch_size, count))
        options: dict[str, Any] = {"num_videos_per_prompt": len(clips)}
        if task.given is not None:
            options = {"video": task.given[first : clips.stop], "frame_indices": task.places}
        if args.prompt is not None:
            scale = GUIDANCE_SCALE if args.guidance_scale is None else args.guidance_scale
            options |= {"prompt": args.prompt, "negative_prompt": args.negative_prompt, "guidance_scale": scale}
        pipeline.set_progress_bar_config(desc=f"clips {first + 1} to {clips.stop} of {count}")
        output: Any = pipeline(
            num_frames=task.num_frames,
            num_inference_steps=args.steps,
            window_overlap=args.window_overlap,
            window_scheme=args.window_scheme,
            reconstruction_guidance_scale=args.reconstruction_guidance,
            history_guidance_scale=args.history_guidance,
            generator=[torch.Generator().manual_seed(args.seed + i) for i in clips],
            output_type="np",
            **options,
        )
        batches.append(output.frames)
    return to_uint8(np.concatenate(batches))


def write(clips: Clips, task: Task, args: argparse.Namespace, name: str, start: float) -> None:
    """Writes a GIF and an MP4 for each clip and one contact sheet, and says where they are."""
    from video_diffusion.video_io import contact_sheet, write_gif, write_mp4

    scale = max(1, 256 // clips.shape[2])
    for i, clip in enumerate(clips):
        write_gif(clip, args.out / f"{name}-{i:02d}.gif", args.fps, scale)
        write_mp4(clip, args.out / f"{name}-{i:02d}.mp4", args.fps, scale)
    mask = np.isin(np.arange(task.num_frames), task.places)
    rows, labels = list(clips), [f"{i}" for i in range(len(clips))]
    if task.truth is not None:
        rows = [clip for pair in zip(task.truth, clips, strict=True) for clip in pair]
        labels = [f"{kind} {i}" for i in range(len(clips)) for kind in ("truth", "model")]
    sheet = args.out / f"{name}.png"
    contact_sheet(rows, mask, sheet, labels)
    seconds = time.perf_counter() - start
    count = "1 clip" if len(clips) == 1 else f"{len(clips)} clips"
    print(
        f"{count} of {task.num_frames} frames in {args.out} ({name}-*.gif, *.mp4), all of them in {sheet}: "
        f"{seconds:.1f} s."
    )
