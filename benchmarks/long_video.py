"""
Memory and time of long videos: one clip of 20, 100 and 500 frames by each window scheme, with and without guidance.

    python -m benchmarks.long_video      # prints the figures, writes benchmarks/results/long_video.json

The network is small and untrained (64×64 pixels, trained length 10): what is measured is how the cost of the windows
grows with the length, not the quality. Each figure comes from a process of its own. `peak_mb` is the highest resident
memory of the process, `added_mb` what the call added to that of the loaded pipeline, `video_mb` the size of the video
that comes back, float32. It is held twice, as latents and as pixels, and grows with the length of necessity. Other
work on the machine shows in the seconds.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "long_video.json"
LENGTHS = (20, 100, 500)
TRAINED, SIZE, STEPS = 10, 64, 2
CASES = (("autoregressive", None), ("hierarchy-2", None), ("interpolate", None), ("autoregressive", 1.0))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(frames: int, scheme: str, scale: float | None) -> dict[str, Any]:
    """One call in this process: a free video, by a model without mask channels where a guidance scale is given."""
    import torch

    from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
    from video_diffusion.windows import plan_windows

    torch.manual_seed(0)
    unet = VideoUNet3DConditionModel(
        sample_size=SIZE,
        num_frames=TRAINED,
        in_channels=3 if scale is None else 1,
        patch_size=4,
        block_out_channels=(32, 64),
    )
    pipeline = VideoDiffusionPipeline(unet.eval(), VPContinuousScheduler(prediction_type="v_prediction"))
    pipeline.set_progress_bar_config(disable=True)

    def call(num_frames: int) -> Any:
        guided = {} if scale is None else {"reconstruction_guidance_scale": scale}
        return pipeline(
            num_frames=num_frames,
            num_inference_steps=STEPS,
            window_scheme=scheme,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            **guided,
        ).frames

    call(TRAINED + 1)  # libraries allocate their working memory once
    loaded, start = peak_mb(), time.perf_counter()
    video = call(frames)
    seconds = time.perf_counter() - start
    assert video.shape[1] == frames
    return {
        "frames": frames,
        "scheme": scheme,
        "reconstruction_guidance_scale": scale,
        "windows": len(list(plan_windows(frames, TRAINED, None, scheme))),
        "seconds": round(seconds, 3),
        "peak_mb": round(peak_mb(), 1),
        "added_mb": round(peak_mb() - loaded, 1),
        "video_mb": round(video.nbytes / 2**20, 2),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file (default: %(default)s)")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the arguments of `measure`, as JSON
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measure(*json.loads(args.one))))
        return
    rows = []
    for scheme, scale in CASES:
        for frames in LENGTHS:
            words = [sys.executable, "-m", "benchmarks.long_video", "--one", json.dumps([frames, scheme, scale])]
            result = subprocess.run(words, capture_output=True, text=True)
            if result.returncode:
                raise SystemExit(result.stderr)
            rows.append(json.loads(result.stdout))
            print(rows[-1])
    version = rows[0]["torch"]
    report = {
        "command": "python -m benchmarks.long_video",
        "trained_frames": TRAINED,
        "pixels": SIZE,
        "steps_of_a_window": STEPS,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "torch": version},
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "runs": [{key: value for key, value in row.items() if key != "torch"} for row in rows],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
