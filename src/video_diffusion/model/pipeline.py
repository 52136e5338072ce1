"""`VideoDiffusionPipeline`: generates, predicts, interpolates and in-paints videos, told apart by a mask.

One call: `resolve_call` brings the arguments to one form and plans the windows; for each of them `_make_window` runs
the scheduler's loop around the denoiser that `guidance.compose` made; `decode` turns latents into pixels. This file
travels to the Hub as it is, and the files that it imports relatively lie beside it there, without our package.
"""

import inspect
import json
import math
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.hooks import HookRegistry
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput, logging
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from einops import rearrange
from torch import Tensor

from .adapters import VideoLoraLoaderMixin
from .autoencoding import FrameGrid, LatentSpace, check_vae
from .checks import check_finite, shown
from .guidance import (
    Canvas,
    Conditions,
    classifier_free,
    compose,
    has_frame_times,
    network,
    per_clip,
    pyramid_times,
    reads_frames,
    reads_guidance,
)
from .inputs import (
    Call,
    Frames,
    Generators,
    Prompts,
    check_output,
    check_text,
    encode_tokens,
    plain_clips,
    resolve_call,
    text_length,
)
from .steps import check_generation_config
from .windows import Window, with_horizon

logger = logging.get_logger(__name__)

LIBRARY = "video_diffusion"  # how `model_index.json` names the home of our components: a file format, never to change
OWN_COMPONENTS = ("VideoUNet3DConditionModel", "VPContinuousScheduler")
GENERATION_CONFIG = "generation_config.json"
ORIGIN = ("_name_or_path", "is_local", "local_files_only")  # keys of configs: where something was loaded from
logger = logging.get_logger(__name__)
CACHES = ("pyramid_attention_broadcast", "faster_cache_denoiser", "faster_cache_block")  # hooks of diffusers


