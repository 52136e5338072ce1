"""Line charts as pictures, drawn with Pillow: no plotting library is needed."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from video_diffusion.data.video_io import SHEET_COLOUR, TEXT_COLOUR
from video_diffusion.evaluation.figure import GRID_COLOUR, ticks

Colour = tuple[int, int, int]
PALETTE: tuple[Colour, ...] = (
    (96, 165, 250),
    (251, 146, 60),
    (74, 222, 128),
    (250, 204, 21),
    (192, 132, 252),
    (148, 148, 158),
)
MARGIN = (52, 28, 14, 30)  # left, top, right, bottom of the axes in their chart


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis.

    Args:
        title: stands above.
        lines: values by the name of the line; None where there is none. A line of one value is drawn across.
        marks: what stands under a place of the axis, by its number.
        bounds: the values at the bottom and at the top, at least; by default those of the lines.
    """

    title: str
    lines: Mapping[str, Sequence[float | None]]
    marks: Mapping[int, str]
    bounds: tuple[float, float] | None = None


def colours_of(names: Sequence[str]) -> dict[str, Colour]:
    """A colour for each name, in the order of the palette."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def draw_chart(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], chart: Chart, colours: Mapping[str, Colour]
) -> None:
    """Draws a chart into the box (x, y, width, height)."""
    font, small = ImageFont.load_default(size=12), ImageFont.load_default(size=10)
    x0, y0 = box[0] + MARGIN[0], box[1] + MARGIN[1]
    width, height = box[2] - MARGIN[0] - MARGIN[2], box[3] - MARGIN[1] - MARGIN[3]
    values = [value for line in chart.lines.values() for value in line if value is not None]
    steps = ticks(*(chart.bounds or (min(values, default=0.0), max(values, default=1.0))))
    low, high, length = steps[0], steps[-1], max(map(len, chart.lines.values()))

    def place(i: float, value: float) -> tuple[float, float]:
        return x0 + width * (i + 0.5) / length, y0 + height * (high - value) / (high - low)

    draw.text((x0, box[1] + 8), chart.title, fill=TEXT_COLOUR, font=font)
    for step in steps:
        y = place(0, step)[1]
        draw.line((x0, y, x0 + width, y), fill=GRID_COLOUR)
        draw.text((x0 - 6, y), f"{step:g}", fill=TEXT_COLOUR, font=small, anchor="rm")
    for i, mark in chart.marks.items():
        draw.text((place(i, low)[0], y0 + height + 9), mark, fill=TEXT_COLOUR, font=small, anchor="mm")
    for name, line in chart.lines.items():
        if len(line) == 1 and line[0] is not None:
            y = place(0, line[0])[1]
            draw.line((x0, y, x0 + width, y), fill=colours[name], width=1)
            continue
        for i, (one, other) in enumerate(itertools.pairwise(line)):
            if one is not None and other is not None:
                draw.line((place(i, one), place(i + 1, other)), fill=colours[name], width=2 if length < 50 else 1)
        if length < 50:
            for i, value in enumerate(line):
                if value is not None:
                    x, y = place(i, value)
                    draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=colours[name])


def draw_charts(
    charts: Sequence[Chart], size: tuple[int, int], per_row: int, legend: Mapping[str, str] | None = None
) -> Image.Image:
    """
    Charts of one size (width, height) in rows, and what their colours mean below.

    Args:
        charts: at least one; lines of one name have one colour in all of them.
        size: of each.
        per_row: charts side by side.
        legend: what to write for a line's name; by default the name.
    """
    colours = colours_of(list(dict.fromkeys(name for chart in charts for name in chart.lines)))
    num_rows = -(-len(charts) // per_row)
    image = Image.new("RGB", (per_row * size[0], num_rows * size[1] + 30), SHEET_COLOUR)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=12)
    for i, chart in enumerate(charts):
        draw_chart(draw, (i % per_row * size[0], i // per_row * size[1], *size), chart, colours)
    x = 14.0
    for name, colour in colours.items():
        title = (legend or {}).get(name, name)
        draw.rectangle((x, image.height - 19, x + 10, image.height - 9), fill=colour)
        draw.text((x + 16, image.height - 14), title, fill=TEXT_COLOUR, font=font, anchor="lm")
        x += 40 + font.getlength(title)
    return image
