"""The benchmarks' picture: how many times faster, and the error of the samplers against their network calls."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks.report import GENERATOR_GOAL, TRAINING_GOAL
from video_diffusion.data.video_io import SHEET_COLOUR, TEXT_COLOUR, atomic_path
from video_diffusion.evaluation.figure import GRID_COLOUR, OURS

Bar = tuple[str, float, float | None]  # label, ratio, goal
SCALE, WIDTH, LABELS, ROW = 2, 900, 330, 24
GOAL_COLOUR = (250, 204, 21)
LINES = {
    "ancestral γ=0": (148, 148, 158),
    "ancestral γ=0.3": (203, 213, 225),
    "ancestral γ=1": (110, 110, 120),
    "DDIM": (250, 204, 21),
    "DPM++ 2M": (96, 165, 250),
    "UniPC": (74, 222, 128),
}
PLOT_HEIGHT, MARGIN = 300, (60, 40, 170, 40)  # left, top, right, bottom


def bars_of(report: Mapping[str, Any]) -> list[Bar]:
    """Times as many clips a second as each peer."""
    device, bars = "cuda" if "gpu" in report["machine"] else "cpu", []
    for row in report["parts"].get("denoiser", {}).get("rows", []):
        kind = "training step" if row["kind"] == "training_step" else "forward"
        size = f"{row['batch_size']} x {row['num_frames']} x {row['image_size']}x{row['image_size']}"
        for peer, ratio in row["ratios"].items():
            goal = TRAINING_GOAL[device][peer] if row["kind"] == "training_step" else None
            bars.append((f"{kind}, {size}, vs {peer}", ratio, goal))
    for row in report["parts"].get("data_generators", {}).get("rows", []):
        label = f"{row['variant']} clips, batch {row['batch_size']}, vs loop"
        bars.append((label, row["ratios"]["published / ours"], GENERATOR_GOAL))
    return bars


def text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], words: str, anchor: str = "lm", size: int = 12
) -> None:
    """Words at a place given in points."""
    font = ImageFont.load_default(size=size * SCALE)
    draw.text((place[0] * SCALE, place[1] * SCALE), words, fill=TEXT_COLOUR, font=font, anchor=anchor)


def line(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: Any, width: float = 1) -> None:
    """A line through places given in points."""
    draw.line([(x * SCALE, y * SCALE) for x, y in points], fill=colour, width=round(width * SCALE))


def draw_bars(draw: ImageDraw.ImageDraw, top: float, bars: list[Bar]) -> float:
    """Draws the ratios on a logarithmic axis from 1; gives where it ends."""
    room, longest = WIDTH - LABELS - 90, math.log(max(max(ratio for _, ratio, _ in bars), 10))
    text(draw, (16, top + 14), "Times as many clips a second as the peer (log scale; yellow: the goal)", size=14)
    y = top + 32
    for label, ratio, goal in bars:
        text(draw, (LABELS - 10, y + ROW / 2), label, anchor="rm")
        end = LABELS + max(room * math.log(max(ratio, 1)) / longest, 1)
        box = [LABELS * SCALE, (y + 4) * SCALE, end * SCALE, (y + ROW - 4) * SCALE]
        draw.rectangle(box, fill=OURS)
        if goal is not None:
            x = LABELS + room * math.log(goal) / longest
            line(draw, [(x, y + 1), (x, y + ROW - 1)], GOAL_COLOUR, 2)
            end = max(end, x)
        text(draw, (end + 8, y + ROW / 2), f"{ratio:.3g}")
        y += ROW
    return y + 12


def draw_errors(draw: ImageDraw.ImageDraw, top: float, part: Mapping[str, Any]) -> None:
    """Draws error against calls, both logarithmic, and the reference."""
    curves = {name: {int(n): value for n, value in found.items()} for name, found in part["errors"].items()}
    calls = [n for curve in curves.values() for n in curve]
    errors = [value for curve in curves.values() for value in curve.values()]
    left, right = MARGIN[0], WIDTH - MARGIN[2]
    high, low = top + MARGIN[1], top + PLOT_HEIGHT - MARGIN[3]
    x_range, y_range = (math.log(min(calls)), math.log(max(calls))), (math.log(min(errors)), math.log(max(errors)))

    def place(n: float, error: float) -> tuple[float, float]:
        x = (math.log(n) - x_range[0]) / (x_range[1] - x_range[0])
        y = (math.log(error) - y_range[0]) / (y_range[1] - y_range[0])
        return left + x * (right - left), low - y * (low - high)

    text(draw, (16, top + 14), "Error, in standard deviations of the data, against network calls", size=14)
    for n in (5, 10, 20, 50, 100, 200, 500, 1000):
        if x_range[0] <= math.log(n) <= x_range[1]:
            x = place(n, max(errors))[0]
            line(draw, [(x, high), (x, low)], GRID_COLOUR)
            text(draw, (x, low + 14), str(n), anchor="mm", size=11)
    for error in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        if y_range[0] <= math.log(error) <= y_range[1]:
            y = place(max(calls), error)[1]
            line(draw, [(left, y), (right, y)], GRID_COLOUR)
            text(draw, (left - 8, y), f"{error:g}", anchor="rm", size=11)
    y = place(max(calls), part["reference_error"])[1]
    line(draw, [(left, y), (right, y)], TEXT_COLOUR)
    text(draw, (left + 6, y + 9), "1000 ancestral steps", size=11)
    for i, (name, curve) in enumerate(curves.items()):
        line(draw, [place(n, curve[n]) for n in sorted(curve)], LINES[name], 2)
        y = high + 18 * i
        line(draw, [(right + 14, y), (right + 34, y)], LINES[name], 2)
        text(draw, (right + 42, y), name.replace("γ=", "gamma "), size=11)


def write_plot(report: Mapping[str, Any], path: Path) -> None:
    """Writes the PNG; parts that were not measured are left out."""
    bars, sampling = bars_of(report), report["parts"].get("sampling", {})
    errors = "errors" in sampling
    height = (44 + ROW * len(bars) if bars else 0) + (PLOT_HEIGHT if errors else 0)
    if not height:
        return
    image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), SHEET_COLOUR)
    draw = ImageDraw.Draw(image)
    top = draw_bars(draw, 0, bars) if bars else 0
    if errors:
        draw_errors(draw, top, sampling)
    with atomic_path(path) as draft:
        image.save(draft, format="PNG")
