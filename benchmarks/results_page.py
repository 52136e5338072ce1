"""
Writes docs/results.md and the table in README.md from the JSON files that other commands wrote.

    python -m benchmarks.results_page
"""

import json
import shutil
from pathlib import Path
from typing import Any

from video_diffusion.evaluation.report import markdown_table
from video_diffusion.metrics import PSNR_PAPER_OFFSET

ROOT = Path(__file__).resolve().parents[1]
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
SAMPLES = ROOT / "docs" / "samples"
MARKS = ("<!-- results -->\n", "<!-- /results -->")
TABLES = {
    "calls": "Quality against network calls",
    "calls_4step": "Quality of the model that was distilled to four calls",
    "cpu": "Speed",
}
ORDER = ("paper", "openstl", "mcvd", "unconditional", "text")
HEAD = """# Results

`python -m benchmarks.results_page` writes this page from the files beside the models (`pipelines/*/evaluation/*.json`)
and from `benchmarks/results/`. Below each table stands the command that made it. [protocols.md](protocols.md) says
what the figures mean.

"Best possible" is the exact posterior of the future, where the digits and their whole-pixel places in the given frames
are known: its mean has the least squared error of all predictions, and a sample of it scores what a perfect sampler
scores. A model sees pictures and not places, so it can be no better.
"""


def reports() -> dict[tuple[str, str], dict[str, Any]]:
    """The evaluations of the embedded models, by model and protocol."""
    files = (ROOT / "pipelines").glob("*/evaluation/*.json")
    files = sorted(files, key=lambda file: (ORDER.index(file.stem), file.parts[-3]))
    return {(file.parts[-3], file.stem): json.loads(file.read_text(encoding="utf-8")) for file in files}


def readme_table(found: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Ours, the best possible, the baselines and the paper on the paper's task."""
    report = found["moving-mnist", "paper"]
    figures, last = report["figures"], str(max(map(int, report["figures"]["psnr"]["one_sample"]["first_frames"])))
    fvd = figures["fvd"]["10"][str(report["num_videos"])]
    columns = {"ours": "one_sample", "best possible": "best_sample", "black frame": "black_frame"}
    columns |= {"last frame": "last_frame"}
    known = {entry["row"]: entry["value"] for entry in report["known"]}
    rows = [["", *columns, "the paper"]]
    cells = [f"{fvd[column]:.1f}" for column in columns.values()]
    rows.append([f"FVD, 10 frames, {report['num_videos']} clips ↓", *cells, known["fvd/10"]])
    known[f"psnr/{last}"] = f"{float(known[f'psnr_paper/{last}']) - PSNR_PAPER_OFFSET:.2f}"
    shown = {"mse": ("squared error of a frame ↓", 1), "psnr": ("PSNR, dB ↑", 2), "ssim": ("SSIM ↑", 3)}
    for metric, (label, digits) in {**shown, "lpips": ("LPIPS ↓", 3)}.items():
        values = {c: figures[metric][c]["first_frames"][last][metric] for c in columns.values()}
        cells = [f"{value:.{digits}f}" for value in values.values()]
        if metric == "psnr":  # where a frame is exact it is infinite, which happens to a perfect sampler only
            cells[list(values).index("best_sample")] = "–"
        rows.append([label, *cells, known.get(f"{metric}/{last}", "–")])
    return markdown_table(rows)


def page(found: dict[tuple[str, str], dict[str, Any]]) -> str:
    """The text of docs/results.md."""
    parts = [HEAD]
    for (model, _), report in found.items():
        parts.append(report["markdown"].replace("## Protocol", f"## `{model}`, protocol", 1).rstrip() + "\n")
    for name, title in TABLES.items():
        if (table := ROOT / "benchmarks" / "results" / f"{name}.md").is_file():
            chart = f"![{title}](samples/{name}.png)\n\n" if (SAMPLES / f"{name}.png").is_file() else ""
            parts.append(f"## {title}\n\n{chart}{table.read_text(encoding='utf-8').rstrip()}\n")
    return "\n".join(parts)


def readme(text: str, table: str) -> str:
    """README.md with another table between its marks."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}{table}\n{MARKS[1]}{after}"


def main() -> None:
    found = reports()
    for name in ("calls", "spacing"):
        if (chart := ROOT / "benchmarks" / "results" / f"{name}.png").is_file():
            shutil.copy(chart, SAMPLES)
    PAGE.write_text(page(found), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8"), readme_table(found)), encoding="utf-8")
    print(f"Written: {PAGE.relative_to(ROOT)}, the table of {README.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
