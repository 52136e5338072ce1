"""What `ablate.py` tries and the package does not have, each as a flag of a variant beside those of `train.py`."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from video_diffusion import VideoUNet3DConditionModel
from video_diffusion.training.objective import Draw

EMA_WIDTHS = (0.02, 0.05, 0.1, 0.2)
COOLDOWN_SHARE = 0.2


@dataclass
class TrialArguments:
    """Flags of a variant that `train.py` does not know."""

    times: str = field(default="stratified", metadata={"help": "stratified, uniform or adaptive."})
    self_conditioning: bool = field(default=False, metadata={"help": "The denoiser sees its own estimate of x."})
    ema_widths: bool = field(default=False, metadata={"help": "Measure averages of several lengths, and none."})


def rate(schedule: str, share: float) -> float:
    """The learning rate after this share of the run, in [0, 1], as a share of its peak (without the warm-up)."""
    if schedule == "linear":
        return 1 - share
    if schedule == "cosine":
        return (1 + float(np.cos(np.pi * share))) / 2
    if schedule == "trapezoid":
        return min(1.0, (1 - share) / COOLDOWN_SHARE)
    if schedule == "constant":
        return 1.0
    raise ValueError(f"`lr_scheduler` is {schedule!r}, expected linear, cosine, trapezoid or constant.")


class SelfConditioned(nn.Module):
    """Gives a denoiser of x its own estimate as further channels (Chen, Zhang and Hinton 2023, "Analog Bits").

    In training half of the clips see an estimate made without gradient, the others zeros; in evaluation all see one.

    Args:
        denoiser: predicts x, and has C more input channels.
        channels: C.
    """

    def __init__(self, denoiser: VideoUNet3DConditionModel, channels: int) -> None:
        super().__init__()
        self.denoiser, self.channels = denoiser, channels

    def forward(self, sample: Tensor, timestep: Tensor, **conditions: Any) -> Any:
        """As the denoiser, without the further channels."""
        rows = len(sample) // 2 if self.training else len(sample)
        nothing = torch.zeros_like(sample[:, : self.channels])
        with torch.no_grad():
            first = self.denoiser(torch.cat([sample, nothing], 1)[:rows], timestep[:rows], **conditions).sample
        estimate = torch.cat([first.to(nothing), nothing[rows:]])
        return self.denoiser(torch.cat([sample, estimate], 1), timestep, **conditions)


class AdaptiveTimes:
    """Times drawn in proportion to the loss expected there, in 32 bins (Kingma and Gao 2023, adaptive noise schedule).

    Every weight is divided by the density, so that the expected loss stays what it is.
    """

    BINS, DECAY, FLOOR = 32, 0.95, 0.2

    def __init__(self) -> None:
        self.mean = np.ones(self.BINS)

    def density(self) -> np.ndarray:
        """Of each bin against the uniform one, mean 1, at least `FLOOR`."""
        return self.FLOOR + (1 - self.FLOOR) * self.mean / self.mean.mean()

    def warp(self, noise: Draw) -> tuple[Draw, Tensor]:
        """The draw with its uniform times turned into ours, and 1 / density `[B]`."""
        density = self.density()
        edges = np.concatenate([[0.0], np.cumsum(density) / self.BINS])
        t = np.interp(noise.t.double().numpy(), edges / edges[-1], np.linspace(0, 1, self.BINS + 1)).clip(1e-6, 1)
        weight = 1 / density[self._bins(t)]
        return replace(noise, t=torch.from_numpy(t).to(noise.t)), torch.from_numpy(weight).to(noise.t)

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Counts the losses `[B]`, before they are divided by the density, at times `[B]`."""
        for place, value in zip(self._bins(t.numpy()), loss.detach().numpy(), strict=True):
            self.mean[place] += (1 - self.DECAY) * (value - self.mean[place])

    def _bins(self, t: np.ndarray) -> np.ndarray:
        return np.ceil(t * self.BINS).astype(int).clip(1, self.BINS) - 1


class PowerAverage:
    """An average of the weights over the last part of a run, whatever its length (Karras et al. 2024, EDM2).

    Args:
        parameters: of the model.
        width: standard deviation of the average's profile over the run, as a share of the run, below 1/√12.
    """

    def __init__(self, parameters: list[nn.Parameter], width: float) -> None:
        # width² = (γ + 1) / ((γ + 2)² (γ + 3)), a cubic in γ.
        self.gamma = float(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max())
        self.step_count = 0
        self.average = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def step(self, parameters: list[nn.Parameter]) -> None:
        """Adds the weights after a step: β = (1 − 1/n)^(γ + 1) at the n-th."""
        self.step_count += 1
        share = 1 - (1 - 1 / self.step_count) ** (self.gamma + 1)
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in parameters], share)
