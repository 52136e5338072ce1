"""`video-diffusion evaluate`: a model, or a folder of videos, scored by a protocol."""

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_diffusion.commands.generate import add_device, add_history_guidance, check_history_guidance
from video_diffusion.sampling import SAMPLERS, fastest_device

if TYPE_CHECKING:
    from video_diffusion.evaluation import Protocol, Source, Workers

FOLDERS = ("kth", "bair")  # of which the user has the data
OWN = "videos"
NAMES = ("paper", "mcvd", "openstl", "unconditional", "text", *FOLDERS, OWN)
SHOWN = 4  # clips in the picture


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score a model, or a folder of videos, by a protocol",
        description="Scores a model by a protocol (docs/protocols.md) beside its baselines: <protocol>.json, .md and "
        ".png in --out. Run again after an interruption, it goes on. Processes of accelerate launch share the work.",
    )
    add = parser.add_argument
    add("--model", default="moving-mnist", help="embedded model, folder, Hub id or folder of videos: one npy, GIF or "
        "MP4 file a clip, or npz arrays, in the order of their numbers (default: %(default)s)")  # fmt: skip
    add("--protocol", required=True, choices=NAMES)
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="kth, bair: folder with the data set in its published layout; videos: folder with any, cut as those of "
        "the training were",
    )
    add("--split", help="videos: of the folder (default: validation)")
    add("--given", type=int, metavar="K", help="videos: frames that are given (default: about half of the model's)")
    add("--num-videos", type=int, metavar="N", help="clips (default: the protocol's)")
    add("--num-samples", type=int, metavar="S", help="predictions of each clip (default: the protocol's)")
    add("--num-frames", type=int, nargs="+", metavar="F", help="unconditional: lengths, of 10 and 20 (default: both)")
    add(
        "--guidance-scales",
        type=float,
        nargs="+",
        metavar="W",
        help="text: classifier-free guidance (default: 1 2 4 8)",
    )
    add("--sampler", choices=SAMPLERS, help="default: that of the model's generation config, else ancestral")
    add("--steps", type=int, help="network calls of a clip, or of each window (default: the model's, else 50)")
    add("--gamma", type=float, help="noise of the ancestral sampler: 0 (posterior) to 1 (default: the model's)")
    add_history_guidance(parser)
    add("--seed", type=int, default=0, help="of the noise (default: %(default)s); the test clips are always the same")
    add("--batch-size", type=int, default=16, metavar="B", help="clips at once (default: %(default)s)")
    add_device(parser)
    add("--out", type=Path, default=Path("evaluation"), metavar="DIR", help="folder to write (default: %(default)s)")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> None:
    """Scores the model and writes the report."""
    check_arguments(args)
    from video_diffusion.evaluation import PROTOCOLS, PUBLISHED, Run, Scorer, evaluate
    from video_diffusion.evaluation.cache import default_folder
    from video_diffusion.evaluation.report import markdown

    workers = find_workers(args)
    if args.protocol == "text":
        run_text(args, workers)
        return
    published = PUBLISHED[args.protocol].on(args.data) if args.protocol in FOLDERS else None
    source = source_of(args)
    protocol = own_videos(args, source) if args.protocol == OWN else published or PROTOCOLS[args.protocol]
    run = Run.of(source, protocol, args.num_videos, args.num_samples, args.num_frames, args.batch_size)
    scorer = Scorer(protocol, run.lengths, args.device, cache=default_folder())
    report = evaluate(source, run, args.out, scorer, workers=workers)
    if report is not None:
        report["command"] = command_line(args, report)
        files = write(report, source, run, args.out)
        print(markdown(report))
        print("Written: " + ", ".join(map(str, files)))


def own_videos(args: argparse.Namespace, source: "Source") -> "Protocol":
    """The protocol on a folder of videos, for a model that was trained on such. Fills in what was not said."""
    from video_diffusion.evaluation import PipelineSource
    from video_diffusion.evaluation.own import SPLIT, cut_of, own_protocol, usual_given
    from video_diffusion.hub.configs import read_json
    from video_diffusion.hub.finding import resolve_model
    from video_diffusion.sampling import trained_frames

    if not isinstance(source, PipelineSource):
        raise ValueError(
            f"`--model` is the folder of videos {args.model}, expected a pipeline with `--protocol {OWN}`."
        )
    pipeline, record = source.pipeline, Path(resolve_model(args.model)) / "run.json"
    run = read_json(record) if record.is_file() else {}
    frames = trained_frames(pipeline)
    args.split = args.split or run.get("validation_split") or SPLIT
    args.given = usual_given(frames, pipeline.frame_grid) if args.given is None else args.given
    cut = cut_of(run) | {"num_channels": pipeline.pixel_channels}
    return own_protocol(args.data, args.split, args.given, frames, source.image_size, cut)


def run_text(args: argparse.Namespace, workers: "Workers") -> None:
    """Scores how well a model obeys prompts and writes the report."""
    from video_diffusion.evaluation import PipelineSource
    from video_diffusion.evaluation.figure import write_text_figure
    from video_diffusion.evaluation.report import markdown, write_report
    from video_diffusion.evaluation.text import SCALES, TextRun, TextSource, evaluate_text, some_clips

    opened = source_of(args)
    if not isinstance(opened, PipelineSource):
        raise ValueError(
            f"`--model` is the folder of videos {args.model}, expected a pipeline with `--protocol text`."
        )
    source = TextSource(opened)
    numbers: dict[str, int] = {} if args.num_videos is None else {"num_videos": args.num_videos}
    run = TextRun(scales=tuple(args.guidance_scales or SCALES), batch_size=args.batch_size, **numbers)
    report = evaluate_text(source, run, args.out, workers=workers)
    if report is not None:
        report["command"] = command_line(args, report)
        picture = args.out / "text.png"
        write_text_figure(report, *some_clips(args.out / "text-parts", run, report, SHOWN), picture)
        files = (*write_report(report, args.out), picture)
        print(markdown(report))
        print("Written: " + ", ".join(map(str, files)))


