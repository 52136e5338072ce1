"""
Every scheduler of diffusers on our schedule: whether it samples rightly, by an exact denoiser in the network's place.

    python -m benchmarks.schedulers [--out docs/schedulers.md]

The data are Gaussian, N(0.3, 0.5²), so the denoiser, the probability-flow ODE and the moments are known exactly. With
it every step is affine in the sample and in each draw of noise: a batch of unit vectors through the scheduler gives
the whole map, and from it the mean and the deviation of what it makes of N(0, 1), without Monte Carlo error. `error`
is the Wasserstein-2 distance of that Gaussian to the data; for a deterministic solver it is the root mean squared
error against the exact ODE. A scheduler works where the error is at most 0.1 at 20 steps and 0.02 at 100.
"""

import argparse
import inspect
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from benchmarks.sampling import Mixture
from video_diffusion.model.scheduler import PREDICTION_TYPES, SPACINGS, VPContinuousScheduler, alpha_sigma, refusal

MEAN, STD = 0.3, 0.5
DATA = Mixture(*(torch.tensor([value], dtype=torch.float64) for value in (1.0, MEAN, STD)))
LIMITS = {20: 0.1, 100: 0.02}  # steps: the largest error of a scheduler that works
OUT = Path(__file__).parents[1] / "docs" / "schedulers.md"
INTRODUCTION = """# Schedulers of diffusers

`VPContinuousScheduler.as_diffusers(cls)` and `cls.from_config(scheduler.config)` put a scheduler of diffusers on the
schedule of a model. This page says for which classes that is right. It is written by

    python -m benchmarks.schedulers

The data are Gaussian, N(0.3, 0.5²), so that the exact denoiser stands in the network's place and the exact result is
known. A figure is the distance of what a scheduler makes to the data (Wasserstein-2; for a deterministic solver the
error against the exact ODE), on the cosine schedule, without Monte Carlo error. "Works" means at most 0.1 at 20 steps
and at most 0.02 at 100. Whatever does not work is refused with the reason, by `as_diffusers` and by `from_config`.

`from_config` of a class of diffusers prints that it does not know `schedule`, `logsnr_min`, `logsnr_max`, `shift` and
`gamma`. It keeps them: `VPContinuousScheduler.from_config(solver.config)` gives the first scheduler back.
"""
PLACES = """
## Where the steps stand

A scheduler places its steps evenly in t. But a network decides what a clip shows in a narrow range of noise levels,
and of few steps too few stand there. A call can place them itself:

```python
pipe(timesteps=[950, 880, 760, 510])  # in the place of num_inference_steps=4; the last step goes from 510 to 0
```

`VPContinuousScheduler` takes any numbers from 1000 to above 0. Of the classes of diffusers that work here, these take
whole numbers: {classes}. The others place their steps themselves.

`"logsnr_spacing": [mean, std]` in a pipeline's `generation_config` makes it the model's own setting, for any number of
steps: n of them stand at the quantiles (i + ½)/n of a normal distribution of log-SNR with this mean and standard
deviation. It holds where no frames are known; given frames decide most of a clip, and the even places serve them well.
Schedulers that take no timesteps ignore it. `python -m benchmarks.spacing` measures the two numbers for a model: how
far its answer moves at each noise level. What this is worth stands under
[quality against network calls](results.md#quality-against-network-calls).

![How far each answer of moving-mnist is from the next, over the log-SNR: a bell around −4](samples/spacing.png)
"""
ODDITIES = """
## What to know

* DDIM and DDPM, the parallel ones and CogVideoX's too, step 1000 // n back. Where n does not divide 1000 (30 and 60
  above) that is not quite the next timestep, and their error leaves its line; here it falls, which is no rule.
* Heun, KDPM2 and KDPM2 ancestral call the network 2n − 1 times, PNDM n + 1 times; `pipeline.num_timesteps` counts it.
* Heun and KDPM2 ancestral need about ten steps before they are better than nothing.
* Karras' and the exponential spacing give many steps to noise levels where nothing is seen. At 10 or 20 steps the
  default spacing is better.
* Repeated integer timesteps (these spacings have them) need `set_begin_index(0)` after `set_timesteps`; the pipeline
  does that.
* A class that does not clip is refused while `clip_sample` is true; `as_diffusers(cls, clip_sample=False)` takes it.
* Flow-matching schedulers, and `use_flow_sigmas`, are refused: their forward process is another.
"""


