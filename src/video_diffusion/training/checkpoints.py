"""Checkpoints of a run: written whole, read only if whole, and what becomes of the arguments when one is resumed."""

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.distributed.tensor import DTensor

from video_diffusion import VideoDiffusionPipeline
from video_diffusion.hub.finding import RECORD
from video_diffusion.hub.integrity import damage, to_disk, write_json, write_manifest, writing
from video_diffusion.training.arguments import GROUPS
from video_diffusion.training.fields import declared
from video_diffusion.training.run import Run

NAME = re.compile(r"checkpoint-(\d+)")
OF_ARGUMENTS = ("initial_lr", "weight_decay", "betas")  # of an optimiser's groups


def save(run: Run) -> None:
    """Writes a checkpoint beside the others: the manifest last, then all to the disk, then its name.

    Raises:
        FloatingPointError: if a weight is not finite.
        OSError: if it cannot be written. In both cases the checkpoints before it stay as they are.
    """
    require_finite(run)
    main, draft, final = run.accelerator.is_main_process, run.output / ".checkpoint.tmp", _folder(run)
    if main:
        shutil.rmtree(draft, ignore_errors=True)
    run.accelerator.wait_for_everyone()
    with writing(f"The checkpoint of step {run.progress.step}", draft):
        run.accelerator.save_state(str(draft))
        run.accelerator.wait_for_everyone()
        if main:
            write_json(draft / RECORD, record(run))
            write_manifest(draft, run.progress.step)
            to_disk(draft)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(draft, final)
            to_disk(run.output, inside=False)
    if main:
        for old in checkpoints(run.output)[: -run.args.checkpoints_total_limit]:
            shutil.rmtree(old)
    run.accelerator.wait_for_everyone()


def resume(run: Run) -> None:
    """Goes on from the newest whole checkpoint, if there is one, with the arguments of this run.

    Damaged checkpoints that are newer are set aside, and so are all of them where the run is to start anew.

    Raises:
        ValueError: if no checkpoint is whole, or an argument must agree with the checkpoint's and does not.
    """
    chosen: list[Any] = [None, None]
    if run.accelerator.is_main_process:
        try:
            chosen[0] = _choose(run)
        except ValueError as error:
            chosen[1] = str(error)
    if run.accelerator.num_processes > 1:
        broadcast_object_list(chosen)
    folder, refusal = chosen
    if refusal is not None:
        raise ValueError(refusal)
    if folder is None:
        return
    saved = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    _require_agreement(saved, record(run), folder, run.groups)
    _load(run, folder)
    now = record(run)
    changed = {key: saved[key] for key in now if key != "history" and key in saved and saved[key] != now[key]}
    run.history = saved["history"]
    if changed:
        run.history.append({"until_step": run.progress.step, **changed})
    if run.accelerator.is_main_process:
        said = "".join(f"; `{key}` is now {now[key]!r}, before {value!r}" for key, value in changed.items())
        print(f"{run.name}: goes on from {folder}{said}.", file=sys.stderr)


def record(run: Run) -> dict[str, Any]:
    """What `run.json` holds: the arguments in force, and in `history` those that were, each until a step."""
    clips = run.global_batch * run.args.gradient_accumulation_steps
    return {**run.config, "clips_per_step": clips, "history": run.history}


