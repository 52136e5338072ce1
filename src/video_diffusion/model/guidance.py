"""How the network is called, and guidance: plain functions that make one denoiser out of another.

A denoiser is called as `denoise(z_t, t, conditions)` and returns the network's output, float32, and the z_t that this
output belongs to. `network` is the first of them; `classifier_free`, `history`, `reconstruction` and `replacement`
each wrap another. Every coefficient comes from the scheduler. This file travels to the Hub beside `pipeline.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .autoencoding import FrameGrid


@dataclass
class Conditions:
    """What a denoiser knows beside z_t.

    Args:
        given: the known values, `[B, C, F, H, W]` in [-1, 1] (or latents), 0 elsewhere.
        known: bool, `[1, 1, F, 1, 1]` or `[1, 1, F, H, W]`, true where a frame or a pixel is known.
        frame_mask: bool `[1, F]`, the known frames that the model reads from its own channels. The other known places
            are replaced in z_t by their noised values, and can guide the rest.
        prompt_embeds: text `[B, L, D]`, or None for a model without text.
        negative_prompt_embeds: the same for the other side of the guidance, or None without guidance.
        noisy: a draw of q(z_t | x) from the known values at the time of this step, `[B, C, F, H, W]`; only where
            `replacement` made one.
        masked: bool `[1, F]`, the frames that a model with a time for each frame shall not know: they stand at the
            time of pure noise. None: none.
    """

    given: Tensor
    known: Tensor
    frame_mask: Tensor
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    noisy: Tensor | None = None
    masked: Tensor | None = None

    def place(self, z: Tensor) -> Tensor:
        """`[B, C, F, H, W]`: the frames that the model reads in their places, `z` elsewhere."""
        return torch.where(self.frame_mask[:, None, :, None, None], self.given, z)

    def place_noisy(self, z: Tensor) -> Tensor:
        """`[B, C, F, H, W]`: noised values in every known place, `z` elsewhere."""
        assert self.noisy is not None, "`replacement` goes around whatever needs noised values"
        return torch.where(self.known, self.noisy, z)

    def hide(self, masked: bool = False) -> "Conditions":
        """The same for a model that reads no frame; `masked`: those that it read stand at the time of pure noise."""
        return replace(
            self, frame_mask=torch.zeros_like(self.frame_mask), masked=self.frame_mask if masked else self.masked
        )


Denoiser = Callable[[Tensor, Tensor, Conditions], tuple[Tensor, Tensor]]


@dataclass
class Canvas:
    """The videos of a call, or of a stream those frames that are still needed; on the CPU, filled window by window.

    Args:
        latents: x where it is known (z_0 once it is made), `[B, C, F, H, W]`, 0 elsewhere.
        known: bool `[1, 1, F, 1, 1]` or, for single pixels, `[1, 1, F, H, W]`, true where it is known.
        video: what is made, decoded: `[B, F, C, H, W]` in [0, 1]; None where latents are asked for.
        start: which frame of the latents is the first of these F.
        grid: which frames of `video` each frame of `latents` stands for; without a VAE they are the same.
    """

    latents: Tensor
    known: Tensor
    video: Tensor | None = None
    start: int = 0
    grid: FrameGrid = field(default_factory=FrameGrid)

    @property
    def stop(self) -> int:
        """The frame of the latents behind the last of these."""
        return self.start + self.latents.shape[2]

    def at(self, places: Sequence[int]) -> list[int]:
        """Where frames of the latents stand on their axis."""
        return [place - self.start for place in places]

    def frames_at(self, frames: Sequence[int]) -> list[int]:
        """Where frames of the video stand on its axis."""
        return [frame - self.grid.start(self.start) for frame in frames]

    def put(self, places: Sequence[int], latents: Tensor, video: Tensor | None) -> None:
        """Adds the frames that a window made."""
        self.latents[:, :, self.at(places)] = latents.cpu()
        self.known[:, :, self.at(places)] = True
        if self.video is not None and video is not None:
            frames = [frame for place in places for frame in self.grid.frames(place)]
            self.video[:, self.frames_at(frames)] = video.cpu()

    def slide(self, start: int, stop: int) -> None:
        """Drops the frames before `start`, and adds unknown ones up to `stop`."""
        dropped, added = max(start - self.start, 0), max(stop - self.stop, 0)
        if self.video is not None:
            first, behind, count = self.start + dropped, self.stop + added, self.grid.start
            self.video = _slide(self.video, 1, count(first) - count(self.start), count(behind) - count(self.stop))
        self.latents = _slide(self.latents, 2, dropped, added)
        self.known = _slide(self.known, 2, dropped, added)
        self.start += dropped


def _slide(x: Tensor, axis: int, dropped: int, added: int) -> Tensor:
    """A copy of `x` without its first indices of an axis, with zeros behind the last."""
    shape = list(x.shape)
    shape[axis] = added
    return torch.cat([x.narrow(axis, dropped, x.shape[axis] - dropped), x.new_zeros(shape)], dim=axis)


# --------------------------------------------------------------------------------------------------------- the network
def model_input(z_t: Tensor, x: Tensor, frame_mask: Tensor, in_channels: int) -> Tensor:
    """What the network sees: `[z_t, given frames (0 elsewhere), mask]` on the channel axis, `[B, 2·C + 1, F, H, W]`.

    A given frame stands at noise level zero: it takes z_t's place too. A model with C channels sees z_t alone.

    Args:
        z_t: noisy clips `[B, C, F, H, W]`.
        x: clean clips, of which only the given frames are read; same shape.
        frame_mask: bool `[B, F]` or `[1, F]`, true where a frame is given.
        in_channels: C or 2·C + 1.

    Raises:
        ValueError: where `in_channels` is neither.
    """
    if in_channels == z_t.shape[1]:
        return z_t
    if in_channels != 2 * z_t.shape[1] + 1:
        raise ValueError(f"`in_channels` is {in_channels}, expected C or 2·C + 1 for C = {z_t.shape[1]} channels.")
    mask = frame_mask[:, None, :, None, None]
    plane = mask.to(z_t.dtype).expand_as(z_t[:, :1])
    return torch.cat([torch.where(mask, x, z_t), torch.where(mask, x, 0.0), plane], dim=1)


def reads_frames(config: Any) -> bool:
    """Whether a network of this config knows which frames are given: from channels, or as they stand at time 0."""
    return config.in_channels > config.out_channels or has_frame_times(config)


def has_frame_times(config: Any) -> bool:
    """Whether a network of this config was trained with a time for each frame."""
    return bool(config.get("frame_timesteps"))


def per_clip(t: Tensor, batch: int) -> Tensor:
    """Times for each of so many clips: `[B]` from `[]`, `[B, F]` from `[1, F]` or `[F]`."""
    return t.expand(batch) if t.ndim == 0 else t.expand(batch, t.shape[-1])


def frame_times(t: Tensor, frame_mask: Tensor) -> Tensor:
    """A time for each frame, `[B, F]`: 0 where a frame is given.

    Args:
        t: `[B]`, or already `[B, F]`.
        frame_mask: bool `[B, F]` or `[1, F]`, true where a frame is given.
    """
    return torch.where(frame_mask, 0.0, t if t.ndim == 2 else t[:, None])


def reads_guidance(unet: Any) -> bool:
    """Whether the scale of guidance by text is an input of the network: then one call does what else takes two."""
    return unet.config.get("time_cond_proj_dim") is not None


def guidance_embedding(scale: Tensor, width: int) -> Tensor:
    """How a network reads the scale of its guidance (Meng et al. 2023), as in diffusers' latent consistency pipelines.

    Args:
        scale: w, `[B]`; 1 is no guidance.
        width: `time_cond_proj_dim`, at least 4.

    Returns:
        `[B, width]`, sine and cosine of 1000·(w − 1) at frequencies from 1 to 1/10000; a 0 more for an odd width.
    """
    half = width // 2
    frequencies = torch.exp(
        -math.log(10_000) / (half - 1) * torch.arange(half, dtype=scale.dtype, device=scale.device)
    )
    angles = 1000 * (scale[:, None] - 1) * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def network(unet: Any, scheduler: Any, scale: Callable[[], float] = lambda: 1.0) -> Denoiser:
    """The network's own output.

    Args:
        unet: called as `UNet3DConditionModel` is.
        scheduler: of diffusers; its `scale_model_input` comes before the network.
        scale: gives w at every step, for a network that reads it.
    """

    def denoise(z_t: Tensor, t: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        scaled = scheduler.scale_model_input(z_t, t)
        x = model_input(scaled, conditions.given, conditions.frame_mask, unet.config.in_channels).to(unet.dtype)
        more = {}
        if reads_guidance(unet):
            w = torch.full((len(x),), max(scale(), 1.0), device=x.device)
            more["timestep_cond"] = guidance_embedding(w, unet.config.time_cond_proj_dim).to(unet.dtype)
        times = per_clip(t, len(x))
        if has_frame_times(unet.config):
            times = frame_times(times, conditions.frame_mask)
            if conditions.masked is not None:
                times = torch.where(conditions.masked, float(scheduler.config.num_train_timesteps), times)
        text = conditions.prompt_embeds
        output = unet(x, times, encoder_hidden_states=text, return_dict=False, **more)[0]
        return output.float(), z_t

    return denoise


# ------------------------------------------------------------------------------------------------------------ guidance
def classifier_free(denoise: Denoiser, scale: Callable[[], float]) -> Denoiser:
    """Guidance by text: ε̂ = free + w (bound − free), Ho and Salimans 2022, equation (6), with w of 1 for none.

    Both sides are one call of twice the batch. Without a negative side, and for w ≤ 1, it is the conditional call
    alone, as in the pipelines of diffusers.

    Args:
        denoise: what is called.
        scale: gives w; asked at every step, because a callback may change it.
    """

    def guided(z_t: Tensor, t: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        negative, embeds, w = conditions.negative_prompt_embeds, conditions.prompt_embeds, scale()
        if negative is None or embeds is None or w <= 1:
            return denoise(z_t, t, conditions)
        given = torch.cat([conditions.given, conditions.given])
        both = replace(conditions, given=given, prompt_embeds=torch.cat([negative, embeds]))
        free, bound = denoise(torch.cat([z_t, z_t]), t, both)[0].chunk(2)
        return free + w * (bound - free), z_t

    return guided


def history(denoise: Denoiser, scale: float, masks: bool = False) -> Denoiser:
    """Guidance by the given frames: away from what the model makes of them when it does not read them.

    ô = free + w (bound − free), as in Song et al. 2025 ("History-Guided Video Diffusion"). On the free side a network
    with a time for each frame gets pure noise in the place of the given frames, as theirs does; any other gets them at
    the noise level of z_t.

    Args:
        denoise: what is called, twice a step.
        scale: w; 1 is no guidance.
        masks: whether the network has a time for each frame.
    """

    def guided(z_t: Tensor, t: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        free, _ = denoise(conditions.place_noisy(z_t), t, conditions.hide(masked=masks))
        bound, z_t = denoise(z_t, t, conditions)
        return free + scale * (bound - free), z_t

    return guided


def reconstruction(denoise: Denoiser, scheduler: Any, scale: float) -> Denoiser:
    """Reconstruction guidance: equation (8) of Ho et al. 2022 ("Video Diffusion Models").

    x̂ moves by −(w α_t / 2) ∇_{z_b} ‖x_a − x̂_a‖² outside the known places a. A model says nothing of use about frames
    that it reads, so x̂_a then comes from a second call in which it reads none.

    Args:
        denoise: what is called.
        scheduler: has `predict_original`, `from_original`, `clip_original` and `guide_original`.
        scale: w.
    """

    def estimate(z_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return scheduler.clip_original(scheduler.predict_original(denoise(z_t, t, conditions)[0], t, z_t))

    def guided(z_t: Tensor, t: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        noisy = conditions.place_noisy(z_t)
        with torch.enable_grad():
            leaf = noisy.detach().requires_grad_()
            x = estimate(leaf, t, conditions.hide())
            error = torch.where(conditions.known, x - conditions.given, 0.0).square().sum()
            (gradient,) = torch.autograd.grad(error, leaf)
        x, z_t = x.detach(), conditions.place(noisy)
        if conditions.frame_mask.any():
            x = estimate(z_t, t, conditions)
        x = scheduler.guide_original(x, torch.where(conditions.known, 0.0, gradient), t, scale)
        return scheduler.from_original(x, t, z_t), z_t

    return guided


def replacement(
    denoise: Denoiser,
    scheduler: Any,
    generator: torch.Generator | list[torch.Generator] | None,
    masks: bool = False,
) -> Denoiser:
    """Known places that the model does not read hold a new draw of q(z_t | x) at every step.

    Args:
        denoise: what is called; it finds that draw, for all known places, in `conditions.noisy`.
        scheduler: its `add_noise` is q(z_t | x).
        generator: of the noise.
        masks: whether the frames that the model reads hold pure noise there, as `history` may need it.
    """

    def replaced(z_t: Tensor, t: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        noise = randn_tensor(z_t.shape, generator=generator, device=z_t.device, dtype=z_t.dtype)
        times = per_clip(t, len(z_t))
        if masks:
            times = times if times.ndim == 2 else times[:, None]
            times = torch.where(conditions.frame_mask, float(scheduler.config.num_train_timesteps), times)
        noisy = scheduler.add_noise(conditions.given, noise, times)
        conditions = replace(conditions, noisy=noisy)
        return denoise(conditions.place(conditions.place_noisy(z_t)), t, conditions)

    return replaced


def compose(
    denoise: Denoiser,
    scheduler: Any,
    conditions: Conditions,
    generator: torch.Generator | list[torch.Generator] | None,
    history_scale: float,
    reconstruction_scale: float,
    has_times: bool = False,
) -> Denoiser:
    """What a window needs around a denoiser.

    Args:
        denoise: with the text's guidance, if any.
        scheduler: as in `reconstruction`.
        conditions: of the window.
        generator: of `replacement`.
        history_scale: w of `history`; 1: none.
        reconstruction_scale: w of `reconstruction`; 0: none.
        has_times: whether the network has a time for each frame.
    """
    read, known = bool(conditions.frame_mask.any()), bool(conditions.known.any())
    replaced = bool((conditions.known & ~conditions.frame_mask[:, None, :, None, None]).any())
    masks = history_scale != 1 and read and has_times
    if history_scale != 1 and read:
        denoise, replaced = history(denoise, history_scale, masks), True
    if reconstruction_scale > 0 and known:
        denoise, replaced = reconstruction(denoise, scheduler, reconstruction_scale), True
    return replacement(denoise, scheduler, generator, masks) if replaced else denoise


# --------------------------------------------------------------------------------------------------------- the pyramid
def pyramid_times(frame_mask: Tensor, steps: int, lag: float) -> Tensor:
    """Times of each frame before and after each step, where later frames are denoised later; `[steps + 1, F]`.

    The schedule of Chen et al. 2024 ("Diffusion Forcing") with a fixed number of network calls. Each frame goes from 1
    to 0 evenly in a share 1/(1 + lag) of the steps; the last one ends with the last step.

    Args:
        frame_mask: bool `[F]`, true where a frame is given: its time is 0.
        steps: network calls.
        lag: 0: all frames together; 1: the last frame begins when the first is done.
    """
    made = (~frame_mask).double()
    place = (made.cumsum(0) - 1).clamp(min=0) / (made.sum() - 1).clamp(min=1)
    progress = torch.arange(steps + 1, dtype=torch.float64, device=frame_mask.device)[:, None] / steps
    return (1 - (progress * (1 + lag) - lag * place)).clamp(0, 1) * made
