"""`VideoDiffusionPipeline`: generates, predicts, interpolates and in-paints videos, told apart by a mask.

This file travels to the Hub as it is, and the files it imports relatively lie beside it there, without our package.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
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

from .guidance import Canvas, Conditions, Generators, StepEnd, WindowSampling
from .inputs import CallInput, Frames, Given, check_integers, count_clips, read_frames, read_given
from .text import TextConditioning
from .windows import Window, plan_windows

LIBRARY = "video_diffusion"  # how `model_index.json` names the home of our components: a file format, never to change
OWN_COMPONENTS = ("VideoUNet3DConditionModel", "VPContinuousScheduler")


@dataclass
class VideoDiffusionPipelineOutput(BaseOutput):
    """Output of the pipeline.

    Args:
        frames: the clips, by `output_type`: a list of lists of PIL images; a numpy array `[B, F, H, W, C]` or a tensor
            `[B, F, C, H, W]`, float32 in [0, 1]; or latents `[B, C, F, H, W]`.
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | Tensor


# -------------------------------------------------------------------------------------------------------- the pipeline
class VideoDiffusionPipeline(CallInput, TextConditioning, WindowSampling, DiffusionPipeline):
    """Samples videos from a diffusion model, free or around given frames.

    The frames that are given and the ones to be made differ only in a mask. A model with `in_channels = 2·C + 1` reads
    `[z_t, given frames (0 elsewhere), mask]` on the channel axis, where z_t holds the given frames themselves: their
    noise level is zero. So one checkpoint generates, predicts, interpolates and in-paints. A model without those
    channels, and any model for single given pixels, is conditioned while it samples: by replacement and
    reconstruction guidance (Ho et al. 2022). A video beyond the trained length is made window by window.

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
            ValueError: where the weights are broken, or are not those of the folder's config, or an option is refused.
            OSError: where there is no such folder or a file is missing.
        """
        if isinstance(kwargs.get("dtype"), str):
            raise ValueError(f"`dtype` is the string {kwargs['dtype']!r}, expected a torch.dtype or a dict of them.")
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            if folder.is_absolute() or len(folder.parts) > 2 or str(pretrained_model_name_or_path).startswith("."):
                raise OSError(f"{folder} is no folder, expected that of a saved pipeline or a Hub id 'owner/name'.")
            kwargs.setdefault("use_safetensors", True)  # a repository of pickles is not even downloaded
            folder = Path(cls.download(str(pretrained_model_name_or_path), **kwargs))
        kwargs.setdefault("low_cpu_mem_usage", find_spec("accelerate") is not None)
        hub = import_module(f"{LIBRARY}.hub.folder")
        own = hub.load_own_components(folder, kwargs)
        pipeline = super().from_pretrained(str(folder), **own, **kwargs)
        hub.spread(pipeline, own)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads weights, code and card in one commit; options as in `video_diffusion.hub.publish.push_pipeline`.

        Returns:
            the address of the commit. Needs the package `video-diffusion`.
        """
        return import_module(f"{LIBRARY}.hub.publish").push_pipeline(self, repo_id, **options)

    # ---------------------------------------------------------------------------------------------------- the canvas
    def prepare_canvas(self, given: Given, shape: tuple[int, ...], pixels: bool) -> Canvas:
        """The empty videos, latents of `shape` and, if asked, pixels, with what is given in its places."""
        canvas = Canvas(torch.zeros(shape), torch.zeros(1, 1, shape[2], *given.mask.shape[-2:], dtype=torch.bool))
        if pixels:
            scale = self.vae_scale_factor
            size = (self.pixel_channels, shape[3] * scale, shape[4] * scale)
            canvas.video = torch.zeros(shape[0], shape[2], *size)
        if given.frames is not None:
            canvas.known[:, :, given.indices] = rearrange(given.mask, "k c h w -> 1 c k h w")
            latents = self.encode(given.frames.to(self._execution_device) * 2 - 1).cpu()
            canvas.latents[:, :, given.indices] = latents * canvas.known[:, :, given.indices]
        return canvas

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

    # ---------------------------------------------------------------------------------------------------- sampling
    def make_windows(
        self,
        canvas: Canvas,
        windows: Sequence[Window],
        conditions: Conditions,
        steps: int,
        latents: Tensor | None,
        generator: Generators | None,
        step_end: StepEnd,
    ) -> None:
        """Fills the canvas window by window.

        Args:
            canvas: the videos.
            windows: the plan.
            conditions: the text and the scale that the call begins with.
            steps: of a window.
            latents: noise for the whole video, or None.
            generator: as in `__call__`.
            step_end: what happens after each step.
        """
        title = getattr(self, "_progress_bar_config", {}).get("desc")
        for i, window in enumerate(windows):
            if self.interrupt:
                break
            if len(windows) > 1:
                step_end.bar.set_description(f"{f'{title}, ' if title else ''}window {i + 1} of {len(windows)}")
            self.scheduler.set_timesteps(steps, device=self._execution_device)
            z, conditions = self.make_window(canvas, window, conditions, latents, generator, step_end)
            canvas.put(window.made, z, None if canvas.video is None else self.decode(z))

    def make_window(
        self,
        canvas: Canvas,
        window: Window,
        start: Conditions,
        latents: Tensor | None,
        generator: Generators | None,
        step_end: StepEnd,
    ) -> tuple[Tensor, Conditions]:
        """The frames `[B, C, made, H, W]` of one window, and the conditions as callbacks left them."""
        device, frames = self._execution_device, window.frames
        given, known = canvas.latents[:, :, frames].to(device), canvas.known[:, :, frames].to(device)
        told = known.flatten(3).all(-1)[..., None, None] & (self.unet.config.in_channels > self.latent_channels)
        conditions = replace(start, given=given, known=known, frame_mask=told)
        if latents is None:
            z = randn_tensor(tuple(given.shape), generator=generator, device=device, dtype=torch.float32)
        else:
            z = latents[:, :, frames].to(device, torch.float32)
        z, conditions = self.denoise(z * self.scheduler.init_noise_sigma, conditions, generator, step_end)
        return z[:, :, [frames.index(place) for place in window.made]], conditions

    def finish(self, canvas: Canvas, given: Given, output_type: str) -> Any:
        """The clips as `output_type`; what was given comes back as it went in."""
        video = canvas.video
        if video is None:
            return canvas.latents
        if given.frames is not None:
            frames = given.frames.to(video.device)
            video[:, given.indices] = torch.where(given.mask, frames, video[:, given.indices])
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
        window_scheme: str = "autoregressive",
        mask_image: Any = None,
        history_guidance_scale: float = 1.0,
    ) -> VideoDiffusionPipelineOutput | tuple[Any]:
        """Makes video clips, free or around given frames.

        Args:
            prompt: text, or one for each clip; needs a text encoder.
            video: the given frames of one clip or a batch: PIL images, numpy `[B, k, H, W, C]` or tensor
                `[B, k, C, H, W]`, floats in [0, 1] or uint8 (see `read_frames`).
            frame_indices: their k places in the clip, 0 to F-1, each once. By default 0..k-1 (prediction); first and
                last are interpolation, any other subset is in-painting.
            num_frames: F, by default the trained length. More is made in windows (see `plan_windows`), each
                conditioned on frames already made; the memory they need does not grow with F.
            height: H in pixels, by default the trained one.
            width: W in pixels, likewise.
            num_inference_steps: network calls of a window, at least 1.
            guidance_scale: classifier-free guidance; 1 switches it off.
            negative_prompt: what the guidance leads away from.
            reconstruction_guidance_scale: w ≥ 0 of Ho et al. 2022, equation (8): what is known pulls the rest
                while it is noised. A model without channels for given frames, and `mask_image`, need it. 0 is
                replacement alone. On top of those channels it costs a second call a step.
            num_videos_per_prompt: how many clips for each prompt or given clip, side by side in the output.
            window_overlap: how many known frames a window of a long video begins with, 1 to the trained length − 1; by
                default half of it.
            generator: randomness; a list of one a clip makes a clip independent of its neighbours in the batch.
            latents: the noise to start from, `[B, C, F, H, W]`, standard normal; each window takes its frames of it.
            prompt_embeds: text embeddings `[B, L, D]` in place of `prompt`.
            negative_prompt_embeds: likewise.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: whether an output object or a tuple comes back.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after each step, which counts
                on over the windows; what it returns replaces those tensors.
            callback_on_step_end_tensor_inputs: which of `latents` (of the window), `prompt_embeds`,
                `negative_prompt_embeds` it gets.
            window_scheme: "autoregressive", "hierarchy-2" or "interpolate", see `plan_windows`.
            mask_image: spatial in-painting: bool or 0 and 1, `[F, H, W]` or `[H, W]`, true where `video`, which then
                holds all F frames, is given. (Stock in-painting pipelines call it the other way round.)
            history_guidance_scale: classifier-free guidance on the frames that the model is told, in every window; 1
                switches it off, more costs a second call a step and drifts in long videos. See `predict_from_history`.

        Returns:
            `VideoDiffusionPipelineOutput`, or the tuple `(frames,)`, on the CPU. Given frames and pixels come back
            untouched.

        Raises:
            ValueError: where an argument is refused, before the first network call.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        texts = {"prompt": prompt, "prompt_embeds": prompt_embeds}
        texts |= {"negative_prompt": negative_prompt, "negative_prompt_embeds": negative_prompt_embeds}
        check_integers(num_inference_steps=num_inference_steps, num_videos_per_prompt=num_videos_per_prompt)
        self.check_call(output_type, guidance_scale, callback_on_step_end_tensor_inputs)
        self.check_text(texts, guidance_scale)
        frames = None if video is None else read_frames(video, self.pixel_channels)
        if num_frames is None and mask_image is not None and frames is not None:
            num_frames = frames.shape[1]
        F, H, W = self.resolve_shape(num_frames, height, width)
        given = read_given(frames, frame_indices, mask_image, (F, H, W))
        trained = self.unet.config.get("num_frames")
        windows = list(plan_windows(F, trained, window_overlap, window_scheme, given.whole_frames()))
        self.check_conditioning(given, len(windows), reconstruction_guidance_scale)
        self.check_history(given, len(windows), history_guidance_scale, reconstruction_guidance_scale)
        if mask_image is not None and self.vae is not None:
            raise ValueError("`mask_image` is given, expected None: the diffusion runs in latents, not in pixels.")
        base = count_clips({"video": frames, **texts})
        scale, self._guidance_scale = self.vae_scale_factor, float(guidance_scale)
        shape = (base * num_videos_per_prompt, self.latent_channels, F, H // scale, W // scale)
        self.check_latents(shape, generator, latents)

        given = given.repeat(base, num_videos_per_prompt)
        sides = ("prompt", "negative_prompt") if guidance_scale > 1 else ("prompt",)
        text = {f"{side}_embeds": self.prepare_text(side, texts, base, num_videos_per_prompt) for side in sides}
        canvas = self.prepare_canvas(given, shape, pixels=output_type != "latent")
        none = torch.zeros(0)
        w, w_history = float(reconstruction_guidance_scale or 0), float(history_guidance_scale)
        start = Conditions(none, none, none, w, w_history, **text)
        self._num_timesteps, self._interrupt = num_inference_steps * len(windows), False
        with self.progress_bar(total=self._num_timesteps) as bar:
            step_end = StepEnd(bar, callback_on_step_end, callback_on_step_end_tensor_inputs)
            self.make_windows(canvas, windows, start, num_inference_steps, latents, generator, step_end)
        clips = self.finish(canvas, given, output_type)
        self.maybe_free_model_hooks()
        return VideoDiffusionPipelineOutput(frames=clips) if return_dict else (clips,)