def write_record(run: Run, ended: bool = False) -> None:
    """Writes `run.json` into the output folder.

    Args:
        run: of it.
        ended: whether it is at its end; then the steps and minutes that it took stand there too.

    Raises:
        ValueError: if nothing can be written there.
    """
    try:
        run.output.mkdir(parents=True, exist_ok=True)
        draft = run.output / f".{RECORD}.tmp"
        taken = {"steps_taken": run.progress.step, "minutes_taken": round(run.progress.seconds / 60, 1)}
        write_json(draft, record(run) | (taken if ended else {}))
        to_disk(draft)
        os.replace(draft, run.output / RECORD)
    except OSError as error:
        raise ValueError(
            f"`output_dir` is {run.output}, expected a folder that can be written to: {error}."
        ) from error


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints in a folder, damaged ones too, oldest first."""
    found = {path: NAME.fullmatch(path.name) for path in output.glob("checkpoint-*") if path.is_dir()}
    return sorted((path for path, match in found.items() if match), key=_step)


def save_pipeline(pipe: VideoDiffusionPipeline, output: Path) -> None:
    """Writes the pipeline into `output`; see `save_whole`."""
    save_whole("pipeline", pipe, output, "model_index.json")


def save_whole(name: str, part: Any, output: Path, index: str) -> None:
    """Writes a pipeline or a model into `output` as diffusers does, `index` last: before that it does not load.

    What is there stays as it is until the new one is on the disk.

    Args:
        name: for messages.
        part: has `save_pretrained`.
        output: the folder.
        index: the file without which the folder does not load.

    Raises:
        OSError: if it cannot be written.
    """
    draft = output / f".{name}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    with writing(f"The {name}", draft):
        part.save_pretrained(draft, safe_serialization=True)
        to_disk(draft)
        (output / index).unlink(missing_ok=True)
        for path in sorted(draft.iterdir(), key=lambda path: path.name == index):
            target = output / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
        draft.rmdir()
        to_disk(output, inside=False)


def require_finite(run: Run) -> None:
    """Checks the weights, as they are and averaged.

    Raises:
        FloatingPointError: if one is not finite, on any process.
    """
    weights = [*run.learner.parameters(), *run.ema.shadow_params]
    local = [w.to_local() if isinstance(w, DTensor) else w for w in weights]
    bad = torch.stack([~w.detach().isfinite().all() for w in local]).sum().to(run.accelerator.device)
    if run.accelerator.reduce(bad).item():
        raise FloatingPointError(f"Weights are not finite at step {run.progress.step}: they are not saved.")


def _folder(run: Run) -> Path:
    return run.output / f"checkpoint-{run.progress.step}"


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _choose(run: Run) -> Path | None:
    """The checkpoint to go on from; those that are not to be used any more get another name."""
    found = checkpoints(run.output)
    if not run.args.resume:
        for folder in found:
            _set_aside(run, folder, "old", "the run starts anew")
        return None
    wrong: dict[Path, str] = {}
    for folder in reversed(found):
        reason = damage(folder, _step(folder))
        if reason is None:
            for damaged, said in wrong.items():
                _set_aside(run, damaged, "damaged", said)
            return folder
        wrong[folder] = reason
    if wrong:
        said = "; ".join(f"{folder.name}: {reason}" for folder, reason in wrong.items())
        raise ValueError(
            f"No checkpoint in {run.output} is whole ({said}). Give `--resume False` to start anew, or another "
            "`output_dir`."
        )
    return None


def _set_aside(run: Run, folder: Path, kind: str, reason: str) -> None:
    target = folder.with_name(f"{kind}-{folder.name}")
    for number in range(2, 10_000):
        if not target.exists():
            break
        target = folder.with_name(f"{kind}-{folder.name}-{number}")
    os.replace(folder, target)
    print(f"{run.name}: {folder} is not used ({reason}); it is now {target.name}.", file=sys.stderr)


def _require_agreement(
    saved: Mapping[str, Any], asked: Mapping[str, Any], folder: Path, groups: Sequence[type] = GROUPS
) -> None:
    for key, field in declared(groups).items():
        if field.metadata["on_resume"] == "agrees" and saved.get(key) != asked[key]:
            raise ValueError(
                f"`{key}` is {asked[key]!r}, expected {saved.get(key)!r}, what {folder} was trained with. Give "
                "another `output_dir`, or `--resume False` to start anew."
            )
    if saved["clips_per_step"] != asked["clips_per_step"]:
        raise ValueError(
            f"`per_device_batch_size` and `gradient_accumulation_steps` make {asked['clips_per_step']} clips a step "
            f"on these devices, expected {saved['clips_per_step']}, what {folder} was trained with."
        )


def _load(run: Run, folder: Path) -> None:
    """The checkpoint's state, but rates, decays and momenta as this run's arguments say."""
    groups, schedule = run.optimizer.param_groups, run.lr_scheduler
    asked = [{key: group[key] for key in OF_ARGUMENTS if key in group} for group in groups]
    run.accelerator.load_state(str(folder))
    run.ema.decay = run.args.ema_decay
    schedule.base_lrs = [options["initial_lr"] for options in asked]
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    schedule._last_lr = [rate * factor for rate, factor in zip(schedule.base_lrs, factors, strict=True)]
    for group, options, rate in zip(run.optimizer.param_groups, asked, schedule._last_lr, strict=True):
        group.update(options, lr=rate)
