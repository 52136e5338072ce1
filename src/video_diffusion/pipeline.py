"""`VideoDiffusionPipeline`: generates, predicts, interpolates and in-paints videos, told apart by a mask.

This file travels to the Hub as it is, so it imports third-party packages only.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from einops import rearrange
from torch import Tensor

LIBRARY = "video_diffusion"  # how `model_index.json` names the home of our components: a file format, never to change
OWN_COMPONENTS = ("VideoUNet3DConditionModel", "VPContinuousScheduler")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
PIL_MODES = {1: "L", 3: "RGB"}

Frames = Sequence[Any] | np.ndarray | Tensor
Generators = torch.Generator | list[torch.Generator]


@dataclass
class VideoDiffusionPipelineOutput(BaseOutput):
    """Output of the pipeline.

    Args:
        frames: the clips, by `output_type`: a list of lists of PIL images; a numpy array `[B, F, H, W, C]` or a tensor
            `[B, F, C, H, W]`, float32 in [0, 1]; or latents `[B, C, F, H, W]`.
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | Tensor


@dataclass
class Conditions:
    """What the model is told beside z_t.

    Args:
        given: the given frames, `[B, C, F, H, W]` in [-1, 1] (or their latents), 0 elsewhere.
        frame_mask: `[B, 1, F, 1, 1]` bool, true where a frame is given.
        prompt_embeds: text `[B, L, D]`, or None for a model without text.
        negative_prompt_embeds: the same for the other side of the guidance, or None without guidance.
    """

    given: Tensor
    frame_mask: Tensor
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None

    def place(self, z: Tensor) -> Tensor:
        """`[B, C, F, H, W]`: the given frames in their places, `z` elsewhere."""
        return torch.where(self.frame_mask, self.given, z)


# ------------------------------------------------------------------------------------------------------ pure functions
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


def check_absent(**values: Any) -> None:
    """Refuses the arguments that have a place in the signature and no code yet."""
    for name, value in values.items():
        if value is not None:
            raise ValueError(f"`{name}` is {value!r}, expected None: it is not implemented yet.")


