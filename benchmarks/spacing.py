"""
Where a model's answer changes on the way from noise to data, and so where the steps of its sampler belong.

    python -m benchmarks.spacing --model moving-mnist

DPM-Solver++ 2M goes through many steps, evenly in log-SNR. At each of them the network says what the clip will be; the
distance to its next answer is how much this part of the way decides. Mean and standard deviation of these distances
over the log-SNR are what `logsnr_spacing` in a model's generation_config.json is made of. Written are
benchmarks/results/spacing.json and a chart (.png). Prediction has 5 given frames of test clips of Moving MNIST.
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

from video_diffusion.data.video_io import atomic_path
from video_diffusion.hub.finding import variant_of
from video_diffusion.model.guidance import reads_frames
from video_diffusion.sampling import dataset_task, frame_size, load_pipeline

RESULTS = Path(__file__).parent / "results" / "spacing.json"
FRAMES, GIVEN, ENDS = 10, 5, (-10.0, 6.0)
Values = NDArray[np.float64]


def levels(pipeline: Any, calls: int) -> tuple[list[int], Values]:
    """Timesteps evenly in log-SNR from noise to data, and their log-SNR `[n]`."""
    logsnr = torch.logit(pipeline.scheduler.alphas_cumprod.double())
    wanted = torch.linspace(*ENDS, calls, dtype=torch.float64)
    places = [int((logsnr - value).abs().argmin()) for value in wanted]
    return places, logsnr[places].numpy()


def distances(pipeline: Any, count: int, places: list[int], given: NDArray[np.uint8] | None) -> Values:
    """How far each answer is from the next one, `[n − 1]`.

    Args:
        pipeline: with DPM-Solver++, which keeps its answers.
        count: clips.
        places: n timesteps.
        given: frames uint8 `[N, k, H, W, C]`, or None.

    Returns:
        root of the squared distance on [0, 1], summed over a frame's pixels, mean over clips and the frames made.
    """
    answers: list[torch.Tensor] = []
    first = 0 if given is None else given.shape[1]

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        answers.append(pipe.scheduler.model_outputs[-1][:, :, first:].float().cpu() / 2)
        return {}

    asked: dict[str, Any] = {"num_videos_per_prompt": count} if given is None else {"video": given}
    pipeline(
        num_frames=FRAMES,
        timesteps=places,
        history_guidance_scale=1.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(count)],
        output_type="latent",
        callback_on_step_end=keep,
        **asked,
    )
    moved = torch.stack(answers).diff(dim=0).square().sum((2, 4, 5)).mean((1, 2))
    return moved.double().sqrt().numpy()


def moments(logsnr: Values, weights: Values) -> tuple[float, float]:
    """Mean and standard deviation of the log-SNR between levels, weighted."""
    middle = (logsnr[1:] + logsnr[:-1]) / 2
    mean = float(np.average(middle, weights=weights))
    return round(mean, 2), round(float(np.sqrt(np.average((middle - mean) ** 2, weights=weights))), 2)


def draw(report: dict[str, Any], file: Path) -> None:
    """The distances over the log-SNR, a line for each task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    logsnr = np.array(report["logsnr"])
    for task, found in report["tasks"].items():
        mean, std = found["logsnr_spacing"]
        axes.plot((logsnr[1:] + logsnr[:-1]) / 2, found["distance"], marker="o", label=f"{task}: {mean:g} ± {std:g}")
    axes.set(xlabel="log-SNR λ", ylabel="distance to the next answer", title=report["model"])
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(file) as draft:
        figure.savefig(draft, format="png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="moving-mnist", help="embedded model, folder or Hub id (default: %(default)s)")
    add("--num-videos", type=int, default=16, help="clips (default: %(default)s)")
    add("--calls", type=int, default=33, help="of the network, evenly in log-SNR (default: %(default)s)")
    add("--device", help="cpu, cuda, mps (default: the fastest there is)")
    add("--out", type=Path, default=RESULTS, help="the JSON file (default: %(default)s)")
    args = parser.parse_args()
    if args.calls < 3 or args.num_videos < 1:
        parser.error("expected at least 3 --calls and 1 --num-videos")

    pipeline = load_pipeline(args.model, "dpm++", device=args.device)
    places, logsnr = levels(pipeline, args.calls)
    given = {"generation": None}
    if reads_frames(pipeline.unet.config) and pipeline.vae is None:
        task = dataset_task(range(args.num_videos), GIVEN, 0, FRAMES, *frame_size(pipeline), variant_of(args.model))
        given["prediction"] = task.given
    tasks = {}
    for name, frames in given.items():
        pipeline.set_progress_bar_config(desc=name)
        found = distances(pipeline, args.num_videos, places, frames)
        tasks[name] = {"logsnr_spacing": moments(logsnr, found), "distance": found.round(4).tolist()}
        print(f"{name}: logsnr_spacing {list(tasks[name]['logsnr_spacing'])}")
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.spacing", *sys.argv[1:]]),
        "model": args.model,
        "num_videos": args.num_videos,
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "logsnr": logsnr.round(3).tolist(),
        "tasks": tasks,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.out) as draft:
        draft.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, args.out.with_suffix(".png"))
    print(f"Written: {args.out}, and beside it the chart (.png)")


if __name__ == "__main__":
    main()
