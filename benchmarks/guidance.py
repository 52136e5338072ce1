"""
Ways to continue a clip from its first 5 frames: replacement, reconstruction guidance, and telling the model of them.

    python -m benchmarks.guidance --model moving-mnist      # writes benchmarks/results/guidance.json

At first the model runs in its unconditional mode: its channels for given frames stay empty, so all that it learns of
them comes from replacement (scale 0) or guidance (Ho et al. 2022, equation (8)). Then it is told the frames, without
guidance (scale 1), with twice the steps, and with `history_guidance_scale`, which costs twice the network calls.
Test clips of Moving MNIST in [0, 1]. `seam` is the mean squared difference of the last given and the first made
frame over that in the true clips: 1 is as in the data, more is a tear. `later` is the same among the made frames.
A model that blurs is below 1 in both, so look at `mse` too: the error per pixel against the true continuation.
`ink` is the sum of the made frames over that of the true ones.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from video_diffusion import VideoDiffusionPipeline
from video_diffusion.data import MovingMNIST
from video_diffusion.hub.finding import resolve_model

RESULTS = Path(__file__).parent / "results" / "guidance.json"
GIVEN, FRAMES = 5, 10
SCALES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)
HISTORY_SCALES = (1.5, 2.0, 3.0)


class Unconditional(nn.Module):
    """A denoiser with channels for given frames as one without: they stay empty."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet, self.dtype = unet, unet.dtype
        self.config = type(unet.config)(unet.config | {"in_channels": unet.config.out_channels})

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.unet.device

    def forward(self, sample: Tensor, timestep: Tensor, **options: Any) -> Any:
        """`[B, C, F, H, W]` → the denoiser's output, told no frame."""
        empty = torch.zeros_like(sample)
        return self.unet(torch.cat([sample, empty, empty[:, :1]], dim=1), timestep, **options)


def neighbours(clips: Tensor, first: int, last: int) -> float:
    """Mean squared difference of neighbouring frames, from `first` to `last`."""
    return clips[:, first : last + 1].diff(dim=1).square().mean().item()


def score(made: Tensor, truth: Tensor) -> dict[str, float]:
    made_later, later = made[:, GIVEN:], truth[:, GIVEN:]
    return {
        "seam": round(neighbours(made, GIVEN - 1, GIVEN) / neighbours(truth, GIVEN - 1, GIVEN), 4),
        "later": round(neighbours(made, GIVEN, FRAMES - 1) / neighbours(truth, GIVEN, FRAMES - 1), 4),
        "mse": round((made_later - later).square().mean().item(), 5),
        "ink": round((made_later.sum() / later.sum()).item(), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="moving-mnist", help="embedded model, folder or Hub id (default: %(default)s)"
    )
    parser.add_argument("--num-videos", type=int, default=32, help="test clips (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="steps of the sampler (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file (default: %(default)s)")
    args = parser.parse_args()

    told = VideoDiffusionPipeline.from_pretrained(resolve_model(args.model))
    free = VideoDiffusionPipeline(Unconditional(told.unet), told.scheduler, told.text_encoder, told.tokenizer)
    size = told.unet.config.sample_size
    dataset = MovingMNIST(split="test", num_frames=FRAMES, image_size=size, seed=0)
    truth = torch.from_numpy(dataset.batch(range(args.num_videos))).float()[:, :, None] / 255
    variants = [("guidance" if scale else "replacement", scale, args.steps) for scale in SCALES]
    variants += [("told the frames", 1.0, args.steps), ("told the frames", 1.0, 2 * args.steps)]
    variants += [("history guidance", scale, args.steps) for scale in HISTORY_SCALES]
    rows = []
    for mode, scale, steps in variants:
        hidden = mode in ("guidance", "replacement")
        pipeline, start = free if hidden else told, time.perf_counter()
        pipeline.set_progress_bar_config(desc=f"{mode}, {scale:g}")
        made = pipeline(
            video=truth[:, :GIVEN],
            num_frames=FRAMES,
            num_inference_steps=steps,
            reconstruction_guidance_scale=scale if hidden else None,
            history_guidance_scale=1.0 if hidden else scale,
            generator=[torch.Generator().manual_seed(i) for i in range(args.num_videos)],
            output_type="pt",
        ).frames
        seconds = round(time.perf_counter() - start, 1)
        rows.append({"mode": mode, "scale": scale, "steps": steps, **score(made, truth), "seconds": seconds})
        print(rows[-1])
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.guidance", *sys.argv[1:]]),
        "model": args.model,
        "clips": args.num_videos,
        "given": GIVEN,
        "frames": FRAMES,
        "steps": args.steps,
        "torch": torch.__version__,
        "runs": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
