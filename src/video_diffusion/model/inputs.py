"""What comes into the pipeline: the arguments of a call and of a configuration, brought to one form or refused.

This file travels to the Hub beside `pipeline.py`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any

import numpy as np
import PIL.Image
import torch
from einops import rearrange
from torch import Tensor

from .autoencoding import FrameGrid
from .checks import LIMITS, check_dense, check_guidance_number, check_integers, check_number, check_tensor, shown
from .guidance import has_frame_times, reads_frames, reads_guidance
from .steps import resolve_steps
from .windows import SCHEMES, Window, plan_windows

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
PIL_MODES = {1: "L", 3: "RGB"}
FLOATS = (np.float16, np.float32, np.float64)
WRONG_OPTIONS = ("use_beta_sigmas", "use_flow_sigmas", "rescale_betas_zero_snr")  # of any stock scheduler
MAX_VALUES = 2**34  # of all clips of a call: 64 GiB in float32

Frames = Sequence[Any] | np.ndarray | Tensor
Generators = torch.Generator | list[torch.Generator]


@dataclass
class Given:
    """What the user gave of the video.

    Args:
        frames: `[B, k, C, H, W]` in [0, 1], or None.
        indices: their k places among the F frames.
        mask: bool `[k, 1, 1, 1]` or, for single pixels, `[k, 1, H, W]`, true where they are given.
        latents: of `LatentSpace.encode_runs`, once they are needed.
    """

    frames: Tensor | None
    indices: list[int]
    mask: Tensor
    latents: dict[int, Tensor] = field(default_factory=dict)

    def whole_frames(self, grid: FrameGrid) -> list[int]:
        """The latent frames of which every pixel is given; without temporal compression, the frames.

        Raises:
            ValueError: where a latent frame is given in part.
        """
        whole = self.mask.flatten(1).all(1).tolist()
        given = [place for place, is_whole in zip(self.indices, whole, strict=True) if is_whole]
        places = sorted({grid.place(frame) for frame in given})
        lacking = sorted({frame for place in places for frame in grid.frames(place)} - set(given))
        if lacking:
            raise ValueError(
                f"`video` gives {len(given)} frames without {shown(lacking)}, expected these too: the VAE makes one "
                f"latent frame of frame 0 and one of each {grid.ratio} after it (1 to {grid.ratio}, "
                f"{grid.ratio + 1} to {2 * grid.ratio}, …), and each of them is given whole or not at all."
            )
        return places if grid.ratio > 1 else given

    def repeat(self, base: int, repeats: int) -> "Given":
        """The same for `base · repeats` clips, those of one given clip side by side."""
        if self.frames is None:
            return self
        frames = self.frames.expand(base, -1, -1, -1, -1).repeat_interleave(repeats, dim=0)
        return replace(self, frames=frames)


@dataclass(frozen=True)
class Call:
    """A call of the pipeline, resolved and checked.

    Args:
        given: what is given, for every clip.
        windows: the plan; a list, but for a video without end.
        num_windows: of them; infinity for a video without end.
        shape: of the latents of all clips, `(B, C, F, H, W)`; without end, F is the length of a window. With a VAE, F,
            H and W count latents.
        num_videos_per_prompt: how many of the B clips share a prompt, side by side.
        num_inference_steps: network calls of a window.
        timesteps: where they are, for `set_timesteps`; None: where the scheduler puts them.
        free_timesteps: where they are in a window without known frames; None: as in the others.
        guidance_scale: w of classifier-free guidance; 0 or 1: none.
        history_scale: w of guidance by the given frames; 1: none.
        reconstruction_scale: w of reconstruction guidance; 0: none.
        generator: as in `__call__`.
        latents: standard normal noise of `shape`, or None.
        clip_skip: as in `__call__`.
        noise_pyramid: as in `__call__`.
    """

    given: Given
    windows: Iterable[Window]
    num_windows: float
    shape: tuple[int, int, int, int, int]
    num_videos_per_prompt: int
    num_inference_steps: int
    timesteps: list[float] | None
    free_timesteps: list[float] | None
    guidance_scale: float
    history_scale: float
    reconstruction_scale: float
    generator: Generators | None
    latents: Tensor | None
    clip_skip: int | None
    noise_pyramid: float = 0.0


# ------------------------------------------------------------------------------------------------------ the whole call
def resolve_call(
    pipeline: Any,
    *,
    texts: Mapping[str, Any],
    video: Frames | None,
    frame_indices: Sequence[int] | None,
    mask_image: Any,
    num_frames: int | None,
    height: int | None,
    width: int | None,
    num_videos_per_prompt: int,
    num_inference_steps: int | None,
    timesteps: Sequence[float] | Tensor | np.ndarray | None,
    guidance_scale: float | None,
    history_guidance_scale: float | None,
    reconstruction_guidance_scale: float | None,
    window_overlap: int | None,
    window_scheme: str,
    generator: Generators | None,
    latents: Tensor | None,
    clip_skip: int | None,
    noise_pyramid: float = 0.0,
    streams: bool = False,
) -> Call:
    """Brings the arguments of a call to one form; what is not given comes from `pipeline.generation_config`.

    The arguments are those of the pipeline's `__call__`, by the same names; `texts` holds prompts and embeddings. For
    one that `streams`, no `num_frames` means a video without end.

    Raises:
        ValueError: where an argument is refused, by its name.
    """
    check_channels(pipeline.unet.config)
    if pipeline.vae is not None and pipeline.latent_channels != pipeline.latent_space.channels:
        raise ValueError(
            f"`unet` has out_channels = {pipeline.latent_channels}, expected {pipeline.latent_space.channels}, the "
            f"latent channels of `vae`, a {type(pipeline.vae).__name__}."
        )
    check_text(pipeline, texts, clip_skip)
    frames = None if video is None else read_frames(video, pipeline.pixel_channels)
    if num_frames is None and mask_image is not None and frames is not None:
        num_frames = frames.shape[1]
    endless = streams and num_frames is None
    F, H, W = resolve_shape(pipeline, num_frames, height, width)
    given = read_given(frames, frame_indices, mask_image, (LIMITS["num_frames"] if endless else F, H, W))
    if mask_image is not None and pipeline.vae is not None:
        raise ValueError("`mask_image` is given, expected None: the diffusion runs in latents, not in pixels.")
    if not isinstance(window_scheme, str) or window_scheme not in SCHEMES:
        raise ValueError(f"`window_scheme` is {window_scheme!r}, expected one of {SCHEMES}.")
    grid, trained = pipeline.frame_grid, pipeline.unet.config.get("num_frames")
    length, places = grid.length(F), given.whole_frames(grid)
    window_overlap = resolve_overlap(grid, window_overlap, trained)
    check_values((1, pipeline.pixel_channels, F, H, W))  # before a plan that would be long
    windows: Iterable[Window]
    windows = plan_windows(None if endless else length, trained, window_overlap, window_scheme, places)
    windows = windows if endless else list(windows)
    count = len(windows) if isinstance(windows, list) else math.inf
    if grid.ratio > 1 and count > 1:
        check_compressed(window_scheme, places)
    scales = resolve_scales(
        pipeline, texts, given, count, guidance_scale, history_guidance_scale, reconstruction_guidance_scale
    )
    check_integers(num_videos_per_prompt=num_videos_per_prompt)
    base, scale = count_clips({"video": frames, **texts}), pipeline.vae_scale_factor
    shape = (base * num_videos_per_prompt, pipeline.latent_channels, length, H // scale, W // scale)
    largest = max(shape, (shape[0], pipeline.pixel_channels, F, H, W), key=math.prod)
    check_values(largest)
    if endless and latents is not None:
        raise ValueError("`latents` is given, expected None without `num_frames`: there is no end to the noise.")
    check_noise(shape, generator, latents)
    check_pyramid(pipeline, noise_pyramid)
    steps = resolve_steps(pipeline, num_inference_steps, timesteps, noise_pyramid)
    given, pyramid = given.repeat(base, num_videos_per_prompt), float(noise_pyramid)
    return Call(
        given, windows, count, shape, num_videos_per_prompt, *steps, *scales, generator, latents, clip_skip, pyramid
    )


def check_values(shape: tuple[int, ...]) -> None:
    """Refuses clips that no memory holds. Raises ValueError."""
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(
            f"`num_videos_per_prompt`, `num_frames`, `height` and `width` ask for latents of {shape}, expected at "
            f"most {MAX_VALUES} values."
        )


def resolve_scales(
    pipeline: Any,
    texts: Mapping[str, Any],
    given: Given,
    windows: float,
    guidance: float | None,
    history: float | None,
    reconstruction: float | None,
) -> tuple[float, float, float]:
    """The scales of guidance by text, by the given frames, and of reconstruction guidance.

    A scale of the generation config holds only where it can: for text with a prompt, for given frames where there are
    some, in one window, and without reconstruction guidance.
    """
    config, has_text = pipeline.generation_config, texts["prompt"] is not None or texts["prompt_embeds"] is not None
    check_scheduler(pipeline.scheduler)
    check_reconstruction(pipeline, given, windows, reconstruction)
    if guidance is None:
        guidance = config.get("guidance_scale", 1.0) if has_text and can_guide(pipeline, texts) else 1.0
    if history is None:
        reads = reads_frames(pipeline.unet.config) and given.frames is not None
        history = config.get("history_guidance_scale", 1.0) if reads and windows == 1 and not reconstruction else 1.0
    check_guidance(pipeline, texts, guidance)
    check_history(pipeline, given, windows, history, reconstruction)
    return float(guidance), float(history), float(reconstruction or 0)


def resolve_overlap(grid: FrameGrid, overlap: Any, trained: int | None) -> int | None:
    """The overlap of windows in latent frames, of one in frames.

    Raises:
        ValueError: where it is no integer of at least 1, or no whole latent frames, or too long.
    """
    if overlap is None:
        return None
    check_integers(window_overlap=overlap)
    if grid.ratio > 1 and trained is not None and overlap >= grid.start(trained):
        raise ValueError(
            f"`window_overlap` is {overlap}, expected less than {grid.start(trained)}, the length of a window."
        )
    return FrameGrid(grid.ratio).length(overlap, "window_overlap")


def check_compressed(scheme: str, places: Sequence[int]) -> None:
    """Refuses a long video that a VAE with temporal compression cannot be asked for. Raises ValueError."""
    if scheme != SCHEMES[0]:
        raise ValueError(
            f"`window_scheme` is {scheme!r}, expected {SCHEMES[0]!r}: the VAE compresses time, so the frames of a "
            "window follow each other."
        )
    if places and places[0] != 0:
        raise ValueError(
            "`frame_indices` leave frame 0 out, expected it among them in a video of several windows: the VAE "
            "compresses time, so they go forwards."
        )


def resolve_shape(
    pipeline: Any, num_frames: int | None = None, height: int | None = None, width: int | None = None
) -> tuple[int, int, int]:
    """A clip's F, H, W in pixels: as asked, or the trained size.

    Raises:
        ValueError: where they are not known or do not divide.
    """
    config, scale, grid = pipeline.unet.config, pipeline.vae_scale_factor, pipeline.frame_grid
    size = config.get("sample_size")
    sizes = [size, size] if isinstance(size, int) else list(size or (None, None))
    trained = config.get("num_frames")
    F = trained and grid.start(trained) if num_frames is None else num_frames
    H = sizes[0] and sizes[0] * scale if height is None else height
    W = sizes[1] and sizes[1] * scale if width is None else width
    for name, value in {"num_frames": F, "height": H, "width": W}.items():
        if value is None:
            raise ValueError(f"`{name}` is None, expected a number: the model's config names no default.")
    check_integers(num_frames=F, height=H, width=W)
    grid.length(F)
    halvings = len(config.block_out_channels) - 1  # the stock U-Net pads for these, ours does not
    own = config.patch_size * 2**halvings if config.get("patch_size") else 1
    of = f": {scale} of the VAE times {own} of the denoiser" if scale > 1 else ""
    for name, value in {"height": H, "width": W}.items():
        if value % (scale * own):
            raise ValueError(f"`{name}` is {value}, expected a multiple of {scale * own}{of}.")
    return int(F), int(H), int(W)


# ------------------------------------------------------------------------------------------------------- single values
def plain_clips(video: Tensor) -> list[int]:
    """The clips, of any shape `[B, ...]`, that have one value throughout, as after an overflow that was clipped."""
    flat = video.flatten(1)
    return (flat.amin(1) == flat.amax(1)).nonzero().flatten().tolist() if flat.shape[1] > 1 else []


def shown_count(count: float) -> str:
    """How an error shows a number of windows."""
    return "endless" if count == math.inf else str(count)


def check_output(pipeline: Any, output_type: Any, callback: Any, callback_inputs: Any, known: Sequence[str]) -> None:
    """Refuses a form of output or a callback that there is not.

    Raises:
        ValueError: naming the argument.
    """
    if not isinstance(output_type, str) or output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` is {shown(output_type)}, expected one of {OUTPUT_TYPES}.")
    if output_type == "pil" and pipeline.pixel_channels not in PIL_MODES:
        raise ValueError(f"`output_type` is 'pil', expected 'np' or 'pt' for {pipeline.pixel_channels} channels.")
    if callback is not None and not callable(callback):
        raise ValueError(f"`callback_on_step_end` is {shown(callback)}, expected a function or None.")
    if not isinstance(callback_inputs, list | tuple):
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` is {shown(callback_inputs)}, expected a list of names."
        )
    if unknown := [name for name in callback_inputs if name not in known]:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` has {shown(unknown)}, expected some of {known}.")


def check_noise(shape: tuple[int, ...], generator: Any, latents: Any) -> None:
    """Refuses noise that is not of `shape` `[B, C, F, H, W]`, and generators that are not B. Raises ValueError."""
    many = isinstance(generator, list | tuple)
    if generator is not None and not all(isinstance(g, torch.Generator) for g in (generator if many else [generator])):
        raise ValueError(f"`generator` is {shown(generator)}, expected a torch.Generator or a list of them.")
    if many and len(generator) != shape[0]:
        raise ValueError(f"`generator` has {len(generator)} items, expected one for each of {shape[0]} clips.")
    if latents is None:
        return
    if isinstance(latents, Tensor) and (tuple(latents.shape) != shape or not latents.is_floating_point()):
        raise ValueError(
            f"`latents` has shape {tuple(latents.shape)} and dtype {latents.dtype}, expected {shape} [B, C, F, H, W] "
            "and a float type."
        )
    check_tensor("latents", latents, f"of shape {shape} [B, C, F, H, W]")


def count_clips(batched: Mapping[str, Any]) -> int:
    """How many clips the batched arguments (or None, or one string) ask for; one item serves all the clips."""
    counts = {k: len(v) for k, v in batched.items() if v is not None and not isinstance(v, str)}
    many = {name: count for name, count in counts.items() if count != 1}
    if len(set(many.values())) > 1 or 0 in many.values():
        raise ValueError(f"{', '.join(f'`{k}` holds {n}' for k, n in many.items())}, expected one number of clips.")
    return max(many.values(), default=1)


# --------------------------------------------------------------------------------------- what the model and text allow
def check_channels(config: Any) -> None:
    """Refuses a network whose input is neither z_t nor `[z_t, given frames, mask]`. Raises ValueError."""
    C, in_channels = config.out_channels, config.in_channels
    if in_channels not in (C, 2 * C + 1):
        raise ValueError(
            f"`unet` has in_channels = {in_channels} and out_channels = {C}, expected in_channels of {C} (no given "
            f"frames) or {2 * C + 1} ([z_t, given frames, mask])."
        )


def check_text(pipeline: Any, texts: Mapping[str, Any], clip_skip: Any) -> None:
    """Refuses text arguments that exclude each other or that nothing here can read. Raises ValueError."""
    width = pipeline.unet.config.get("cross_attention_dim")
    for name in ("prompt", "negative_prompt"):
        text, embeds = texts[name], texts[f"{name}_embeds"]
        if text is not None and embeds is not None:
            raise ValueError(f"`{name}` and `{name}_embeds` are both given, expected at most one of them.")
        items = text if isinstance(text, list) else [] if text is None else [text]
        if not all(isinstance(item, str) for item in items):
            raise ValueError(f"`{name}` is {shown(text)}, expected a string or a list of strings.")
        if text is not None and (pipeline.text_encoder is None or pipeline.tokenizer is None):
            raise ValueError(f"`{name}` is {shown(text)}, expected None: the pipeline has no text encoder.")
        if embeds is not None:
            if isinstance(embeds, Tensor) and (embeds.ndim != 3 or embeds.shape[-1] != width or not embeds.numel()):
                raise ValueError(f"`{name}_embeds` has shape {tuple(embeds.shape)}, expected [B, L, {width}].")
            check_tensor(f"{name}_embeds", embeds, f"[B, L, {width}]")
    embeds, negative = texts["prompt_embeds"], texts["negative_prompt_embeds"]
    if embeds is not None and negative is not None and embeds.shape[1:] != negative.shape[1:]:
        raise ValueError(
            f"`negative_prompt_embeds` has shape {tuple(negative.shape)}, expected [B, L, D] with the L and D of "
            f"`prompt_embeds`, {tuple(embeds.shape)}."
        )
    if clip_skip is None:
        return
    check_integers(clip_skip=clip_skip)
    layers = pipeline.text_encoder.config.num_hidden_layers if is_clip(pipeline.text_encoder) else 0
    if clip_skip > layers:
        kind = type(pipeline.text_encoder).__name__
        raise ValueError(f"`clip_skip` is {clip_skip}, expected None or, for CLIP alone, at most {layers}: {kind}.")


class Prompts:
    """The prompt of a stream, which may change on the way.

    Args:
        prompt: as in a call; or a function of the number of frames that the stream has given so far, asked before each
            window; or an iterable (no list, tuple or other collection) with one for each window, of which the last one
            stays. What a function or an iterable gives is a string or a list of strings.

    Attributes:
        current: the prompt of the next window, as in a call.

    Raises:
        ValueError: where what comes is no prompt.
    """

    def __init__(self, prompt: Any) -> None:
        self.current, self._ask = prompt, None
        if callable(prompt):
            self._ask = prompt
        elif isinstance(prompt, Iterable) and not isinstance(prompt, str | Sequence | Set | Mapping):
            each = iter(prompt)
            self._ask = lambda num_frames: next(each, self.current if num_frames else None)
        self.advance(0)

    def advance(self, num_frames: int) -> bool:
        """Asks for the prompt of the next window, after so many frames; returns whether it is another one."""
        if self._ask is None:
            return False
        asked = self._ask(num_frames)
        texts = asked if isinstance(asked, list) else [asked]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"`prompt` gave {shown(asked)}, expected a string or a list of strings.")
        before, self.current = self.current, asked
        return asked != before


def can_guide(pipeline: Any, texts: Mapping[str, Any]) -> bool:
    """Whether there is a text for both sides of classifier-free guidance, or the network needs no second side."""
    if reads_guidance(pipeline.unet):
        return texts["prompt"] is not None or texts["prompt_embeds"] is not None
    return pipeline.text_encoder is not None or all(
        texts[name] is not None for name in ("prompt_embeds", "negative_prompt_embeds")
    )


def check_guidance(pipeline: Any, texts: Mapping[str, Any], scale: Any) -> None:
    """Refuses a scale of classifier-free guidance without text, and a negative text without guidance."""
    check_guidance_number(scale)
    negative = [name for name in ("negative_prompt", "negative_prompt_embeds") if texts[name] is not None]
    if reads_guidance(pipeline.unet):
        if negative:
            raise ValueError(
                f"`{negative[0]}` is given, expected None: `unet` was distilled and reads the scale itself."
            )
        if scale > 1 and not can_guide(pipeline, texts):
            raise ValueError(f"`guidance_scale` is {scale}, expected 1 without a prompt.")
        return
    if scale <= 1 and negative:
        raise ValueError(f"`guidance_scale` is {scale:g}, expected more than 1 with a negative prompt.")
    if scale > 1 and not can_guide(pipeline, texts):
        raise ValueError(
            f"`guidance_scale` is {scale}, expected 1: there is no text encoder, and not both of `prompt_embeds` and "
            "`negative_prompt_embeds`."
        )


def check_scheduler(scheduler: Any) -> None:
    """Refuses a scheduler of diffusers that was made from the config of ours and would sample wrongly with it."""
    names = scheduler.config.get("_compatible_schedulers")
    if names is None or hasattr(scheduler, "as_diffusers"):
        return
    if not any(base.__name__ in names for base in type(scheduler).__mro__):
        raise ValueError(
            f"`scheduler` is a {type(scheduler).__name__}, which cannot sample with the config that it was made from: "
            f"expected one of {', '.join(names)}. `VPContinuousScheduler.as_diffusers` says why."
        )
    for option in WRONG_OPTIONS:  # they may have come beside the config: `from_config(config, use_beta_sigmas=True)`
        if scheduler.config.get(option):
            raise ValueError(
                f"`scheduler` is a {type(scheduler).__name__} whose `{option}` is True, expected False: on this "
                "schedule its steps stand in the wrong places. docs/schedulers.md has the error."
            )


def check_reconstruction(pipeline: Any, given: Given, windows: float, scale: Any) -> None:
    """Refuses a scale of reconstruction guidance where none can be used, and its absence where it is needed."""
    name, conditioned = "reconstruction_guidance_scale", given.frames is not None or windows > 1
    C, scheduler = pipeline.latent_channels, pipeline.scheduler
    if scale is None:
        if conditioned and not reads_frames(pipeline.unet.config):
            what = (
                "`video` is given"
                if given.frames is not None
                else f"`num_frames` needs {shown_count(windows)} windows"
            )
            raise ValueError(
                f"`{name}` is None, expected a number: {what} and the model has no channels for given frames "
                f"(in_channels {C}, not {2 * C + 1})."
            )
        if given.mask.shape[-1] > 1:
            raise ValueError(f"`{name}` is None, expected a number with `mask_image` (0: replacement alone).")
        return
    check_number(name, scale)
    if not conditioned:
        raise ValueError(f"`{name}` is {scale}, expected None: nothing is given and there is one window.")
    lacking = [method for method in ("predict_original", "from_original") if not hasattr(scheduler, method)]
    if scale > 0 and lacking:
        raise ValueError(
            f"`{name}` is {scale}, expected 0 or None: the scheduler, {type(scheduler).__name__}, has no "
            f"{' and no '.join(lacking)}. `VPContinuousScheduler` has."
        )
    if scale > 0 and torch.is_inference_mode_enabled():
        raise ValueError(f"`{name}` is {scale}, expected None in inference mode, which knows no gradients.")


def check_history(pipeline: Any, given: Given, windows: float, scale: Any, reconstruction: float | None) -> None:
    """Refuses a scale of the guidance by given frames that is no number, or where the model reads none."""
    name = "history_guidance_scale"
    check_number(name, scale)
    if scale == 1:
        return
    if not reads_frames(pipeline.unet.config):
        raise ValueError(f"`{name}` is {scale}, expected 1: the model has no channels for given frames.")
    if given.frames is None and windows == 1:
        raise ValueError(f"`{name}` is {scale}, expected 1: nothing is given and there is one window.")
    if reconstruction:
        raise ValueError(f"`{name}` is {scale}, expected 1 with `reconstruction_guidance_scale` {reconstruction}.")


def check_pyramid(pipeline: Any, lag: Any) -> None:
    """Refuses a lag of later frames that is no number, or where network or scheduler have one time for all frames."""
    name = "noise_pyramid"
    check_number(name, lag)
    if lag and not has_frame_times(pipeline.unet.config):
        raise ValueError(f"`{name}` is {lag}, expected 0: the model was not trained with a time for each frame.")
    if lag and not hasattr(pipeline.scheduler, "step_to"):
        raise ValueError(
            f"`{name}` is {lag}, expected 0: the scheduler, {type(pipeline.scheduler).__name__}, has one time for all "
            "frames. `VPContinuousScheduler` has one for each."
        )


# ---------------------------------------------------------------------------------------------------------------- text
def is_clip(encoder: Any) -> bool:
    """Whether a text encoder is CLIP's."""
    return encoder is not None and encoder.config.model_type.startswith("clip")