def command_line(args: argparse.Namespace, report: dict[str, Any]) -> str:
    """The command that makes the same report, with the numbers that were defaults."""
    names = ("num_videos", "num_samples", "guidance_scales")
    numbers: dict[str, Any] = {name: report[name] for name in names if name in report}
    asked: dict[str, Any] = {"model": args.model, "protocol": args.protocol, "data": args.data, **numbers}
    asked |= {"split": args.split, "given": args.given, "num_frames": args.num_frames}
    if "steps" in report["sampling"]:
        asked |= {name: report["sampling"][name] for name in ("sampler", "steps")}
        asked |= {"gamma": args.gamma, "seed": args.seed}
        if args.history_guidance != 1:
            asked["history_guidance"] = args.history_guidance
    words = ["video-diffusion", "evaluate"]
    for name, value in asked.items():
        if value is not None:
            value = [f"{number:g}" for number in value] if name == "guidance_scales" else value
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def write(report: dict[str, Any], source: "Source", run: Any, out: Path) -> tuple[Path, ...]:
    """Writes the JSON, the table and the picture; returns their paths."""
    from video_diffusion.evaluation.figure import write_figure
    from video_diffusion.evaluation.report import write_report
    from video_diffusion.evaluation.run import read_clips

    count, length = min(SHOWN, run.num_videos), max(run.lengths)
    truth = run.protocol.truth(range(count), source.image_size)[:, :length]
    clips = read_clips(out / f"{run.protocol.name}-parts", count, length)[:, 0]
    picture = out / f"{run.protocol.name}.png"
    write_figure(report, truth, clips, picture)
    return (*write_report(report, out), picture)


# ------------------------------------------------------------------------------------------------------- the arguments
def check_arguments(args: argparse.Namespace) -> None:
    """Refuses, before anything is loaded, what no run takes. Raises a ValueError."""
    for name in ("num_videos", "num_samples", "steps", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"`--{name.replace('_', '-')}` is {value}, expected at least 1.")
    if args.seed < 0:
        raise ValueError(f"`--seed` is {args.seed}, expected 0 or more.")
    if args.gamma is not None and args.sampler not in (None, "ancestral"):
        raise ValueError(f"`--gamma` is {args.gamma}, expected none with `--sampler {args.sampler}`.")
    if args.guidance_scales is not None and args.protocol != "text":
        scales = args.guidance_scales
        raise ValueError(f"`--guidance-scales` is {scales}, expected none with `--protocol {args.protocol}`.")
    if args.num_samples is not None and args.protocol == "text":
        raise ValueError(f"`--num-samples` is {args.num_samples}, expected none with `--protocol text`.")
    if args.num_frames is not None and args.protocol != "unconditional":
        raise ValueError(f"`--num-frames` is {args.num_frames}, expected none with `--protocol {args.protocol}`.")
    for name in ("split", "given"):
        value = getattr(args, name)
        if value is not None and args.protocol != OWN:
            raise ValueError(f"`--{name}` is {value}, expected none with `--protocol {args.protocol}`.")
    if (args.data is None) is (args.protocol in (*FOLDERS, OWN)):
        if args.data is not None:
            raise ValueError(f"`--data` is {args.data}, expected none with `--protocol {args.protocol}`.")
        if args.protocol == OWN:
            raise ValueError(f"`--data` is missing, expected a folder of videos with `--protocol {OWN}`.")
        from video_diffusion.data import bair, kth

        layout = {"kth": kth.LAYOUT, "bair": bair.LAYOUT}[args.protocol]
        raise ValueError(f"`--data` is missing, expected a folder with `--protocol {args.protocol}`: {layout}.")
    check_history_guidance(args)
    if args.history_guidance != 1 and args.protocol == "text":
        raise ValueError(f"`--history-guidance` is {args.history_guidance}, expected none with `--protocol text`.")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"`--out` is the file {args.out}, expected a folder.")


def find_workers(args: argparse.Namespace) -> "Workers":
    """The processes that accelerate or torchrun started, or this one alone. Sets `args.device` where it is open."""
    from video_diffusion.evaluation import Workers

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise ImportError("Several processes need accelerate: pip install 'video-diffusion[train]'.") from error
        state = PartialState(cpu=args.device == "cpu")
        args.device = args.device or str(state.device)
        return Workers(state.process_index, state.num_processes, state.wait_for_everyone)
    if args.device is None:
        args.device = fastest_device()
    return Workers()


def source_of(args: argparse.Namespace) -> "Source":
    """What `--model` names, sampled as the arguments say."""
    from video_diffusion.evaluation import open_source

    return open_source(
        args.model,
        sampler=args.sampler,
        gamma=args.gamma,
        steps=args.steps,
        seed=args.seed,
        batch_size=args.batch_size,
        history_guidance=args.history_guidance,
        device=args.device,
        dtype=args.dtype,
    )
