"""What comes into the pipeline: given frames, masks and counts, brought to one form or refused.

It travels to the Hub beside `pipeline.py`, so it imports nothing local.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from operator import index
from typing import Any

import numpy as np
import PIL.Image
import torch
from einops import rearrange
from torch import Tensor

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
PIL_MODES = {1: "L", 3: "RGB"}

Frames = Sequence[Any] | np.ndarray | Tensor
Generators = torch.Generator | list[torch.Generator]


@dataclass
class Given:
    """What the user gave of the video.

    Args:
        frames: `[B, k, C, H, W]` in [0, 1], or None.
        indices: their k places among the F frames.
        mask: bool `[k, 1, 1, 1]` or, for single pixels, `[k, 1, H, W]`, true where they are given.
    """

    frames: Tensor | None
    indices: list[int]
    mask: Tensor

    def whole_frames(self) -> list[int]:
        """The places of the frames of which every pixel is given."""
        whole = self.mask.flatten(1).all(1).tolist()
        return [place for place, is_whole in zip(self.indices, whole, strict=True) if is_whole]

    def repeat(self, base: int, repeats: int) -> "Given":
        """The same for `base · repeats` clips, those of one given clip side by side."""
        if self.frames is None:
            return self
        frames = self.frames.expand(base, -1, -1, -1, -1).repeat_interleave(repeats, dim=0)
        return replace(self, frames=frames)


def read_given(
    frames: Tensor | None, frame_indices: Sequence[int] | None, mask_image: Any, shape: tuple[int, int, int]
) -> Given:
    """Says what of a video is given.

    Args:
        frames: of `read_frames`, or None.
        frame_indices: their places, or None.
        mask_image: see `read_mask_image`, or None.
        shape: F, H, W in pixels.

    Raises:
        ValueError: where these do not fit each other, or leave nothing to make.
    """
    for name, value in {"frame_indices": frame_indices, "mask_image": mask_image}.items():
        if value is not None and frames is None:
            shown = list(value) if name == "frame_indices" else "given"
            raise ValueError(f"`{name}` is {shown}, expected None without `video`.")
    if frames is None:
        return Given(None, [], torch.zeros(0, 1, 1, 1, dtype=torch.bool))
    if tuple(frames.shape[-2:]) != shape[1:]:
        raise ValueError(f"`video` has frames of {tuple(frames.shape[-2:])} pixels, expected {shape[1:]}.")
    if mask_image is None:
        places = check_frame_indices(frame_indices, frames.shape[1], shape[0])
        return Given(frames, places, torch.ones(len(places), 1, 1, 1, dtype=torch.bool))
    if frame_indices is not None:
        raise ValueError(f"`frame_indices` is {list(frame_indices)}, expected None with `mask_image`.")
    if frames.shape[1] != shape[0]:
        raise ValueError(f"`video` has {frames.shape[1]} frames, expected all {shape[0]} with `mask_image`.")
    return Given(frames, list(range(shape[0])), read_mask_image(mask_image, shape))


def read_mask_image(mask_image: Any, shape: tuple[int, int, int]) -> Tensor:
    """The given pixels, bool `[F, 1, H, W]`.

    Args:
        mask_image: numpy array or tensor `[F, H, W]`, or `[H, W]` for all frames; bool, or numbers 0 and 1; true or 1
            where a pixel is given.
        shape: F, H, W.

    Raises:
        ValueError: where type, shape or values are not these, or all or no pixels are given.
    """
    if not isinstance(mask_image, np.ndarray | Tensor):
        raise ValueError(f"`mask_image` is a {type(mask_image).__name__}, expected a numpy array or a tensor.")
    mask = torch.as_tensor(mask_image).detach().cpu()
    if tuple(mask.shape) not in (shape, shape[1:]):
        raise ValueError(
            f"`mask_image` has shape {tuple(mask.shape)}, expected {shape} [F, H, W] or {shape[1:]} [H, W]."
        )
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError("`mask_image` has values other than 0 and 1, expected these or bool.")
    mask = mask.bool().expand(shape)[:, None]
    if mask.all() or not mask.any():
        raise ValueError(f"`mask_image` gives {'every pixel' if mask.all() else 'no pixel'}, expected some of them.")
    return mask


def read_frames(video: Frames, channels: int) -> Tensor:
    """Brings the given frames to one form.

    Args:
        video: one clip (a list of PIL images, a numpy array `[F, H, W, C]` or a tensor `[F, C, H, W]`), a list of such
            clips, or a batch with one more leading axis. Floats in [0, 1] or uint8 in 0..255. PIL images are read
            in the model's mode (grey or RGB).
        channels: the number of channels C the model works with.

    Returns:
        float32 tensor `[B, F, C, H, W]` in [0, 1].

    Raises:
        ValueError: where type, shape, channels, dtype or range are not these.
    """
    if isinstance(video, np.ndarray | Tensor):
        if video.ndim not in (4, 5):
            raise ValueError(
                f"`video` has shape {tuple(video.shape)}, expected [F, H, W, C] or [B, F, H, W, C] as numpy array, "
                "[F, C, H, W] or [B, F, C, H, W] as tensor."
            )
        video = [video] if video.ndim == 4 else list(video)
    if not isinstance(video, list | tuple):
        raise ValueError(f"`video` is a {type(video).__name__}, expected PIL images, a numpy array or a tensor.")
    if not len(video):
        raise ValueError("`video` is empty, expected at least one frame.")
    clips = [_read_clip(clip, channels) for clip in ([video] if isinstance(video[0], PIL.Image.Image) else video)]
    shapes = {tuple(clip.shape) for clip in clips}
    if len(shapes) > 1:
        raise ValueError(f"`video` holds clips of shapes {sorted(shapes)}, expected one shape [F, C, H, W] for all.")
    return torch.stack(clips)


def _read_clip(clip: Any, channels: int) -> Tensor:
    """One clip of `read_frames`: float32 `[F, C, H, W]` in [0, 1]."""
    if isinstance(clip, list | tuple) and clip and all(isinstance(frame, PIL.Image.Image) for frame in clip):
        if channels not in PIL_MODES:
            raise ValueError(f"`video` holds PIL images, expected an array: the model works with {channels} channels.")
        sizes = {frame.size for frame in clip}
        if len(sizes) > 1:
            raise ValueError(f"`video` holds images of sizes {sorted(sizes)}, expected one size for all.")
        clip = np.stack([np.asarray(frame.convert(PIL_MODES[channels])) for frame in clip])
        clip = clip.reshape(*clip.shape[:3], channels)
    if isinstance(clip, np.ndarray) and clip.ndim == 4:
        clip = rearrange(torch.from_numpy(np.ascontiguousarray(clip)), "f h w c -> f c h w")
    if not (isinstance(clip, Tensor) and clip.ndim == 4):
        raise ValueError(f"`video` holds a {type(clip).__name__}, expected PIL images or an array of four axes.")
    if clip.shape[1] != channels or not clip.numel():
        raise ValueError(
            f"`video` has {clip.shape[1]} channels in a clip of {tuple(clip.shape)} [F, C, H, W], expected {channels} "
            "channels and no empty axis."
        )
    return _to_unit_range(clip)


def _to_unit_range(values: Tensor) -> Tensor:
    """Float32 in [0, 1] from uint8 or from floats that are already in that range."""
    if values.dtype == torch.uint8:
        return values.float() / 255
    if not values.is_floating_point():
        raise ValueError(f"`video` has dtype {values.dtype}, expected uint8 or a float type.")
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"`video` runs from {low:g} to {high:g}, expected floats in [0, 1] or uint8.")
    return values.float()


def check_frame_indices(frame_indices: Sequence[int] | None, num_given: int, num_frames: int) -> list[int]:
    """The places of the given frames in the clip: as asked, or 0..k-1.

    Raises:
        ValueError: where they repeat, lie outside 0..F-1, are not one for each given frame, or leave nothing to make.
    """
    try:
        indices = [index(place) for place in (range(num_given) if frame_indices is None else frame_indices)]
    except TypeError as error:
        raise ValueError(f"`frame_indices` is {frame_indices!r}, expected a list of integers.") from error
    if len(indices) != num_given:
        raise ValueError(f"`frame_indices` has {len(indices)} places, expected one for each of {num_given} frames.")
    if any(not 0 <= place < num_frames for place in indices):
        raise ValueError(f"`frame_indices` is {indices}, expected places in 0..{num_frames - 1}.")
    if len(set(indices)) < len(indices):
        raise ValueError(f"`frame_indices` is {indices}, expected no place twice.")
    if num_given == num_frames:
        raise ValueError(f"`video` gives all {num_frames} frames, expected fewer than `num_frames`.")
    return indices


def count_clips(batched: Mapping[str, Any]) -> int:
    """How many clips the batched arguments (or None, or one string) ask for; one item serves all the clips."""
    counts = {k: len(v) for k, v in batched.items() if v is not None and not isinstance(v, str)}
    many = {name: count for name, count in counts.items() if count != 1}
    if len(set(many.values())) > 1 or 0 in many.values():
        raise ValueError(f"{', '.join(f'`{k}` holds {n}' for k, n in many.items())}, expected one number of clips.")
    return max(many.values(), default=1)


def check_integers(**values: Any) -> None:
    """Refuses what is not an integer of at least 1, by its name."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"`{name}` is {value!r}, expected an integer of at least 1.")


