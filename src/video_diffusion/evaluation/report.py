"""The report of an evaluation as JSON and as a Markdown table: ours, the baselines, the numbers of others."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video_diffusion.data.video_io import atomic_path
from video_diffusion.evaluation.protocols import BASELINES, LIMITS
from video_diffusion.evaluation.text import COLUMNS, QUESTIONS

TEXT_PROTOCOL = "text"
TEMPLATE_TITLES = {"train": "words of the training captions", "held_out": "sentences that were not in training"}
METRIC_TYPES = {  # of rows, as a model-index names metrics; the other rows stay in the table
    **{name: name for name in ("fvd", "psnr", "ssim", "lpips", "mse", "mae")},
    **{"psnr_of_clip": "psnr", "ssim_binarised": "ssim", "lpips_128": "lpips", "ssim_openstl": "ssim"},
}
MODEL_COLUMNS = ("one_sample", "mean_of_samples", "best_of_samples", "average_prediction")
TITLES = {
    "one_sample": "one sample",
    "mean_of_samples": "mean of {S} samples",
    "best_of_samples": "best of {S} samples",
    "average_prediction": "average of {S} samples",
    "black_frame": "black frame",
    "last_frame": "last frame repeated",
    "real_against_real": "real against real",
    "best_sample": "best possible: a sample",
    "best_mean": "best possible: the mean",
}
LABELS = {  # metric: for each value of it its key in the figures, the row's key, what it is called, its digits
    "psnr": (
        ("psnr", "psnr", "PSNR, dB ↑", 2),
        ("psnr_paper", "psnr_paper", "PSNR in the paper's convention, dB ↑", 2),
    ),
    "psnr_of_clip": (("psnr", "psnr_of_clip", "PSNR of the clip's MSE, dB ↑", 2),),
    "ssim": (("ssim", "ssim", "SSIM ↑", 4),),
    "ssim_binarised": (("ssim", "ssim_binarised", "SSIM, binarised ↑", 4),),
    "ssim_openstl": (("ssim", "ssim_openstl", "SSIM, OpenSTL's window and range ↑", 4),),
    "mse": (("mse", "mse", "MSE, sum over pixels ↓", 2), ("mae", "mae", "MAE, sum over pixels ↓", 2)),
    "lpips": (("lpips", "lpips", "LPIPS ↓", 4),),
    "lpips_128": (("lpips", "lpips_128", "LPIPS at 128×128 ↓", 4),),
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        key: as numbers of others name it (`protocols.Known`).
        label: what is measured; the arrow says which way is better.
        digits: after the point.
        values: by column; a column may be missing.
    """

    key: str
    label: str
    digits: int
    values: Mapping[str, float | None]


