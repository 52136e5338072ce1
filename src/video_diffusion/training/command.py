"""One part of a training (of a VAE too) or a distillation, from arguments to exit code; see `docs/training.md`.

0: the run is at its end. 3: it stopped early, and the same command goes on. 130: Ctrl-C; likewise. 2: an argument was
refused before anything began. 1: something came in the way; what is safe, and how to go on, is said.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from video_diffusion.hub.adapters import push_adapter, save_adapter, save_sampling, write_adapter_card
from video_diffusion.hub.publish import push_pipeline
from video_diffusion.training.checkpoints import (
    checkpoints,
    require_finite,
    resume,
    save_pipeline,
    save_whole,
    write_record,
)
from video_diffusion.training.distillation import Distillation, measure
from video_diffusion.training.distillation_arguments import parse_distillation
from video_diffusion.training.dry_run import dry_run
from video_diffusion.training.loop import train
from video_diffusion.training.lora import Adaptation, parse_adaptation
from video_diffusion.training.run import Run
from video_diffusion.training.trackers import start_tracker
from video_diffusion.training.train_arguments import parse_arguments
from video_diffusion.training.vae import VaeRun, parse_vae
from video_diffusion.training.vae import measure as measure_vae
from video_diffusion.training.validation import validate

MOMENT = 0.5  # seconds
Measure = Callable[..., dict[str, float]]


def main(argv: Sequence[str]) -> int:
    """Runs one part of a training and returns its exit code."""
    return _part(Run.name, lambda: Run(parse_arguments(argv)), validate)


def distill(argv: Sequence[str]) -> int:
    """Runs one part of a distillation and returns its exit code."""
    return _part(Distillation.name, lambda: Distillation(parse_distillation(argv)), measure, finish_student)


def train_lora(argv: Sequence[str]) -> int:
    """Runs one part of the training of an adapter and returns its exit code."""
    return _part(Adaptation.name, lambda: Adaptation(parse_adaptation(argv)), validate, finish_adapter)


def train_vae(argv: Sequence[str]) -> int:
    """Runs one part of the training of a VAE and returns its exit code."""
    return _part(VaeRun.name, lambda: VaeRun(parse_vae(argv)), measure_vae, finish_vae)


def _part(
    name: str, open_run: Callable[[], Any], measure: Measure, finish: Callable[[Any], None] | None = None
) -> int:
    """Runs one part of what `open_run` gives, and returns its exit code; `finish` writes what has been learned."""
    finish = finish_pipeline if finish is None else finish
    try:
        run = open_run()
        if run.args.dry_run:
            dry_run(run)
            _let_go(run)
            run.accelerator.end_training()
            return 0
        resume(run)
        run.read_texts()
        if run.accelerator.is_main_process:
            write_record(run)
        start_tracker(run)
    except (ValueError, OSError, ImportError) as error:
        return _say(name, 2, str(error))
    except (MemoryError, RuntimeError) as error:
        return _say(name, 2, _of_memory(error))
    except KeyboardInterrupt:
        return _say(name, 130, "interrupted before the first step; nothing has changed.")
    try:
        stopped_by = train(run, measure)
        if stopped_by is None:
            require_finite(run)
        _let_go(run)
        if stopped_by is None:
            if run.accelerator.is_main_process:
                write_record(run, ended=True)
            finish(run)
    except FloatingPointError as error:  # all processes raise it together
        _let_go(run)
        return _say(name, 1, f"{error} {_how_to_go_on(run)}")
    except (ValueError, OSError) as error:
        return _say(name, 1, f"{_last_line(error)} {_how_to_go_on(run)}")
    except (MemoryError, RuntimeError) as error:
        return _say(name, 1, f"{_of_memory(error)} {_how_to_go_on(run)}")
    except KeyboardInterrupt:
        return _say(name, 130, f"interrupted in step {run.progress.step}. {_how_to_go_on(run)}")
    finally:
        run.accelerator.end_training()
    if stopped_by is not None:
        code = 130 if stopped_by == "SIGINT" else 3
        return _say(name, code, f"stopped at step {run.progress.step} ({stopped_by}). {_how_to_go_on(run)}")
    return 0


def finish_pipeline(run: Run) -> None:
    """Writes the pipeline, and uploads it if asked to.

    Raises:
        FloatingPointError: if nothing was learned: what is there stays.
        OSError: if it cannot be written or uploaded.
    """
    _require_learned(run, "pipeline")
    if not run.accelerator.is_main_process:
        return
    save_pipeline(run.pipeline(), run.output)
    print(f"Trained {run.progress.step} steps; the pipeline is in {run.output}.")
    if run.args.push_to_hub and run.args.hub_model_id is not None:
        push_pipeline(run.output, run.args.hub_model_id)


def finish_student(run: Distillation) -> None:
    """Writes the student: a pipeline, or the adapter that makes its teacher one; raises as `finish_pipeline`."""
    if run.args.lora_rank is None:
        finish_pipeline(run)
    else:
        finish_adapter(run)


def finish_adapter(run: Adaptation | Distillation) -> None:
    """Writes the adapter, or with `merged` a pipeline that holds it; raises as `finish_pipeline`."""
    if run.args.merged:
        finish_pipeline(run)
        return
    _require_learned(run, "adapter")
    if not run.accelerator.is_main_process:
        return
    pipe = run.pipeline(merged=False)
    save_adapter(pipe, run.output)
    if isinstance(run, Distillation):
        save_sampling(pipe, run.output)
    write_adapter_card(run.output, run.args.hub_model_id)
    print(f"Trained {run.progress.step} steps; the adapter is in {run.output}.")
    if run.args.push_to_hub and run.args.hub_model_id is not None:
        push_adapter(run.output, run.args.hub_model_id)


def finish_vae(run: VaeRun) -> None:
    """Writes the VAE; raises as `finish_pipeline`."""
    _require_learned(run, "VAE")
    if run.accelerator.is_main_process:
        save_whole("VAE", run.result(), run.output, "config.json")
        print(f"Trained {run.progress.step} steps; the VAE is in {run.output}.")


def _require_learned(run: Run, what: str) -> None:
    if run.progress.good_steps == 0:
        raise FloatingPointError(
            f"The gradient was finite in none of the {run.progress.step} steps, so nothing was learned and no "
            f"{what} was written."
        )


def _let_go(run: Run) -> None:
    """Waits for all processes, and so until Gloo's threads have let go of the last gradients.

    Where a process ends at once, PyTorch joins those threads with the interpreter's lock in its hand. They need the
    lock, so the process would hang for ever (about one run of four on two busy cores). The waiting itself is work of
    theirs, so they get a moment more to let go of that.
    """
    run.accelerator.wait_for_everyone()
    if run.accelerator.num_processes > 1:
        time.sleep(MOMENT)


def _how_to_go_on(run: Run) -> str:
    found = checkpoints(run.output)
    if not found:
        return f"No checkpoint is in {run.output} yet: the same command starts anew."
    return f"Safe on the disk is {found[-1]}: the same command goes on from there."


def _of_memory(error: BaseException) -> str:
    """What to say where the memory was too small; any other error is raised on."""
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "not enough memory" not in str(error):
        raise error
    return (
        f"The memory was too small: {_last_line(error) or 'no more could be had'} Try a smaller "
        "`per_device_batch_size`, with more `gradient_accumulation_steps`, or `gradient_checkpointing`."
    )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _say(name: str, code: int, message: str) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return code
