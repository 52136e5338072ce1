"""The training loss at sampled times, with random given frames and independent images beside the video.

Everything random in a step is drawn by `draw` from (seed, step) alone, for the whole global batch, of which each
process takes its rows. So the loss does not depend on how many processes share the batch, and resuming needs no state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import ModelMixin
from einops import reduce
from torch import Tensor

from video_diffusion.model.guidance import frame_times, model_input
from video_diffusion.model.scheduler import VPContinuousScheduler, prediction_loss_weight

TASKS = ("generation", "prediction", "interpolation", "inpainting")


@dataclass(frozen=True)
class Draw:
    """The randomness of one step.

    Args:
        t: times in (0, 1], `[B]`, or `[B, F]` for a time of each frame.
        noise: ε, `[B, C, F, H, W]`.
        frame_mask: bool `[B, F]`, true where a frame is given.
        captioned: bool `[B]`, true where the clip's caption is shown, or None where there is no text.
    """

    t: Tensor
    noise: Tensor
    frame_mask: Tensor
    captioned: Tensor | None = None

    def rows(self, start: int, stop: int) -> "Draw":
        """The rows of one process."""
        captioned = None if self.captioned is None else self.captioned[start:stop]
        return Draw(self.t[start:stop], self.noise[start:stop], self.frame_mask[start:stop], captioned)


def stratified_times(batch: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Times `[B]`, each uniform on (0, 1], one in each of B equal strata, in random order (Kingma et al. 2021)."""
    offset = torch.rand((), generator=generator, device=device)
    strata = torch.randperm(batch, generator=generator, device=device)
    return 1 - (strata + offset) / batch


def logit_normal(times: Tensor, mean: float, std: float) -> Tensor:
    """Makes uniform times on (0, 1] such whose logit is normal (Esser et al. 2024), on (0, 1] too; strata stay.

    So a training spends its steps around sigmoid(mean). The weights of the loss do not make up for that.
    """
    moved = (mean + std * torch.special.ndtri(times.double())).sigmoid()
    return moved.clamp(torch.finfo(times.dtype).tiny, 1).to(times.dtype)


