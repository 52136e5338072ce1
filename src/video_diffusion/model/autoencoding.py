"""The latents of a VAE of diffusers: one way to call them all, whatever their classes call their sizes and factors.

`LatentSpace` encodes and decodes clips; `FrameGrid` says which frames of a clip each frame of its latents stands for.
This file travels to the Hub beside `pipeline.py`, so it imports nothing local.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

REFUSED = {  # classes of diffusers that have `encode` and `decode`, and why they do not serve
    "AutoencoderKLAllegro": "it works in tiles of a fixed size only",
    "AutoencoderKLFlux2": "its latents are scaled by a batch normalisation of patches",
    "AutoencoderOobleck": "it is of sound",
    "AutoencoderVidTok": "it pads clips in time, so that frames and latent frames do not keep together",
    "ConsistencyDecoderVAE": "its decoder is a diffusion of its own",
}
WHOLE = {"AutoencoderKLCogVideoX": 2}  # latent frames behind the first come in groups of so many
ALONE = ("AutoencoderKLHunyuanVideo15", "AutoencoderKLHunyuanImageRefiner")  # their masks take one clip at a time


@dataclass(frozen=True)
class FrameGrid:
    """Which frames of a clip each frame of its latents stands for: the first for frame 0, each other for T frames.

    Args:
        ratio: T, temporal compression, at least 1.
        group: the latent frames behind the first are a multiple of this.
    """

    ratio: int = 1
    group: int = 1

    def start(self, place: int) -> int:
        """The first frame of latent frame `place`; and so how many frames `place` latent frames stand for."""
        return place if place < 1 else 1 + (place - 1) * self.ratio

    def place(self, frame: int) -> int:
        """The latent frame that a frame belongs to."""
        return math.ceil(frame / self.ratio)

    def frames(self, place: int) -> range:
        """The frames of latent frame `place`."""
        return range(self.start(place), self.start(place + 1))

    def length(self, num_frames: int, name: str = "num_frames") -> int:
        """The number of latent frames of a clip.

        Args:
            num_frames: F.
            name: of the argument, for the error.

        Raises:
            ValueError: where a clip cannot have F frames; it says which numbers it can.
        """
        step = self.ratio * self.group
        if (num_frames - 1) % step == 0:
            return self.place(num_frames - 1) + 1
        low = 1 + (num_frames - 1) // step * step
        raise ValueError(
            f"`{name}` is {num_frames}, expected 1 and a multiple of {step}, such as {low} or {low + step}: the VAE "
            f"makes one latent frame of the first frame and one of each {self.ratio} after it."
        )


def check_vae(vae: Any) -> None:
    """Refuses what is no VAE of images or videos, or one that is known not to serve.

    Raises:
        ValueError: saying why.
    """
    name = type(vae).__name__
    if name in REFUSED:
        raise ValueError(f"`vae` is a {name}, expected another class: {REFUSED[name]}.")
    parts = [part for part in ("encode", "decode", "encoder", "config") if not hasattr(vae, part)]
    if parts:
        raise ValueError(
            f"`vae` is a {name}, expected an autoencoder of diffusers: it has no {' and no '.join(parts)}."
        )
    if not LatentSpace(vae)._first("vq_embed_dim", "latent_channels", "z_dim", "z_channels"):
        raise ValueError(f"`vae` is a {name}, expected one whose config names its latent channels.")


class LatentSpace:
    """Latents of clips, scaled as a diffusion wants them: about zero mean and unit variance.

    Sizes and factors are read from the VAE's config and layers. x goes to (z − mean)·s / std, with `latents_mean` and
    `latents_std` of each channel, or to (z − `shift_factor`)·`scaling_factor`; z is the mean of the posterior.

    Args:
        vae: an autoencoder of images or videos of diffusers.
    """

    def __init__(self, vae: Any) -> None:
        self.vae, self.config = vae, vae.config

    def _first(self, *names: str) -> Any:
        """The first of these values of the config that there is."""
        return next((self.config[name] for name in names if self.config.get(name) is not None), None)

    def _own(self, name: str) -> Any:
        """A value of the VAE itself, a plain attribute or a buffer; its config is asked where it has none."""
        found = vars(self.vae).get(name)
        found = vars(self.vae)["_buffers"].get(name) if found is None else found
        return self.config.get(name) if found is None else found

    # ------------------------------------------------------------------------------------------------------ the sizes
    @property
    def channels(self) -> int:
        """C of the latents."""
        return self._first("vq_embed_dim", "latent_channels", "z_dim", "z_channels")

    @property
    def pixel_channels(self) -> int:
        """C of the clips that the VAE takes."""
        return self._first("out_channels", "out_ch", "input_channels", "in_channels")

    @cached_property
    def is_video(self) -> bool:
        """Whether the VAE encodes clips, not single frames."""
        return any(isinstance(module, nn.Conv3d) for module in self.vae.encoder.modules())

    @cached_property
    def _decodes_clips(self) -> bool:
        """Whether the decoder of an encoder of frames looks at their neighbours."""
        return "num_frames" in inspect.signature(self.vae.decode).parameters

    @property
    def sees_time(self) -> bool:
        """Whether a frame of a decoded clip depends on more than one frame of the latents."""
        return self.is_video or self._decodes_clips

    @property
    def spatial(self) -> int:
        """Spatial compression: pixels along the edge of a latent."""
        halved = self.config.get("temperal_downsample")  # their spelling; Wan and Qwen halve once for each entry
        if halved is not None:
            return 2 ** len(halved) * (self.config.get("patch_size") or 1)
        if (ratio := self._own("spatial_compression_ratio")) is not None:
            return int(ratio)
        if (multiples := self._first("ch_mult")) is not None:
            return 2 ** (len(multiples) - 1)
        widths = self._first("down_block_out_channels", "encoder_block_out_channels", "block_out_channels")
        return 2 ** (len(widths) - 1)

    @property
    def temporal(self) -> int:
        """Temporal compression: frames for one latent frame, behind the first."""
        if not self.is_video:
            return 1
        halved = self.config.get("temperal_downsample")
        if halved is not None:
            return 2 ** sum(halved)
        return int(self._own("temporal_compression_ratio") or self._first("temporal_compress_times") or 1)

    @property
    def grid(self) -> FrameGrid:
        """Which frames each latent frame stands for."""
        return FrameGrid(self.temporal, WHOLE.get(type(self.vae).__name__, 1))

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """C, F, H, W of the latents of a clip.

        Raises:
            ValueError: where the factors do not divide the clip.
        """
        for name, value in {"height": height, "width": width}.items():
            if value % self.spatial:
                raise ValueError(f"`{name}` is {value}, expected a multiple of {self.spatial}, the VAE's factor.")
        return self.channels, self.grid.length(frames), height // self.spatial, width // self.spatial

    # ------------------------------------------------------------------------------------------------------ the scale
    def _moments(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of each channel, `[1, C, 1, 1, 1]`, where the VAE has them."""
        found = [self._own(name) for name in ("latents_mean", "latents_std")]  # LTX keeps them among its weights
        if found[0] is None or found[1] is None:
            return None
        mean, std = (torch.as_tensor(value).to(z).reshape(1, -1, *[1] * (z.ndim - 2)) for value in found)
        if mean.shape[1] == self.channels:
            return mean, std
        if mean.shape[1] % self.channels:
            raise ValueError(
                f"`vae` has {mean.shape[1]} latents_mean, expected one for each of {self.channels} channels."
            )
        by_frame = (1, self.channels, -1, 1, 1)  # Cosmos 1 has one for each latent frame too
        mean, std = (value.reshape(by_frame)[:, :, : z.shape[2]] for value in (mean, std))
        if mean.shape[2] < z.shape[2]:
            raise ValueError(
                f"`vae` has latents_mean of {mean.shape[2]} latent frames, expected {z.shape[2]} of them."
            )
        return mean, std

    def scale(self, z: Tensor) -> Tensor:
        """What a diffusion works on, of what the encoder gives; `[B, C, F, H, W]` both."""
        factor, moments = self._first("scaling_factor") or 1.0, self._moments(z)
        if moments is None:
            return (z - (self._first("shift_factor") or 0.0)) * factor
        return (z - moments[0]) * factor / moments[1]

    def unscale(self, latents: Tensor) -> Tensor:
        """What the decoder takes: the inverse of `scale`."""
        factor, moments = self._first("scaling_factor") or 1.0, self._moments(latents)
        if moments is None:
            return latents / factor + (self._first("shift_factor") or 0.0)
        return latents * moments[1] / factor + moments[0]

    # ---------------------------------------------------------------------------------------------------------- calls
    def encode(self, clips: Tensor, rows: int = 1) -> Tensor:
        """Latents `[B, c, f, h, w]`, float32, of clips `[B, C, F, H, W]` in [-1, 1].

        Args:
            clips: one channel is repeated where the VAE takes three.
            rows: how many clips, or frames for a VAE of images, one call of the VAE gets.

        Raises:
            ValueError: where the VAE cannot take the clips.
        """
        batch, channels, frames, height, width = clips.shape
        self.shape(frames, height, width)
        if channels == 1 < self.pixel_channels:
            clips = clips.expand(-1, self.pixel_channels, -1, -1, -1)
        elif channels != self.pixel_channels:
            raise ValueError(f"`clips` have {channels} channels, expected {self.pixel_channels}, those of the VAE.")
        clips = clips if self.is_video else rearrange(clips, "b c f h w -> (b f) c h w")
        parts = clips.split(self._rows(rows))
        z = torch.cat([self._encode(part.to(self.vae.dtype)).float() for part in parts])
        return self.scale(z if self.is_video else rearrange(z, "(b f) c h w -> b c f h w", b=batch))

    def _rows(self, asked: int) -> int:
        return 1 if type(self.vae).__name__ in ALONE else asked

    def _encode(self, x: Tensor) -> Tensor:
        output = self.vae.encode(x)
        if hasattr(output, "latent_dist"):
            return output.latent_dist.mode()
        return output.latents if hasattr(output, "latents") else output.latent

    def decode(self, latents: Tensor, rows: int = 1, channels: int | None = None) -> Tensor:
        """Clips `[B, C, F, H, W]`, float32, about [-1, 1], of latents `[B, c, f, h, w]`.

        Args:
            latents: as `encode` gives them.
            rows: as there.
            channels: C; 1 of a VAE with three: their mean. None: those of the VAE.
        """
        batch, _, frames = latents.shape[:3]
        z, rows = self.unscale(latents.float()), self._rows(rows)
        if self.sees_time:
            parts = [self._decode(part.to(self.vae.dtype), frames) for part in z.split(rows)]
        else:
            images = rearrange(z, "b c f h w -> (b f) c h w")
            parts = [self._decode(part.to(self.vae.dtype)) for part in images.split(rows)]
        clips = torch.cat([part.float() for part in parts])
        if not self.is_video:
            clips = rearrange(clips, "(b f) c h w -> b c f h w", b=batch)
        return clips if channels in (None, clips.shape[1]) else clips.mean(1, keepdim=True)

    def _decode(self, z: Tensor, frames: int = 1) -> Tensor:
        extra: dict[str, Any] = {}
        if self._decodes_clips:
            z, extra["num_frames"] = rearrange(z, "b c f h w -> (b f) c h w"), frames
        if self.config.get("timestep_conditioning"):  # LTX: no noise is left in what is decoded
            extra["temb"] = torch.zeros(len(z), device=z.device, dtype=z.dtype)
        output = self.vae.decode(z, **extra)
        return output if isinstance(output, Tensor) else output.sample

    def encode_runs(self, frames: Tensor, indices: Sequence[int]) -> dict[int, Tensor]:
        """Latents of some frames of a clip, as a clip that is known in parts.

        Frames from the first on are encoded as they are, so that a causal VAE gives them their latents in the whole
        clip. Those after a gap are encoded as if the clip had stood still in it.

        Args:
            frames: `[B, k, C, H, W]` in [-1, 1].
            indices: their places, which fill whole latent frames.

        Returns:
            `[B, c, h, w]` by latent frame.
        """
        grid, at = self.grid, {place: i for i, place in enumerate(indices)}
        places = sorted({grid.place(index) for index in indices})
        found: dict[int, Tensor] = {}
        while places:
            run = [place for i, place in enumerate(places) if place == places[0] + i]
            chosen = [at[frame] for place in run for frame in grid.frames(place)]
            still = [] if run[0] == 0 else [chosen[0]]
            padding = [chosen[-1]] * (-(len(chosen) + len(still) - 1) % (grid.ratio * grid.group))
            clip = rearrange(frames[:, [*still, *chosen, *padding]], "b f c h w -> b c f h w")
            latents = self.encode(clip)[:, :, len(still) :]
            found |= {place: latents[:, :, i] for i, place in enumerate(run)}
            places = places[len(run) :]
        return found


def save_memory(vae: Any, slicing: bool = False, tiling: bool = False) -> None:
    """Lets a VAE work clip by clip (`slicing`) or tile by tile (`tiling`).

    Raises:
        ValueError: where its class cannot.
    """
    for name, wanted in {"slicing": slicing, "tiling": tiling}.items():
        if not wanted:
            continue
        try:
            getattr(vae, f"enable_{name}")()
        except (AttributeError, NotImplementedError) as error:
            raise ValueError(
                f"`vae_{name}` is True, expected False: a {type(vae).__name__} knows no {name}."
            ) from error
