"""What `ablate.py` tries and the package does not have, each as a flag of a variant beside those of `train.py`."""

from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from video_diffusion import VideoUNet3DConditionModel
from video_diffusion.model.denoiser import VideoAttention, VideoUNetBlock, zero_init
from video_diffusion.training.objective import Draw

EMA_WIDTHS = (0.02, 0.05, 0.1, 0.2)
COOLDOWN_SHARE = 0.2


@dataclass
class TrialArguments:
    """Flags of a variant that `train.py` does not know."""

    times: str = field(default="stratified", metadata={"help": "stratified, uniform or adaptive."})
    temporal: str = field(
        default="attention",
        metadata={
            "help": "attention; convolution or none in its place; coarse: none at the finest level; joint: over space "
            "and time at all levels but the finest."
        },
    )
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


class TemporalConvolution(nn.Module):
    """Stands where temporal attention does and sees three frames; as many weights. It honours no mask."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)
        self.to_out = zero_init(nn.Linear(channels, channels))

    def forward(self, tracks: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """`[N, F, C]` → `[N, F, C]`."""
        return self.to_out(torch.nn.functional.silu(self.conv(self.norm(tracks).mT).mT))


class NoMixing(nn.Module):
    """Stands where temporal attention does and adds nothing."""

    def forward(self, tracks: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """`[N, F, C]` → zeros of that shape."""
        return torch.zeros_like(tracks)


class JointAttention(nn.Module):
    """Stands where temporal attention does; every place of every frame sees every other (clips of one frame size).

    Args:
        temporal: whose weights and heads it has.
        edge: height = width.
    """

    def __init__(self, temporal: VideoAttention, edge: int) -> None:
        super().__init__()
        self.attention, self.places = temporal, edge**2
        place = torch.cartesian_prod(torch.arange(edge), torch.arange(edge))
        offset = place[None] - place[:, None] + edge - 1
        self.register_buffer("offset", offset[..., 0] * (2 * edge - 1) + offset[..., 1], persistent=False)
        self.table = nn.Embedding((2 * edge - 1) ** 2, temporal.heads)
        nn.init.zeros_(self.table.weight)

    def forward(self, tracks: Tensor, attention_mask: Tensor) -> Tensor:
        """`[B·H·W, F, C]` and the bias on frames `[1, heads, F, F]` → `[B·H·W, F, C]`."""
        frames, places = tracks.shape[1], self.places
        across = self.table(self.offset).permute(2, 0, 1).to(attention_mask.dtype)
        bias = attention_mask[:, :, :, None, :, None] + across[None, :, None, :, None, :]
        bias = bias.reshape(1, -1, frames * places, frames * places)
        tokens = rearrange(tracks, "(b s) f c -> b (f s) c", s=places)
        return rearrange(self.attention(tokens, attention_mask=bias), "b (f s) c -> (b s) f c", s=places)


def replace_temporal_attention(denoiser: VideoUNet3DConditionModel, kind: str) -> None:
    """Puts a convolution over frames, or nothing, in the place of temporal attention (see `TrialArguments`)."""
    levels = len(denoiser.down_blocks)
    if kind == "joint":
        edge = denoiser.config.sample_size // denoiser.config.patch_size
        for level in range(1, levels):
            sides = (denoiser.down_blocks[level], denoiser.up_blocks[levels - 1 - level])
            blocks: list[Any] = [block for side in sides for block in cast(nn.ModuleList, side)]
            for block in [*blocks, denoiser.mid_block] if level == levels - 1 else blocks:
                block.temporal_attention = JointAttention(block.temporal_attention, edge // 2**level)
        return
    finest = [*cast(nn.ModuleList, denoiser.down_blocks[0]), *cast(nn.ModuleList, denoiser.up_blocks[-1])]
    for block in finest if kind == "coarse" else denoiser.modules():
        if not isinstance(block, VideoUNetBlock):
            continue
        channels = block.temporal_attention.to_q.in_features
        other = TemporalConvolution(channels) if kind == "convolution" else NoMixing()
        block.temporal_attention = other  # type: ignore[assignment]
        block.position_bias.requires_grad_(False)


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