@dataclass
class VideoDiffusionPipelineOutput(BaseOutput):
    """Output of the pipeline.

    Args:
        frames: the clips, by `output_type`: a list of lists of PIL images; a numpy array `[B, F, H, W, C]` or a tensor
            `[B, F, C, H, W]`, float32 in [0, 1]; or latents `[B, C, F, H, W]`.
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | Tensor


@dataclass
class StepEnd:
    """What happens after each step of a call: the progress bar moves and the user's callback is called.

    Args:
        bar: of tqdm, over all steps of all windows.
        callback: as in the pipeline's `__call__`.
        inputs: the names of the tensors it gets.
        step: steps of the call so far.
    """

    bar: Any
    callback: Callable[..., dict[str, Any]] | None
    inputs: Sequence[str]
    step: int = 0

    def __call__(self, pipeline: Any, t: Tensor, z: Tensor, conditions: Conditions) -> tuple[Tensor, Conditions]:
        """The latents and the conditions, changed by the callback.

        Raises:
            ValueError: where it returns something else than some of its tensors, in their shapes.
        """
        if self.callback is not None:
            tensors = {"latents": z, **vars(conditions)}
            shapes = {name: getattr(tensors[name], "shape", None) for name in self.inputs}
            changed = self.callback(pipeline, self.step, t, {name: tensors[name] for name in self.inputs})
            if not isinstance(changed, Mapping) or any(name not in shapes for name in changed):
                raise ValueError(f"`callback_on_step_end` returned {changed!r}, expected a dict of {[*self.inputs]}.")
            for name, value in changed.items():
                if getattr(value, "shape", None) != shapes[name]:
                    came = getattr(value, "shape", type(value).__name__)
                    raise ValueError(f"`callback_on_step_end` returned `{name}` as {came}, expected {shapes[name]}.")
            z = changed.get("latents", z)
            conditions = replace(conditions, **{k: v for k, v in changed.items() if k != "latents"})
        self.step += 1
        self.bar.update()
        return z, conditions


class VideoDiffusionPipeline(DiffusionPipeline, VideoLoraLoaderMixin):
    """Samples videos from a diffusion model, free or around given frames.

    The frames that are given and the ones to be made differ only in a mask. A model with `in_channels = 2·C + 1` reads
    `[z_t, given frames (0 elsewhere), mask]` on the channel axis, where z_t holds the given frames themselves: their
    noise level is zero. So one checkpoint generates, predicts, interpolates and in-paints. So does one that was
    trained with a time for each frame (`frame_timesteps`): given frames stand at time 0. A model without either, and
    any model for single given pixels, is conditioned while it samples: by replacement and reconstruction guidance (Ho
    et al. 2022). A video beyond the trained length is made window by window.

    Args:
        unet: `VideoUNet3DConditionModel`, or any model with the call and config of diffusers' `UNet3DConditionModel`.
        scheduler: `VPContinuousScheduler`, or a scheduler of diffusers.
        text_encoder: a text model of transformers whose output has `last_hidden_state`.
        tokenizer: its tokenizer.
        vae: an autoencoder of diffusers for images or videos, such as `AutoencoderKL` or `AutoencoderKLWan`; the
            diffusion then runs in its latents (see `LatentSpace`). Sizes and frames of a call are still pixels and
            frames of the video.
        num_channels: C of the clips, where it is not that of the VAE: 1 with a VAE of colours. Their grey is repeated
            when they are encoded, and what is decoded becomes its mean.

    Attributes:
        generation_config: defaults of a call and of the sampler, as `check_generation_config` takes them; kept in
            `generation_config.json` beside `model_index.json`.
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
        num_channels: int | None = None,
    ) -> None:
        super().__init__()
        if vae is not None:
            check_vae(vae)
            if scheduler.config.get("clip_sample"):
                logger.warning("`scheduler` clips x̂ (`clip_sample`), which is for pixels: latents have no bounds.")
        if num_channels is not None:
            if vae is None or num_channels not in (1, LatentSpace(vae).pixel_channels):
                raise ValueError(f"`num_channels` is {num_channels!r}, expected None, or 1 with a `vae` of colours.")
            self.register_to_config(num_channels=num_channels)
        self.register_modules(unet=unet, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer, vae=vae)
        self.generation_config: dict[str, Any] = {}
        self._guidance_scale, self._num_timesteps = 1.0, 0
        self._current_timestep: Tensor | None = None
        self._interrupt = False

    guidance_scale = property(lambda self: self._guidance_scale, doc="The scale of the call that runs.")
    num_timesteps = property(lambda self: self._num_timesteps, doc="The number of steps of the call that runs.")
    current_timestep = property(lambda self: self._current_timestep, doc="The timestep the call has reached, or None.")
    interrupt = property(lambda self: self._interrupt, doc="Set `_interrupt` in a callback to skip what is left.")
    do_classifier_free_guidance = property(
        lambda self: self._guidance_scale > 1 and not reads_guidance(self.unet),
        doc="Whether text guides the call by a second network call; not where the network reads the scale itself.",
    )

    # ----------------------------------------------------------------------------------------------------- the sizes
    @property
    def latent_channels(self) -> int:
        """C of the diffusion: the channels of z_t."""
        return self.unet.config.out_channels

    @property
    def pixel_channels(self) -> int:
        """C of the video."""
        if self.vae is None:
            return self.latent_channels
        return self.config.get("num_channels") or self.latent_space.pixel_channels

    @property
    def vae_scale_factor(self) -> int:
        """How many pixels a latent stands for, along one edge."""
        return 1 if self.vae is None else self.latent_space.spatial

    @property
    def latent_space(self) -> LatentSpace:
        """How the VAE is called; there must be one."""
        space = self.__dict__.get("_latent_space")
        if space is None or space.vae is not self.vae:
            space = self.__dict__["_latent_space"] = LatentSpace(self.vae)
        return space

    @property
    def frame_grid(self) -> FrameGrid:
        """Which frames of a video each frame of the latents stands for."""
        return FrameGrid() if self.vae is None else self.latent_space.grid

    # -------------------------------------------------------------------------------------------------- load and save
    def register_to_config(self, **kwargs: Any) -> None:
        """Names the home of our own components as `model_index.json` shall, wherever their code was loaded from."""
        for name, entry in kwargs.items():
            if isinstance(entry, list | tuple) and len(entry) == 2 and entry[1] in OWN_COMPONENTS:
                kwargs[name] = (LIBRARY, entry[1])
        super().register_to_config(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "VideoDiffusionPipeline":
        """Loads a pipeline from a folder, the package, the Hub or its cache; arguments as in diffusers.

        Our own components come from the installed package and not from the files in the folder: no trust flag. Weights
        are float32 unless `dtype` says otherwise, those of the text encoder too.

        Args:
            pretrained_model_name_or_path: a folder, the name of a model that comes with the package, or a Hub id; of
                an adapter too, which is then added to the weights of its base.
            kwargs: as in diffusers.

        Raises:
            ValueError: where the weights are broken, or are not those of the folder's config, or an option is refused.
            OSError: where there is no such model or a file is missing.
        """
        import video_diffusion.hub.finding as finding  # this form: diffusers takes `from … import` for a requirement
        import video_diffusion.hub.loading as loading

        kwargs = loading.check_options(kwargs)
        folder = finding.find_folder(cls, str(pretrained_model_name_or_path), kwargs)
        if finding.is_adapter(folder):
            pipeline = loading.load_adapted(cls, folder, kwargs)
            pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
            return pipeline
        components, generation_config = loading.read_folder(folder, kwargs)
        own = {name: loading.load_component(folder, name, kind, kwargs) for name, kind in components.items()}
        with loading.naming(folder):
            pipeline = super().from_pretrained(str(folder), **own, **kwargs)
        loading.check_finite_weights(pipeline)
        loading.spread(pipeline, own)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        pipeline.generation_config = generation_config
        return pipeline

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict: Any, *args: Any, **kwargs: Any) -> None:
        """Loads an adapter, as in diffusers; one that comes with the package by its name. Errors as of the mixin."""
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, str) and "/" not in source and not Path(source).exists():
            import video_diffusion.hub.finding as finding

            source = str(finding.embedded_adapters().get(source, source))
        super().load_lora_weights(source, *args, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "VideoDiffusionPipeline":
        """A pipeline of the components of another, which they then share; arguments as in diffusers.

        The components keep their dtype unless `dtype` says otherwise.
        """
        parts = {name: part for name, part in pipeline.components.items() if name in ("unet", "vae")}
        if "dtype" not in kwargs and "torch_dtype" not in kwargs:
            kwargs["dtype"] = pipeline.dtype
        made = super().from_pipe(pipeline, **parts | kwargs)
        made.generation_config = dict(getattr(pipeline, "generation_config", {}))
        return made

    def save_pretrained(
        self, save_directory: Any, safe_serialization: bool = True, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Writes the components, `model_index.json` and `generation_config.json`; arguments as in diffusers.

        What `torch.compile` or DDP wrapped is saved without its wrapper. With `push_to_hub` the code is beside it,
        because diffusers reads no repository without. The method `push_to_hub` uploads more: card, samples, variants.

        Raises:
            ValueError: where a component holds what its folder could not, or a pickle is asked for.
        """
        if not safe_serialization:
            raise ValueError(
                "`safe_serialization` is False, expected True: a folder with pickles is not loaded again."
            )
        bare = {name: unwrap(name, part) for name, part in self.components.items()}
        if any(bare[name] is not part for name, part in self.components.items()):
            pipeline = type(self)(**bare, num_channels=self.config.get("num_channels"))
            pipeline.generation_config = self.generation_config
            return pipeline.save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        if push_to_hub:
            import video_diffusion.hub.folder as folder

            folder.write_code((self, *bare.values()), Path(save_directory))
        return super().save_pretrained(str(save_directory), push_to_hub=push_to_hub, **kwargs)

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes `model_index.json` and what belongs beside it, after the components and before an upload."""
        super().save_config(save_directory, push_to_hub, **kwargs)
        config, file = check_generation_config(self.generation_config), Path(save_directory) / GENERATION_CONFIG
        if config:
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        else:
            file.unlink(missing_ok=True)
        forget_origin(Path(save_directory))
        seal(Path(save_directory))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads weights, code and card in one commit; options as in `video_diffusion.hub.publish.push_pipeline`.

        Returns:
            the address of the commit. Needs the package `video-diffusion`.
        """
        import video_diffusion.hub.publish as publish

        return publish.push_pipeline(self, repo_id, **options)

    # ------------------------------------------------------------------------------------------ pixels, latents, text
    def encode(self, frames: Tensor) -> Tensor:
        """`[B, C, F, H, W]`: frames `[B, F, C, H, W]` in [-1, 1], or the mean of the VAE's posterior given them."""
        if self.vae is None:
            return rearrange(frames, "b f c h w -> b c f h w")
        latents = self.latent_space.encode(rearrange(frames, "b f c h w -> b c f h w"))
        check_finite("vae", self.vae, latents.isfinite().all())
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Frames `[B, F, C, H, W]` in [0, 1] of latents `[B, C, F, H, W]`."""
        clips = latents if self.vae is None else self.latent_space.decode(latents, channels=self.pixel_channels)
        if self.vae is not None:
            check_finite("vae", self.vae, clips.isfinite().all())
        return VideoProcessor.denormalize(rearrange(clips, "b c f h w -> b f c h w"))

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        num_frames: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generators | None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """The noise to start from, `[B, C, f, H / s, W / s]`, as the scheduler scales it.

        With a VAE f is the number of latent frames, and s its factor.

        Args:
            batch_size: B.
            num_channels_latents: C.
            num_frames: F.
            height: H in pixels.
            width: W in pixels.
            dtype: of the result.
            device: of the result.
            generator: randomness, one or a list of B.
            latents: standard normal noise of that shape, taken in place of a new draw.
        """
        scale = self.vae_scale_factor
        length = self.frame_grid.length(num_frames)
        shape = (batch_size, num_channels_latents, length, height // scale, width // scale)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"`generator` has {len(generator)} items, expected one for each of {batch_size} clips.")
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        return latents.to(device, dtype) * self.scheduler.init_noise_sigma

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | None = None,
        num_videos_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The text conditions, `[B · num_videos_per_prompt, L, D]` each, as `__call__` takes them.

        Args:
            prompt: text, or one for each of B clips; None is the empty text.
            device: of the result; None: where the pipeline runs.
            num_videos_per_prompt: how often each is repeated, side by side.
            do_classifier_free_guidance: whether the negative side is wanted.
            negative_prompt: likewise; one text serves all clips.
            prompt_embeds: `[B, L, D]` in place of `prompt`.
            negative_prompt_embeds: in place of `negative_prompt`.
            lora_scale: weight of the text encoder's LoRA layers.
            clip_skip: how many of CLIP's last layers are left out for the prompt.

        Returns:
            both sides; None for a model without text, and for the negative side without guidance. A model that reads
            text in a pipeline without text encoder gets zeros, `[B, 1, D]`.

        Raises:
            ValueError: where a text is longer than the text encoder reads.
        """
        device = self._execution_device if device is None else device
        sides = {"prompt": (prompt, prompt_embeds, clip_skip)}
        if do_classifier_free_guidance:
            sides["negative_prompt"] = (negative_prompt, negative_prompt_embeds, None)
        if lora_scale is not None:
            scale_lora_layers(self.text_encoder, lora_scale)
        encoded = [self._encode_side(name, *side, device) for name, side in sides.items()]
        if lora_scale is not None:
            unscale_lora_layers(self.text_encoder, lora_scale)
        batch = max((len(states) for states in encoded if states is not None), default=1)
        repeated = [
            None if s is None else s.expand(batch, -1, -1).repeat_interleave(num_videos_per_prompt, dim=0)
            for s in encoded
        ]
        return repeated[0], repeated[1] if do_classifier_free_guidance else None

    def _encode_side(
        self, name: str, text: Any, embeds: Tensor | None, clip_skip: int | None, device: torch.device
    ) -> Tensor | None:
        """One side of `encode_prompt`, not repeated."""
        width = self.unet.config.get("cross_attention_dim")
        if embeds is None and self.text_encoder is not None:
            texts = text if isinstance(text, list) else [text or ""]
            length = text_length(self.text_encoder, self.tokenizer)
            longest = max(len(tokens) for tokens in self.tokenizer(texts).input_ids)
            if longest > length:
                raise ValueError(f"`{name}` has {longest} tokens, expected at most {length}.")
            tokens = self.tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt").to(device)
            embeds = encode_tokens(self.text_encoder, tokens.input_ids, tokens.attention_mask, clip_skip)
            check_finite("text_encoder", self.text_encoder, embeds.isfinite().all())
        elif embeds is None and width is not None:
            embeds = torch.zeros(1, 1, width)
        return None if embeds is None else embeds.to(device, self.unet.dtype)

    # ------------------------------------------------------------------------------------------------------- sampling
    def _open_call(
        self,
        prompt: Any,
        prompt_embeds: Tensor | None,
        negative_prompt: Any,
        negative_prompt_embeds: Tensor | None,
        output_type: Any,
        callback: Any,
        callback_inputs: Any,
        **options: Any,
    ) -> tuple[Call, dict[str, Any], Sequence[str]]:
        """The arguments of a call or a stream, checked and resolved; its texts; the tensors of its callback.

        Raises:
            ValueError: where an argument is refused.
        """
        if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
            callback_inputs = callback.tensor_inputs
        check_output(self, output_type, callback, callback_inputs, self._callback_tensor_inputs)
        texts = {"prompt": prompt, "prompt_embeds": prompt_embeds}
        texts |= {"negative_prompt": negative_prompt, "negative_prompt_embeds": negative_prompt_embeds}
        call = resolve_call(self, texts=texts, **options)
        if (call.history_scale != 1 or call.reconstruction_scale > 0) and has_cache(self.unet):
            raise ValueError("`unet` has a cache, expected none with guidance by given frames: it calls twice a step.")
        return call, texts, callback_inputs

    def _read_texts(self, call: Call, texts: Mapping[str, Any]) -> list[Tensor | None]:
        """Both sides of the text as the windows take them, `[B, L, D]` each, or None."""
        sides = self.encode_prompt(
            num_videos_per_prompt=call.num_videos_per_prompt,
            do_classifier_free_guidance=self.do_classifier_free_guidance,
            clip_skip=call.clip_skip,
            **texts,
        )
        return [
            one if one is None or len(one) == call.shape[0] else one[:1].expand(call.shape[0], -1, -1) for one in sides
        ]

    def _empty_canvas(self, call: Call, pixels: bool) -> Canvas:
        """Videos of no frame, as latents and, if asked or if later windows need them, as pixels."""
        (B, C, _, h, w), scale = call.shape, self.vae_scale_factor
        known = torch.zeros(1, 1, 0, *call.given.mask.shape[-2:]).bool()
        canvas = Canvas(torch.zeros(B, C, 0, h, w), known, grid=self.frame_grid)
        if pixels or (canvas.grid.ratio > 1 and call.num_windows > 1):
            canvas.video = torch.zeros(B, 0, self.pixel_channels, h * scale, w * scale)
        return canvas

    def _extend(self, canvas: Canvas, call: Call, stop: int) -> None:
        """Adds the latent frames before `stop` to the canvas, with what is given of them in its places."""
        added, given, grid = range(canvas.stop, stop), call.given, canvas.grid
        canvas.slide(canvas.start, stop)
        chosen = [i for i, frame in enumerate(given.indices) if grid.place(frame) in added]
        if given.frames is None or not chosen:
            return
        if self.vae is not None and self.latent_space.is_video:
            if not given.latents:
                frames = given.frames.to(self._execution_device) * 2 - 1
                found = self.latent_space.encode_runs(frames, given.indices)
                given.latents.update({place: latents.cpu() for place, latents in found.items()})
            for place in (place for place in given.latents if place in added):
                canvas.latents[:, :, canvas.at([place])] = given.latents[place][:, :, None]
                canvas.known[:, :, canvas.at([place])] = True
            if canvas.video is not None:
                canvas.video[:, canvas.frames_at([given.indices[i] for i in chosen])] = given.frames[:, chosen]
            return
        places = canvas.at([given.indices[i] for i in chosen])
        canvas.known[:, :, places] = rearrange(given.mask[chosen], "k c h w -> 1 c k h w")
        latents = self.encode(given.frames[:, chosen].to(self._execution_device) * 2 - 1).cpu()
        canvas.latents[:, :, places] = latents * canvas.known[:, :, places]

    def _begin_window(self, call: Call, free: bool = False) -> None:
        """Sets scheduler and caches to the start of a window; its first step is the first, whatever the timesteps.

        Args:
            call: has the steps.
            free: whether no frame of the window is known.
        """
        if has_cache(self.unet):
            HookRegistry.check_if_exists_or_initialize(self.unet).reset_stateful_hooks()
        places = call.free_timesteps if free and call.free_timesteps is not None else call.timesteps
        if places is None:
            self.scheduler.set_timesteps(call.num_inference_steps, device=self._execution_device)
        else:
            self.scheduler.set_timesteps(timesteps=places, device=self._execution_device)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)

    def _bar(self, call: Call) -> Any:
        """The progress bar over all steps of all windows; says how many they are."""
        self._begin_window(call)
        total = len(self.scheduler.timesteps) * call.num_windows
        self._num_timesteps = len(self.scheduler.timesteps) if total == math.inf else int(total)
        return self.progress_bar(total=total)

    def _say_window(self, bar: Any, call: Call, i: int) -> None:
        """Shows which window the bar has come to."""
        title, many = getattr(self, "_progress_bar_config", {}).get("desc"), call.num_windows
        if many > 1:
            of = "" if many == math.inf else f" of {many}"
            bar.set_description(f"{f'{title}, ' if title else ''}window {i + 1}{of}")

    def _make_window(
        self, call: Call, canvas: Canvas, window: Window, text: Sequence[Tensor | None], step_end: StepEnd
    ) -> list[Tensor | None]:
        """Fills the canvas with the frames of one window: z_1 to z_0 by the scheduler's timesteps.

        Returns:
            the text of both sides, as callbacks left it.

        Raises:
            ValueError: where the network gives NaN or infinite values.
        """
        device, frames, (B, C, _, h, w) = self._execution_device, window.frames, call.shape
        places = canvas.at(frames)
        given, known = canvas.latents[:, :, places].to(device), canvas.known[:, :, places].to(device)
        if canvas.grid.ratio > 1 and frames[0] > 0:
            given = self._begin_anew(canvas, window, given)
        read = known.flatten(3).all(-1)[0] & reads_frames(self.unet.config)
        conditions = Conditions(given, known, read, *text)
        denoise = network(self.unet, self.scheduler, lambda: self._guidance_scale)
        denoise = classifier_free(denoise, lambda: self._guidance_scale)
        denoise = compose(
            denoise,
            self.scheduler,
            conditions,
            call.generator,
            call.history_scale,
            call.reconstruction_scale,
            has_frame_times(self.unet.config),
        )
        self._begin_window(call, free=not window.given and call.given.frames is None)
        noise = None if call.latents is None else call.latents[:, :, frames]
        size = (B, C, canvas.grid.start(len(frames)), h * self.vae_scale_factor, w * self.vae_scale_factor)
        z = self.prepare_latents(*size, torch.float32, device, call.generator, noise)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        extra = {"generator": call.generator} if takes_generator else {}
        finite = torch.ones((), dtype=torch.bool, device=device)
        times = None
        if call.noise_pyramid:
            times = pyramid_times(read[0], call.num_inference_steps, call.noise_pyramid)[:, None]
            times = (times * self.scheduler.config.num_train_timesteps).float()
        for i, t in enumerate(self.scheduler.timesteps):
            if self.interrupt:
                continue
            self._current_timestep = t
            output, z = denoise(conditions.place(z), t if times is None else times[i], conditions)
            finite &= output.isfinite().all()
            if times is None:
                z = self.scheduler.step(output, t, z, return_dict=False, **extra)[0]
            else:
                now, then = per_clip(times[i], B), per_clip(times[i + 1], B)
                x = self.scheduler.clip_original(self.scheduler.predict_original(output, now, z))
                z = self.scheduler.step_to(x, now, then, z, call.generator)
            z, conditions = step_end(self, t, z, conditions)
        self._current_timestep = None
        z = torch.where(conditions.known, conditions.given, z)
        check_finite("unet", self.unet, finite & z.isfinite().all())
        inside = [frames.index(place) for place in window.made]
        made, video = z[:, :, inside], None
        if plain := plain_clips(made):
            logger.warning(
                "Clips %s have one value in all pixels of the frames %d to %d: the weights may be broken or "
                "untrained, or %s overflows.",
                *(plain, window.made[0], window.made[-1], self.unet.dtype),
            )
        if canvas.video is not None and self.vae is not None and self.latent_space.sees_time:
            video = self.decode(z)[:, [frame for place in inside for frame in canvas.grid.frames(place)]]
        elif canvas.video is not None:
            video = self.decode(made)
        canvas.put(window.made, made, video)
        return [conditions.prompt_embeds, conditions.negative_prompt_embeds]

    def _begin_anew(self, canvas: Canvas, window: Window, given: Tensor) -> Tensor:
        """The latents that a window starts from, as the VAE gives them to the beginning of a clip.

        A clip's first latent frame stands for one frame. So a window that begins later in the video begins with the
        last frame of its first latent frame; what is known from there on is encoded as a clip of its own.

        Args:
            canvas: with the video so far.
            window: it begins with known frames, and they follow each other.
            given: the latents of the video in the places of the window.
        """
        frames, grid = window.frames, canvas.grid
        count = next(i for i, place in enumerate(frames) if place not in window.given)
        known = range(grid.start(frames[0] + 1) - 1, grid.start(frames[0] + count))
        assert canvas.video is not None, "of _empty_canvas"
        pixels = canvas.video[:, canvas.frames_at(known)].to(given.device) * 2 - 1
        found = self.latent_space.encode_runs(pixels, range(len(known)))
        return torch.cat([torch.stack([*found.values()], dim=2).to(given.device), given[:, :, count:]], dim=2)

    def _finish(self, canvas: Canvas, call: Call, places: range, output_type: str) -> Any:
        """Some latent frames of the clips as `output_type`; what was given comes back as it went in."""
        given, grid = call.given, canvas.grid
        if output_type == "latent":
            return canvas.latents[:, :, slice(*canvas.at([places.start, places.stop]))]
        assert canvas.video is not None, "of _empty_canvas"
        frames = range(grid.start(places.start), grid.start(places.stop))
        video = canvas.video[:, slice(*canvas.frames_at([frames.start, frames.stop]))]
        chosen = [i for i, frame in enumerate(given.indices) if frame in frames]
        if given.frames is not None and chosen:
            at = [given.indices[i] - frames.start for i in chosen]
            video[:, at] = torch.where(given.mask[chosen], given.frames[:, chosen], video[:, at])
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
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | Tensor | np.ndarray | None = None,
        guidance_scale: float | None = None,
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
        history_guidance_scale: float | None = None,
        clip_skip: int | None = None,
        noise_pyramid: float = 0.0,
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
            num_inference_steps: steps of a window, at least 1; by default those of `generation_config`, else 50.
            timesteps: own ones in the place of that number: falling, 1000 is noise and 0 the data, which the last step
                leads to. Whole numbers below 1000 for a scheduler of diffusers; not all of them take any.
            guidance_scale: w of classifier-free guidance; 0 and 1 switch it off. By default that of
                `generation_config` where there is a prompt, else 1.
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
            history_guidance_scale: classifier-free guidance on the frames that the model reads, in every window; 1
                switches it off, more costs a second call a step and drifts in long videos (see `guidance.history`). By
                default that of `generation_config` where frames are given and there is one window, else 1.
            clip_skip: how many of the last layers of a CLIP text encoder are left out for the prompt.
            noise_pyramid: for a model with a time for each frame: how much later the later frames are denoised; 0: all
                together, 1: the last begins when the first is done (see `guidance.pyramid_times`).

        Returns:
            `VideoDiffusionPipelineOutput`, or the tuple `(frames,)`, on the CPU. Given frames and pixels come back
            untouched.

        Raises:
            ValueError: where an argument is refused, before the first network call; where a component gives NaN.
        """
        if not isinstance(return_dict, bool):
            raise ValueError(f"`return_dict` is {shown(return_dict)}, expected True or False.")
        call, texts, inputs = self._open_call(
            prompt,
            prompt_embeds,
            negative_prompt,
            negative_prompt_embeds,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            video=video,
            frame_indices=frame_indices,
            mask_image=mask_image,
            num_frames=num_frames,
            height=height,
            width=width,
            num_videos_per_prompt=num_videos_per_prompt,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            guidance_scale=guidance_scale,
            history_guidance_scale=history_guidance_scale,
            reconstruction_guidance_scale=reconstruction_guidance_scale,
            window_overlap=window_overlap,
            window_scheme=window_scheme,
            generator=generator,
            latents=latents,
            clip_skip=clip_skip,
            noise_pyramid=noise_pyramid,
        )
        self._guidance_scale, self._interrupt = call.guidance_scale, False
        text, canvas = self._read_texts(call, texts), self._empty_canvas(call, pixels=output_type != "latent")
        self._extend(canvas, call, call.shape[2])
        with self._bar(call) as bar:
            step_end = StepEnd(bar, callback_on_step_end, inputs)
            for i, window in enumerate(call.windows):
                if self.interrupt:
                    break
                self._say_window(bar, call, i)
                text = self._make_window(call, canvas, window, text, step_end)
        clips = self._finish(canvas, call, range(call.shape[2]), output_type)
        self.maybe_free_model_hooks()
        return VideoDiffusionPipelineOutput(frames=clips) if return_dict else (clips,)

    def stream(self, prompt: Any = None, *, num_frames: int | None = None, **options: Any) -> "FrameStream":
        """The frames of a call one by one, in the order of time, each as soon as its window is made.

        With the same arguments and generator they are the frames of the call. A video without end keeps the frames of
        two windows at most in memory. Between two frames the pipeline is free for other calls and streams; a generator
        that these share with the stream would change it.

        Args:
            prompt: as in the call; or a function of the number of frames that have come so far, asked before each
                window; or an iterator (no list, which is one prompt a clip) with a prompt for each window, the last of
                which stays.
            num_frames: F; None: a video without end, with `window_scheme` "autoregressive", frame 0 given if any is,
                and no `latents`; with `mask_image` all frames of `video`.
            options: the other arguments of the call, but `return_dict`.

        Returns:
            an iterator. Each item is one frame of all B clips, by `output_type`: a list of B PIL images; a numpy array
            `[B, H, W, C]` or a tensor `[B, C, H, W]`, float32 in [0, 1]; or latents `[B, C, h, w]`. Leave the loop or
            `close()` it when enough have come. A callback that sets `_interrupt` ends it after this window.

        Raises:
            ValueError: where an argument is refused, now and not at the first frame; while it runs, where the network
                gives NaN, or `prompt` what is no prompt.
            TypeError: where the call has no such argument.
        """
        names = inspect.signature(type(self).__call__).parameters
        if unknown := [name for name in options if name not in names or name in ("self", "return_dict")]:
            raise TypeError(f"`{unknown[0]}` is no argument of a stream, expected those of the call: {[*names][1:]}.")
        values = {name: parameter.default for name, parameter in names.items() if name not in ("self", "return_dict")}
        values |= {"prompt": None, "num_frames": num_frames, **options}
        prompts = Prompts(prompt)
        own = ("output_type", "callback_on_step_end", "callback_on_step_end_tensor_inputs")
        output_type, callback, inputs = (values.pop(name) for name in own)
        values["prompt"] = prompts.current
        call, texts, inputs = self._open_call(
            output_type=output_type, callback=callback, callback_inputs=inputs, streams=True, **values
        )
        return FrameStream(self._stream(call, texts, prompts, output_type, StepEnd(None, callback, inputs)))

    def _stream(
        self, call: Call, texts: dict[str, Any], prompts: Prompts, output_type: str, step_end: StepEnd
    ) -> Generator[Any, None, None]:
        """The frames of `stream`, after its checks."""
        come, done, scale = 0, 0, call.guidance_scale  # frames, and latent frames, that have come
        text: list[Tensor | None] = [None, None]
        canvas = self._empty_canvas(call, pixels=output_type != "latent")

        def ready(stop: int) -> list[Any]:
            nonlocal done
            with torch.no_grad():
                self._extend(canvas, call, stop)
            first, done = done, done + self._known_from(canvas, done)
            return self._frames_of(canvas, call, range(first, done), output_type)

        try:
            with self._bar(call) as step_end.bar:
                for i, (window, horizon) in enumerate(with_horizon(call.windows)):
                    yield from (frames := ready(window.frames[-1] + 1))
                    come += len(frames)
                    changed = i > 0 and prompts.advance(come)
                    self._guidance_scale, self._interrupt = scale, False
                    self._say_window(step_end.bar, call, i)
                    with torch.no_grad():
                        if i == 0:
                            text = self._read_texts(call, texts)
                        elif changed:
                            text[0] = self._read_change(call, texts | {"prompt": prompts.current})
                        text = self._make_window(call, canvas, window, text, step_end)
                    scale, interrupted = self._guidance_scale, self.interrupt
                    yield from (frames := ready(canvas.stop))
                    come += len(frames)
                    canvas.slide(min(horizon, done), canvas.stop)
                    if interrupted:
                        return
                yield from ready(call.shape[2])
        finally:
            if not sys.is_finalizing():  # a stream that was left open; its models are gone with the interpreter
                self.maybe_free_model_hooks()

    def _read_change(self, call: Call, texts: dict[str, Any]) -> Tensor | None:
        """The text of a prompt that has changed; checks it."""
        prompt, clips = texts["prompt"], call.shape[0] // call.num_videos_per_prompt
        check_text(self, texts, call.clip_skip)
        if isinstance(prompt, list) and len(prompt) not in (1, clips):
            raise ValueError(f"`prompt` gave {len(prompt)} texts, expected one, or one for each of {clips} clips.")
        return self._read_texts(call, texts)[0]

    def _known_from(self, canvas: Canvas, first: int) -> int:
        """How many latent frames from `first` on are known, up to one that is not."""
        whole = canvas.known[0, 0, first - canvas.start :].flatten(1).all(1).tolist()
        return whole.index(False) if False in whole else len(whole)

    def _frames_of(self, canvas: Canvas, call: Call, places: range, output_type: str) -> list[Any]:
        """The frames of these latent frames, each for itself, for all clips."""
        if not places:
            return []
        frames = self._finish(canvas, call, places, output_type)
        if output_type == "pil":
            return [list(images) for images in zip(*frames, strict=True)]
        axis = 2 if output_type == "latent" else 1
        count = frames.shape[axis]
        return [frames.take(i, axis) if output_type == "np" else frames.select(axis, i).clone() for i in range(count)]


class FrameStream(Iterator[Any]):
    """What `VideoDiffusionPipeline.stream` gives: an iterator over frames that can be closed.

    It may be read in parts, and in a `with` block, which closes it. It cannot be read twice.

    Args:
        frames: the frames, made as they are asked for.
    """

    def __init__(self, frames: Generator[Any, None, None]) -> None:
        self._frames, self._ended = frames, False

    def __iter__(self) -> "FrameStream":
        """Itself.

        Raises:
            ValueError: where it has come to its end, was closed or has failed.
        """
        if self._ended:
            raise ValueError("The stream has ended and cannot be read twice, expected a new one: call `stream` again.")
        return self

    def __next__(self) -> Any:
        try:
            return next(self._frames)
        except BaseException:  # the end, too, is an exception
            self._ended = True
            raise

    def close(self) -> None:
        """Ends it and frees what it holds."""
        self._ended = True
        self._frames.close()

    def __enter__(self) -> "FrameStream":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# -------------------------------------------------------------------------------------------------- what is saved how
def unwrap(name: str, part: Any) -> Any:
    """A component as its folder holds it: without what `torch.compile` and DDP put around it.

    Raises:
        ValueError: where the folder could not hold it: adapters, rounded or absent weights, shards of other processes.
    """
    while isinstance(part, torch.nn.Module):
        if hasattr(part, "_orig_mod"):
            part = part._orig_mod
        elif isinstance(part, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            part = part.module
        else:
            break
    if not isinstance(part, torch.nn.Module):
        return part
    modules = list(part.modules())
    reason = None
    if any(hasattr(module, "lora_A") for module in modules):
        reason = "LoRA adapters: `fuse_lora()` to keep what they do, then `unload_lora_weights()`, then save"
    elif any("layerwise_casting" in hook_names(module) for module in modules):
        reason = "weights rounded by layerwise casting: save before `enable_layerwise_casting`"
    elif any(parameter.is_meta for parameter in part.parameters()):
        reason = "weights that are offloaded: save before offloading"
    elif type(part).__name__ == "FullyShardedDataParallel" or not hasattr(part, "save_pretrained"):
        reason = "no weights that one process could save: pass the module inside of it"
    if reason is not None:
        raise ValueError(f"`{name}`, a {type(part).__name__}, has {reason}.")
    return part


def hook_names(module: torch.nn.Module) -> list[str]:
    """The names of the hooks that diffusers put on a module."""
    registry = getattr(module, "_diffusers_hook", None)
    return [] if registry is None else list(registry.hooks)


def has_cache(unet: torch.nn.Module) -> bool:
    """Whether `enable_cache` is on: one step of the network then depends on earlier ones."""
    return any(name in CACHES for module in unet.modules() for name in hook_names(module))


def seal(folder: Path) -> None:
    """Writes down the digest of each file that is loaded, where the package is there; else an old list goes away."""
    try:
        import video_diffusion.hub.integrity as integrity
    except ImportError:
        (folder / "manifest.json").unlink(missing_ok=True)
    else:
        integrity.seal_pipeline(folder)


def forget_origin(folder: Path) -> None:
    """Drops from the configs of a pipeline's folder where the weights came from, and in which dtype they were read.

    A path means nothing to others, and how weights are read is for the reader to say.
    """
    configs = [*folder.glob("*/config.json"), *folder.glob("*/tokenizer_config.json")]
    for file in (folder / VideoDiffusionPipeline.config_name, *configs):
        config = json.loads(file.read_text(encoding="utf-8"))
        dropped = ORIGIN + (("dtype", "torch_dtype") if "transformers_version" in config else ())
        kept = {key: value for key, value in config.items() if key not in dropped}
        if kept != config:
            file.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
