"""The benchmarks' picture: how many times faster, and the error of the samplers against their network calls."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.report import GENERATOR_GOAL, TRAINING_GOAL
from video_diffusion.data.video_io import SHEET_COLOUR, TEXT_COLOUR, atomic_path
from video_diffusion.evaluation.figure import OURS, PALETTE, dark, unit

Bar = tuple[str, float, float | None]  # label, ratio, goal
GOAL_COLOUR = (250, 204, 21)


def bars_of(report: Mapping[str, Any]) -> list[Bar]:
    """Times as many clips a second as each peer."""
    device, bars = "cuda" if "gpu" in report["machine"] else "cpu", []
    for row in report["parts"].get("denoiser", {}).get("rows", []):
        kind = "training step" if row["kind"] == "training_step" else "forward"
        size = f"{row['batch_size']} × {row['num_frames']} × {row['image_size']}×{row['image_size']}"
        for peer, ratio in row["ratios"].items():
            goal = TRAINING_GOAL[device][peer] if row["kind"] == "training_step" else None
            bars.append((f"{kind}, {size}, against {peer}", ratio, goal))
    for row in report["parts"].get("data_generators", {}).get("rows", []):
        label = f"{row['variant']} clips, batch {row['batch_size']}, against the published loop"
        bars.append((label, row["ratios"]["published / ours"], GENERATOR_GOAL))
    return bars


def draw_bars(axes: Any, bars: list[Bar]) -> None:
    """The ratios on a logarithmic axis."""
    places = range(len(bars))
    drawn = axes.barh(places, [ratio for _, ratio, _ in bars], color=unit(OURS))
    axes.bar_label(drawn, fmt="%.3g", padding=3, fontsize=8, color=unit(TEXT_COLOUR))
    for place, (_, _, goal) in zip(places, bars, strict=True):
        if goal is not None:
            axes.plot([goal, goal], [place - 0.4, place + 0.4], color=unit(GOAL_COLOUR), linewidth=2)
    axes.set_yticks(places, [label for label, _, _ in bars])
    axes.invert_yaxis()
    axes.set(xscale="log", title="Times as many clips a second as the peer (yellow: the goal)")


def draw_errors(axes: Any, part: Mapping[str, Any]) -> None:
    """Error against calls, both logarithmic, and the reference."""
    for (name, curve), colour in zip(part["errors"].items(), PALETTE, strict=False):
        calls = sorted(map(int, curve))
        axes.plot(calls, [curve[str(n)] for n in calls], color=unit(colour), linewidth=2, label=name)
    axes.axhline(part["reference_error"], color=unit(TEXT_COLOUR), linewidth=1, label="1000 ancestral steps")
    axes.set(xscale="log", yscale="log", xlabel="network calls")
    axes.set_title("Error, in standard deviations of the data")
    axes.legend(fontsize=8, frameon=False, labelcolor=unit(TEXT_COLOUR))


def write_plot(report: Mapping[str, Any], path: Path) -> None:
    """Writes the PNG; parts that were not measured are left out."""
    bars, sampling = bars_of(report), report["parts"].get("sampling", {})
    heights = ([0.3 * len(bars) + 0.6] if bars else []) + ([3.4] if "errors" in sampling else [])
    if not heights:
        return
    figure = Figure((10, sum(heights)), facecolor=unit(SHEET_COLOUR), layout="constrained")
    grid = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes in grid:
        dark(axes)
    if bars:
        draw_bars(grid[0], bars)
    if "errors" in sampling:
        draw_errors(grid[-1], sampling)
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png", dpi=100)
