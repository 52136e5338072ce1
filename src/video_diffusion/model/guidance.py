"""How the pipeline makes one window: what the model is told, replacement, guidance, and the steps.

It travels to the Hub beside `pipeline.py`, so it imports nothing local. Every coefficient comes from the scheduler.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Generators = torch.Generator | list[torch.Generator]


@dataclass
class Conditions:
    """What the model is told beside z_t.

    Args:
        given: the given values, `[B, C, F, H, W]` in [-1, 1] (or latents), 0 elsewhere.
        known: bool, `[1, 1, F, 1, 1]` or `[1, 1, F, H, W]`, true where a frame or a pixel is given.
        frame_mask: bool `[1, 1, F, 1, 1]`, the given frames that the model reads from its own channels. The other
            known places are replaced in z_t by their noised values, and guide the rest.
        reconstruction_scale: w of reconstruction guidance; 0: replacement alone.
        history_scale: w of the guidance on the given frames; 1: none.
        prompt_embeds: text `[B, L, D]`, or None for a model without text.
        negative_prompt_embeds: the same for the other side of the guidance, or None without guidance.
    """

    given: Tensor
    known: Tensor
    frame_mask: Tensor
    reconstruction_scale: float = 0.0
    history_scale: float = 1.0
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None

    def place(self, z: Tensor) -> Tensor:
        """`[B, C, F, H, W]`: the frames that the model is told, in their places, `z` elsewhere."""
        return torch.where(self.frame_mask, self.given, z)

    def hide(self) -> "Conditions":
        """The same for a model that is told no frame."""
        return replace(self, frame_mask=torch.zeros_like(self.frame_mask))


@dataclass
class Canvas:
    """The whole videos of a call, on the CPU, filled window by window.

    Args:
        latents: x where it is known (z_0 once it is made), `[B, C, F, H, W]`, 0 elsewhere.
        known: bool `[1, 1, F, 1, 1]` or, for single pixels, `[1, 1, F, H, W]`, true where it is known.
        video: what is made, decoded: `[B, F, C, H, W]` in [0, 1]; None where latents are asked for.
    """

    latents: Tensor
    known: Tensor
    video: Tensor | None = None

    def put(self, places: Sequence[int], latents: Tensor, video: Tensor | None) -> None:
        """Adds the frames that a window made."""
        self.latents[:, :, list(places)] = latents.cpu()
        self.known[:, :, list(places)] = True
        if self.video is not None and video is not None:
            self.video[:, list(places)] = video.cpu()


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
        """The latents and the conditions, changed by the callback."""
        if self.callback is not None:
            tensors = {"latents": z, **vars(conditions)}
            changed = self.callback(pipeline, self.step, t, {name: tensors[name] for name in self.inputs})
            z = changed.pop("latents", z)
            conditions = replace(conditions, **changed)
        self.step += 1
        self.bar.update()
        return z, conditions


class WindowSampling:
    """The part of the pipeline that takes one window from noise to a clip."""

    unet: Any
    scheduler: Any
    guidance_scale: Any
    latent_channels: Any
    interrupt: Any
    _current_timestep: Tensor | None

    def predict(self, z_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The model's output at (z_t, t), float32, with classifier-free guidance (Ho and Salimans 2022, equation (6)).

        Args:
            z_t: noisy clips `[B, C, F, H, W]`; the frames that the model is told take its place.
            t: timestep of the scheduler, 1000·t of ours.
            conditions: what the model is told.
        """
        x = conditions.place(self.scheduler.scale_model_input(z_t, t))
        if self.unet.config.in_channels > self.latent_channels:
            told = torch.where(conditions.frame_mask, conditions.given, 0.0)
            x = torch.cat([x, told, conditions.frame_mask.expand_as(x[:, :1]).to(x)], dim=1)
        negative, embeds = conditions.negative_prompt_embeds, conditions.prompt_embeds
        if negative is None or embeds is None:
            return self._call_unet(x, t, embeds)
        free, bound = self._call_unet(torch.cat([x, x]), t, torch.cat([negative, embeds])).chunk(2)
        return free + self.guidance_scale * (bound - free)

    def _call_unet(self, x: Tensor, t: Tensor, embeds: Tensor | None) -> Tensor:
        x = x.to(self.unet.dtype)
        return self.unet(x, t.expand(len(x)), encoder_hidden_states=embeds, return_dict=False)[0].float()

    def predict_from_history(self, z_t: Tensor, noisy: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """As `predict`, led away from what the model makes of the given frames when it is not told them.

        Classifier-free guidance on frames, ô = free + w (bound − free), as in Song et al. 2025 ("History-Guided Video
        Diffusion"), whose free side masks the given frames with noise of a level of its own; ours has that of z_t.

        Args:
            z_t: noisy clips `[B, C, F, H, W]`.
            noisy: the same, with noised given values at every known place.
            t: timestep of the scheduler.
            conditions: what the model is told; `history_scale` is w.
        """
        free = self.predict(noisy, t, conditions.hide())
        return free + conditions.history_scale * (self.predict(z_t, t, conditions) - free)

    def predict_guided(self, z_t: Tensor, noisy: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """As `predict`, with reconstruction guidance: equation (8) of Ho et al. 2022 ("Video Diffusion Models").

        x̂ moves by −(w α_t / 2) ∇_{z_b} ‖x_a − x̂_a‖² outside the given places a. A model says nothing of use about
        frames it was told, so x̂_a is then read from a second call in which it is told none.

        Args:
            z_t: noisy clips `[B, C, F, H, W]`.
            noisy: the same, with noised given values at every known place.
            t: timestep of the scheduler.
            conditions: what the model is told; `reconstruction_scale` is w.
        """
        hidden = conditions.hide()
        with torch.enable_grad():
            leaf = noisy.detach().requires_grad_()
            output = self.predict(leaf, t, hidden)
            x = self.scheduler.clip_original(self.scheduler.predict_original(output, t, leaf))
            error = torch.where(conditions.known, x - conditions.given, 0.0).square().sum()
            (gradient,) = torch.autograd.grad(error, leaf)
        x, z = x.detach(), noisy
        if conditions.frame_mask.any():
            z = conditions.place(z_t)
            x = self.scheduler.clip_original(self.scheduler.predict_original(self.predict(z, t, conditions), t, z))
        gradient = torch.where(conditions.known, 0.0, gradient)
        x = self.scheduler.guide_original(x, gradient, t, conditions.reconstruction_scale)
        return self.scheduler.from_original(x, t, z)

    def denoise(
        self, z: Tensor, conditions: Conditions, generator: Generators | None, step_end: StepEnd
    ) -> tuple[Tensor, Conditions]:
        """z_0 from z_1, both `[B, C, F, H, W]`, by the scheduler's timesteps.

        The conditions come back as callbacks left them. Known places that the model is not told hold a new draw of
        q(z_t | x) at every step (replacement).
        """
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if takes_generator else {}
        guided = conditions.reconstruction_scale > 0 and bool(conditions.known.any())
        historic = conditions.history_scale != 1 and bool(conditions.frame_mask.any())
        replaced = conditions.known & ~conditions.frame_mask
        for t in self.scheduler.timesteps:
            if self.interrupt:
                continue
            self._current_timestep, z = t, conditions.place(z)
            if guided or historic or replaced.any():
                noise = randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)
                noisy = torch.where(
                    conditions.known, self.scheduler.add_noise(conditions.given, noise, t.expand(len(z))), z
                )
                z = torch.where(replaced, noisy, z)
            if guided:
                output = self.predict_guided(z, noisy, t, conditions)
            elif historic:
                output = self.predict_from_history(z, noisy, t, conditions)
            else:
                output = self.predict(z, t, conditions)
            z = self.scheduler.step(output, t, z, return_dict=False, **extra)[0]
            z, conditions = step_end(self, t, z, conditions)
        self._current_timestep = None
        return torch.where(conditions.known, conditions.given, z), conditions