def text_length(encoder: Any, tokenizer: Any) -> int:
    """To how many tokens a text is padded: what both the tokenizer and the encoder's positions allow, at most 512."""
    return min(tokenizer.model_max_length, getattr(encoder.config, "max_position_embeddings", 512))


def encode_tokens(encoder: Any, input_ids: Tensor, attention_mask: Tensor, clip_skip: int | None = None) -> Tensor:
    """Token states `[B, L, D]`, as diffusers' pipelines read them from each kind of text encoder.

    CLIP sees its padding, unless its config has `use_attention_mask` (Stable Diffusion). T5 and UMT5 do not, and their
    states of the padding are zero (PixArt, Wan). Any other encoder, as BERT, does not see its padding either.

    Args:
        encoder: a text model of transformers.
        input_ids: `[B, L]`.
        attention_mask: `[B, L]`, 0 at the padding.
        clip_skip: how many of CLIP's last layers are left out.
    """
    kind = encoder.config.model_type
    if is_clip(encoder):
        mask = attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        if clip_skip is None:
            return encoder(input_ids, attention_mask=mask).last_hidden_state
        layers = encoder(input_ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return getattr(encoder, "text_model", encoder).final_layer_norm(layers[-(clip_skip + 1)])
    states = encoder(input_ids, attention_mask=attention_mask).last_hidden_state
    return states * attention_mask[..., None].to(states) if kind in ("t5", "mt5", "umt5") else states


# -------------------------------------------------------------------------------------------------------- given frames
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
            what = shown(value) if name == "frame_indices" else "given"
            raise ValueError(f"`{name}` is {what}, expected None without `video`.")
    if frames is None:
        return Given(None, [], torch.zeros(0, 1, 1, 1, dtype=torch.bool))
    if tuple(frames.shape[-2:]) != shape[1:]:
        raise ValueError(f"`video` has frames of {tuple(frames.shape[-2:])} pixels, expected {shape[1:]}.")
    if mask_image is None:
        places = check_frame_indices(frame_indices, frames.shape[1], shape[0])
        return Given(frames, places, torch.ones(len(places), 1, 1, 1, dtype=torch.bool))
    if frame_indices is not None:
        raise ValueError(f"`frame_indices` is {shown(frame_indices)}, expected None with `mask_image`.")
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
    if isinstance(mask_image, np.ndarray) and mask_image.dtype.kind not in "bif" and mask_image.dtype != np.uint8:
        raise ValueError(f"`mask_image` has dtype {mask_image.dtype}, expected bool, or integers or floats 0 and 1.")
    if isinstance(mask_image, Tensor):
        check_dense("mask_image", mask_image)
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
        if clip.dtype != np.uint8 and clip.dtype not in FLOATS:
            raise ValueError(f"`video` has dtype {clip.dtype}, expected uint8 or a float type.")
        clip = rearrange(torch.from_numpy(np.ascontiguousarray(clip)), "f h w c -> f c h w")
    if not (isinstance(clip, Tensor) and clip.ndim == 4):
        raise ValueError(f"`video` holds a {type(clip).__name__}, expected PIL images or an array of four axes.")
    if clip.shape[1] != channels or not clip.numel():
        raise ValueError(
            f"`video` has {clip.shape[1]} channels in a clip of {tuple(clip.shape)} [F, C, H, W], expected {channels} "
            "channels and no empty axis."
        )
    check_dense("video", clip)
    return _to_unit_range(clip.detach().cpu())


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
    places: Any = range(num_given) if frame_indices is None else frame_indices
    listed = isinstance(places, list | tuple | range | np.ndarray | Tensor) and getattr(places, "ndim", 1) == 1
    if not listed or any(isinstance(place, bool) for place in places[: num_given + 1]):
        raise ValueError(f"`frame_indices` is {shown(frame_indices)}, expected a list of integers.")
    if len(places) != num_given:
        raise ValueError(f"`frame_indices` has {len(places)} places, expected one for each of {num_given} frames.")
    try:
        indices = [index(place) for place in places]
    except TypeError as error:
        raise ValueError(f"`frame_indices` is {shown(frame_indices)}, expected a list of integers.") from error
    if frame_indices is None and num_given > num_frames:
        raise ValueError(f"`video` has {num_given} frames, expected fewer than `num_frames`, {num_frames}.")
    if any(not 0 <= place < num_frames for place in indices):
        raise ValueError(f"`frame_indices` is {indices}, expected places in 0..{num_frames - 1}.")
    if len(set(indices)) < len(indices):
        raise ValueError(f"`frame_indices` is {indices}, expected no place twice.")
    if num_given == num_frames:
        raise ValueError(f"`video` gives all {num_frames} frames, expected fewer than `num_frames`.")
    return indices
