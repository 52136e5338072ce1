"""Draws a folder of videos to train on: `python training/examples/make_videos.py my-videos`.

Each is an MP4 of one coloured shape that bounces off the edges. Sizes, frame rates and lengths differ; speeds are in
frame heights a second, so that a clip at 8 frames a second looks alike whatever the file's rate. `train` and
`validation` hold a `metadata.jsonl` each, with a caption of every file.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from video_diffusion.data.video_io import Clip, write_mp4

SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (230, 60, 50),
    "green": (70, 190, 90),
    "blue": (70, 110, 235),
    "yellow": (240, 200, 60),
    "white": (240, 240, 240),
}
SIZES = ((64, 64), (72, 96), (96, 72), (90, 160), (128, 128))  # height and width
RATES = (8, 12, 24, 30)  # frames a second
SMOOTH = 4  # drawn so many times larger, then averaged
GROUND = (18, 18, 24)


def bounce(distance: np.ndarray, span: float) -> np.ndarray:
    """A position between 0 and `span` after so much way along an endless line that is folded at both ends."""
    return np.abs((distance + span) % (2 * span) - span)


def draw_frame(shape: str, colour: str, y: float, x: float, radius: float, height: int, width: int) -> np.ndarray:
    """One frame uint8 `[H, W, 3]` with the shape's middle at (y, x) pixels."""
    picture = Image.new("RGB", (width * SMOOTH, height * SMOOTH), GROUND)
    y, x, radius = y * SMOOTH, x * SMOOTH, radius * SMOOTH
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[colour])
    else:
        corners = {"square": 4, "triangle": 3}[shape]
        first = -math.pi / 4 if shape == "square" else -math.pi / 2
        angles = [first + 2 * math.pi * k / corners for k in range(corners)]
        pen.polygon([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles], fill=COLOURS[colour])
    return np.asarray(picture.reduce(SMOOTH))


def draw_video(
    shape: str, colour: str, rate: int, seconds: float, size: tuple[int, int], random: np.random.Generator
) -> Clip:
    """A video uint8 `[F, H, W, 3]`: from a random place in a random direction, 0.4 to 0.8 frame heights a second."""
    height, width = size
    radius = 0.16 * min(size)
    spans = np.array(size) - 2 * radius
    angle, speed = random.uniform(0, 2 * math.pi), random.uniform(0.4, 0.8) * height
    way = np.arange(round(rate * seconds))[:, None] / rate * speed * np.array([math.sin(angle), math.cos(angle)])
    start = random.uniform(0, 1, 2) * spans
    places = np.stack([bounce(start[i] + way[:, i], spans[i]) for i in range(2)], axis=1) + radius
    return np.stack([draw_frame(shape, colour, y, x, radius, height, width) for y, x in places])


def make_folder(folder: Path, num_videos: int, seed: int = 0) -> None:
    """Writes the split of one folder: `num_videos` MP4s and their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    random, rows = np.random.default_rng(seed), []
    for number in range(num_videos):
        shape, colour = SHAPES[number % len(SHAPES)], str(random.choice(list(COLOURS)))
        size, rate = SIZES[random.integers(len(SIZES))], int(random.choice(RATES))
        seconds = random.uniform(2.5, 5)
        if number == 0:  # one that is easy to show: square, at the lowest rate
            size, rate = SIZES[0], RATES[0]
        video = draw_video(shape, colour, rate, seconds, size, random)
        name = f"{number:03d}-{colour}-{shape}.mp4"
        write_mp4(video, folder / name, fps=rate, scale=1)
        rows.append(json.dumps({"file_name": name, "caption": f"a {colour} {shape}"}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")


def main(argv: list[str]) -> int:
    """Reads the arguments and writes both splits; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to; must not exist yet")
    parser.add_argument("--num-videos", type=int, default=60, help="training videos (default 60)")
    parser.add_argument("--num-validation", type=int, default=12, help="validation videos (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    args = parser.parse_args(argv)
    for name in ("num_videos", "num_validation"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected at least 1")
    if args.folder.exists():
        parser.error(f"{args.folder} exists, expected a new folder")
    make_folder(args.folder / "train", args.num_videos, 2 * args.seed)
    make_folder(args.folder / "validation", args.num_validation, 2 * args.seed + 1)
    print(f"{args.num_videos} training and {args.num_validation} validation videos are in {args.folder}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
