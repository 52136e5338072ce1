"""The loop: passes, steps, and when to report, to save and to stop."""

import math
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

import torch
from tqdm.auto import tqdm

from video_diffusion.training.batches import passes
from video_diffusion.training.build import whole
from video_diffusion.training.checkpoints import save
from video_diffusion.training.run import Run
from video_diffusion.training.samples import show_samples
from video_diffusion.training.validation import report, validate


def train(run: Run, measure: Callable[..., dict[str, float]] = validate) -> str | None:
    """Trains until `max_steps` or `max_minutes`.

    Args:
        run: what learns.
        measure: gives what a validation of the run reports, by name.

    Returns:
        None at the end of the run; else what stopped it before: "SIGTERM", "SIGINT" or "part_minutes".

    Raises:
        FloatingPointError: if the gradient was not finite in too many steps in a row, or weights are not.
        OSError: if a checkpoint cannot be written.
    """
    args, accelerator, progress = run.args, run.accelerator, run.progress
    accumulation = args.gradient_accumulation_steps
    first, last = progress.step * accumulation, args.max_steps * accumulation
    totals = torch.zeros(3, device=accelerator.device)  # loss, error, passes
    speed, clock = Speed(first * run.global_batch), Clock(run)
    run.model.train()
    cool(run)
    if run.reports_start and args.validation_steps and progress.step == 0:
        report(run, 0, measure)
    with Signals() as signals, _bar(run) as bar:
        for index, batch in enumerate(passes(run.batches, first, last, run.data.dataloader_num_workers), start=first):
            with accelerator.accumulate(run.model):
                loss, error = run.loss(batch, index)
                accelerator.backward(loss)
                totals += torch.stack([loss.detach(), error, torch.ones_like(error)])
                if not accelerator.sync_gradients:
                    continue
                norm = update(run)
            clock.tick()
            cool(run)
            bar.update()
            step, clips = progress.step, progress.step * run.global_batch * accumulation
            if step % args.log_steps == 0:
                mean = accelerator.reduce(totals, "sum")
                values = {"loss": (mean[0] / mean[2]).item(), "error": (mean[1] / mean[2]).item()}
                totals.zero_()
                rate = speed.update(clips)
                bar.set_postfix_str(f"loss {values['loss']:.4f}, error {values['error']:.4f}, {rate} clips/s")
                values |= {"lr": run.optimizer.param_groups[0]["lr"], "grad_norm": norm, "clips": clips}
                accelerator.log(values | {"clips_per_second": rate}, step=step)
            if args.validation_steps and (step % args.validation_steps == 0 or step == args.max_steps):
                report(run, step, measure)
            if args.sample_steps and step % args.sample_steps == 0:
                show_samples(run, step)
            signalled, part_over, over = agreed(run, signals.came, clock.part_is_over, clock.run_is_over)
            ended = over or step == args.max_steps
            if not ended:
                run.next_stage()
            if ended or signalled or part_over or (args.checkpointing_steps and step % args.checkpointing_steps == 0):
                save(run)
            if ended:
                return None
            if signalled:
                return signals.name
            if part_over:
                return "part_minutes"
    return None


def agreed(run: Run, *wishes: bool) -> list[bool]:
    """For each wish whether a process has it. One process asks no device, so that nothing waits for it."""
    if run.accelerator.num_processes == 1:
        return list(wishes)
    there = torch.tensor(wishes, device=run.accelerator.device).float()
    return run.accelerator.reduce(there).bool().tolist()


def update(run: Run) -> float:
    """One step along the gradients that have been summed up; one that is not finite is skipped. Returns their norm.

    Raises:
        FloatingPointError: if this was the last of `max_bad_steps` such steps in a row.
    """
    args, progress = run.args, run.progress
    norm = float(run.accelerator.clip_grad_norm_(run.model.parameters(), args.max_grad_norm))
    finite = math.isfinite(norm)
    progress.good_steps += finite
    progress.bad_steps = 0 if finite else progress.bad_steps + 1
    if finite or run.accelerator.scaler is not None:  # a scaler skips by itself, and lowers its scale
        run.optimizer.step()
    if progress.bad_steps >= args.max_bad_steps:
        raise FloatingPointError(
            f"The gradient was not finite in {args.max_bad_steps} steps in a row, the last of them step "
            f"{progress.step}. A smaller `learning_rate` or `mixed_precision` no may help."
        )
    run.lr_scheduler.step()
    run.optimizer.zero_grad()
    run.ema.step(whole(run.learned(run.learner)))
    progress.step += 1
    return norm


def cool(run: Run) -> None:
    """With `max_minutes`, lets the learning rates fall to zero by the clock."""
    args = run.args
    if args.max_minutes is None:
        return
    span = args.max_minutes / 5 if args.cooldown_minutes is None else args.cooldown_minutes
    share = min(1.0, max(0.0, run.minutes_left() / max(span / run.num_stages, 1e-9)))
    for group, rate in zip(run.optimizer.param_groups, run.lr_scheduler.get_last_lr(), strict=True):
        group["lr"] = rate * share


class Clock:
    """The time of a part and of the whole run.

    Args:
        run: whose `progress.seconds` it counts on.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.began = run, time.monotonic()
        self.last = self.began

    def tick(self) -> None:
        """Adds the time since the last tick to the run's."""
        now = time.monotonic()
        self.run.progress.seconds, self.last = self.run.progress.seconds + now - self.last, now

    @property
    def part_is_over(self) -> bool:
        """Whether `part_minutes` have passed since the start of this part."""
        minutes = self.run.args.part_minutes
        return minutes is not None and time.monotonic() - self.began > 60 * minutes

    @property
    def run_is_over(self) -> bool:
        """Whether `max_minutes` have passed, all parts together."""
        minutes = self.run.args.max_minutes
        return minutes is not None and self.run.progress.seconds > 60 * minutes


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


class Signals:
    """Notes SIGTERM and SIGINT (Ctrl-C), so that a step ends and is saved; a second one ends the process at once."""

    def __enter__(self) -> "Signals":
        self.number = 0
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @property
    def came(self) -> bool:
        """Whether one came."""
        return self.number != 0

    @property
    def name(self) -> str:
        """Its name; on the processes that got none, SIGTERM."""
        return signal.Signals(self.number or signal.SIGTERM).name


def _bar(run: Run) -> tqdm:
    hidden = not run.accelerator.is_local_main_process
    return tqdm(total=run.args.max_steps, initial=run.progress.step, disable=hidden, unit="step")