def random_frame_mask(
    batch: int,
    frames: int,
    probabilities: Sequence[float],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random given frames, bool `[B, F]`, at least one frame of each clip being left to generate.

    Args:
        batch: B.
        frames: F.
        probabilities: of the four tasks. Generation: none given. Prediction: the first k, k uniform in 1..F−1.
            Interpolation: all but a run somewhere in the middle. In-painting: each frame with a probability that is
            itself uniform in [0, 1].
        generator: source of randomness.
        device: where the mask is made.
    """
    if len(probabilities) != len(TASKS) or min(probabilities) < 0 or abs(sum(probabilities) - 1) > 1e-6:
        raise ValueError(f"`probabilities` is {probabilities}, expected {len(TASKS)} shares {TASKS} that sum to 1.")
    u = torch.rand(4, batch, 1, generator=generator, device=device)
    place = torch.arange(frames, device=device)
    # The bounds hold against the rounding of u·n up to n, and for single frames.
    prefix = (1 + (u[1] * (frames - 1)).long()).clamp(max=frames - 1)  # 1..F−1
    suffix = (u[2] * (frames - prefix)).long().minimum(frames - prefix - 1)  # one frame at least is left
    bernoulli = torch.rand(batch, frames, generator=generator, device=device) < u[3]
    bernoulli &= place != (u[2] * frames).long().clamp(max=frames - 1)
    edges = torch.tensor(probabilities, device=device).cumsum(0)
    task = torch.searchsorted(edges[:-1], u[0], right=True)
    masks = torch.stack(
        [
            torch.zeros(batch, frames, dtype=torch.bool, device=device),
            place < prefix,
            (place < prefix) | (place >= frames - suffix),
            bernoulli,
        ]
    )
    return masks.gather(0, task.T.unsqueeze(-1).expand(1, batch, frames))[0]


def draw(
    shape: Sequence[int],
    probabilities: Sequence[float],
    seed: int,
    step: int,
    num_images: int = 0,
    device: torch.device | str = "cpu",
    caption_dropout: float = 0.0,
    frame_noise: float | None = None,
    logit: Sequence[float] | None = None,
) -> Draw:
    """All that is random in step `step`, for a global batch of `shape` `[B, C, F, H, W]`.

    The last `num_images` frames are independent images and never given. A caption is hidden with the probability
    `caption_dropout` (Ho and Salimans 2022). With `frame_noise` the times are `[B, F]`: with that probability those
    of a clip's frames are independent, each uniform on (0, 1], else they are one. `logit`, a mean and a standard
    deviation, makes uniform times those of `logit_normal`.
    """
    batch, _, frames = shape[:3]
    if not 0 <= num_images <= frames:
        raise ValueError(f"`num_images` is {num_images}, expected 0 to the number of frames, {frames}.")
    generator = torch.Generator(device).manual_seed((seed * 0x9E3779B1 + step) % 2**63)
    mask = torch.zeros(batch, frames, dtype=torch.bool, device=device)
    videos = frames - num_images
    mask[:, :videos] = random_frame_mask(batch, videos, probabilities, generator, device)
    times = stratified_times(batch, generator, device)
    noise = torch.randn(shape, generator=generator, device=device)
    captioned = torch.rand(batch, generator=generator, device=device) >= caption_dropout
    if frame_noise is not None:
        own = 1 - torch.rand(batch, frames, generator=generator, device=device)
        independent = torch.rand(batch, 1, generator=generator, device=device) < frame_noise
        times = torch.where(independent, own, times[:, None])
    if logit is not None:
        times = logit_normal(times, *logit)
    return Draw(times, noise, mask, captioned)


def joint_attention_mask(batch: int, frames: int, num_images: int, device: torch.device | str = "cpu") -> Tensor:
    """`frame_attention_mask` `[B, F, F]` of a clip whose last `num_images` frames are independent images."""
    videos = torch.arange(frames, device=device) < frames - num_images
    mask = (videos[:, None] & videos[None, :]) | torch.eye(frames, dtype=torch.bool, device=device)
    return mask.expand(batch, frames, frames)


def diffusion_loss(
    model: ModelMixin,
    scheduler: VPContinuousScheduler,
    x: Tensor,
    noise: Draw,
    weighting: str,
    num_images: int = 0,
    in_channels: int | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted squared error of the denoiser on the frames that are not given.

    Args:
        model: a denoiser called as `UNet3DConditionModel` is.
        scheduler: its schedule and parametrisation.
        x: clean clips `[B, C, F, H, W]` in [-1, 1].
        noise: the step's draw for these clips.
        weighting: see `video_diffusion.model.scheduler.log_loss_weight`.
        num_images: how many of the last frames are independent images.
        in_channels: of the model; read from its config when left out.
        conditions: further arguments of the model's call (text).

    With a time of each frame in `noise`, given frames stand at time 0, and λ is that of each frame.

    Returns:
        loss: `[B]`, w(λ)·‖x − x̂_θ‖² averaged over the pixels to be generated.
        error: `[B]`, ‖x − x̂_θ‖² averaged likewise, without gradient: comparable across parametrisations.
    """
    channels = model.config.in_channels if in_channels is None else in_channels
    by_frame = noise.t.ndim == 2
    if channels == x.shape[1] and not by_frame:
        noise = replace(noise, frame_mask=torch.zeros_like(noise.frame_mask))
    t = frame_times(noise.t, noise.frame_mask) if by_frame else noise.t
    timestep = t * scheduler.config.num_train_timesteps
    z_t = scheduler.add_noise(x, noise.noise, timestep)
    if by_frame:
        z_t = torch.where(noise.frame_mask[:, None, :, None, None], x, z_t)
    attention = joint_attention_mask(len(x), x.shape[2], num_images, x.device) if num_images else None
    extra = dict(conditions or {}) | ({} if attention is None else {"frame_attention_mask": attention})
    output = model(model_input(z_t, x, noise.frame_mask, channels), timestep, **extra).sample.float()
    target = scheduler.get_target(x, noise.noise, timestep)
    weight = prediction_loss_weight(scheduler.logsnr(t.double()), weighting, scheduler.config.prediction_type).to(
        x.dtype
    )
    if by_frame:
        loss = mean_over_generated(weight[:, None, :, None, None] * (output - target) ** 2, noise.frame_mask)
    else:
        loss = weight * mean_over_generated((output - target) ** 2, noise.frame_mask)
    with torch.no_grad():
        estimate = scheduler.clip_original(scheduler.predict_original(output, timestep, z_t))
        error = mean_over_generated((estimate - x) ** 2, noise.frame_mask)
    return loss, error


def mean_over_generated(squares: Tensor, frame_mask: Tensor) -> Tensor:
    """Mean of `[B, C, F, H, W]` over all but the given frames, `[B]`."""
    per_frame = reduce(squares, "b c f h w -> b f", "mean")
    generated = (~frame_mask).to(per_frame.dtype)
    return (per_frame * generated).sum(1) / generated.sum(1)
