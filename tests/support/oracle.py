"""The Gaussian oracle: for pixels x ~ N(m, s²) the exact denoiser, the exact marginals and the exact ODE are known.

Every sampler is then judged against theory instead of another implementation. All in float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from video_diffusion.model.scheduler import VPContinuousScheduler, alpha_sigma


@dataclass(frozen=True)
class Gaussian:
    """Independent pixels x ~ N(mean, std²)."""

    mean: float = 0.3
    std: float = 0.5

    def marginal(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of z_t = α x + σ ε."""
        alpha, sigma = alpha_sigma(logsnr)
        return alpha * self.mean, alpha**2 * self.std**2 + sigma**2

    def denoise(self, z_t: Tensor, logsnr: Tensor, prediction_type: str = "sample") -> Tensor:
        """E[x | z_t] = m + α s² / (α² s² + σ²) · (z_t − α m), or the ε or v that belongs to it."""
        alpha, sigma = alpha_sigma(logsnr)
        centre, variance = self.marginal(logsnr)
        residual = (z_t - centre) / variance
        x, epsilon = self.mean + alpha * self.std**2 * residual, sigma * residual
        return {"sample": x, "epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x}[prediction_type]

    def solve_ode(self, z_t: Tensor, logsnr_t: Tensor, logsnr_s: Tensor) -> Tensor:
        """The probability-flow ODE from t to s: it keeps (z − mean) / std of the marginal."""
        (centre_t, variance_t), (centre_s, variance_s) = self.marginal(logsnr_t), self.marginal(logsnr_s)
        return centre_s + (z_t - centre_t) * torch.sqrt(variance_s / variance_t)


def affine_step(scheduler: VPContinuousScheduler, gaussian: Gaussian, timestep: Tensor) -> tuple[float, float, float]:
    """The coefficients (a, b, c) of one step with the exact denoiser, z_s = a z_t + b + c ε, read off `step` itself.

    Raises:
        AssertionError: if the step is not of that form.
    """
    z = torch.linspace(-2, 2, 16, dtype=torch.float64)
    noise = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logsnr = scheduler.logsnr(timestep.double() / scheduler.config.num_train_timesteps)
    output = gaussian.denoise(z, logsnr, scheduler.config.prediction_type)
    z_s, _ = scheduler.step(output, timestep, z, torch.Generator().manual_seed(0), return_dict=False)
    basis = torch.stack([z, torch.ones_like(z), noise], dim=1)
    a, b, c = torch.linalg.lstsq(basis, z_s[:, None]).solution[:, 0]
    torch.testing.assert_close(a * z + b + c * noise, z_s, rtol=1e-9, atol=1e-9)
    return a.item(), b.item(), c.item()


def sampled_moments(
    scheduler: VPContinuousScheduler, gaussian: Gaussian, steps: int | list[float], exact_start: bool = True
) -> tuple[float, float]:
    """Mean and variance of what the sampler gives in n steps, without Monte Carlo error.

    Args:
        scheduler: without clipping.
        gaussian: the data; its exact denoiser takes the network's place.
        steps: n, or the timesteps themselves.
        exact_start: from the exact marginal at t = 1, not from N(0, 1).
    """
    if isinstance(steps, int):
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(timesteps=steps)
    mean, variance = 0.0, 1.0
    if exact_start:
        start = gaussian.marginal(scheduler.logsnr(torch.ones((), dtype=torch.float64)))
        mean, variance = start[0].item(), start[1].item()
    for timestep in scheduler.timesteps:
        a, b, c = affine_step(scheduler, gaussian, timestep)
        mean, variance = a * mean + b, a**2 * variance + c**2
    return mean, variance


def observed_order(errors: list[float], steps: list[int]) -> float:
    """The slope p of error ∝ n^−p, a least-squares fit on logarithms."""
    x, y = torch.tensor(steps).double().log(), torch.tensor(errors).double().abs().log()
    return -((x - x.mean()) * (y - y.mean())).sum().item() / ((x - x.mean()) ** 2).sum().item()
