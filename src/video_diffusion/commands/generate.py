"""`video-diffusion generate | predict | interpolate`: clips from a model, as GIF, MP4 and one contact sheet."""

import argparse
import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from video_diffusion.commands.progress import bar_options
from video_diffusion.commands.report import add_json, report
from video_diffusion.hub.finding import variant_of
from video_diffusion.model.windows import SCHEMES
from video_diffusion.sampling import (
    DTYPES,
    OWN_SAMPLER,
    SAMPLERS,
    Clips,
    Task,
    dataset_task,
    file_task,
    frame_size,
    load_pipeline,
    sample,
    sampler_name,
    to_model,
    trained_frames,
)

if TYPE_CHECKING:
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

MODEL = "moving-mnist"
DEFAULT_VIDEOS = 4
FPS = (0.1, 100.0)  # frames a second that a GIF can keep
MAX_SEED = 2**63 - 1
MAX_VALUES = 2**30  # pixels of all clips together, which are held in memory


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
    source.add_argument(
        "--from-dataset",
        type=int,
        nargs="+",
        metavar="N",
        help="take test clips of Moving MNIST, by their numbers from 0",
    )
    parser.add_argument("--given", type=int, default=default, help=f"{given} (default: %(default)s)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default=MODEL, help="embedded model, folder or Hub id (default: %(default)s)")
    add("--num-videos", type=int, metavar="N", help="clips, or samples of each given clip (default: 4 and 1)")
    add("--num-frames", type=int, metavar="F", help="frames of a clip, any number (default: as the model was trained)")
    add(
        "--prompt",
        metavar="TEXT",
        help="what the clips show, for a model that reads; '' is no text "
        "(default: generate takes the example prompts of the model's generation config, the others no text)",
    )
    add("--negative-prompt", metavar="TEXT", help="what the guidance leads away from (default: no text)")
    add(
        "--guidance-scale",
        type=float,
        metavar="S",
        help="of classifier-free guidance, 1: none; costs a second call a step (default: with a prompt, that of the "
        "model's generation config)",
    )
    add(
        "--steps", type=int, help="network calls of a clip or window (default: the model's generation config, else 50)"
    )
    add("--window-overlap", type=int, metavar="K", help="known frames that a window begins with (default: half of it)")
    add("--window-scheme", choices=SCHEMES, default=SCHEMES[0], help="order of the windows (default: %(default)s)")
    add(
        "--reconstruction-guidance",
        type=float,
        metavar="W",
        help="weight of the given frames while sampling (default: none)",
    )
    add_history_guidance(parser)
    parser.set_defaults(history_guidance=None)  # the model's generation config, else 1
    add("--seed", type=int, default=0, help="clip i is drawn from seed + i (default: %(default)s)")
    add("--sampler", choices=SAMPLERS, help="default: the model's generation config, else ancestral, the model's own")
    add("--lora", metavar="ID", help="an adapter of the model: its folder or Hub id (needs peft)")
    add("--lora-scale", type=float, default=1.0, help="weight of the adapter (default: %(default)s)")
    add("--gamma", type=float, help="noise of the ancestral sampler: 0 (posterior) to 1 (default: the model's)")
    add("--batch-size", type=int, default=16, help="clips at once; does not change them (default: %(default)s)")
    add("--out", type=Path, default=Path("samples"), metavar="DIR", help="folder for the files (default: %(default)s)")
    add("--fps", type=float, default=8, help="frames a second of the files (default: %(default)s)")
    add_device(parser)
    add_json(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds `--device` and `--dtype`, for every command that calls a pipeline."""
    parser.add_argument("--device", help="cpu, cuda, mps (default: the fastest there is)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the network; auto: bfloat16 where it is fast, else float32; a seed's clips differ a little "
        "(default: %(default)s)",
    )


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
    pipeline = open_model(args)
    task = Task([], args.num_frames or trained_frames(pipeline))
    prompts = example_prompts(pipeline, args.num_videos or DEFAULT_VIDEOS) if args.prompt is None else None
    write(make(pipeline, task, args, prompts), task, pipeline, args, "generate", start, prompts)


def run_predict(args: argparse.Namespace) -> None:
    """Continues clips from their first frames."""
    run_conditional(args, "predict", at_end=0)


def run_interpolate(args: argparse.Namespace) -> None:
    """Fills the gap between the first and the last frames."""
    run_conditional(args, "interpolate", at_end=args.given)


def run_conditional(args: argparse.Namespace, name: str, at_end: int) -> None:
    """Makes a clip from its first `--given` frames and its last `at_end`."""
    from video_diffusion.data.reading import open_video

    start = time.perf_counter()
    check_arguments(args)
    video = None if args.video_file is None else open_video(args.video_file)
    pipeline = open_model(args)
    num_frames = args.num_frames or trained_frames(pipeline)
    if args.given < 1 or args.given + at_end >= num_frames:
        raise ValueError(f"`--given` is {args.given}, expected at least 1, given frames fewer than all {num_frames}.")
    height, width, samples = *frame_size(pipeline), args.num_videos or 1
    check_size(samples * len(args.from_dataset or [video]), num_frames, pipeline)
    if video is None:
        variant = variant_of(args.model)
        task = dataset_task(args.from_dataset, args.given, at_end, num_frames, height, width, variant)
    else:
        task = file_task(video, args.given, at_end, num_frames, height, width)
    task = to_model(task, pipeline.pixel_channels, samples)
    write(make(pipeline, task, args), task, pipeline, args, name, start)


# ------------------------------------------------------------------------------------------------- arguments and files
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
    if not args.prompt and (args.negative_prompt is not None or args.guidance_scale is not None):
        raise ValueError("`--prompt` is missing, expected one with `--negative-prompt` or `--guidance-scale`.")
    if not FPS[0] <= args.fps <= FPS[1]:
        raise ValueError(f"`--fps` is {args.fps}, expected a number from {FPS[0]:g} to {FPS[1]:g}.")
    if not 0 <= args.seed <= MAX_SEED - MAX_VALUES:
        raise ValueError(f"`--seed` is {args.seed}, expected 0 to {MAX_SEED - MAX_VALUES}.")
    if args.gamma is not None and args.sampler not in (None, OWN_SAMPLER):
        raise ValueError(f"`--gamma` is {args.gamma}, expected none with `--sampler {args.sampler}`.")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"`--out` is the file {args.out}, expected a folder.")


def check_size(clips: int, num_frames: int, pipeline: "VideoDiffusionPipeline") -> None:
    """Refuses clips that would not fit into any memory, before they are made. Raises a ValueError."""
    values = clips * num_frames * math.prod(frame_size(pipeline)) * pipeline.pixel_channels
    if values > MAX_VALUES:
        raise ValueError(
            f"`--num-videos` and `--num-frames` ask for {clips} clips of {num_frames} frames: expected at most "
            f"{MAX_VALUES} pixels in all, not {values}."
        )


def check_history_guidance(args: argparse.Namespace) -> None:
    """Refuses a `--history-guidance` that is no scale. Raises a ValueError."""
    if args.history_guidance is not None and not 0 <= args.history_guidance < math.inf:
        raise ValueError(f"`--history-guidance` is {args.history_guidance}, expected a number from 0 up.")


def open_model(args: argparse.Namespace) -> "VideoDiffusionPipeline":
    """The pipeline that the arguments name, with its adapter."""
    pipeline = load_pipeline(args.model, args.sampler, args.gamma, args.device, args.dtype)
    if getattr(args, "lora", None) is not None:
        pipeline.load_lora_weights(args.lora, adapter_name="lora")
        pipeline.set_adapters("lora", args.lora_scale)
    return pipeline


def example_prompts(pipeline: "VideoDiffusionPipeline", count: int) -> list[str] | None:
    """The model's example prompts in turn, one for each clip; None where it has none or does not read."""
    prompts = pipeline.generation_config.get("example_prompts")
    if not prompts or pipeline.text_encoder is None:
        return None
    return [prompts[i % len(prompts)] for i in range(count)]


def make(
    pipeline: "VideoDiffusionPipeline", task: Task, args: argparse.Namespace, prompts: Sequence[str] | None = None
) -> Clips:
    """The clips of a task, uint8 `[N, F, H, W, C]`; clip i comes from the seed `--seed` + i and shows `prompts[i]`."""
    count = len(task.given) if task.given is not None else args.num_videos or DEFAULT_VIDEOS
    check_size(count, task.num_frames, pipeline)
    options: dict[str, Any] = {}
    if args.prompt:
        options = {name: getattr(args, name) for name in ("prompt", "negative_prompt", "guidance_scale")}
    return sample(
        pipeline,
        task,
        range(args.seed, args.seed + count),
        args.batch_size,
        bar_options(),
        prompts,
        num_inference_steps=args.steps,
        window_overlap=args.window_overlap,
        window_scheme=args.window_scheme,
        reconstruction_guidance_scale=args.reconstruction_guidance,
        history_guidance_scale=args.history_guidance,
        **options,
    )


def write(
    clips: Clips,
    task: Task,
    pipeline: "VideoDiffusionPipeline",
    args: argparse.Namespace,
    name: str,
    start: float,
    prompts: Sequence[str] | None = None,
) -> None:
    """Writes a GIF and an MP4 for each clip and one contact sheet, says where they are and what to try next."""
    from video_diffusion.commands.terminal import show_picture
    from video_diffusion.data.video_io import contact_sheet, write_gif, write_mp4

    scale = max(1, 256 // clips.shape[2])
    files = []
    for i, clip in enumerate(clips):
        gif, mp4 = (args.out / f"{name}-{i:02d}.{kind}" for kind in ("gif", "mp4"))
        write_gif(clip, gif, args.fps, scale)
        write_mp4(clip, mp4, args.fps, scale)
        files.append({"seed": args.seed + i, "gif": gif, "mp4": mp4})
        if prompts is not None:
            files[-1]["prompt"] = prompts[i]
    mask = np.isin(np.arange(task.num_frames), task.places)
    rows, labels = list(clips), [f"{i}" for i in range(len(clips))]
    if task.truth is not None:
        rows = [clip for pair in zip(task.truth, clips, strict=True) for clip in pair]
        labels = [f"{kind} {i}" for i in range(len(clips)) for kind in ("truth", "model")]
    sheet = args.out / f"{name}.png"
    contact_sheet(rows, mask, sheet, labels)
    seconds, following = time.perf_counter() - start, next_command(name, args)
    asked = "" if prompts is None else "The model's example prompts: " + "; ".join(dict.fromkeys(prompts)) + ".\n"
    count = "1 clip" if len(clips) == 1 else f"{len(clips)} clips"
    if not args.json:
        show_picture(sheet)
    report(
        args,
        f"{count} of {task.num_frames} frames in {args.out} ({name}-*.gif, *.mp4), all of them in {sheet}: "
        f"{seconds:.1f} s.\n{asked}Next: {following}",
        clips=files,
        sheet=sheet,
        num_frames=task.num_frames,
        given=task.places,
        height=clips.shape[2],
        width=clips.shape[3],
        model=args.model,
        sampler=sampler_name(pipeline),
        steps=pipeline.num_timesteps,
        device=str(pipeline.device),
        dtype=str(pipeline.unet.dtype).removeprefix("torch."),
        seconds=round(seconds, 2),
        next=following,
    )


def next_command(name: str, args: argparse.Namespace) -> str:
    """A command to try after another: it takes up what that one made."""
    model = [] if args.model == MODEL else ["--model", args.model]
    words = {
        "generate": ["predict", str(args.out / "generate-00.gif"), *model, "--num-videos", "4"],
        "predict": ["interpolate", str(args.out / "predict-00.gif"), *model],
        "interpolate": ["generate", *model, "--num-frames", "60", "--num-videos", "1"],
    }
    return shlex.join(["video-diffusion", *words[name]])