# -------------------------------------------------------------------------------------------------------- the pipeline
class VideoDiffusionPipeline(DiffusionPipeline):
    """Samples videos from a diffusion model, free or around given frames.

    The frames that are given and the ones to be made differ only in a mask. A model with `in_channels = 2·C + 1` reads
    `[z_t, given frames (0 elsewhere), mask]` on the channel axis, where z_t holds the given frames themselves: their
    noise level is zero. So one checkpoint generates, predicts, interpolates and in-paints.

    Args:
        unet: `VideoUNet3DConditionModel`, or any model with the call and config of diffusers' `UNet3DConditionModel`.
        scheduler: `VPContinuousScheduler`, or a scheduler of diffusers.
        text_encoder: a text model of transformers whose output has `last_hidden_state`.
        tokenizer: its tokenizer.
        vae: `AutoencoderKL`; the diffusion then runs in its latents, frame by frame.
    """

    model_cpu_offload_seq: Any = "text_encoder->unet->vae"
    _optional_components = ["text_encoder", "tokenizer", "vae"]  # noqa: RUF012  a hook of diffusers
    _callback_tensor_inputs = ("latents", "prompt_embeds", "negative_prompt_embeds")

    unet: Any
    scheduler: Any
    text_encoder: Any
    tokenizer: Any
    vae: Any

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        text_encoder: torch.nn.Module | None = None,
        tokenizer: object | None = None,
        vae: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer, vae=vae)
        self._guidance_scale, self._num_timesteps = 1.0, 0
        self._current_timestep: Tensor | None = None
        self._interrupt = False

    guidance_scale = property(lambda self: self._guidance_scale, doc="The scale of the call that runs.")
    num_timesteps = property(lambda self: self._num_timesteps, doc="The number of steps of the call that runs.")
    current_timestep = property(lambda self: self._current_timestep, doc="The timestep the call has reached, or None.")
    interrupt = property(lambda self: self._interrupt, doc="Set `_interrupt` in a callback to skip what is left.")

    # ------------------------------------------------------------------------------------------------- load and save
    def register_to_config(self, **kwargs: Any) -> None:
        """Names the home of our own components as `model_index.json` shall, wherever their code was loaded from."""
        for name, entry in kwargs.items():
            if isinstance(entry, list | tuple) and len(entry) == 2 and entry[1] in OWN_COMPONENTS:
                kwargs[name] = (LIBRARY, entry[1])
        super().register_to_config(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "VideoDiffusionPipeline":
        """Loads a pipeline from a folder, the Hub or its cache; arguments as in diffusers.

        Our own components come from the installed package and not from the files in the folder: no trust flag.

        Raises:
            ValueError: where the weights are broken, or are not those of the folder's config.
            OSError: where there is no such folder or a file is missing.
        """
        if isinstance(kwargs.get("dtype"), str):
            raise ValueError(f"`dtype` is the string {kwargs['dtype']!r}, expected a torch.dtype or a dict of them.")
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            if folder.is_absolute() or len(folder.parts) > 2 or str(pretrained_model_name_or_path).startswith("."):
                raise OSError(f"{folder} is no folder, expected that of a saved pipeline or a Hub id 'owner/name'.")
            folder = Path(cls.download(str(pretrained_model_name_or_path), **kwargs))
        kwargs.setdefault("low_cpu_mem_usage", find_spec("accelerate") is not None)
        own = import_module(f"{LIBRARY}.hub").load_own_components(folder, kwargs)
        pipeline = super().from_pretrained(str(folder), **own, **kwargs)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    # ------------------------------------------------------------------------------------------------ what came in
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
            ValueError: where they are not known, do not divide, or F is beyond the trained length.
        """
        config, scale = self.unet.config, self.vae_scale_factor
        trained = config.get("num_frames")
        size = config.get("sample_size")
        sizes = [size, size] if isinstance(size, int) else list(size or (None, None))
        F = trained if num_frames is None else num_frames
        H = sizes[0] and sizes[0] * scale if height is None else height
        W = sizes[1] and sizes[1] * scale if width is None else width
        for name, value in {"num_frames": F, "height": H, "width": W}.items():
            if value is None:
                raise ValueError(f"`{name}` is None, expected a number: the model's config names no default.")
        check_integers(num_frames=F, height=H, width=W)
        if trained is not None and trained < F:
            raise ValueError(f"`num_frames` is {F}, expected at most {trained}, the trained length (no windows yet).")
        halvings = len(config.block_out_channels) - 1  # the stock U-Net pads for these, ours does not
        multiple = scale * (config.patch_size * 2**halvings if config.get("patch_size") else 1)
        for name, value in {"height": H, "width": W}.items():
            if value % multiple:
                raise ValueError(f"`{name}` is {value}, expected a multiple of {multiple}.")
        return F, H, W

    def read_given(
        self, video: Frames | None, frame_indices: Sequence[int] | None, F: int, H: int, W: int
    ) -> tuple[Tensor | None, list[int]]:
        """The given frames `[B, k, C, H, W]` in [0, 1], or None, and their places. Raises ValueError."""
        if video is None:
            if frame_indices is not None:
                raise ValueError(f"`frame_indices` is {list(frame_indices)}, expected None without `video`.")
            return None, []
        if self.unet.config.in_channels == self.latent_channels:
            raise ValueError(
                f"`video` is given, expected None: the model has no channels for given frames (in_channels "
                f"{self.latent_channels}, not {2 * self.latent_channels + 1}), and guidance is not implemented yet."
            )
        frames = read_frames(video, self.pixel_channels)
        if tuple(frames.shape[-2:]) != (H, W):
            raise ValueError(f"`video` has frames of {tuple(frames.shape[-2:])} pixels, expected {(H, W)}.")
        return frames, check_frame_indices(frame_indices, frames.shape[1], F)

    def prepare_latents(self, shape: tuple[int, ...], generator: Generators | None, latents: Tensor | None) -> Tensor:
        """Standard normal `[B, C, F, H, W]` float32: drawn (clip by clip from a list of generators) or as given."""
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(f"`generator` has {len(generator)} items, expected one for each of {shape[0]} clips.")
        if latents is None:
            return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        if tuple(latents.shape) != shape or not latents.is_floating_point():
            raise ValueError(
                f"`latents` has shape {tuple(latents.shape)} and dtype {latents.dtype}, expected {shape} "
                "[B, C, F, H, W] and a float type."
            )
        return latents.to(self._execution_device, torch.float32)

    def prepare_conditions(
        self, frames: Tensor | None, indices: Sequence[int], shape: tuple[int, ...], text: dict[str, Tensor | None]
    ) -> Conditions:
        """What the model is told, for latents of `shape`: given frames `[B, k, C, H, W]` in [0, 1] and text."""
        given = torch.zeros(shape, device=self._execution_device)
        frame_mask = torch.zeros(shape[0], 1, shape[2], 1, 1, dtype=torch.bool, device=given.device)
        if frames is not None:
            given[:, :, list(indices)] = self.encode(frames.to(given.device) * 2 - 1)
            frame_mask[:, :, list(indices)] = True
        return Conditions(given, frame_mask, **text)

    # --------------------------------------------------------------------------------------- pixels, latents and text
    def encode(self, frames: Tensor) -> Tensor:
        """`[B, C, F, H, W]`: frames `[B, F, C, H, W]` in [-1, 1], or the mean of the VAE's posterior given them."""
        if self.vae is None:
            return rearrange(frames, "b f c h w -> b c f h w")
        images = rearrange(frames, "b f c h w -> (b f) c h w").to(self.vae.dtype)
        latents = torch.cat([self.vae.encode(image).latent_dist.mode() for image in images.split(1)]).float()
        latents = (latents - self._vae_shift) * self.vae.config.scaling_factor
        return rearrange(latents, "(b f) c h w -> b c f h w", b=len(frames))

    def decode(self, latents: Tensor) -> Tensor:
        """Frames `[B, F, C, H, W]` in [0, 1] of latents `[B, C, F, H, W]`."""
        frames = rearrange(latents, "b c f h w -> b f c h w")
        if self.vae is not None:
            images = rearrange(frames / self.vae.config.scaling_factor + self._vae_shift, "b f c h w -> (b f) c h w")
            images = torch.cat([self.vae.decode(z.to(self.vae.dtype)).sample for z in images.split(1)]).float()
            frames = rearrange(images, "(b f) c h w -> b f c h w", b=len(latents))
        return VideoProcessor.denormalize(frames)

    @property
    def _vae_shift(self) -> float:
        return self.vae.config.get("shift_factor") or 0.0

    def encode_text(self, name: str, text: list[str]) -> Tensor:
        """Text embeddings `[len(text), L, D]`, padded to the text model's full length."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        longest = max(len(tokens) for tokens in self.tokenizer(text).input_ids)
        if longest > length:
            raise ValueError(f"`{name}` has {longest} tokens, expected at most {length}.")
        tokens = self.tokenizer(text, padding="max_length", max_length=length, return_tensors="pt")
        tokens = tokens.to(self._execution_device)
        return self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state

    def prepare_text(self, name: str, texts: Mapping[str, Any], base: int, repeats: int) -> Tensor | None:
        """The text condition `[base · repeats, L, D]` of the argument `name` or `{name}_embeds`.

        None for a model without text; zeros `[B, 1, D]` for one that wants text where there is no text encoder.
        """
        width, text, embeds = self.unet.config.get("cross_attention_dim"), texts[name], texts[f"{name}_embeds"]
        if embeds is not None:
            if embeds.ndim != 3 or embeds.shape[-1] != width:
                raise ValueError(f"`{name}_embeds` has shape {tuple(embeds.shape)}, expected [B, L, {width}].")
        elif self.text_encoder is not None:
            embeds = self.encode_text(name, text if isinstance(text, list) else [text or ""])
        elif width is None:
            return None
        else:
            embeds = torch.zeros(1, 1, width)
        embeds = embeds.to(self._execution_device, self.unet.dtype).expand(base, -1, -1)
        return embeds.repeat_interleave(repeats, dim=0)

    def check_text(self, texts: Mapping[str, Any], guidance_scale: float) -> None:
        """Refuses text arguments that exclude each other or that nothing here can read. Raises ValueError."""
        for name in ("prompt", "negative_prompt"):
            text = texts[name]
            if text is not None and texts[f"{name}_embeds"] is not None:
                raise ValueError(f"`{name}` and `{name}_embeds` are both given, expected at most one of them.")
            if text is not None and (self.text_encoder is None or self.tokenizer is None):
                raise ValueError(f"`{name}` is {text!r}, expected None: the pipeline has no text encoder.")
            if not all(isinstance(item, str) for item in (text if isinstance(text, list) else [text or ""])):
                raise ValueError(f"`{name}` is {text!r}, expected a string or a list of strings.")
        embeds = [texts["prompt_embeds"], texts["negative_prompt_embeds"]]
        if guidance_scale == 1 and (texts["negative_prompt"] is not None or embeds[1] is not None):
            raise ValueError("`guidance_scale` is 1, expected more with a negative prompt.")
        if guidance_scale > 1 and self.text_encoder is None and any(item is None for item in embeds):
            raise ValueError(
                f"`guidance_scale` is {guidance_scale}, expected 1: there is no text encoder, and not both of "
                "`prompt_embeds` and `negative_prompt_embeds`."
            )
        if all(item is not None for item in embeds) and embeds[0].shape[1:] != embeds[1].shape[1:]:
            raise ValueError(
                f"`negative_prompt_embeds` has shape {tuple(embeds[1].shape)}, expected [B, L, D] with the "
                f"L and D of `prompt_embeds`, {tuple(embeds[0].shape)}."
            )

    # ---------------------------------------------------------------------------------------------------- sampling
    def predict(self, z_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The model's output at (z_t, t), float32, with classifier-free guidance (Ho and Salimans 2022, equation (6)).

        Args:
            z_t: noisy clips `[B, C, F, H, W]`; given frames take its place.
            t: timestep of the scheduler, 1000·t of ours.
            conditions: what the model is told.
        """
        x = conditions.place(self.scheduler.scale_model_input(z_t, t))
        if self.unet.config.in_channels > self.latent_channels:
            x = torch.cat([x, conditions.given, conditions.frame_mask.expand_as(x[:, :1]).to(x)], dim=1)
        negative, embeds = conditions.negative_prompt_embeds, conditions.prompt_embeds
        if negative is None or embeds is None:
            return self._call_unet(x, t, embeds)
        free, bound = self._call_unet(torch.cat([x, x]), t, torch.cat([negative, embeds])).chunk(2)
        return free + self.guidance_scale * (bound - free)

    def _call_unet(self, x: Tensor, t: Tensor, embeds: Tensor | None) -> Tensor:
        x = x.to(self.unet.dtype)
        return self.unet(x, t.expand(len(x)), encoder_hidden_states=embeds, return_dict=False)[0].float()

    def denoise(
        self,
        z: Tensor,
        conditions: Conditions,
        generator: Generators | None,
        callback: Callable[..., dict[str, Any]] | None,
        callback_inputs: Sequence[str],
    ) -> Tensor:
        """z_0 from z_1, both `[B, C, F, H, W]`, by the scheduler's timesteps; arguments as in `__call__`."""
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if takes_generator else {}
        self._num_timesteps, self._interrupt = len(self.scheduler.timesteps), False
        with self.progress_bar(total=self._num_timesteps) as bar:
            for i, t in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    continue
                self._current_timestep, z = t, conditions.place(z)
                output = self.predict(z, t, conditions)
                z = self.scheduler.step(output, t, z, return_dict=False, **extra)[0]
                if callback is not None:
                    tensors = {"latents": z, **vars(conditions)}
                    changed = callback(self, i, t, {name: tensors[name] for name in callback_inputs})
                    z = changed.pop("latents", z)
                    conditions = replace(conditions, **changed)
                bar.update()
        self._current_timestep = None
        return conditions.place(z)

    def finish(self, z: Tensor, frames: Tensor | None, indices: Sequence[int], output_type: str) -> Any:
        """The clips as `output_type` from z_0; the given `frames` `[B, k, C, H, W]` come back as they went in."""
        if output_type == "latent":
            return z
        video = self.decode(z)
        if frames is not None:
            video[:, list(indices)] = frames.to(video.device)
        if output_type == "pt":
            return video
        arrays = [VideoProcessor.pt_to_numpy(clip) for clip in video]
        return np.stack(arrays) if output_type == "np" else [VideoProcessor.numpy_to_pil(clip) for clip in arrays]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        video: Frames | None = None,
        frame_indices: Sequence[int] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        negative_prompt: str | list[str] | None = None,
        reconstruction_guidance_scale: float | None = None,
        num_videos_per_prompt: int = 1,
        window_overlap: int | None = None,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> VideoDiffusionPipelineOutput | tuple[Any]:
        """Makes video clips, free or around given frames.

        Args:
            prompt: text, or one for each clip; needs a text encoder.
            video: the given frames of one clip or a batch: PIL images, numpy `[B, k, H, W, C]` or tensor
                `[B, k, C, H, W]`, floats in [0, 1] or uint8 (see `read_frames`).
            frame_indices: their k places in the clip, 0 to F-1, each once. By default 0..k-1 (prediction); first and
                last are interpolation, any other subset is in-painting.
            num_frames: F, at most the trained length, which is the default.
            height: H in pixels, by default the trained one.
            width: W in pixels, likewise.
            num_inference_steps: network calls, at least 1.
            guidance_scale: classifier-free guidance; 1 switches it off.
            negative_prompt: what the guidance leads away from.
            reconstruction_guidance_scale: not implemented yet, None only.
            num_videos_per_prompt: how many clips for each prompt or given clip, side by side in the output.
            window_overlap: not implemented yet, None only.
            generator: randomness; a list of one a clip makes a clip independent of its neighbours in the batch.
            latents: the noise to start from, `[B, C, F, H, W]`, standard normal.
            prompt_embeds: text embeddings `[B, L, D]` in place of `prompt`.
            negative_prompt_embeds: likewise.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: whether an output object or a tuple comes back.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after each step; what it
                returns replaces those tensors.
            callback_on_step_end_tensor_inputs: which of `latents`, `prompt_embeds`, `negative_prompt_embeds` it gets.

        Returns:
            `VideoDiffusionPipelineOutput`, or the tuple `(frames,)`. Given frames come back untouched.

        Raises:
            ValueError: where an argument is refused, before the first network call.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        texts = {"prompt": prompt, "prompt_embeds": prompt_embeds}
        texts |= {"negative_prompt": negative_prompt, "negative_prompt_embeds": negative_prompt_embeds}
        check_integers(num_inference_steps=num_inference_steps, num_videos_per_prompt=num_videos_per_prompt)
        check_absent(reconstruction_guidance_scale=reconstruction_guidance_scale, window_overlap=window_overlap)
        self.check_call(output_type, guidance_scale, callback_on_step_end_tensor_inputs)
        self.check_text(texts, guidance_scale)
        F, H, W = self.resolve_shape(num_frames, height, width)
        frames, indices = self.read_given(video, frame_indices, F, H, W)
        base = count_clips({"video": frames, **texts})
        scale, self._guidance_scale = self.vae_scale_factor, float(guidance_scale)
        shape = (base * num_videos_per_prompt, self.latent_channels, F, H // scale, W // scale)
        z = self.prepare_latents(shape, generator, latents)

        if frames is not None:
            frames = frames.expand(base, -1, -1, -1, -1).repeat_interleave(num_videos_per_prompt, dim=0)
        sides = ("prompt", "negative_prompt") if guidance_scale > 1 else ("prompt",)
        text = {f"{side}_embeds": self.prepare_text(side, texts, base, num_videos_per_prompt) for side in sides}
        conditions = self.prepare_conditions(frames, indices, shape, text)
        self.scheduler.set_timesteps(num_inference_steps, device=z.device)
        z = z * self.scheduler.init_noise_sigma
        z = self.denoise(z, conditions, generator, callback_on_step_end, callback_on_step_end_tensor_inputs)
        clips = self.finish(z, frames, indices, output_type)
        self.maybe_free_model_hooks()
        return VideoDiffusionPipelineOutput(frames=clips) if return_dict else (clips,)
