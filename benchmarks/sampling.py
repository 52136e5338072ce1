"""
How many network calls a sampler needs, with an exact denoiser in the network's place.

    python -m benchmarks.sampling [--quick]

The data are the grey levels of one pixel of Moving MNIST, as a mixture of 16 Gaussians in [-1, 1]: 93 % black, some
white, edges between. Its exact E[x | z_t] is known, so all error comes from the steps. `error` is the Wasserstein-2
distance of what the sampler makes to the data, over the data's standard deviation. The reference is what the peers
sample with: 1000 ancestral steps, with the posterior variance (γ = 0). `calls` is the smallest number tried whose
error is within 5 % of the reference's; `calls_of_5_percent` the smallest whose error is at most 5 % of the data's
standard deviation. A trained network adds an error of its own that no number of calls removes. DDIM is tried where
n divides 1000: diffusers' steps 1000 // n back, which for other n is not its next timestep.

There is little Monte Carlo error (of the errors, 5 %): starts and noise are evenly spread quantiles; noise meets the
sorted samples in an order of low discrepancy (array-RQMC; L'Ecuyer, Lécot and Tuffin 2008).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from benchmarks.measure import Options, part_main, rounded
from video_diffusion.data import MovingMNIST
from video_diffusion.model.scheduler import VPContinuousScheduler, alpha_sigma, posterior_coefficients, step_std

LEVELS, SAMPLES = 14, 2**14  # SAMPLES = 2^LEVELS
GAMMAS = (0.0, 0.3, 1.0)
SOLVERS = {"DDIM": DDIMScheduler, "DPM++ 2M": DPMSolverMultistepScheduler, "UniPC": UniPCMultistepScheduler}
CALLS = (5, 8, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 200)
ANCESTRAL_CALLS = (10, 20, 50, 100, 250)
QUICK_CALLS = (10, 20, 50)
REFERENCE = "ancestral γ=0"
double = torch.float64


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians on the line: weights, means and standard deviations, `[K]`."""

    weight: Tensor
    mean: Tensor
    std: Tensor

    def velocity(self, z_t: Tensor, logsnr: Tensor) -> Tensor:
        """The exact v = α E[ε | z_t] − σ E[x | z_t]; z_t of any shape."""
        alpha, sigma = alpha_sigma(logsnr)
        variance = alpha**2 * self.std**2 + sigma**2
        residual = z_t[..., None] - alpha * self.mean
        share = torch.softmax(self.weight.log() - variance.log() / 2 - residual**2 / (2 * variance), -1)
        x = (share * (self.mean + alpha * self.std**2 / variance * residual)).sum(-1)
        return alpha * (z_t - alpha * x) / sigma - sigma * x

    def quantiles(self, number: int) -> Tensor:
        """The quantiles of (i + ½)/n, `[n]`, ascending."""
        low, high = (self.mean - 8 * self.std).min(), (self.mean + 8 * self.std).max()
        grid = torch.linspace(low.item(), high.item(), 2**20, dtype=double)
        below = torch.zeros_like(grid)
        for weight, mean, std in zip(self.weight, self.mean, self.std, strict=True):
            below += weight * torch.special.ndtr((grid - mean) / std)
        return grid[torch.searchsorted(below, levels(number)).clamp(max=len(grid) - 1)]


def pixel_mixture() -> Mixture:
    """Grey levels of Moving MNIST in groups of sixteen; black itself is sharp."""
    video = torch.from_numpy(MovingMNIST(split="test", num_frames=10).batch(range(200)))
    counts = torch.bincount(video.flatten().long(), minlength=256).to(double).reshape(16, 16)
    values = (torch.arange(256, dtype=double) / 127.5 - 1).reshape(16, 16)
    mean = (counts * values).sum(1) / counts.sum(1)
    return Mixture(counts.sum(1) / counts.sum(), mean, torch.tensor([0.0023] + 15 * [0.02], dtype=double))


def levels(number: int) -> Tensor:
    """(i + ½)/n, i = 0 … n − 1."""
    return (torch.arange(number, dtype=double) + 0.5) / number