def rows(report: Mapping[str, Any]) -> list[Row]:
    """The rows of a report: Fréchet distances by length and N, each metric (by horizon), network calls of a clip."""
    found = []
    for length, counts in report["figures"].get("fvd", {}).items():
        for count, values in counts.items():
            key = f"fvd/{length}" if int(count) == report["num_videos"] else f"fvd/{length}/{count}"
            label = f"{length} frames, {count} clips"
            distances = {column: value for column, value in values.items() if column in TITLES}
            found.append(Row(key, f"FVD, {label} ↓", 2, distances))
            if report["protocol"] == "unconditional":
                ours = {"mean_of_samples" if "mean_of_samples" in values else "one_sample": values["ratio_to_real"]}
                found.append(Row(f"ratio/{key}", f"FVD ÷ real against real, {label} ↓", 2, ours))
    for metric, columns in report["figures"].items():
        for name, key, label, digits in LABELS.get(metric, ()):
            if name == "psnr_paper" and report["protocol"] != "paper":
                continue
            horizons = next(iter(columns.values())).get("first_frames", {})
            for horizon in horizons:
                values = {column: figures["first_frames"][horizon][name] for column, figures in columns.items()}
                what, arrow = label.rsplit(" ", 1)
                found.append(Row(f"{key}/{horizon}", f"{what}, first {horizon} frames {arrow}", digits, values))
            if not horizons:
                found.append(Row(key, label, digits, {column: figures[name] for column, figures in columns.items()}))
    for length, calls in report.get("network_calls_per_clip", {}).items():
        by_column = {column: calls * (column == "one_sample" or report["num_samples"]) for column in MODEL_COLUMNS}
        values = {c: n for c, n in by_column.items() if c in ("one_sample", report["headline"])}
        found.append(Row(f"network_calls/{length}", f"network calls for {length} frames ↓", 0, values))
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown: a table, the sources of the numbers of others, and how it was made."""
    if report["protocol"] == TEXT_PROTOCOL:
        return text_markdown(report)
    lines = rows(report)
    present = {column for row in lines for column, value in row.values.items() if value is not None}
    model = sorted((c for c in MODEL_COLUMNS if c in present), key=lambda column: column != report["headline"])
    columns = [*model, *(c for c in (*LIMITS, *BASELINES) if c in present)]
    sources = list(dict.fromkeys(known["source"] for known in report["known"]))
    titles = [TITLES[column].format(S=report["num_samples"]) for column in columns]
    titles[: len(model)] = [f"ours: {title}" for title in titles[: len(model)]]
    table = [["", *titles, *(["numbers of others"] if sources else [])]]
    for row in lines:
        cells = [row.label, *(_number(row.values.get(column), row.digits) for column in columns)]
        theirs = [f"{k['value']} [{sources.index(k['source']) + 1}]" for k in report["known"] if k["row"] == row.key]
        table.append([*cells, *(["; ".join(theirs) or "–"] if sources else [])])
    body = markdown_table(table, words=("", "numbers of others"))
    notes = [f"[{i}] {source}." for i, source in enumerate(sources, start=1)]
    parts = [f"## Protocol `{report['protocol']}`", report["text"], body, "  \n".join(notes), _remarks(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(rows: Sequence[Sequence[str]], words: Sequence[str] = ("",)) -> str:
    """A table of cells, its first row the titles; columns with these titles are set left, the others right."""
    rule = ["---" if title in words else "---:" for title in rows[0]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (rows[0], rule, *rows[1:]))


def results(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The model's figures for the `model-index` of a card: name, type of metric and value of each."""
    if report["protocol"] == TEXT_PROTOCOL:
        return [{"name": name, "metric": "accuracy", "value": value} for name, value in text_headline(report)]
    column, found = report["headline"], []
    for row in rows(report):
        value, metric = row.values.get(column), METRIC_TYPES.get(row.key.split("/")[0])
        if value is not None and metric is not None:
            label = row.label.rsplit(" ", 1)[0]
            name = [label, TITLES[column].format(S=report["num_samples"])]
            name += [f"{report['num_videos']} clips"] * ("clips" not in label)
            found.append({"name": ", ".join(name), "metric": metric, "value": round(float(value), row.digits)})
    return found


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _places(report: Mapping[str, Any]) -> str:
    """Where the steps of windows without given frames stand, if there are such and the model places them."""
    plans = report.get("windows", {"": [[0, 0]]}).values()
    if "logsnr_spacing" not in report["sampling"] or all(given for plan in plans for given, _ in plan):
        return ""
    mean, std = report["sampling"]["logsnr_spacing"]
    return f", steps at a log-SNR of {mean:g} ± {std:g} where nothing is given"


def _remarks(report: Mapping[str, Any]) -> str:
    """What a reader must know beside the table, as a list."""
    model, sampling = report["model"], report["sampling"]
    name = model["name"] + (f" at revision {model['revision']}" if model.get("revision") else "")
    remarks = [f"Model: {name}. {report['num_videos']} clips, {report['num_samples']} prediction(s) of each."]
    if "steps" in sampling:
        gamma = "" if sampling["gamma"] is None else f", γ = {sampling['gamma']:g}"
        calls = ", ".join(
            f"{calls} network calls for a clip of {length} frames in {len(report['windows'][length])} window(s)"
            for length, calls in report["network_calls_per_clip"].items()
        )
        if "history_guidance" in sampling:
            gamma += f", guidance {sampling['history_guidance']:g} on the given frames"
        remarks.append(f"Sampler: {sampling['sampler']}{gamma}{_places(report)}, seed {sampling['seed']}; {calls}.")
    if distance := to_the_limit(report):
        remarks.append(distance)
    if report["num_given"] == 0:
        remarks.append("Nothing is given, so the last frame repeated is a still of a real clip's first frame.")
    if "data" in report:
        remarks.append(f"Test clips of {report['data']}.")
    remarks += [f"Not the whole protocol: {departure}." for departure in report["departures"]]
    remarks += [f"Networks: {n} is {what}." for n, what in report["networks"].items() if "replaced" in what]
    for metric in ("psnr", "psnr_of_clip"):
        for column, figures in report["figures"].get(metric, {}).items():
            if figures["num_identical"]:
                title = TITLES[column].format(S=report["num_samples"])
                counted = f"{figures['num_identical']} of {figures['num_frames']}"
                remarks.append(f"{metric}, {title}: {counted} are exact (infinite) and count as 100 dB.")
    if "command" in report:
        remarks.append(f"Command: `{report['command']}`")
    return "\n".join(f"* {remark}" for remark in remarks)


