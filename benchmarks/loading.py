"""
What it takes to start: importing the package, and from nothing to the first clip of the embedded checkpoint.

    python -m benchmarks.loading [--quick]

Every figure comes from a fresh process, the imports in turn, in processor time (medians of five; quick: of two):
`ours` are the three public classes, `diffusers` the classes of its own that stand in their places, `package` the bare
`import video_diffusion`, which loads nothing yet. `first_clip` is import, `from_pretrained` and one clip of ten frames
in 15 network calls of DPM++ 2M.
"""

import subprocess
import sys
from statistics import median
from typing import Any

from benchmarks.measure import Options, part_main, rounded, spread

IMPORTS = {
    "ours": "from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler",
    "diffusers": "from diffusers import DDPMScheduler, DiffusionPipeline, UNet3DConditionModel",
    "package": "import video_diffusion",
}
FIRST_CLIP = """
import torch
from diffusers import DPMSolverMultistepScheduler
from video_diffusion import VideoDiffusionPipeline
from video_diffusion.hub.finding import resolve_model
torch.set_num_threads({threads})
mark("import")
pipe = VideoDiffusionPipeline.from_pretrained(resolve_model("moving-mnist")).to("{device}")
pipe.set_progress_bar_config(disable=True)
mark("from_pretrained")
pipe.scheduler = pipe.scheduler.as_diffusers(DPMSolverMultistepScheduler)
pipe(num_inference_steps=15, generator=torch.Generator().manual_seed(0))
mark("clip")
"""
PREAMBLE = """
import time
begin = time.{clock}()
def mark(name):
    print(name, time.{clock}() - begin)
"""


def seconds_of(code: str, clock: str = "process_time") -> dict[str, float]:
    """Runs code in a fresh process; gives the seconds since its start at each of its marks."""
    words = [sys.executable, "-c", PREAMBLE.format(clock=clock) + code]
    result = subprocess.run(words, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"the process failed:\n{result.stderr[-2000:]}")
    return {name: float(value) for name, value in (line.split() for line in result.stdout.splitlines())}


def run(options: Options) -> dict[str, Any]:
    """Medians over interleaved processes."""
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    repeats = 2 if options.quick else options.repeats
    for _ in range(repeats):
        for name, code in IMPORTS.items():
            seconds[name].append(seconds_of(f"{code}\nmark('import')")["import"])
    clock = "perf_counter" if options.device == "cuda" or options.threads > 1 else "process_time"
    code = FIRST_CLIP.format(threads=options.threads, device=options.device)
    starts = [seconds_of(code, clock) for _ in range(1 if options.quick else repeats)]
    ratio = median(seconds["ours"]) / median(seconds["diffusers"])
    return {
        "import_seconds": {name: spread(values) for name, values in seconds.items()},
        "ours / diffusers": rounded(ratio, 3),
        "first_clip": {name: spread([start[name] for start in starts]) for name in starts[0]},
    }


if __name__ == "__main__":
    part_main(run, __doc__)