def bit_reversed(bits: int) -> Tensor:
    """0 … 2^bits − 1 in van der Corput's order."""
    order = torch.zeros(1, dtype=torch.int64)
    for _ in range(bits):
        order = torch.cat([2 * order, 2 * order + 1])
    return order


def ancestral(data: Mixture, gamma: float, calls: int) -> Tensor:
    """Samples of equation (7), `[SAMPLES]`, from evenly spread noise."""
    scheduler = VPContinuousScheduler(prediction_type="v_prediction")
    generator, order = torch.Generator().manual_seed(0), bit_reversed(LEVELS)
    times = torch.linspace(1, 0, calls + 1, dtype=double)
    z = torch.special.ndtri(levels(SAMPLES))
    for t, s in pairwise(times):
        logsnr_t, logsnr_s = scheduler.logsnr(t), scheduler.logsnr(s)
        x = scheduler.predict_original(data.velocity(z, logsnr_t), 1000 * t, z)
        weight_z, weight_x = posterior_coefficients(logsnr_t, logsnr_s)
        z = weight_z * z + weight_x * x
        if s > 0:
            jitter, shift = torch.rand(SAMPLES, generator=generator), torch.rand((), generator=generator)
            u = ((order + jitter.to(double)) / SAMPLES + shift) % 1
            noise = torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
            z = z.sort().values + step_std(logsnr_t, logsnr_s, gamma) * noise
    return z


def stock(data: Mixture, solver_class: Any, calls: int) -> Tensor:
    """Samples of a solver of diffusers on our schedule, `[SAMPLES]`."""
    scheduler = VPContinuousScheduler(prediction_type="v_prediction", clip_sample=False)
    solver = scheduler.as_diffusers(solver_class)
    solver.set_timesteps(calls)
    z = torch.special.ndtri(levels(SAMPLES))[:, None, None]
    for timestep in solver.timesteps.tolist():
        logsnr = scheduler.logsnr(torch.tensor(timestep / 1000, dtype=double))
        z = solver.step(data.velocity(z, logsnr), timestep, z).prev_sample.to(double)
    return z.flatten()


def tried(name: str, options: Options) -> list[int]:
    """The numbers of calls to try with a sampler."""
    if options.quick:
        return list(QUICK_CALLS)
    if name.startswith("ancestral"):
        return list(ANCESTRAL_CALLS)
    return [n for n in CALLS if name != "DDIM" or 1000 % n == 0]


def run(options: Options) -> dict[str, Any]:
    """The error of each sampler at each number of calls, and the calls that are enough."""
    data = pixel_mixture()
    truth = data.quantiles(SAMPLES)

    def error(samples: Tensor) -> float:
        return rounded(((samples.sort().values - truth).square().mean().sqrt() / truth.std()).item())

    samplers: dict[str, Callable[[int], Tensor]] = {
        **{f"ancestral γ={gamma:g}": lambda n, gamma=gamma: ancestral(data, gamma, n) for gamma in GAMMAS},
        **{name: lambda n, solver=solver: stock(data, solver, n) for name, solver in SOLVERS.items()},
    }
    reference = error(samplers[REFERENCE](1000))
    errors = {name: {str(n): error(sampler(n)) for n in tried(name, options)} for name, sampler in samplers.items()}
    if not options.quick:
        for gamma in GAMMAS:
            name = f"ancestral γ={gamma:g}"
            errors[name]["1000"] = reference if name == REFERENCE else error(samplers[name](1000))

    def fewest(bound: float) -> dict[str, int | None]:
        return {
            name: next((int(n) for n, value in found.items() if value <= bound), None)
            for name, found in errors.items()
        }

    return {
        "reference": f"1000 calls, {REFERENCE}",
        "reference_error": reference,
        "errors": errors,
        "calls": fewest(1.05 * reference),
        "calls_of_5_percent": fewest(0.05),
    }


if __name__ == "__main__":
    part_main(run, __doc__)
