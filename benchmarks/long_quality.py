"""
Quality of long videos over time: do digits stay digits and keep moving, by each window scheme, beside real clips.

    python -m benchmarks.long_quality --model moving-mnist --num-frames 500

writes benchmarks/results/long_quality.json and .png. For each frame: SSIM of it and the next one (1 is standstill),
how sure a digit classifier is of what it finds, how many digits it finds, how fast they move, and the sum of the
pixels; means over the videos. Real Moving MNIST clips of the same length are measured by the same code. The JSON has
all of it, the PNG the curves (means over some frames around each) and frames of the first video of each scheme. A run
that was killed goes on: finished videos are kept in `long_quality-parts` beside the JSON.
"""

import argparse
import itertools
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.drift import MEASURES, QUANTILES, Drift, measure_drift, smooth
from video_diffusion.data import MovingMNIST
from video_diffusion.data.video_io import atomic_path
from video_diffusion.digit_reader.reader import reader_report
from video_diffusion.evaluation import PipelineSource, open_source
from video_diffusion.evaluation.figure import Panel, colours_of, draw_panels, sheet_of, write_picture
from video_diffusion.evaluation.run import open_parts
from video_diffusion.evaluation.sources import to_clips
from video_diffusion.model.windows import SCHEMES
from video_diffusion.sampling import SAMPLERS

RESULTS = Path(__file__).parent / "results" / "long_quality.json"
SHOWN = 11  # frames of a video in the picture
PARTS = 10  # stretches of the video in the JSON's summary


def make(source: PipelineSource, args: argparse.Namespace, scheme: str, folder: Path) -> NDArray[np.uint8]:
    """Videos uint8 `[N, F, H, W]` by a scheme, one after the other; those in the folder are taken from there."""
    videos = []
    for i in range(args.num_videos):
        file = folder / f"part-{scheme}-{i:04d}.npz"
        if not file.exists():
            source.pipeline.set_progress_bar_config(
                desc=f"{scheme}, video {i + 1} of {args.num_videos}", disable=False
            )
            made = source.pipeline(
                num_frames=args.num_frames,
                num_inference_steps=args.steps,
                window_scheme=scheme,
                window_overlap=args.window_overlap,
                history_guidance_scale=args.history_guidance,
                generator=torch.Generator().manual_seed(args.seed + i),
                output_type="pt",
            ).frames
            with atomic_path(file) as draft:
                np.savez_compressed(draft, video=to_clips(made)[0, ..., 0])
        with np.load(file, allow_pickle=False) as part:
            videos.append(part["video"])
    return np.stack(videos)


def as_json(drift: Drift, frames: int) -> dict[str, Any]:
    bounds = np.linspace(0, frames, PARTS + 1).round().astype(int).tolist()
    stretches = {f"{a}-{b - 1}": drift.summary(a, b) for a, b in itertools.pairwise(bounds) if b > a}
    per_frame = {
        name: [None if np.isnan(value) else round(float(value), 4) for value in values]
        for name, values in drift.frames.items()
    }
    return {"all": drift.summary(0, frames), "stretches": stretches, "per_frame": per_frame}


def picture(drifts: dict[str, Drift], videos: dict[str, NDArray[np.uint8]], frames: int, out: Path) -> None:
    """Writes frames of the first video of each row, evenly spaced, above the curves."""
    shown = np.unique(np.linspace(0, frames - 1, SHOWN).round().astype(int))
    rows = [clips[0, shown, ..., None] for clips in videos.values()]
    sheet = sheet_of(rows, np.zeros(len(shown), bool), list(videos), columns=list(map(str, shown)))
    marks = {int(i): str(i) for i in shown[:: 2 if frames > 99 else 1]}
    width = max(frames // 50, 1)
    panels = [
        Panel(title, {name: smooth(drift.frames[key], width) for name, drift in drifts.items()}, marks)
        for key, title in MEASURES.items()
    ]
    write_picture([sheet, draw_panels(panels, colours_of(list(drifts)))], out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="moving-mnist", help="embedded model, folder or Hub id (default: %(default)s)")
    add("--num-frames", type=int, default=500, help="of a video (default: %(default)s)")
    add("--num-videos", type=int, default=4, help="for each scheme (default: %(default)s)")
    add("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES), help="default: all")
    add("--window-overlap", type=int, help="known frames that a window begins with (default: half of it)")
    add("--steps", type=int, default=50, help="network calls of a window (default: %(default)s)")
    add("--sampler", choices=SAMPLERS, default="ancestral", help="default: %(default)s")
    add("--history-guidance", type=float, default=1.0, help="of guidance on known frames (default: none)")
    add("--seed", type=int, default=0, help="video i is drawn from seed + i (default: %(default)s)")
    add("--device", help="cpu, cuda, mps (default: the fastest there is)")
    add("--out", type=Path, default=RESULTS, help="the JSON file (default: %(default)s)")
    args = parser.parse_args()
    out, parts = args.out, args.out.parent / f"{args.out.stem}-parts"

    source = open_source(
        args.model,
        sampler=args.sampler,
        steps=args.steps,
        seed=args.seed,
        batch_size=1,
        history_guidance=args.history_guidance,
        device=args.device,
    )
    if not isinstance(source, PipelineSource):
        raise SystemExit(f"`--model` is the folder of videos {args.model}, expected a pipeline.")
    model = {key: value for key, value in source.identity.items() if key != "name"}
    parts.mkdir(parents=True, exist_ok=True)
    lengths = {"num_frames": args.num_frames, "window_overlap": args.window_overlap}
    open_parts(parts, {"model": model, "sampling": source.settings, **lengths})
    real = MovingMNIST(split="test", num_frames=args.num_frames, image_size=source.image_size, seed=args.seed)
    videos = {"real": real.batch(range(args.num_videos))}
    videos |= {scheme: make(source, args, scheme, parts) for scheme in args.schemes}
    drifts = {name: measure_drift(clips) for name, clips in videos.items()}
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.long_quality", *sys.argv[1:]]),
        "model": source.identity,
        "frames": args.num_frames,
        "videos": args.num_videos,
        "sampler": args.sampler,
        "steps": args.steps,
        "window_overlap": args.window_overlap,
        "history_guidance": args.history_guidance,
        "torch": torch.__version__,
        "reader_accuracy": reader_report()["accuracy"],
        "quantiles_of_speed": list(QUANTILES),
        "runs": {name: as_json(drift, args.num_frames) for name, drift in drifts.items()},
    }
    with atomic_path(out) as draft:
        draft.write_text(json.dumps(report, indent=1) + "\n")
    picture(drifts, videos, args.num_frames, out.with_suffix(".png"))
    for name, run in report["runs"].items():
        print(name, json.dumps(run["all"]))
    print(f"Written: {out}, {out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