class UnitNoise:
    """Stands for diffusers' `randn_tensor`: draw k is one in row k + 2 of the batch and zero elsewhere."""

    def __init__(self) -> None:
        self.draws = 0

    def __call__(self, shape: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        """The next draw, of that shape."""
        noise = torch.zeros(shape, dtype=dtype)
        noise[self.draws + 2] = 1
        self.draws += 1
        return noise


def denoise(scheduler: VPContinuousScheduler, z_t: Tensor, timestep: Tensor) -> Tensor:
    """The exact output at z_t, in the scheduler's parametrisation."""
    logsnr = scheduler.logsnr(timestep.double() / 1000)
    alpha, sigma = alpha_sigma(logsnr)
    return scheduler.from_original(alpha * z_t - sigma * DATA.velocity(z_t, logsnr), timestep.double(), z_t)


def error_of(
    scheduler: VPContinuousScheduler, solver: Any, steps: int, timesteps: Sequence[float] | None = None
) -> float:
    """The distance of what n steps of a stock scheduler make of N(0, 1) to the data.

    Args:
        scheduler: ours, without clipping.
        solver: of diffusers, on its schedule.
        steps: n.
        timesteps: their places, where the solver shall not choose them.
    """
    if timesteps is None:
        solver.set_timesteps(steps)
    else:
        solver.set_timesteps(timesteps=timesteps)
    if hasattr(solver, "set_begin_index"):
        solver.set_begin_index(0)
    z = torch.zeros(2 * len(solver.timesteps) + 2, 1, 1, 1, dtype=torch.float64)
    z[1] = solver.init_noise_sigma
    module = sys.modules[type(solver).__module__]
    with patch.object(module, "randn_tensor", UnitNoise(), create=True):
        for timestep in solver.timesteps:
            output = denoise(scheduler, solver.scale_model_input(z, timestep).double(), timestep)
            z = solver.step(output, timestep, z, return_dict=False)[0].double()
    shift, weights = z[0], z[1:] - z[0]
    std = weights.square().sum().sqrt()
    return torch.hypot(shift.squeeze() - MEAN, std - STD).item()


def scheduler_names() -> list[str]:
    """The schedulers that diffusers exports, also those whose optional packages are missing here."""
    named = (name for name in dir(diffusers) if name.endswith("Scheduler"))
    return sorted(name for name in named if isinstance(getattr(diffusers, name), type))


def status(name: str, prediction_type: str, option: str | None = None) -> str | None:
    """The reason why a class is refused unclipped, with one of its options if given, or None where it works."""
    config = VPContinuousScheduler(prediction_type=prediction_type, clip_sample=False).config
    return refusal(getattr(diffusers, name), config | ({option: True} if option else {}))


def measure(name: str, prediction_type: str, steps: int, option: str | None = None) -> float:
    """The error of a class, whether it is refused or not.

    Raises:
        Exception: whatever the class raises.
    """
    scheduler = VPContinuousScheduler(prediction_type=prediction_type, clip_sample=False)
    solver_class = getattr(diffusers, name)
    accepted = inspect.signature(solver_class.__init__).parameters
    options = {key: value for key, value in scheduler.config.items() if key in accepted}
    return error_of(scheduler, solver_class(**options | ({option: True} if option else {})), steps)


def shown(name: str, prediction_type: str, option: str | None = None) -> str:
    """One cell: the errors at 20 and at 100 steps, or what was raised."""
    found = []
    for steps in LIMITS:
        try:
            found.append(f"{measure(name, prediction_type, steps, option):.4f}")
        except Exception as error:  # whatever a refused class raises is the finding
            found.append(type(error).__name__)
    return " / ".join(dict.fromkeys(found))


def works(errors: Mapping[int, float]) -> bool:
    """Whether errors, by the number of steps, are those of a scheduler that works."""
    return all(errors[steps] <= limit for steps, limit in LIMITS.items())


def mark(reason: str | None) -> str:
    return "works" if reason is None else "refused"


def table(rows: list[list[str]], head: list[str]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def follows(name: str) -> bool:
    """Whether a class takes the levels of another schedule at all."""
    scheduler_class = getattr(diffusers, name)
    if not issubclass(scheduler_class, SchedulerMixin):
        return False  # a stand-in for a class whose packages are missing
    return "trained_betas" in inspect.signature(scheduler_class.__init__).parameters


def takes_timesteps(name: str) -> bool:
    """Whether a class that works lets its caller place the steps."""
    works_here = status(name, "v_prediction") is None
    return works_here and "timesteps" in inspect.signature(getattr(diffusers, name).set_timesteps).parameters


def page() -> str:
    """docs/schedulers.md: the tables, measured."""
    following = [name for name in scheduler_names() if follows(name)]
    rows = []
    for name in following:
        cells = [f"{mark(status(name, kind))} ({shown(name, kind)})" for kind in PREDICTION_TYPES]
        reasons = dict.fromkeys(filter(None, (status(name, kind) for kind in PREDICTION_TYPES)))
        rows.append([f"`{name}`", *cells, "; ".join(reasons)])
    parts = [INTRODUCTION, "## Classes that take `trained_betas`\n", "Errors at 20 / 100 steps.\n"]
    parts.append(table(rows, ["class", *(f"`{kind}`" for kind in PREDICTION_TYPES), "why not"]))
    rows = []
    for name in following:
        accepted = inspect.signature(getattr(diffusers, name).__init__).parameters
        for option in SPACINGS:
            if option in accepted and status(name, "v_prediction") is None:
                reason = status(name, "v_prediction", option)
                cell = shown(name, "v_prediction", option)
                rows.append([f"`{name}`", f"`{option}`", mark(reason), cell, reason or ""])
    parts.append("\n## Options that move the steps\n\nWith `v_prediction`; errors at 20 / 100 steps.\n")
    parts.append(table(rows, ["class", "option", "status", "error", "why not"]))
    parts.append("\n## Classes with a schedule of their own: all refused\n")
    others = [[f"`{name}`", status(name, "v_prediction") or ""] for name in scheduler_names() if name not in following]
    parts.append(table(others, ["class", "why not"]))
    steps = (20, 25, 30, 50, 60, 100)
    rows = [
        [f"`{name}`", *(f"{measure(name, 'v_prediction', n):.4f}" for n in steps)]
        for name in ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler")
    ]
    parts.append("\n## Numbers of steps that do not divide 1000\n")
    parts.append(table(rows, ["class", *map(str, steps)]))
    spaceable = [name for name in following if takes_timesteps(name)]
    classes = ", ".join(f"`{name}`" for name in spaceable)
    return "\n".join(parts) + "\n" + PLACES.replace("{classes}", classes) + ODDITIES


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.schedulers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    args.out.write_text(page(), encoding="utf-8")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
