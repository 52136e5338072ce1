"""
Quality against the number of network calls, by sampler: the error and the FVD of prediction, the FVD of generation.

    python -m benchmarks.calls --model moving-mnist --num-videos 128

writes benchmarks/results/calls.json, a table (.md) and a chart (.png). Classic Moving MNIST, test digits, 10 frames
of 64×64. Prediction: 5 frames are given; its error is the squared error of one sample, summed over a frame's pixels,
mean over the 5 frames that are predicted; its FVD is that of all 10 frames. Generation: nothing is given. Beside them
stands the FVD of real clips against real clips at the same number of clips. A run that was killed goes on: what is
finished is kept in `calls-parts` beside the JSON. A distilled model is measured at its own calls:

    python -m benchmarks.calls --model moving-mnist-4step --calls 4 --out benchmarks/results/calls_4step.json
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from video_diffusion.data.video_io import atomic_path
from video_diffusion.evaluation import PROTOCOLS, PipelineSource, open_source
from video_diffusion.evaluation.report import markdown_table
from video_diffusion.evaluation.run import open_parts
from video_diffusion.metrics import FVDMetric
from video_diffusion.sampling import SAMPLERS

RESULTS = Path(__file__).parent / "results" / "calls.json"
CALLS = (1, 2, 4, 8, 12, 20, 50, 100)
FRAMES, BATCH = 10, 8
TASKS = {"prediction": PROTOCOLS["paper"], "generation": PROTOCOLS["unconditional"]}
Clips = NDArray[np.uint8]


def features(metric: FVDMetric, clips: Clips) -> torch.Tensor:
    """I3D logits `[N, 400]` of clips uint8 `[N, F, H, W, 1]`."""
    return metric.features(torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float() / 255)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The Fréchet distance of two sets of logits."""
    metric = FVDMetric()
    metric.add_features(predictions=one, references=other)
    return round(float(metric.compute()["fvd"]), 3)


def make(source: PipelineSource, task: str, count: int) -> tuple[Clips, Clips]:
    """Clips of a task and the true ones, uint8 `[N, 10, H, W, 1]` each."""
    protocol, made, real = TASKS[task], [], []
    for first in range(0, count, BATCH):
        indices = range(first, min(first + BATCH, count))
        truth = protocol.truth(indices, source.image_size)[:, :FRAMES]
        made.append(source.clips(indices, truth[:, : protocol.num_given], 1, (FRAMES,))[FRAMES][:, 0])
        real.append(truth)
    return np.concatenate(made), np.concatenate(real)


def measure(source: PipelineSource, task: str, count: int, metric: FVDMetric, file: Path) -> dict[str, Any]:
    """What is measured of a task; kept in a file, and taken from it where it is there."""
    if not file.exists():
        made, truth = make(source, task, count)
        error = ((made.astype(np.float64) - truth) / 255) ** 2
        with atomic_path(file) as draft, draft.open("wb") as stream:
            np.savez(stream, logits=features(metric, made).numpy(), error=error.sum((2, 3, 4)).mean(0))
    with np.load(file, allow_pickle=False) as part:
        logits, errors = torch.from_numpy(part["logits"]), part["error"]
    found: dict[str, Any] = {"task": task, "fvd": distance(logits, reference(task, count, metric, file.parent))}
    if task == "prediction":
        by_frame = errors[TASKS[task].num_given :]
        found |= {"error": round(by_frame.mean().item(), 3), "error_by_frame": by_frame.round(3).tolist()}
    return found


def reference(task: str, count: int, metric: FVDMetric, folder: Path, real: bool = False) -> torch.Tensor:
    """Logits of the true clips, or of as many other real ones; kept in the folder."""
    file = folder / f"{'real' if real else 'truth'}-{task}.npz"
    if not file.exists():
        protocol = TASKS[task]
        clips = (protocol.real if real else protocol.truth)(range(count), 64)[:, :FRAMES]
        with atomic_path(file) as draft, draft.open("wb") as stream:
            np.savez(stream, logits=features(metric, clips).numpy())
    with np.load(file, allow_pickle=False) as part:
        return torch.from_numpy(part["logits"])


