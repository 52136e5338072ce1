"""Variants of a training side by side for equal minutes: `python training/ablate.py --minutes 4 --variants base x`.

Each variant is a set of flags of `train.py` (see `VARIANTS`), trained in a process of its own on one thread for equal
processor time. The learning rate falls linearly to zero. The error of x̂ is then read at fixed λ, so that variants with
different schedules are compared at the same noise, on held-out digits, for generation and for prediction from half the
frames. What the package does not have (`trials.py`) is tried here too, by further flags.
"""

import argparse
import colorsys
import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from matplotlib.figure import Figure
from torch import nn
from transformers import HfArgumentParser

from trials import (
    EMA_WIDTHS,
    AdaptiveTimes,
    PowerAverage,
    SelfConditioned,
    TrialArguments,
    rate,
)
from video_diffusion import VideoUNet3DConditionModel
from video_diffusion.data.video_io import SHEET_COLOUR, TEXT_COLOUR
from video_diffusion.evaluation.figure import dark, unit
from video_diffusion.training.arguments import DataArguments, ModelArguments, TrainArguments
from video_diffusion.training.batches import StepBatches, open_source, to_model
from video_diffusion.training.build import build_model, compile_blocks
from video_diffusion.training.objective import Draw, diffusion_loss, draw
from video_diffusion.training.optimizers import build_optimizer
from video_diffusion.training.train_arguments import parse_arguments

LOGSNRS = (-9.0, -7.0, -5.0, -3.0, -1.0, 1.0, 3.0)
VALIDATION_CLIPS = 32

# What `tiny-cpu` was when the variants of 2026-11-24 were measured; flags that follow override it.
BASE = (
    "--block_out_channels 64 128 256 --attention_head_dim 32 --spatial_attention 1 --temporal_shift 0 --shift 1 "
    "--prediction_type v_prediction --weighting v_prediction --per_device_batch_size 4 --warmup_steps 100 "
    "--optimizer adamw --learning_rate 8e-4 --mixed_precision no --lr_scheduler linear"
)
X = "--prediction_type sample --weighting clipped_v_prediction"
P8 = f"{X} --shift 2 --patch_size 8 --attention_head_dim 64 --mixed_precision bf16"
TSM = f"{X} --shift 2 --temporal_shift 0.25 --spatial_attention 0 1 1 --mixed_precision bf16"
HEADS = f"{TSM} --attention_backend _native_math --attention_head_dim 64"
FAST = f"{HEADS} --optimizer muon --learning_rate 2e-3 --per_device_batch_size 8 --compile True"
VARIANTS = {
    "base": "",
    "shift-4": "--shift 4",
    "x": X,
    "x-shift-4": f"{X} --shift 4",
    "p8": f"{P8} --block_out_channels 128 256",
    "p8-wide-tsm": f"{P8} --block_out_channels 192 384 --temporal_shift 0.25",
    "p8-tsm-images": f"{P8} --block_out_channels 128 256 --temporal_shift 0.25 --num_images 10",
    "p4-tsm": TSM,
    "tsm-64": HEADS,
    "tsm-muon": f"{HEADS} --optimizer muon --learning_rate 2e-3 --per_device_batch_size 8",
    # From here on each changes one thing in "fast", which is "tsm-muon" compiled ("deep" and "wide" two, "adamw" the
    # learning rate with the optimiser).
    "fast": FAST,
    "deep": f"{FAST} --layers_per_block 2 --block_out_channels 64 128 192",
    "wide": f"{FAST} --block_out_channels 96 192 256 --attention_head_dim 32",
    "shift-half": f"{FAST} --temporal_shift 0.5",
    "batch-16": f"{FAST} --per_device_batch_size 16",
    "rate-4e-3": f"{FAST} --learning_rate 4e-3",
    "adamw": f"{FAST} --optimizer adamw --learning_rate 8e-4",
    "no-shift": f"{FAST} --temporal_shift 0",
    "images": f"{FAST} --num_images 5",
    "min-snr": f"{FAST} --weighting min_snr",
    "sigmoid": f"{FAST} --weighting sigmoid",
    "edm": f"{FAST} --weighting edm",
    "prediction": f"{FAST} --mask_probabilities 0.1 0.6 0.15 0.15",
    "generation": f"{FAST} --mask_probabilities 0.7 0.1 0.1 0.1",
    "uniform-times": f"{FAST} --times uniform",
    "adaptive-times": f"{FAST} --times adaptive",
    "schedule-linear": f"{FAST} --schedule linear --shift 1",
    "self-conditioning": f"{FAST} --self_conditioning True",
    "ema-linear": f"{FAST} --ema_widths True",
    "ema-trapezoid": f"{FAST} --ema_widths True --lr_scheduler trapezoid",
    "ema-constant": f"{FAST} --ema_widths True --lr_scheduler constant",
    "cosine": f"{FAST} --lr_scheduler cosine",
}


