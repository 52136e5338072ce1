"""Trains a video diffusion model: `accelerate launch training/train.py --preset tiny-cpu`.

The run is a pure function of its arguments: clips, times, noise and masks of a step depend on (seed, step) alone. A
run that was killed goes on from its newest checkpoint as if nothing had happened, and two processes compute what one
with twice the batch computes. At the end `output_dir` holds the averaged weights as a pipeline for `from_pretrained`.
"""

import json
import math
import os
import resource
import shutil
import signal
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel
from video_diffusion.hub.publish import push_pipeline
from video_diffusion.training.arguments import Arguments, as_dict, parse_arguments
from video_diffusion.training.batches import Batch, StepBatches, open_captions, open_source, passes, to_model
from video_diffusion.training.build import (
    build_lr_scheduler,
    build_model,
    compile_blocks,
    load_pretrained,
    ready_to_shard,
    whole,
)
from video_diffusion.training.objective import TASKS, diffusion_loss, draw, model_input
from video_diffusion.training.optimizers import build_optimizer
from video_diffusion.training.text import SMALL_BERT, RunText, TextDenoiser, open_text_encoder

LIMITS = "one call 10 to 10 about 11.1, next 10.1 (of 5 to 5); 5 to 5 about 16.7, last 22.7 (docs/protocols.md)"
DRY_STEPS = 3  # steps that a dry run times

# A checkpoint may be resumed only by a run that agrees with it on these.
FIXED = (
    *("patch_size", "block_out_channels", "layers_per_block", "attention_head_dim", "norm_num_groups"),
    *("temporal_shift", "spatial_attention", "temporal_attention", "transformer_layers", "attention_pattern"),
    *("cross_attention_every", "schedule", "logsnr_min", "logsnr_max", "shift", "prediction_type"),
    *("dataset_name", "train_split", "digits", "variant", "num_digits", "num_frames", "image_size"),
    *("num_channels", "num_images", "text_encoder", "train_text_encoder", "max_text_length", "caption_column"),
    *("seed", "mask_probabilities", "caption_dropout", "weighting", "optimizer", "pretrained_model_name_or_path"),
)


@dataclass
class Progress:
    """How far the run has come; saved with each checkpoint."""

    step: int = 0
    bad_steps: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Saved by accelerate."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restored by accelerate."""
        self.step, self.bad_steps, self.seconds = state["step"], state["bad_steps"], state["seconds"]