def table(report: dict[str, Any]) -> str:
    """The runs as Markdown, a row for each sampler and number of calls."""
    found = {(run["sampler"], run["calls"], run["task"]): run for run in report["runs"]}
    prediction = ("prediction: FVD ↓", "prediction: squared error of a frame ↓")
    rows = [["sampler, network calls", *prediction, "generation: FVD ↓"]]
    for sampler, calls in dict.fromkeys((sampler, calls) for sampler, calls, _ in found):
        runs = [found.get((sampler, calls, task), {}) for task in TASKS]
        figures = (runs[0].get("fvd"), runs[0].get("error"), runs[1].get("fvd"))
        rows.append([f"{sampler}, {calls}", *("–" if value is None else f"{value:.1f}" for value in figures)])
    real = [report["real_against_real"].get(task) for task in TASKS]
    shown = ["–" if value is None else f"{value:.1f}" for value in real]
    rows.append(["real clips against other real clips", shown[0], "–", shown[1]])
    head = (
        f"`{report['model']['name']}`, {report['num_videos']} test clips of classic Moving MNIST, {report['frames']} "
        f"frames. Prediction has {TASKS['prediction'].num_given} given frames; generation has neither frames nor text."
    )
    spaced = report.get("logsnr_spacing") or {}
    for sampler, (mean, std) in spaced.items():
        whose = "" if len(report["samplers"]) == 1 else f" of {sampler}"
        head += f" Its steps{whose} stand at a log-SNR of {mean:g} ± {std:g}."
    return f"{head}\n\n{markdown_table(rows)}\n\n* Command: `{report['command']}`\n"


def draw(report: dict[str, Any], file: Path) -> None:
    """Three charts over the number of calls, a line for each sampler."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    panels = (("prediction", "fvd"), ("prediction", "error"), ("generation", "fvd"))
    panels = tuple((task, key) for task, key in panels if task in report["real_against_real"])
    figure = Figure(figsize=(13 * len(panels) / 3, 4), layout="constrained")
    for axes, (task, key) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for sampler in report["samplers"]:
            runs = [run for run in report["runs"] if (run["task"], run["sampler"]) == (task, sampler)]
            axes.plot([run["calls"] for run in runs], [run[key] for run in runs], marker="o", label=sampler)
        if key == "fvd":
            axes.axhline(report["real_against_real"][task], color="grey", linestyle="--", label="real against real")
        what = "FVD" if key == "fvd" else "squared error of a frame"
        axes.set(xscale="log", yscale="log", xlabel="network calls", title=f"{task}: {what}")
        axes.set_xticks(sorted({run["calls"] for run in report["runs"]}))
        axes.xaxis.set_minor_locator(NullLocator())
        for place in (axes.xaxis.set_major_formatter, axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            place("{x:g}")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    with atomic_path(file) as draft:
        figure.savefig(draft, format="png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="moving-mnist", help="embedded model, folder or Hub id (default: %(default)s)")
    add("--num-videos", type=int, default=128, help="test clips (default: %(default)s)")
    add("--samplers", nargs="+", choices=SAMPLERS, default=[None], help="default: the model's own")
    add("--calls", type=int, nargs="+", default=list(CALLS), help="of the network (default: %(default)s)")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: both")
    add("--device", help="cpu, cuda, mps (default: the fastest there is)")
    add("--out", type=Path, default=RESULTS, help="the JSON file (default: %(default)s)")
    args = parser.parse_args()

    parts, metric = args.out.parent / f"{args.out.stem}-parts", FVDMetric()
    parts.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    spaced: dict[str, list[float]] = {}  # of the samplers whose steps the generation config places
    wanted = [(asked, calls, task) for calls in sorted(args.calls) for asked in args.samplers for task in args.tasks]
    for asked, calls, task in tqdm(wanted, unit="run"):
        source = open_source(args.model, sampler=asked, steps=calls, device=args.device)
        if not isinstance(source, PipelineSource):
            raise SystemExit(f"`--model` is the folder of videos {args.model}, expected a pipeline.")
        model = {key: value for key, value in source.identity.items() if key != "name"}
        spacing = source.pipeline.generation_config.get("logsnr_spacing")
        settings = {"dtype": source.settings["dtype"], "num_videos": args.num_videos, "logsnr_spacing": spacing}
        open_parts(parts, {"model": model, **settings})
        sampler = source.settings["sampler"]
        if places := source.settings.get("logsnr_spacing"):
            spaced[sampler] = places
        source.pipeline.scheduler.set_timesteps(calls)
        spent = len(source.pipeline.scheduler.timesteps)
        found = measure(source, task, args.num_videos, metric, parts / f"{task}-{sampler}-{calls:04d}.npz")
        runs.append({"sampler": sampler, "calls": spent, **found})
        tqdm.write(json.dumps(runs[-1]))
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.calls", *sys.argv[1:]]),
        "model": source.identity,
        "dtype": source.settings["dtype"],
        "logsnr_spacing": spaced,
        "num_videos": args.num_videos,
        "frames": FRAMES,
        "samplers": list(dict.fromkeys(run["sampler"] for run in runs)),
        "torch": torch.__version__,
        "real_against_real": {
            task: distance(
                reference(task, args.num_videos, metric, parts, real=True),
                reference(task, args.num_videos, metric, parts),
            )
            for task in args.tasks
        },
        "runs": runs,
    }
    with atomic_path(args.out) as draft:
        draft.write_text(json.dumps(report, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(report), encoding="utf-8")
    draw(report, args.out.with_suffix(".png"))
    print(f"Written: {args.out}, and beside it the table (.md) and the chart (.png)")


if __name__ == "__main__":
    main()
