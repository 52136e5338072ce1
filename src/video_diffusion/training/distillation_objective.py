"""What a student learns: the steps that it takes, and where several steps of its teacher lead (distillation.py)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from video_diffusion import VPContinuousScheduler
from video_diffusion.model.guidance import model_input
from video_diffusion.model.scheduler import prediction_loss_weight
from video_diffusion.model.steps import spaced_timesteps
from video_diffusion.training.objective import Draw, mean_over_generated


@dataclass(frozen=True)
class Told:
    """What the networks get beside noisy clips and times, as arguments of their call.

    Args:
        student: of the student.
        teacher: of the teacher.
        free: of the teacher for the other side of its guidance, the empty text; None: no guidance from outside.
        scale: w of that guidance, `[B]`.
    """

    student: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] = field(default_factory=dict)
    free: Mapping[str, Any] | None = None
    scale: Tensor | None = None


def step_nodes(scheduler: VPContinuousScheduler, config: Mapping[str, Any], calls: int, spaced: bool) -> Tensor:
    """Times through which those of every stage go, rising from 0 to that of the first step; float64 `[n + 1]`.

    They are those of a teacher that was distilled itself, or those of the last student.

    Args:
        scheduler: of both.
        config: the teacher's generation config.
        calls: of the last student.
        spaced: whether the config's `logsnr_spacing` places them, see `spaced_timesteps`; else they are evenly in t.
    """
    spacing = config.get("logsnr_spacing") if spaced else None
    places = config.get("timesteps") or (spacing and spaced_timesteps(scheduler, calls, *spacing))
    if not places:
        return torch.linspace(0, 1, calls + 1, dtype=torch.float64)
    return torch.tensor([0.0, *reversed(places)], dtype=torch.float64) / scheduler.config.num_train_timesteps


def times_at(share: Tensor, nodes: Tensor) -> Tensor:
    """The times at these shares of the steps, 0 to 1: on straight lines through the nodes; float64.

    So the times of a student are among those of its teacher, which has twice its calls.
    """
    position = share.double() * (len(nodes) - 1)
    before = position.long().clamp(0, len(nodes) - 2)
    return torch.lerp(nodes.to(share.device)[before], nodes.to(share.device)[before + 1], position - before)


def step_times(share: Tensor, calls: int, nodes: Tensor, parts: int = 2) -> list[Tensor]:
    """The times in that step of a sampler of so many calls in which each share in (0, 1] lies, start to end; float64.

    Args:
        share: of the sampler's steps, counted from the end; evenly in t it is the time itself.
        calls: of the sampler.
        nodes: see `step_nodes`.
        parts: steps of the teacher in it.

    Returns:
        parts + 1 tensors like `share`.
    """
    number = (share.double() * calls).ceil().clamp(1, calls)
    return [times_at((number - part / parts) / calls, nodes) for part in range(parts + 1)]


def joined_steps(
    original: Callable[[Tensor, Tensor], Tensor],
    scheduler: VPContinuousScheduler,
    z_t: Tensor,
    times: Sequence[Tensor],
    order: int = 1,
) -> Tensor:
    """The x̂ with which one step of DDIM leads where several steps of a teacher lead; `[B, ...]`.

    Args:
        original: the teacher's x̂ of noisy clips and their timesteps.
        scheduler: its schedule.
        z_t: noisy clips at the first of the times, `[B, ...]`.
        times: from start to end, as timesteps `[B]`.
        order: of the teacher's solver: 1, DDIM; 2, DPM-Solver++ 2M, whose first step is DDIM's.
    """
    z, xs = z_t, list[Tensor]()
    for number, (t, s) in enumerate(pairwise(times)):
        xs.append(original(z, t))
        x = xs[-1]
        if order == 2 and number:  # clipped again: the student's answers are
            x = scheduler.clip_original(scheduler.extrapolate_original(x, xs[-2], (times[number - 1], t, s)))
        z = scheduler.ddim_step(x, t, s, z)
    return scheduler.ddim_original(z, times[0], times[-1], z_t)


def distillation_loss(
    student: Any,
    teacher: Any,
    scheduler: VPContinuousScheduler,
    x: Tensor,
    noise: Draw,
    calls: int,
    nodes: Tensor,
    weighting: str,
    told: Told,
    in_channels: int,
    parts: int = 2,
    order: int = 1,
) -> tuple[Tensor, Tensor]:
    """The weighted squared error of the student against its teacher's steps, on the frames that are not given.

    Args:
        student: a denoiser called as `UNet3DConditionModel` is.
        teacher: likewise.
        scheduler: of both.
        x: clean clips `[B, C, F, H, W]` in [-1, 1].
        noise: the step's draw for these clips; its times choose the student's steps.
        calls: of the student.
        nodes: see `step_nodes`.
        weighting: see `video_diffusion.model.scheduler.log_loss_weight`.
        told: the conditions of both.
        in_channels: of both.
        parts: steps of the teacher that are one of the student.
        order: of the teacher's solver, see `joined_steps`.

    Returns:
        loss: `[B]`, w(λ)·‖x̃ − x̂_θ‖² averaged over the pixels to be generated, x̃ being the target.
        error: `[B]`, ‖x̃ − x̂_θ‖² averaged likewise, clipped as in sampling, without gradient.
    """
    if in_channels == x.shape[1]:
        noise = replace(noise, frame_mask=torch.zeros_like(noise.frame_mask))
    times = [time * scheduler.config.num_train_timesteps for time in step_times(noise.t, calls, nodes, parts)]
    t = times[0]
    z_t = scheduler.add_noise(x, noise.noise, t)

    def call(
        network: Any, z: Tensor, time: Tensor, conditions: Mapping[str, Any], rows: slice | Tensor = slice(None)
    ) -> Tensor:
        sample = model_input(z[rows], x[rows], noise.frame_mask[rows], in_channels)
        output = network(sample, time[rows].to(x.dtype), **conditions).sample
        return output.to(torch.promote_types(output.dtype, torch.float32))

    def free_of(z: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        """The other side of the guidance, for the clips that are guided."""
        free = told.free or {}
        conditions = {key: value[rows] if isinstance(value, Tensor) else value for key, value in free.items()}
        return call(teacher, z, time, conditions, rows)

    def original(z: Tensor, time: Tensor) -> Tensor:
        output = call(teacher, z, time, told.teacher)
        if told.free is not None and told.scale is not None and len(rows := (told.scale != 1).nonzero().flatten()):
            free, scale = free_of(z, time, rows), told.scale[rows].to(output).reshape(-1, *[1] * (x.ndim - 1))
            output = output.index_copy(0, rows, free + scale * (output[rows] - free))
        return scheduler.clip_original(scheduler.predict_original(output, time, z))

    with torch.no_grad():
        target = joined_steps(original, scheduler, z_t, times, order)
    output = call(student, z_t, t, told.student)
    logsnr = scheduler.logsnr(t / scheduler.config.num_train_timesteps)
    weight = prediction_loss_weight(logsnr, weighting, scheduler.config.prediction_type)
    difference = output - scheduler.from_original(target, t, z_t)
    loss = weight.to(x.dtype) * mean_over_generated(difference.square(), noise.frame_mask)
    with torch.no_grad():
        estimate = scheduler.clip_original(scheduler.predict_original(output, t, z_t))
        error = mean_over_generated((estimate - target).square(), noise.frame_mask)
    return loss, error


def draw_scales(batch: int, ends: Sequence[float], seed: int, step: int, device: torch.device | str = "cpu") -> Tensor:
    """The guidance scales of step `step` for the global batch, float32 `[B]`, each uniform between two ends."""
    generator = torch.Generator(device).manual_seed((seed * 0x9E3779B1 + step + 2**61) % 2**63)
    low, high = ends
    return low + (high - low) * torch.rand(batch, generator=generator, device=device)
