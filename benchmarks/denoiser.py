"""
Times our denoiser against diffusers' `UNet3DConditionModel` at equal parameters: forward and training step.

    python -m benchmarks.denoiser                # prints the figures, writes benchmarks/results/denoiser.json
    python -m benchmarks.denoiser --layout default --out benchmarks/results/denoiser_default_layout.json

Both see clips of one channel, 64×64 pixels and 10 frames, in float32. Ours is the network of the `tiny-cpu` preset,
without mask channels. Theirs has three levels too, narrow at full resolution, which is where its time goes. Of its two
layouts `lean` attends at 16×16 only, the finest at which ours does; `default` is the class's own pattern, attention at
all levels but the coarsest, 64×64 included, and much slower. The class insists on text, so it gets one zero token. A
training step is forward, backward and AdamW. Runs are interleaved; figures are
medians, beside the fastest and the slowest repetition. Other work on the machine shows in them: use few threads and
compare the ratio.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import diffusers
import torch
from diffusers import UNet3DConditionModel
from torch import Tensor, nn

from video_diffusion import VideoUNet3DConditionModel

RESULTS = Path(__file__).parent / "results" / "denoiser.json"
FRAMES, SIZE, TEXT_WIDTH = 10, 64, 32
LAYOUTS = {
    "lean": (("DownBlock3D", "DownBlock3D", "CrossAttnDownBlock3D"), (32, 128, 128)),
    "default": (("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"), (32, 96, 160)),
}


def make_ours() -> VideoUNet3DConditionModel:
    return VideoUNet3DConditionModel(in_channels=1, patch_size=4, block_out_channels=(64, 128, 256))


def make_theirs(layout: str) -> UNet3DConditionModel:
    blocks, widths = LAYOUTS[layout]
    return UNet3DConditionModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        down_block_types=blocks,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(blocks)),
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # a head count, in this class
    )


def build_runs(model: nn.Module, batch_size: int, text: Tensor | None) -> dict[str, Callable[[], None]]:
    """One forward pass and one training step of a model on fixed clips."""
    clips = torch.randn(batch_size, 1, FRAMES, SIZE, SIZE)
    timesteps = torch.linspace(1, 1000, batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    @torch.no_grad()
    def forward() -> None:
        model(clips, timesteps, text)

    def training_step() -> None:
        (model(clips, timesteps, text).sample - clips).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"forward": forward, "training_step": training_step}


def interleaved(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each repetition, after one that warms up; in each repetition every run is timed once."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: values[1:] for name, values in seconds.items()}


def main() -> None:
    """Runs the comparison, prints it and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--layout", choices=list(LAYOUTS), default="lean")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    models: dict[str, nn.Module] = {"ours": make_ours(), "diffusers": make_theirs(args.layout)}
    texts = {"ours": None, "diffusers": torch.zeros(args.batch_size, 1, TEXT_WIDTH)}
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    if abs(parameters["ours"] / parameters["diffusers"] - 1) > 0.1:
        raise ValueError(f"the models have {parameters} parameters, expected equal numbers to 10 %.")
    print("parameters: " + ", ".join(f"{name} {number:,}" for name, number in parameters.items()))

    runs = {
        f"{name} {kind}": run
        for name, model in models.items()
        for kind, run in build_runs(model, args.batch_size, texts[name]).items()
    }
    rates = {
        name: sorted(args.batch_size / value for value in values)
        for name, values in interleaved(runs, args.repeats).items()
    }
    for name, values in rates.items():
        print(f"{name:24} {median(values):8.3f} clips/s  ({values[0]:.3f} to {values[-1]:.3f})")
    ratios = {
        kind: median(rates[f"ours {kind}"]) / median(rates[f"diffusers {kind}"])
        for kind in ("forward", "training_step")
    }
    print("ours / diffusers: " + ", ".join(f"{kind} {ratio:.1f}×" for kind, ratio in ratios.items()))
    report = {
        "command": f"python -m benchmarks.denoiser --layout {args.layout}",
        "batch_size": args.batch_size,
        "repeats": args.repeats,
        "threads": args.threads,
        "num_frames": FRAMES,
        "image_size": SIZE,
        "parameters": parameters,
        "clips_per_second": {name: round(median(values), 4) for name, values in rates.items()},
        "clips_per_second_range": {
            name: [round(values[0], 4), round(values[-1], 4)] for name, values in rates.items()
        },
        "ratios": {kind: round(ratio, 2) for kind, ratio in ratios.items()},
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