class Run:
    """Everything that lives through a run; `train` below reads from top to bottom."""

    def __init__(self, arguments: Arguments) -> None:
        self.model_args, self.data, self.args = arguments
        args = self.args
        self.config = as_dict(arguments)
        self.output = Path(args.output_dir)
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=None if args.tracker == "none" else args.tracker,
            project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=str(self.output / "logs")),
        )
        set_seed(args.seed)  # the same weights on every process
        self.train_source = open_source(self.data, self.data.train_split, args.seed)
        self.text = self.open_text()
        encoder = None if self.text is None else self.text.encoder
        denoiser, self.scheduler = build_model(
            self.model_args, self.data, None if encoder is None else encoder.config.hidden_size
        )
        if args.pretrained_model_name_or_path is not None:
            load_pretrained(denoiser, encoder, self.scheduler, args.pretrained_model_name_or_path)
        if args.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        if args.attention_backend is not None:
            denoiser.set_attention_backend(args.attention_backend)
        if args.compile:
            compile_blocks(denoiser)
        self.denoiser, self.learner = denoiser, self.with_text(denoiser, encoder)
        ready_to_shard(self.learner, self.accelerator, args)
        self.ema = EMAModel(self.learner.parameters(), decay=args.ema_decay, foreach=True)
        optimizer = build_optimizer(self.learner, args)
        self.lr_scheduler = build_lr_scheduler(optimizer, args)
        self.model, self.optimizer = self.accelerator.prepare(self.learner, optimizer)
        self.ema.to(self.accelerator.device)
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.ema, self.lr_scheduler, self.progress)
        self.batches = StepBatches(
            self.train_source,
            args.per_device_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.data.num_images,
            args.seed,
            None if self.text is None else open_captions(self.train_source, self.data, args.seed),
        )

    def open_text(self) -> RunText | None:
        """The text encoder of this run, or None."""
        name = self.model_args.text_encoder
        if name is None:
            return None
        encoder, tokenizer = open_text_encoder(name, self.model_args.max_text_length)
        trained = name == SMALL_BERT or self.model_args.train_text_encoder
        return RunText(encoder, tokenizer, trained, self.accelerator.device)

    def with_text(self, denoiser: nn.Module, encoder: nn.Module | None) -> nn.Module:
        """Everything that learns, as one module."""
        if self.text is None or not self.text.trained or encoder is None:
            return denoiser
        return TextDenoiser(denoiser, encoder)

    @property
    def global_batch(self) -> int:
        """Clips of all processes in one pass."""
        return self.args.per_device_batch_size * self.accelerator.num_processes

    def loss(self, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        """The loss and the error of x̂ in pass `index`, each averaged over this process's clips."""
        x = to_model(batch.clips, self.accelerator.device)
        shape, images = (self.global_batch, *x.shape[1:]), self.data.num_images
        noise = draw(
            shape, self.args.mask_probabilities, self.args.seed, index, images, x.device, self.args.caption_dropout
        )
        first = self.accelerator.process_index * len(x)
        noise = noise.rows(first, first + len(x))
        conditions = None
        if self.text is not None and batch.captions is not None and noise.captioned is not None:
            conditions = self.text.inputs(batch.captions, noise.captioned, x.shape[2] - images, images)
        loss, error = diffusion_loss(
            self.model,
            self.scheduler,
            x,
            noise,
            self.args.weighting,
            images,
            self.denoiser.config.in_channels,
            conditions,
        )
        return loss.mean(), error.mean()

    def save(self) -> None:
        """Writes a checkpoint beside the others and then renames it: an interrupted write leaves none that resumes."""
        draft, final = self.output / ".checkpoint.tmp", self.output / f"checkpoint-{self.progress.step}"
        if self.accelerator.is_main_process and draft.exists():
            shutil.rmtree(draft)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(draft))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (draft / "run.json").write_text(json.dumps(self.config, indent=2))
            if final.exists():
                shutil.rmtree(final)
            os.replace(draft, final)
            for old in checkpoints(self.output)[: -self.args.checkpoints_total_limit]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Goes on from the newest checkpoint, if there is one.

        Raises:
            ValueError: if that checkpoint belongs to a run with other arguments.
        """
        found = checkpoints(self.output)
        if not found or not self.args.resume:
            return
        saved = json.loads((found[-1] / "run.json").read_text())
        for key in FIXED:
            if saved.get(key) != self.config[key]:
                raise ValueError(
                    f"`{key}` is {self.config[key]!r}, expected {saved.get(key)!r}, what {found[-1]} was trained "
                    "with. Give another `output_dir`, or `--resume False` to start anew."
                )
        self.accelerator.load_state(str(found[-1]))

    def pipeline(self) -> VideoDiffusionPipeline:
        """A pipeline around a copy of the averaged weights."""
        unet = VideoUNet3DConditionModel.from_config(self.denoiser.config).to(self.accelerator.device)
        encoder = None if self.text is None else self.text.encoder
        if self.text is not None and self.text.trained:
            encoder = type(self.text.encoder)(self.text.encoder.config).to(self.accelerator.device).eval()
        self.ema.copy_to(self.with_text(unet, encoder).parameters())
        return VideoDiffusionPipeline(
            unet=unet.eval(),
            scheduler=self.scheduler,
            text_encoder=encoder,
            tokenizer=None if self.text is None else self.text.tokenizer,
        )

    def held_out(self, size: int) -> Tensor:
        """The first clips of the validation split (fewer, if it is smaller), uint8 `[B, F, H, W, C]`."""
        on_the_fly = self.data.dataset_name is None
        split = self.data.validation_split or ("test" if on_the_fly else self.data.train_split)
        source = open_source(self.data, split, self.args.seed)
        clips = torch.from_numpy(source.batch(range(min(size, len(source)))))
        return clips if clips.ndim == 5 else clips[..., None]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean squared error of x̂ on held-out clips without captions, mean over t, by task; averaged weights."""
        clips = self.held_out(self.args.validation_videos)
        size = len(clips)
        pipe, report = self.pipeline(), {}
        unet, no_text = pipe.unet, None if self.text is None else pipe.encode_prompt("")[0]
        for task, name in enumerate(TASKS):
            only = [float(i == task) for i in range(len(TASKS))]
            errors = []
            for start in range(0, size, 16):
                x = to_model(clips[start : start + 16], self.accelerator.device)
                noise = draw(tuple(x.shape), only, self.args.seed + 1, start, 0, x.device)
                text = None if no_text is None else {"encoder_hidden_states": no_text.expand(len(x), -1, -1)}
                weighting = self.args.weighting
                errors.append(diffusion_loss(unet, self.scheduler, x, noise, weighting, conditions=text)[1])
            report[f"validation/{name}"] = torch.cat(errors).mean().item()
        for given, length in {(self.data.num_frames // 2, self.data.num_frames), (5, 10)}:
            if 0 < given < length <= self.data.num_frames:
                report |= self.one_call(unet, clips[:, :length], given, no_text)
        return report

    def one_call(self, unet: Any, clips: Tensor, given: int, no_text: Tensor | None) -> dict[str, float]:
        """The error of ONE network call at t = 1 on the frames after the first `given`.

        Squared, on [0, 1], summed over a frame's pixels; mean over clips, for all predicted frames together, the first
        and the last of them. It is the error of the best point prediction that the network can make, and shows first
        whether it follows motion.
        """
        frames = []
        for start in range(0, len(clips), 16):
            x = to_model(clips[start : start + 16], self.accelerator.device)
            generator = torch.Generator(x.device).manual_seed(start)
            noise = torch.randn(x.shape, generator=generator, device=x.device)
            mask = (torch.arange(x.shape[2], device=x.device) < given).expand(len(x), -1)
            time = torch.full((len(x),), float(self.scheduler.config.num_train_timesteps), device=x.device)
            text = {} if no_text is None else {"encoder_hidden_states": no_text.expand(len(x), -1, -1)}
            z = self.scheduler.add_noise(x, noise, time)
            output = unet(model_input(z, x, mask, unet.config.in_channels), time, **text).sample.float()
            estimate = self.scheduler.predict_original(output, time, z).clamp(-1, 1)
            frames.append(((estimate - x) / 2).square().sum((1, 3, 4))[:, given:])
        by_frame = torch.cat(frames).mean(0)
        name = f"validation/one_call_{given}_to_{len(by_frame)}"
        values = {"": by_frame.mean(), "_next": by_frame[0], "_last": by_frame[-1]}
        return {f"{name}{key}": value.item() for key, value in values.items()}

    def sample(self) -> Tensor:
        """A grid uint8 `[H, W, C]`: rows are clips (two generated, two predicted from half their frames)."""
        pipe = self.pipeline()
        pipe.set_progress_bar_config(disable=True)
        clips = self.held_out(2)
        given = clips[:, : self.data.num_frames // 2].permute(0, 1, 4, 2, 3).float() / 255
        common: dict[str, Any] = {"num_inference_steps": 20, "output_type": "np"}
        common |= {"return_dict": False, "generator": torch.Generator().manual_seed(0)}
        free, bound = pipe(num_videos_per_prompt=2, **common)[0], pipe(video=given, **common)[0]
        rows = torch.cat([torch.as_tensor(free), torch.as_tensor(bound)])  # [4, F, H, W, C]
        grid = rows.permute(0, 2, 1, 3, 4).reshape(rows.shape[0] * rows.shape[2], -1, rows.shape[-1])
        return (grid.clamp(0, 1) * 255).round().to(torch.uint8)


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in output.glob("checkpoint-*") if (path / "run.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def save_pipeline(pipe: VideoDiffusionPipeline, output: Path) -> None:
    """Writes the pipeline into `output`, `model_index.json` last: before that the folder does not load."""
    draft = output / ".pipeline.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    (output / "model_index.json").unlink(missing_ok=True)
    pipe.save_pretrained(draft, safe_serialization=True)
    for path in sorted(draft.iterdir(), key=lambda path: path.name == "model_index.json"):
        target = output / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    draft.rmdir()


def dry_run(run: Run) -> None:
    """Prints the resolved run and what a step costs, the median of a few; writes nothing."""
    batch, seconds = run.batches[0], []
    for _ in range(1 + DRY_STEPS):  # the first compiles and allocates
        start = time.perf_counter()
        run.accelerator.backward(run.loss(batch, 0)[0])
        run.accelerator.clip_grad_norm_(run.model.parameters(), run.args.max_grad_norm)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.ema.step(whole(run.learner.parameters()))
        if run.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    with FlopCounterMode(display=False) as flops:  # last: what is first called while it counts is never compiled
        run.accelerator.backward(run.loss(batch, 0)[0])
    if not run.accelerator.is_main_process:
        return
    parameters = sum(p.numel() for p in run.learner.parameters())
    if run.accelerator.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(run.config, indent=2, ensure_ascii=False))
    print(f"parameters           {parameters:,}")
    print(f"weights, Adam, EMA   {parameters * 4 * 5 / 2**20:,.0f} MiB")
    print(f"peak memory          {peak / 2**20:,.0f} MiB in this process")
    print(f"clips per step       {run.global_batch * run.args.gradient_accumulation_steps}")
    work, clips = flops.get_total_flops() / 1e9, run.args.per_device_batch_size
    print(f"seconds per step     {median:.3f}, with the optimiser")
    print(f"clips per second     {clips / median:.1f} on one {run.accelerator.device.type}")
    print(f"arithmetic           {work / clips:.1f} GFLOP a clip, {work / median:,.0f} GFLOP/s")


def train(run: Run) -> bool:
    """Trains until `max_steps` or `max_minutes`; false if the part's time or a SIGTERM ended it before."""
    args, accelerator, progress = run.args, run.accelerator, run.progress
    accumulation = args.gradient_accumulation_steps
    stopped = [False]

    def stop(signum: int, frame: FrameType | None) -> None:
        stopped[0] = True

    signal.signal(signal.SIGTERM, stop)
    began = last_look = time.monotonic()
    bar = tqdm(total=args.max_steps, initial=progress.step, disable=not accelerator.is_local_main_process, unit="step")
    first, last = progress.step * accumulation, args.max_steps * accumulation
    totals = torch.zeros(3, device=accelerator.device)  # loss, error, passes
    speed = Speed(first * run.global_batch)
    run.model.train()
    for index, batch in enumerate(passes(run.batches, first, last, run.data.dataloader_num_workers), start=first):
        with accelerator.accumulate(run.model):
            loss, error = run.loss(batch, index)
            accelerator.backward(loss)
            totals += torch.stack([loss.detach(), error, torch.ones_like(error)])
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(run.model.parameters(), args.max_grad_norm)
                finite = math.isfinite(norm)  # DeepSpeed gives a float
                progress.bad_steps = 0 if finite else progress.bad_steps + 1
                if finite:
                    run.optimizer.step()
                if progress.bad_steps >= args.max_bad_steps:
                    raise FloatingPointError(
                        f"The gradient was not finite in {args.max_bad_steps} steps in a row, the last of them step "
                        f"{progress.step}. The checkpoints in {run.output} are from before."
                    )
                run.lr_scheduler.step()
                now = time.monotonic()
                progress.seconds, last_look = progress.seconds + now - last_look, now
                cool(run)
                run.optimizer.zero_grad()
                run.ema.step(whole(run.learner.parameters()))
                progress.step += 1
                bar.update()
        if not accelerator.sync_gradients:
            continue
        step = progress.step
        if step % args.log_steps == 0:
            mean = accelerator.reduce(totals, "sum")
            values = {"loss": (mean[0] / mean[2]).item(), "error": (mean[1] / mean[2]).item()}
            totals.zero_()
            bar.set_postfix(loss=f"{values['loss']:.4f}", error=f"{values['error']:.4f}")
            values |= {"lr": run.optimizer.param_groups[0]["lr"], "grad_norm": float(norm)}
            values["clips_per_second"] = speed.update(step * run.global_batch * accumulation)
            accelerator.log(values | {"clips": step * run.global_batch * accumulation}, step=step)
        if args.validation_steps and (step % args.validation_steps == 0 or step == args.max_steps):
            report(run, step)
        part_over = args.part_minutes is not None and time.monotonic() - began > 60 * args.part_minutes
        over = args.max_minutes is not None and progress.seconds > 60 * args.max_minutes
        wishes = torch.tensor([float(stopped[0] or part_over), float(over)], device=accelerator.device)
        halt, ended = (wish > 0 for wish in accelerator.reduce(wishes).tolist())
        if (
            (args.checkpointing_steps and step % args.checkpointing_steps == 0)
            or step == args.max_steps
            or halt
            or ended
        ):
            run.save()
        if ended:
            return True
        if halt and step < args.max_steps:
            return False
    return True


class Speed:
    """Clips a second since the last look.

    Args:
        clips: seen so far.
    """

    def __init__(self, clips: int) -> None:
        self.clips, self.time = clips, time.perf_counter()

    def update(self, clips: int) -> float:
        """The rate since the last call, when so many had been seen."""
        seen, now = clips - self.clips, time.perf_counter()
        rate = seen / max(now - self.time, 1e-9)
        self.clips, self.time = clips, now
        return round(rate, 1)


def cool(run: Run) -> None:
    """With `max_minutes`, lets the learning rates fall to zero by the clock."""
    args = run.args
    if args.max_minutes is None:
        return
    span = args.max_minutes / 5 if args.cooldown_minutes is None else args.cooldown_minutes
    share = min(1.0, max(0.0, (args.max_minutes - run.progress.seconds / 60) / max(span, 1e-9)))
    for group, rate in zip(run.optimizer.param_groups, run.lr_scheduler.get_last_lr(), strict=True):
        group["lr"] = rate * share


def report(run: Run, step: int) -> None:
    """Logs validation errors, and a sample grid every `sample_steps`."""
    if not run.accelerator.is_main_process:
        return
    values = run.validate()
    run.accelerator.log(values, step=step)
    tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    if run.data.dataset_name is None and run.data.variant == "classic":
        tqdm.write(f"the best possible: {LIMITS}")
    if run.args.sample_steps and step % run.args.sample_steps == 0:
        for tracker in run.accelerator.trackers:
            tracker.log_images({"samples": run.sample()[None].cpu().numpy()}, step=step, dataformats="NHWC")


def main(argv: list[str]) -> int:
    """Runs one part of a training; 0 at its end, 3 if it stopped early and wants to be resumed."""
    try:
        arguments = parse_arguments(argv)
        run = Run(arguments)
        if run.args.dry_run:
            dry_run(run)
            return 0
        run.resume()
    except (ValueError, OSError, ImportError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    if run.accelerator.is_main_process:
        run.output.mkdir(parents=True, exist_ok=True)
        (run.output / "run.json").write_text(json.dumps(run.config, indent=2, ensure_ascii=False))
    run.accelerator.init_trackers("training")
    if not train(run):
        print(f"train.py: stopped at step {run.progress.step}; the same command resumes.", file=sys.stderr)
        run.accelerator.end_training()
        return 3
    if run.accelerator.is_main_process:
        save_pipeline(run.pipeline(), run.output)
        if run.args.push_to_hub and run.args.hub_model_id is not None:
            push_pipeline(run.output, run.args.hub_model_id)
        print(f"Trained {run.progress.step} steps; the pipeline is in {run.output}.")
    run.accelerator.end_training()
    return 0