def to_the_limit(report: Mapping[str, Any]) -> str:
    """How far the model is from the best possible, as ratios of squared errors and distances; empty where unknown."""
    figures, found = report["figures"], []
    pairs = (("one_sample", "best_sample"), ("average_prediction", "best_mean"))
    for ours, best in pairs:
        columns = figures.get("mse", {})
        if ours in columns and best in columns:
            ratio = columns[ours]["mse"] / columns[best]["mse"]
            found.append(f"squared error of {TITLES[ours].format(S=report['num_samples'])} {ratio:.2f} ×")
    for length, counts in figures.get("fvd", {}).items():
        for count, values in counts.items():
            if values.get("best_sample"):
                ratio = values["one_sample"] / values["best_sample"]
                found.append(f"FVD of {length} frames, {count} clips {ratio:.2f} ×")
    return f"Distance to the best possible (1 is the limit): {'; '.join(found)}." if found else ""


def write_report(report: Mapping[str, Any], out: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Writes `<protocol>.json` and `<protocol>.md` into a folder, each whole or not at all, and returns their paths.

    The JSON also holds the table (`markdown`) and the figures that a card names (`results`).

    Raises:
        ValueError: where a figure is no number that JSON has.
    """
    files = Path(out) / f"{report['protocol']}.json", Path(out) / f"{report['protocol']}.md"
    whole = {**report, "results": results(report), "markdown": markdown(report)}
    texts = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n", whole["markdown"]
    for file, text in zip(files, texts, strict=True):
        with atomic_path(file) as draft:
            draft.write_text(text, encoding="utf-8")
    return files


# ------------------------------------------------------------------------------------------------------------ of text
def text_markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    scales = [f"{scale:g}" for scale in report["guidance_scales"]]
    titles = [*COLUMNS.values(), *(f"guidance {scale}" for scale in scales)]
    parts = ["## Protocol `text`", report["text"]]
    for templates, columns in report["figures"].items():
        lines = [["", "prompts", *titles]]
        for key, label in QUESTIONS.items():
            cells = [columns[column][key] for column in (*COLUMNS, *scales)]
            lines.append([f"{label} ↑", str(cells[0]["clips"]), *(_percent(cell["share"]) for cell in cells)])
        parts += [f"### Prompts: {TEMPLATE_TITLES[templates]}", markdown_table(lines)]
    return "\n\n".join([*parts, _text_remarks(report)]) + "\n"


def text_headline(report: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What is asked, in words, and the share of clips that show it, at the guidance scale that is obeyed best."""
    scales, found = [f"{scale:g}" for scale in report["guidance_scales"]], []
    for templates, columns in report["figures"].items():
        scale = max(scales, key=lambda scale: columns[scale]["obeyed"]["share"] or 0)
        for key in ("all_digits", "obeyed"):
            cell = columns[scale][key]
            if cell["share"] is not None:
                name = f"{QUESTIONS[key]}, {TEMPLATE_TITLES[templates]}, guidance {scale}, {cell['clips']} prompts"
                found.append((name, round(cell["share"], 4)))
    return found


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _text_remarks(report: Mapping[str, Any]) -> str:
    model, sampling, reader = report["model"], report["sampling"], report["reader"]
    name = model["name"] + (f" at revision {model['revision']}" if model.get("revision") else "")
    remarks = [
        f"Model: {name}. {report['num_videos']} prompts of each kind, clips of {report['num_frames']} frames.",
        "Real clips are those that the captions were made of, read like the others: the ceiling of the reader. "
        "Another real clip is held against a prompt that was not made of it: the level of chance.",
        "Where no direction was asked, a prompt does not count in the last three rows.",
        f"Reader: {100 * reader['accuracy']:.2f} % of {reader['test_digits']} MNIST test digits right, "
        f"{100 * reader['accuracy_in_classic_clips']:.1f} % of single 28×28 crops of two-digit clips.",
        f"Sampler: {sampling['sampler']}{_places(report)}, seed {sampling['seed']}; "
        f"{report['network_calls_per_clip']} steps, each of one network call at guidance 1 and of one with twice the "
        "batch beyond.",
    ]
    if "command" in report:
        remarks.append(f"Command: `{report['command']}`")
    return "\n".join(f"* {remark}" for remark in remarks)