class CallInput:
    """The part of the pipeline that knows its sizes and refuses what it cannot do."""

    unet: Any
    scheduler: Any
    vae: Any
    _callback_tensor_inputs: Any

    @property
    def latent_channels(self) -> int:
        """C of the diffusion: the channels of z_t."""
        return self.unet.config.out_channels

    @property
    def pixel_channels(self) -> int:
        """C of the video."""
        return self.latent_channels if self.vae is None else self.vae.config.in_channels

    @property
    def vae_scale_factor(self) -> int:
        """How many pixels a latent stands for, along one edge."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    def check_call(self, output_type: str, guidance_scale: float, callback_inputs: Sequence[str]) -> None:
        """Refuses what this model or no model can do, before anything is computed. Raises ValueError."""
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}, expected one of {OUTPUT_TYPES}.")
        if output_type == "pil" and self.pixel_channels not in PIL_MODES:
            raise ValueError(f"`output_type` is 'pil', expected 'np' or 'pt' for {self.pixel_channels} channels.")
        if not (math.isfinite(guidance_scale) and guidance_scale >= 1):
            raise ValueError(f"`guidance_scale` is {guidance_scale}, expected at least 1 (1: no guidance).")
        unknown = [name for name in callback_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {unknown}, expected some of {self._callback_tensor_inputs}."
            )
        C, in_channels = self.latent_channels, self.unet.config.in_channels
        if in_channels not in (C, 2 * C + 1):
            raise ValueError(
                f"`unet` has in_channels = {in_channels} and out_channels = {C}, expected in_channels of {C} (no "
                f"given frames) or {2 * C + 1} ([z_t, given frames, mask])."
            )

    def resolve_shape(self, num_frames: int | None, height: int | None, width: int | None) -> tuple[int, int, int]:
        """The clip's F, H, W in pixels: as asked, or the trained size.

        Raises:
            ValueError: where they are not known or do not divide.
        """
        config, scale = self.unet.config, self.vae_scale_factor
        size = config.get("sample_size")
        sizes = [size, size] if isinstance(size, int) else list(size or (None, None))
        F = config.get("num_frames") if num_frames is None else num_frames
        H = sizes[0] and sizes[0] * scale if height is None else height
        W = sizes[1] and sizes[1] * scale if width is None else width
        for name, value in {"num_frames": F, "height": H, "width": W}.items():
            if value is None:
                raise ValueError(f"`{name}` is None, expected a number: the model's config names no default.")
        check_integers(num_frames=F, height=H, width=W)
        halvings = len(config.block_out_channels) - 1  # the stock U-Net pads for these, ours does not
        multiple = scale * (config.patch_size * 2**halvings if config.get("patch_size") else 1)
        for name, value in {"height": H, "width": W}.items():
            if value % multiple:
                raise ValueError(f"`{name}` is {value}, expected a multiple of {multiple}.")
        return int(F), int(H), int(W)

    def check_conditioning(self, given: Given, windows: int, scale: float | None) -> None:
        """Refuses a scale of reconstruction guidance where none can be used, and its absence where it is needed.

        Raises:
            ValueError: likewise.
        """
        name, conditioned = "reconstruction_guidance_scale", given.frames is not None or windows > 1
        if scale is None:
            if conditioned and self.unet.config.in_channels == self.latent_channels:
                what = "`video` is given" if given.frames is not None else f"`num_frames` needs {windows} windows"
                raise ValueError(
                    f"`{name}` is None, expected a number: {what} and the model has no channels for given frames "
                    f"(in_channels {self.latent_channels}, not {2 * self.latent_channels + 1})."
                )
            if given.mask.shape[-1] > 1:
                raise ValueError(f"`{name}` is None, expected a number with `mask_image` (0: replacement alone).")
            return
        if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 <= scale < math.inf:
            raise ValueError(f"`{name}` is {scale!r}, expected a number of at least 0.")
        if not conditioned:
            raise ValueError(f"`{name}` is {scale}, expected None: nothing is given and there is one window.")
        lacking = [method for method in ("predict_original", "from_original") if not hasattr(self.scheduler, method)]
        if scale > 0 and lacking:
            raise ValueError(
                f"`{name}` is {scale}, expected 0 or None: the scheduler, {type(self.scheduler).__name__}, has no "
                f"{' and no '.join(lacking)}. `VPContinuousScheduler` has."
            )
        if scale > 0 and torch.is_inference_mode_enabled():
            raise ValueError(f"`{name}` is {scale}, expected None in inference mode, which knows no gradients.")

    def check_history(self, given: Given, windows: int, scale: float, reconstruction: float | None) -> None:
        """Refuses a scale of the guidance on given frames that is no number, or where the model is told none.

        Raises:
            ValueError: likewise, and with reconstruction guidance, which has a second call of its own.
        """
        name = "history_guidance_scale"
        if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 <= scale < math.inf:
            raise ValueError(f"`{name}` is {scale!r}, expected a number of at least 0.")
        if scale == 1:
            return
        if self.unet.config.in_channels == self.latent_channels:
            raise ValueError(f"`{name}` is {scale}, expected 1: the model has no channels for given frames.")
        if given.frames is None and windows == 1:
            raise ValueError(f"`{name}` is {scale}, expected 1: nothing is given and there is one window.")
        if reconstruction:
            raise ValueError(f"`{name}` is {scale}, expected 1 with `reconstruction_guidance_scale` {reconstruction}.")

    def check_latents(self, shape: tuple[int, ...], generator: Generators | None, latents: Tensor | None) -> None:
        """Refuses noise that is not of `shape` `[B, C, F, H, W]` or generators that are not B. Raises ValueError."""
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(f"`generator` has {len(generator)} items, expected one for each of {shape[0]} clips.")
        if latents is not None and (tuple(latents.shape) != shape or not latents.is_floating_point()):
            raise ValueError(
                f"`latents` has shape {tuple(latents.shape)} and dtype {latents.dtype}, expected {shape} "
                "[B, C, F, H, W] and a float type."
            )
