"""Pictures of evaluations: clips below one another, and charts of the figures under them (matplotlib)."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from video_diffusion.data.video_io import SHEET_COLOUR, TEXT_COLOUR, atomic_path, contact_sheet
from video_diffusion.evaluation.protocols import BASELINES, LIMITS
from video_diffusion.evaluation.report import LABELS, TITLES
from video_diffusion.evaluation.text import COLUMNS, QUESTIONS

Colour = tuple[int, int, int]
OURS: Colour = (96, 165, 250)
COLOURS: dict[str, Colour] = {  # of the columns that are not the model's
    "black_frame": (148, 148, 158),
    "last_frame": (250, 204, 21),
    "real_against_real": (74, 222, 128),
    "best_sample": (244, 114, 182),
    "best_mean": (192, 132, 252),
}
PALETTE: tuple[Colour, ...] = (OURS, (251, 146, 60), (74, 222, 128), (250, 204, 21), (192, 132, 252), (148, 148, 158))
GRID_COLOUR: Colour = (70, 70, 76)
DPI, PANEL = 100, (3.9, 2.5)  # inches


@dataclass(frozen=True)
class Panel:
    """A chart.

    Args:
        title: stands above.
        lines: values by the name of the line; None where there is none. A line of one value is drawn across.
        marks: what stands under a place of the axis, by its number; None: 1, 2, …
        bounds: lowest and highest value of the axis.
        bars: whether each line is one value, drawn as a bar on a logarithmic axis.
    """

    title: str
    lines: Mapping[str, Sequence[float | None]]
    marks: Mapping[int, str] | None = None
    bounds: tuple[float, float] | None = None
    bars: bool = False


def unit(colour: Colour) -> tuple[float, float, float]:
    """A colour as matplotlib takes it."""
    red, green, blue = (value / 255 for value in colour)
    return red, green, blue


def dark(axes: Any) -> None:
    """Axes on the colour of a contact sheet."""
    axes.set_facecolor(unit(SHEET_COLOUR))
    axes.tick_params(colors=unit(TEXT_COLOUR), labelsize=8)
    axes.title.set_color(unit(TEXT_COLOUR))
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(unit(TEXT_COLOUR))
    for spine in axes.spines.values():
        spine.set_color(unit(GRID_COLOUR))
    axes.grid(color=unit(GRID_COLOUR), linewidth=0.5)
    axes.set_axisbelow(True)


def colours_of(names: Sequence[str]) -> dict[str, Colour]:
    """A colour for each name, in the order of the palette."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def draw_panel(axes: Any, panel: Panel, colours: Mapping[str, Colour]) -> None:
    """Draws one chart."""
    axes.set_title(panel.title, fontsize=9)
    dark(axes)
    if panel.bars:
        names = list(panel.lines)
        values = [float(panel.lines[name][0] or 0) for name in names]
        bars = axes.barh(names[::-1], values[::-1], color=[unit(colours[name]) for name in names[::-1]])
        axes.bar_label(bars, fmt="%.4g", padding=3, fontsize=8, color=unit(TEXT_COLOUR))
        axes.set_xscale("symlog")
        axes.set_xlim(0, max(values) * 4 or 1)
        axes.set_yticks([])
        return
    for name, line in panel.lines.items():
        values = [np.nan if value is None else value for value in line]
        if len(values) == 1:
            axes.axhline(values[0], color=unit(colours[name]), linewidth=2)
            continue
        marker = "o" if len(values) < 50 else None
        axes.plot(range(len(values)), values, color=unit(colours[name]), linewidth=2, marker=marker, markersize=4)
    length = max(map(len, panel.lines.values()))
    marks = panel.marks or {i: str(i + 1) for i in range(0, length, max(length // 10, 1))}
    axes.set_xticks(list(marks), list(marks.values()))
    if panel.bounds is not None:
        axes.set_ylim(*panel.bounds)


def draw_panels(
    panels: Sequence[Panel], colours: Mapping[str, Colour], legend: Mapping[str, str] | None = None, per_row: int = 3
) -> NDArray[np.uint8]:
    """Charts side by side, what their colours mean below: RGB `[H, W, 3]`."""
    rows = -(-len(panels) // per_row)
    size = per_row * PANEL[0], rows * PANEL[1] + 0.4
    figure = Figure(size, DPI, facecolor=unit(SHEET_COLOUR), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = np.asarray(figure.subplots(rows, per_row, squeeze=False)).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        draw_panel(axes, panel, colours)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    shown = [name for name in colours if any(name in panel.lines for panel in panels)]
    handles = [figure.axes[0].plot([], [], color=unit(colours[name]), linewidth=4)[0] for name in shown]
    titles = [(legend or {}).get(name, name) for name in shown]
    kwargs = {"fontsize": 9, "frameon": False, "labelcolor": unit(TEXT_COLOUR)}
    figure.legend(handles, titles, loc="outside lower left", ncols=min(len(titles), 2 * per_row), **kwargs)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def sheet_of(
    rows: Sequence[NDArray[np.uint8]],
    given: NDArray[np.bool_],
    labels: Sequence[str],
    columns: Sequence[str] | None = None,
) -> NDArray[np.uint8]:
    """`contact_sheet` as an RGB array."""
    with tempfile.TemporaryDirectory() as folder:
        contact_sheet(rows, given, Path(folder) / "sheet.png", labels, columns=columns)
        with Image.open(Path(folder) / "sheet.png") as file:
            return np.asarray(file.convert("RGB"))


def lines_of_text(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Lines of text below one another, RGB."""
    figure = Figure((11, 0.2 * len(texts) + 0.1), DPI, facecolor=unit(SHEET_COLOUR))
    canvas = FigureCanvasAgg(figure)
    for i, text in enumerate(texts):
        figure.text(0.012, 1 - (i + 0.7) / (len(texts) + 0.5), text, fontsize=9, color=unit(TEXT_COLOUR), va="center")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_picture(parts: Sequence[NDArray[np.uint8]], path: str | os.PathLike[str]) -> None:
    """Writes RGB pictures below one another as a PNG, whole or not at all."""
    width = max(part.shape[1] for part in parts)
    whole = Image.new("RGB", (width, sum(len(part) for part in parts)), SHEET_COLOUR)
    top = 0
    for part in parts:
        whole.paste(Image.fromarray(part), (0, top))
        top += len(part)
    with atomic_path(path) as draft:
        whole.save(draft, format="PNG")


# ------------------------------------------------------------------------------------------------------- of a protocol
def panels_of(report: Mapping[str, Any]) -> list[Panel]:
    """The Fréchet distances as bars, and each metric by predicted frame."""
    headline, found = report["headline"], []
    for length, counts in report["figures"].get("fvd", {}).items():
        for count, figures in counts.items():
            ours = "mean_of_samples" if "mean_of_samples" in figures else "one_sample"
            bars = {column: [figures[column]] for column in (ours, *LIMITS, *BASELINES) if column in figures}
            mean = f", mean of {report['num_samples']} samples" if ours == "mean_of_samples" else ""
            found.append(Panel(f"FVD, {length} frames, {count} clips{mean}", bars, bars=True))
    for metric, columns in report["figures"].items():
        for name, _, label, _ in LABELS.get(metric, ()):
            if f"{name}_per_frame" not in columns[headline] or len(columns[headline][f"{name}_per_frame"]) < 2:
                continue
            shown = [column for column in (headline, *LIMITS, *BASELINES) if column in columns]
            lines = {column: columns[column][f"{name}_per_frame"] for column in shown}
            found.append(Panel(f"{label.rsplit(' ', 1)[0]}, by predicted frame", lines))
    return found


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
    headline = report["headline"]
    titles = {column: title.format(S=report["num_samples"]) for column, title in TITLES.items()}
    names = dict.fromkeys((headline, "one_sample", "mean_of_samples"), OURS)
    legend = titles | {name: f"model ({titles[name]})" for name in names}
    charts = draw_panels(panels_of(report), names | COLOURS, legend)
    write_picture([sheet_of(rows, given, labels), charts], path)


def write_text_figure(
    report: Mapping[str, Any], clips: NDArray[np.uint8], texts: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Writes the PNG of the text protocol.

    Args:
        report: of `text.evaluate_text`.
        clips: some of the model's clips, uint8 `[n, F, H, W]`.
        texts: their prompts.
        path: the file; it appears whole or not at all.
    """
    scales = [f"{scale:g}" for scale in report["guidance_scales"]]
    panels = []
    for templates, columns in report["figures"].items():
        for key in ("all_digits", "directions", "obeyed"):
            lines = {"model": [columns[scale][key]["share"] for scale in scales]}
            lines |= {column: [columns[column][key]["share"]] for column in COLUMNS}
            title = f"{templates.replace('_', '-')}: {QUESTIONS[key]}"
            panels.append(Panel(title, lines, dict(enumerate(scales)), (-0.03, 1.03)))
    charts = draw_panels(panels, colours_of(["model", *COLUMNS]), {"model": "model, by guidance scale"} | COLUMNS)
    sheet = sheet_of(list(clips[..., None]), np.zeros(clips.shape[1], bool), [str(i) for i in range(len(clips))])
    write_picture([sheet, lines_of_text([f"{i}: {text}" for i, text in enumerate(texts)]), charts], path)
