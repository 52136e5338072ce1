"""The report of the text protocol: a Markdown table for each set of templates, and a picture."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from video_diffusion.data.video_io import SHEET_COLOUR, TEXT_COLOUR, atomic_path, contact_sheet
from video_diffusion.evaluation.charts import Chart, draw_charts
from video_diffusion.evaluation.text import COLUMNS, QUESTIONS

TITLES = {"train": "words of the training captions", "held_out": "sentences that were not in training"}
CHART, PER_ROW = (390, 230), 3
LINE = 18  # pixels from one line of text to the next


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    scales = [f"{scale:g}" for scale in report["guidance_scales"]]
    titles = [*COLUMNS.values(), *(f"guidance {scale}" for scale in scales)]
    parts = ["## Protocol `text`", report["text"]]
    for templates, columns in report["figures"].items():
        lines = [["", "prompts", *titles], ["---", "---:", *["---:"] * len(titles)]]
        for key, label in QUESTIONS.items():
            cells = [columns[column][key] for column in (*COLUMNS, *scales)]
            lines.append([f"{label} ↑", str(cells[0]["clips"]), *(_percent(cell["share"]) for cell in cells)])
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts += [f"### Prompts: {TITLES[templates]}", table]
    return "\n\n".join([*parts, _remarks(report)]) + "\n"


def headline(report: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What is asked, in words, and the share of clips that show it, at the guidance scale that is obeyed best."""
    scales, found = [f"{scale:g}" for scale in report["guidance_scales"]], []
    for templates, columns in report["figures"].items():
        scale = max(scales, key=lambda scale: columns[scale]["obeyed"]["share"] or 0)
        for key in ("all_digits", "obeyed"):
            cell = columns[scale][key]
            if cell["share"] is not None:
                name = f"{QUESTIONS[key]}, {TITLES[templates]}, guidance {scale}, {cell['clips']} prompts"
                found.append((name, round(cell["share"], 4)))
    return found


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _remarks(report: Mapping[str, Any]) -> str:
    model, sampling, reader = report["model"], report["sampling"], report["reader"]
    name = model["name"] + (f" at revision {model['revision']}" if model.get("revision") else "")
    remarks = [
        f"Model: {name}. {report['num_videos']} prompts of each kind, clips of {report['num_frames']} frames.",
        "Real clips are those that the captions were made of, read like the others: the ceiling of the reader. "
        "Another real clip is held against a prompt that was not made of it: the level of chance.",
        "Where no direction was asked, a prompt does not count in the last three rows.",
        f"Reader: {100 * reader['accuracy']:.2f} % of {reader['test_digits']} MNIST test digits right, "
        f"{100 * reader['accuracy_in_classic_clips']:.1f} % of single 28×28 crops of two-digit clips.",
        f"Sampler: {sampling['sampler']}, seed {sampling['seed']}; {report['network_calls_per_clip']} steps, each of "
        "one network call at guidance 1 and of one with twice the batch beyond.",
    ]
    if "command" in report:
        remarks.append(f"Command: `{report['command']}`")
    return "\n".join(f"* {remark}" for remark in remarks)


def charts_of(report: Mapping[str, Any]) -> list[Chart]:
    """For each set of templates the shares over the guidance scale, for three of the questions."""
    scales, found = [f"{scale:g}" for scale in report["guidance_scales"]], []
    for templates, columns in report["figures"].items():
        for key in ("all_digits", "directions", "obeyed"):
            lines = {"model": [columns[scale][key]["share"] for scale in scales]}
            lines |= {column: [columns[column][key]["share"]] for column in COLUMNS}
            title = f"{templates.replace('_', '-')}: {QUESTIONS[key]}"
            found.append(Chart(title, lines, dict(enumerate(scales)), (0.0, 1.0)))
    return found


def draw_picture(report: Mapping[str, Any], clips: NDArray[np.uint8], texts: Sequence[str]) -> Image.Image:
    """Clips `[n, F, H, W]` with their prompts below one another, then the charts."""
    with tempfile.TemporaryDirectory() as folder:
        rows, given = list(clips[..., None]), np.zeros(clips.shape[1], bool)
        contact_sheet(rows, given, Path(folder) / "sheet.png", [str(i) for i in range(len(clips))])
        with Image.open(Path(folder) / "sheet.png") as file:
            sheet = file.convert("RGB")
    charts = draw_charts(charts_of(report), CHART, PER_ROW, {"model": "model, by guidance scale"} | COLUMNS)
    height = sheet.height + LINE * (len(texts) + 1)
    whole = Image.new("RGB", (max(sheet.width, charts.width), height + charts.height), SHEET_COLOUR)
    whole.paste(sheet, (0, 0))
    whole.paste(charts, (0, height))
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(size=12)
    for i, text in enumerate(texts):
        draw.text((12, sheet.height + LINE * i + 4), f"{i}: {text}", fill=TEXT_COLOUR, font=font)
    return whole


def write_text_report(
    report: Mapping[str, Any], clips: NDArray[np.uint8], texts: Sequence[str], out: Path
) -> tuple[Path, Path, Path]:
    """Writes `text.json`, `text.md` and `text.png` into a folder, each whole or not at all; returns their paths.

    Args:
        report: of `obedience.evaluate_text`.
        clips: some of the model's clips, uint8 `[n, F, H, W]`.
        texts: their prompts.
        out: the folder.

    Raises:
        ValueError: where a figure is no number that JSON has.
    """
    files = out / "text.json", out / "text.md", out / "text.png"
    contents = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", markdown(report)
    for file, content in zip(files, contents, strict=False):
        with atomic_path(file) as draft:
            draft.write_text(content, encoding="utf-8")
    picture = draw_picture(report, clips, texts)
    with atomic_path(files[2]) as draft:
        picture.save(draft, format="PNG")
    return files
