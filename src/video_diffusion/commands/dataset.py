"""`video-diffusion dataset build | push`: Moving MNIST as a folder of parquet files, and such a folder on the Hub."""

import argparse
from pathlib import Path

from video_diffusion.commands.hub import LOGIN, add_destination, destination
from video_diffusion.commands.progress import bar_options
from video_diffusion.commands.report import add_json, report

SPLITS = ("train", "test")


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the `dataset` command."""
    dataset = subparsers.add_parser("dataset", help="make and publish data sets")
    actions = dataset.add_subparsers(required=True, metavar="action")
    build = actions.add_parser(
        "build",
        help="write Moving MNIST as parquet",
        description="Writes Moving MNIST as parquet files that datasets.load_dataset reads.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    build.add_argument("--out", required=True, metavar="DIR", help="folder to make; must be new or empty")
    build.add_argument("--num-videos", type=int, default=10000, metavar="N", help="clips of each split")
    build.add_argument("--split", nargs="+", choices=SPLITS, default=["test"], help="whose digits; one or both")
    build.add_argument("--variant", choices=("classic", "stochastic"), default="classic", help="rules of motion")
    build.add_argument("--num-frames", type=int, default=20, metavar="F")
    build.add_argument("--image-size", type=int, default=64, metavar="PIXELS", help="height and width")
    build.add_argument(
        "--num-digits",
        type=int,
        nargs="+",
        default=[2],
        metavar="D",
        help="digits of a clip: a number, or lowest highest",
    )
    build.add_argument("--speed", type=float, help="classic: fraction of the range per frame; stochastic: pixels")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument(
        "--digits", metavar="SOURCE", help="folder, parquet, npz or Hub id of the digits; default: MNIST"
    )
    build.add_argument("--digit-range", type=int, nargs=2, metavar=("START", "STOP"), help="use only these digits")
    build.add_argument(
        "--captions", choices=("train", "held_out"), help="add a column with captions made from these templates"
    )
    add_json(build)
    build.set_defaults(run=run_build)
    push = actions.add_parser(
        "push",
        help="publish such a folder on the Hub",
        description=f"Publishes a folder that `dataset build` wrote in one commit: parquet files and card. {LOGIN}",
    )
    push.add_argument("folder", metavar="DIR", help="folder that `dataset build` wrote")
    add_destination(push)
    add_json(push)
    push.set_defaults(run=run_push)


def run_push(args: argparse.Namespace) -> None:
    """Publishes a folder of clips and prints where it is."""
    from video_diffusion.hub.publish import push_dataset

    url = push_dataset(args.folder, args.repo_id, **destination(args))
    report(args, f"Published: {url}", published=url)


def run_build(args: argparse.Namespace) -> None:
    """Writes the splits asked for, with a progress bar, and says where they are."""
    import time

    from tqdm import tqdm

    from video_diffusion.data import MovingMNIST, write_parquet

    if len(args.num_digits) > 2:
        raise ValueError(f"`--num-digits` is {args.num_digits}; expected one number, or the lowest and the highest")
    begin = time.perf_counter()
    splits = [
        MovingMNIST(
            split=split,
            num_frames=args.num_frames,
            image_size=args.image_size,
            num_digits=args.num_digits[0] if len(args.num_digits) == 1 else tuple(args.num_digits),
            variant=args.variant,
            speed=args.speed,
            seed=args.seed,
            num_videos=args.num_videos,
            digits=args.digits,
            digit_range=args.digit_range and tuple(args.digit_range),
        )
        for split in args.split
    ]
    with tqdm(total=args.num_videos * len(splits), unit="clip", desc="drawing clips", **bar_options()) as bar:
        out = write_parquet(Path(args.out), *splits, progress=bar.update, captions=args.captions)
    files = sorted(out.glob("data/*.parquet"))
    size, seconds = sum(file.stat().st_size for file in files), time.perf_counter() - begin
    report(
        args,
        f"{args.num_videos * len(splits)} clips ({' and '.join(args.split)}; {args.variant}, {args.num_frames} frames "
        f"of {args.image_size}×{args.image_size}) are in {out}: {len(files)} files, {size / 1e6:.1f} MB, "
        f"{seconds:.1f} s",
        folder=out,
        splits=args.split,
        clips_of_a_split=args.num_videos,
        files=files,
        bytes=size,
        seconds=round(seconds, 2),
    )
