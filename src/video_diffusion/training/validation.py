"""What a run reports beside its loss: errors on held-out clips, by task and of one call."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion.data import MovingMNIST, VideoClips
from video_diffusion.data.streams import VideoStream
from video_diffusion.model.autoencoding import FrameGrid
from video_diffusion.model.guidance import frame_times, has_frame_times, model_input
from video_diffusion.model.inputs import encode_tokens
from video_diffusion.training.batches import open_captions, to_model
from video_diffusion.training.objective import TASKS, diffusion_loss, draw
from video_diffusion.training.run import Run

LIMITS = "one call 10 to 10 about 11.1, next 10.1 (of 5 to 5); 5 to 5 about 16.7, last 22.7 (docs/protocols.md)"


def report(run: Run, step: int, measure: Callable[..., dict[str, float]]) -> None:
    """Logs what `measure` gives for the run."""
    if not run.accelerator.is_main_process:
        return
    values = measure(run)
    run.accelerator.log(values, step=step)
    tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    if measure is validate and run.data.source is None and run.data.variant == "classic":
        tqdm.write(f"the best possible: {LIMITS}")


def held_out(run: Run, size: int, source: Any = None) -> Tensor:
    """The first clips of the validation split or of `source` (fewer, if it is smaller), uint8 `[B, F, H, W, C]`."""
    source = run.validation_source if source is None else source
    if isinstance(source, VideoStream):
        return torch.from_numpy(source.first(size))
    clips = torch.from_numpy(source.batch(range(min(size, len(source)))))
    return clips if clips.ndim == 5 else clips[..., None]


@torch.no_grad()
def validate(run: Run) -> dict[str, float]:
    """Mean squared error of x̂ on held-out clips without captions, mean over t, by task; averaged weights.

    Where the clips have captions, also that of generation with each clip's own (`generation_captioned`) and with
    another clip's (`generation_miscaptioned`): the difference is what the network understands of them.
    """
    clips = held_out(run, run.args.validation_videos)
    pipe, report = run.pipeline(), {}
    unet, no_text = pipe.unet, None if run.text is None else pipe.encode_prompt("")[0]
    for name in TASKS:
        text = None if no_text is None else no_text.expand(len(clips), -1, -1)
        report[f"validation/{name}"] = mean_error(run, unet, clips, name, text)
    if (said := captions_of(run, len(clips))) is not None:
        states = states_of(run, pipe, said)
        for name, text in {"captioned": states, "miscaptioned": states.roll(1, 0)}.items():
            report[f"validation/generation_{name}"] = mean_error(run, unet, clips, "generation", text)
    for given, length in {(half(run), run.data.num_frames), *([] if grid(run).ratio > 1 else [(5, 10)])}:
        if 0 < given < length <= run.data.num_frames:
            report |= one_call(run, unet, clips[:, :length], given, no_text)
    return report


def mean_error(run: Run, unet: Any, clips: Tensor, task: str, text: Tensor | None) -> float:
    """Mean squared error of x̂ on clips uint8 `[B, F, H, W, C]` in one of the `TASKS`; text states `[B, L, D]`."""
    only, errors = [float(name == task) for name in TASKS], []
    for start in range(0, len(clips), 16):
        x = run.encoded(clips[start : start + 16])
        by_frame = 0.0 if has_frame_times(unet.config) else None
        noise = draw(tuple(x.shape), only, run.args.seed + 1, start, 0, x.device, frame_noise=by_frame)
        conditions = None if text is None else {"encoder_hidden_states": text[start : start + 16]}
        errors.append(diffusion_loss(unet, run.scheduler, x, noise, run.args.weighting, conditions=conditions)[1])
    return torch.cat(errors).mean().item()


def captions_of(run: Run, count: int) -> list[str] | None:
    """What is said of the first held-out clips; None where there are no captions, or all are the same."""
    source = run.validation_source
    if run.text is None or not getattr(run.args, "captions", True) or not isinstance(source, MovingMNIST | VideoClips):
        return None
    try:
        said = open_captions(source, run.data, run.args.seed)(np.arange(count))
    except ValueError:  # the held-out videos have none
        return None
    return said if len(set(said)) > 1 else None


def states_of(run: Run, pipe: Any, texts: list[str]) -> Tensor:
    """Token states `[N, L, D]`, of texts that are too long cut as in training."""
    assert run.text is not None
    tokens = run.text.tokens(texts)
    return encode_tokens(pipe.text_encoder, tokens.input_ids, tokens.attention_mask)


def grid(run: Run) -> FrameGrid:
    """Which frames of a clip each frame that the denoiser sees stands for."""
    return FrameGrid() if run.space is None else run.space.grid


def half(run: Run) -> int:
    """About half of a clip's frames: those of half of the frames that the denoiser sees."""
    return grid(run).start(grid(run).length(run.data.num_frames) // 2)


def one_call(run: Run, unet: Any, clips: Tensor, given: int, no_text: Tensor | None) -> dict[str, float]:
    """The error of ONE network call at t = 1 on the frames after the first `given`.

    Squared, on [0, 1], summed over a frame's pixels; mean over clips, for all predicted frames together, the first
    and the last of them. It is the error of the best point prediction that the network can make, and shows first
    whether it follows motion.
    """
    frames = []
    for start in range(0, len(clips), 16):
        x = run.encoded(clips[start : start + 16])
        generator = torch.Generator(x.device).manual_seed(start)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        mask = (torch.arange(x.shape[2], device=x.device) < grid(run).length(given)).expand(len(x), -1)
        time = torch.full((len(x),), float(run.scheduler.config.num_train_timesteps), device=x.device)
        text = {} if no_text is None else {"encoder_hidden_states": no_text.expand(len(x), -1, -1)}
        z = run.scheduler.add_noise(x, noise, time)
        if has_frame_times(unet.config):
            z, time = torch.where(mask[:, None, :, None, None], x, z), frame_times(time, mask)
        output = unet(model_input(z, x, mask, unet.config.in_channels), time, **text).sample.float()
        estimate = run.scheduler.predict_original(output, time, z)
        if run.space is not None:
            x = to_model(clips[start : start + 16], run.accelerator.device)
            estimate = run.space.decode(estimate, channels=x.shape[1])
        frames.append(((estimate.clamp(-1, 1) - x) / 2).square().sum((1, 3, 4))[:, given:])
    by_frame = torch.cat(frames).mean(0)
    name = f"validation/one_call_{given}_to_{len(by_frame)}"
    values = {"": by_frame.mean(), "_next": by_frame[0], "_last": by_frame[-1]}
    return {f"{name}{key}": value.item() for key, value in values.items()}