def errors_by_noise(model: Any, scheduler: Any, clips: torch.Tensor, in_channels: int) -> dict[str, list[float]]:
    """Mean squared error of x̂ at each of `LOGSNRS`, for clips `[B, C, F, H, W]` in [-1, 1]."""
    frames = clips.shape[2]
    masks = {"generation": torch.zeros(frames, dtype=torch.bool), "prediction": torch.arange(frames) < frames // 2}
    found: dict[str, list[float]] = {name: [] for name in masks}
    for name, mask in masks.items():
        for i, logsnr in enumerate(LOGSNRS):
            noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(i))
            t = scheduler.time(torch.full((len(clips),), logsnr, dtype=torch.float64)).float()
            one = Draw(t, noise, mask.expand(len(clips), -1))
            parts = [
                diffusion_loss(model, scheduler, clips[k : k + 16], one.rows(k, k + 16), "sample", 0, in_channels)[1]
                for k in range(0, len(clips), 16)
            ]
            found[name].append(round(torch.cat(parts).mean().item(), 5))
    return found


@dataclass
class Trial:
    """A variant in training: the model with what is tried in it, and the times it sees."""

    arguments: tuple[ModelArguments, DataArguments, TrainArguments]
    options: TrialArguments

    def __post_init__(self) -> None:
        model_args, self.data, self.args = self.arguments
        self.in_channels = 2 * self.data.channels + 1
        self.denoiser, self.scheduler = build_model(model_args, self.data)
        if self.options.self_conditioning:
            channels = self.data.channels
            config = dict(self.denoiser.config) | {"in_channels": self.in_channels + channels}
            self.denoiser = VideoUNet3DConditionModel.from_config(config)
        if self.args.attention_backend is not None:
            self.denoiser.set_attention_backend(self.args.attention_backend)
        self.model: nn.Module = self.denoiser
        if self.options.self_conditioning:
            self.model = SelfConditioned(self.denoiser, self.data.channels)
        self.times = AdaptiveTimes() if self.options.times == "adaptive" else None

    def loss(self, clips: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and error of x̂ of the clips of a step, `[B]` each."""
        args, x = self.args, to_model(clips, torch.device("cpu"))
        noise = draw(tuple(x.shape), args.mask_probabilities, args.seed, step, self.data.num_images)
        weight: Any = 1
        if self.options.times == "uniform":
            generator = torch.Generator().manual_seed(step)
            noise = replace(noise, t=1 - torch.rand(len(x), generator=generator))
        elif self.times is not None:
            noise, weight = self.times.warp(noise)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
            loss, error = diffusion_loss(
                self.model, self.scheduler, x, noise, args.weighting, self.data.num_images, self.in_channels
            )
        if self.times is not None:
            self.times.update(noise.t, loss)
        return loss * weight, error

    def measure(self, weights: Sequence[torch.Tensor]) -> dict[str, list[float]]:
        """`errors_by_noise` on held-out clips of a model with these weights, which is not compiled."""
        other = Trial(self.arguments, self.options)
        with torch.no_grad():
            for parameter, value in zip(other.denoiser.parameters(), weights, strict=True):
                parameter.copy_(value)
            test = torch.from_numpy(open_source(self.data, "test", self.args.seed).batch(range(VALIDATION_CLIPS)))
            x = to_model(test[..., None], torch.device("cpu"))
            return errors_by_noise(other.model.eval(), self.scheduler, x, self.in_channels)


def train_variant(name: str, flags: list[str], minutes: float, out: Path) -> None:
    """Trains one variant for `minutes` on one thread and writes `<out>/<name>.json`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options, known = HfArgumentParser(TrialArguments).parse_args_into_dataclasses(flags, return_remaining_strings=True)
    trial = Trial(parse_arguments([*BASE.split(), *known]), options)
    denoiser, data, args = trial.denoiser, trial.data, trial.args
    optimizer = build_optimizer(denoiser, args)
    parameters = list(denoiser.parameters())
    ema = EMAModel(parameters, decay=args.ema_decay, foreach=True)
    averages = {f"{width:g}": PowerAverage(parameters, width) for width in EMA_WIDTHS if options.ema_widths}
    source = open_source(data, "train", args.seed)
    batches = StepBatches(source, args.per_device_batch_size, 0, 1, data.num_images, args.seed)
    if args.compile:  # before the clock starts
        compile_blocks(denoiser)
        trial.loss(batches[0].clips, 0)[0].mean().backward()
        denoiser.zero_grad()
    start, step, curve = time.process_time(), 0, []
    total = 60 * minutes
    while (spent := time.process_time() - start) < total:
        share = min(1.0, (step + 1) / args.warmup_steps) * rate(args.lr_scheduler, spent / total)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * share
        loss, error = trial.loss(batches[step].clips, step)
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)
        for average in averages.values():
            average.step(parameters)
        curve.append((round(spent, 2), round(loss.mean().item(), 5), round(error.mean().item(), 5)))
        step += 1
    errors = trial.measure(ema.shadow_params)
    clips = step * args.per_device_batch_size
    result = {"name": name, "flags": flags, "minutes": minutes, "steps": step, "clips": clips, "logsnr": LOGSNRS}
    result |= errors | {"curve": curve[:: max(1, step // 200)]}
    if options.ema_widths:
        others = {"none": parameters} | {width: average.average for width, average in averages.items()}
        result["averages"] = {width: mean_error(trial.measure(weights)) for width, weights in others.items()}
    (out / f"{name}.json").write_text(json.dumps(result))
    line = " ".join(f"{v:.4f}" for v in errors["generation"] + errors["prediction"])
    print(f"{name:24} {clips:6d} clips  mean {mean_error(errors):.4f}   {line}", flush=True)


def mean_error(errors: dict[str, list[float]]) -> float:
    """The mean over noise levels and tasks."""
    values = errors["generation"] + errors["prediction"]
    return round(sum(values) / len(values), 5)


def draw_errors(folder: Path) -> None:
    """Draws the errors of all variants in `folder` against λ, in one panel for each task, as `<folder>/errors.png`."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found.sort(key=lambda run: sum(run["generation"] + run["prediction"]))
    figure = Figure((11, 4.5), facecolor=unit(SHEET_COLOUR), layout="constrained")
    for axes, task in zip(figure.subplots(1, 2), ("generation", "prediction"), strict=True):
        dark(axes)
        for i, run in enumerate(found):
            colour = colorsys.hsv_to_rgb(i / len(found), 0.6, 1.0)
            axes.plot(LOGSNRS, run[task], color=colour, label=f"{run['name']} ({run['clips']})")
        axes.set_title(f"{task}: squared error of x against log-SNR")
    options: dict[str, Any] = {"fontsize": 7, "labelcolor": unit(TEXT_COLOUR), "frameon": False}
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", **options)
    figure.savefig(folder / "errors.png", dpi=100)


def main() -> None:
    """Trains the chosen variants, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="names, or 'name=--flag value …'")
    parser.add_argument("--minutes", type=float, default=4, help="processor time of each variant")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = []
    for item in options.variants:
        name, _, own = item.partition("=")
        jobs.append((name, (own or VARIANTS[name]).split(), options.minutes, options.out))
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
        pool.starmap(train_variant, jobs, chunksize=1)
    draw_errors(options.out)


if __name__ == "__main__":
    main()
