"""The picture of an evaluation: given, true and predicted frames, and the metrics by predicted frame."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from video_diffusion.data.video_io import SHEET_COLOUR, TEXT_COLOUR, atomic_path, contact_sheet
from video_diffusion.evaluation.report import LABELS, TITLES

Point = tuple[float, float]
COLOURS = {  # of the baselines; the model's is `OURS`
    "black_frame": (148, 148, 158),
    "last_frame": (250, 204, 21),
    "real_against_real": (74, 222, 128),
}
OURS = (96, 165, 250)
GRID_COLOUR = (70, 70, 76)
PANEL = (340, 230)
MARGIN = (52, 28, 14, 30)  # left, top, right, bottom of the axes in their panel


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span [low, high]: multiples of 1, 2 or 5 times a power of ten, about `count` of them."""
    if high <= low:
        low, high = low - abs(low or 1) / 2, high + abs(high or 1) / 2
    raw = (high - low) / count
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [round(float(i * step), 12) for i in np.arange(first, last + 1)]


def draw_lines(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], title: str, lines: Mapping[str, Sequence[float]]
) -> None:
    """Draws one panel with a line for each column of the report over the predicted frames 1, 2, …"""
    font, small = ImageFont.load_default(size=12), ImageFont.load_default(size=10)
    x0, y0 = corner[0] + MARGIN[0], corner[1] + MARGIN[1]
    width, height = PANEL[0] - MARGIN[0] - MARGIN[2], PANEL[1] - MARGIN[1] - MARGIN[3]
    values = [value for line in lines.values() for value in line]
    marks = ticks(min(values), max(values))
    low, high, length = marks[0], marks[-1], max(map(len, lines.values()))

    def place(i: int, value: float) -> Point:
        return x0 + width * (i + 0.5) / length, y0 + height * (high - value) / (high - low)

    draw.text((x0, corner[1] + 8), title, fill=TEXT_COLOUR, font=font)
    for mark in marks:
        y = place(0, mark)[1]
        draw.line((x0, y, x0 + width, y), fill=GRID_COLOUR)
        draw.text((x0 - 6, y), f"{mark:g}", fill=TEXT_COLOUR, font=small, anchor="rm")
    for i in range(length):
        draw.text((place(i, low)[0], y0 + height + 9), str(i + 1), fill=TEXT_COLOUR, font=small, anchor="mm")
    for column, line in lines.items():
        colour = COLOURS.get(column, OURS)
        points = [place(i, value) for i, value in enumerate(line)]
        draw.line(points, fill=colour, width=2)
        for x, y in points:
            draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=colour)


def draw_bars(draw: ImageDraw.ImageDraw, corner: tuple[int, int], title: str, bars: Mapping[str, float]) -> None:
    """Draws one panel with a bar for each column of the report; lengths grow with the logarithm of 1 + value."""
    font = ImageFont.load_default(size=12)
    draw.text((corner[0] + 10, corner[1] + 8), title, fill=TEXT_COLOUR, font=font)
    longest = max(np.log1p(value) for value in bars.values()) or 1.0
    room = PANEL[0] - 10 - 14 - 70  # the number stands after its bar
    step = (PANEL[1] - MARGIN[1] - MARGIN[3]) / len(bars)
    for i, (column, value) in enumerate(bars.items()):
        x, y = corner[0] + 10, corner[1] + MARGIN[1] + i * step
        end = x + max(float(room * np.log1p(value) / longest), 1.0)
        draw.rectangle((x, y + 4, end, y + step - 4), fill=COLOURS.get(column, OURS))
        draw.text((end + 6, y + step / 2), f"{value:.4g}", fill=TEXT_COLOUR, font=font, anchor="lm")


def panels_of(report: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Title and columns of each panel: lists of values a frame, or single Fréchet distances."""
    headline, found = report["headline"], []
    for length, counts in report["figures"].get("fvd", {}).items():
        for count, figures in counts.items():
            ours = "mean_of_samples" if "mean_of_samples" in figures else "one_sample"
            bars = {column: figures[column] for column in (ours, *COLOURS)}
            mean = f", mean of {report['num_samples']} samples" if ours == "mean_of_samples" else ""
            found.append((f"FVD, {length} frames, {count} clips{mean} (log scale)", bars))
    for metric, columns in report["figures"].items():
        for name, _, label, _ in LABELS.get(metric, ()):
            if f"{name}_per_frame" not in columns[headline] or len(columns[headline][f"{name}_per_frame"]) < 2:
                continue
            lines = {column: columns[column][f"{name}_per_frame"] for column in (headline, *COLOURS)}
            title = label.rsplit(" ", 1)[0].replace("×", "x")  # the font has no ×
            found.append((f"{title}, by predicted frame", lines))
    return found


def draw_plots(report: Mapping[str, Any], width: int) -> Image.Image:
    """All panels under one another in rows, and the legend, as an RGB image of at least this width."""
    panels, per_row = panels_of(report), max(width // PANEL[0], 2)
    num_rows = -(-len(panels) // per_row)
    image = Image.new("RGB", (max(width, per_row * PANEL[0]), num_rows * PANEL[1] + 30), SHEET_COLOUR)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=12)
    for i, (title, columns) in enumerate(panels):
        corner = (i % per_row * PANEL[0], i // per_row * PANEL[1])
        bars = not isinstance(next(iter(columns.values())), list)
        (draw_bars if bars else draw_lines)(draw, corner, title, columns)
    x = 14.0
    for column in (report["headline"], *COLOURS):
        title = TITLES[column].format(S=report["num_samples"])
        title = title if column in COLOURS else f"model ({title})"
        draw.rectangle((x, image.height - 19, x + 10, image.height - 9), fill=COLOURS.get(column, OURS))
        draw.text((x + 16, image.height - 14), title, fill=TEXT_COLOUR, font=font, anchor="lm")
        x += 40 + font.getlength(title)
    return image


def write_figure(
    report: Mapping[str, Any], truth: NDArray[np.uint8], clips: NDArray[np.uint8], path: str | os.PathLike[str]
) -> None:
    """Writes the PNG.

    Args:
        report: of `evaluation.evaluate`.
        truth: the first n clips, uint8 `[n, F, H, W, 1]`.
        clips: the model's first sample of them, the same shape; their given frames get a coloured frame.
        path: the file; it appears whole or not at all.
    """
    given = np.arange(truth.shape[1]) < report["num_given"]
    rows, labels = [], []
    for i, (real, made) in enumerate(zip(truth, clips, strict=True)):
        rows += [real, made]
        labels += [f"truth {i}" if report["num_given"] else f"real {i}", f"model {i}"]
    with tempfile.TemporaryDirectory() as folder:
        contact_sheet(rows, given, Path(folder) / "sheet.png", labels)
        with Image.open(Path(folder) / "sheet.png") as file:
            sheet = file.convert("RGB")
    plots = draw_plots(report, sheet.width)
    whole = Image.new("RGB", (max(sheet.width, plots.width), sheet.height + plots.height), SHEET_COLOUR)
    whole.paste(sheet, (0, 0))
    whole.paste(plots, (0, sheet.height))
    with atomic_path(path) as draft:
        whole.save(draft, format="PNG")
