"""What a distillation is made of: a training's arguments, the teacher and the stages."""

from collections.abc import Mapping, Sequence
from typing import Any

from video_diffusion.training.arguments import (
    CURVES,
    DataArguments,
    TrainArguments,
    check_data,
    check_frame_noise,
    check_train,
)
from video_diffusion.training.fields import argument, each, group, one_of, or_none, real, switch, text, two, whole
from video_diffusion.training.flags import flag_parser, resolve
from video_diffusion.training.lora import TARGETS
from video_diffusion.training.pretrained import described

OF_TEACHER = ("mask_probabilities", "caption_dropout")  # that a student shall share, beside the data


@group
class DistillArguments(TrainArguments):
    """The teacher, the stages, and what a training has too: optimisation, checkpoints and reports."""

    output_dir: str = argument("runs/distilled", "Where everything is written.", text(), "applies")
    pretrained_model_name_or_path: str | None = argument(
        "moving-mnist", "The teacher, a pipeline: folder, Hub id or embedded name.", text(), "agrees"
    )
    max_steps: int = argument(8000, "Optimiser steps of the whole run, in equal stages.", whole(1), "applies")
    learning_rate: float = argument(0.0003, "Peak learning rate, in each stage.", real(0, 10), "applies")
    lr_scheduler: str = argument("linear", "As in a training, but for each stage anew.", one_of(*CURVES), "applies")
    ema_decay: float = argument(0.995, "Decay of the averaged weights.", real(0, below=1), "applies")
    teacher_calls: int = argument(16, "Network calls of the first teacher.", whole(2, 2**14), "agrees")
    student_calls: int = argument(1, "Network calls of the last student.", whole(1, 2**13), "agrees")
    stages: int | None = argument(
        None,
        "Stages from the teacher's calls to the last student's, of equal ratios; left out: each halves the calls.",
        or_none(whole(1, 14)),
        "agrees",
    )
    solver_order: int = argument(
        2,
        "Order of the solver with which the first teacher does what is one step of its student: 1, DDIM; 2, "
        "DPM-Solver++ 2M. A teacher that was distilled itself takes its own steps, DDIM's.",
        whole(1, 2),
        "agrees",
    )
    spaced: bool = argument(
        True,
        "Place the steps where the teacher's `logsnr_spacing` puts those of the last student; without it, or if "
        "False, evenly in t. Those of a distilled teacher stay.",
        switch(),
        "agrees",
    )
    guidance_range: list[float] | None = argument(
        None,
        "Least and greatest scale of guidance by text that the students read; both the same: folded in at that scale, "
        "and they read none; both 1: their guidance stays outside. Left out: 1 and the teacher's own; 1 and 1 for an "
        "adapter, which cannot read it. None without text.",
        or_none(two(real(1, 100))),
        "agrees",
    )
    lora_rank: int | None = argument(
        None, "Rank of an adapter that learns; left out: the whole network learns.", or_none(whole(1, 4096)), "agrees"
    )
    lora_target_modules: list[str] = argument(
        list(TARGETS), "Layers that get an adapter, by the ends of their names.", each(text()), "agrees"
    )
    merged: bool = argument(False, "Write a whole pipeline that holds the adapter.", switch(), "applies")


GROUPS = (DataArguments, DistillArguments)


def parse_distillation(argv: Sequence[str]) -> list[Any]:
    """Resolves a distillation: what its teacher was trained on, then `--config FILE.yaml`, then flags.

    Raises:
        ValueError: if a flag or a key is unknown, a value is not allowed, or two do not fit each other.
        OSError: if there is no such teacher.
    """
    parser = flag_parser("distill", "Distils a video diffusion model to few calls.", GROUPS, presets=False)
    data, args = resolve(parser, GROUPS, argv, of_teacher)
    check_data(data)
    check_train(args)
    check_frame_noise(args, False)
    if args.logit_normal is not None:
        raise ValueError(f"`logit_normal` is {args.logit_normal}, expected None: a student learns at its own steps.")
    number = len(plan_stages(args.teacher_calls, args.student_calls, args.stages))
    if args.guidance_range is not None and args.guidance_range[0] > args.guidance_range[1]:
        raise ValueError(
            f"`guidance_range` is {args.guidance_range}, expected the least scale first: there is none in between."
        )
    if args.lora_rank is not None and args.guidance_range is not None and len(set(args.guidance_range)) > 1:
        raise ValueError(
            f"`guidance_range` is {args.guidance_range}, expected one scale twice with `lora_rank`: an adapter cannot "
            "read the scale."
        )
    if args.lora_rank is None:
        for name, usual in {"merged": False, "lora_target_modules": list(TARGETS)}.items():
            if (asked := getattr(args, name)) != usual:
                raise ValueError(f"`{name}` is {asked}, expected {usual} without `lora_rank`: there is no adapter.")
    if args.max_steps < number:
        raise ValueError(f"`max_steps` is {args.max_steps}, expected one at least for each of {number} stages.")
    return [data, args]


def of_teacher(values: Mapping[str, Any]) -> dict[str, Any]:
    """The data that a teacher was trained on, as far as its folder says; `values` may name it.

    Raises:
        ValueError: if it is no text.
        OSError: if there is no such teacher.
    """
    return described(values, DistillArguments, OF_TEACHER)


def plan_stages(teacher_calls: int, student_calls: int, stages: int | None = None) -> list[int]:
    """The calls of each stage's student: half of the teacher's, a quarter, …; or, with `stages`, equal ratios.

    Raises:
        ValueError: if no such ratio leads from the teacher's calls to the last student's.
    """
    if student_calls >= teacher_calls:
        raise ValueError(f"`student_calls` is {student_calls}, expected fewer than `teacher_calls`, {teacher_calls}.")
    times = f"`teacher_calls` is {teacher_calls}, expected `student_calls`, {student_calls}, times"
    if stages is None:
        stages = (teacher_calls // student_calls).bit_length() - 1
        if teacher_calls != student_calls * 2**stages:
            raise ValueError(f"{times} a power of two; or say `stages`.")
    ratio = round((teacher_calls / student_calls) ** (1 / stages))
    if ratio < 2 or student_calls * ratio**stages != teacher_calls:
        power = "a whole number" if stages == 1 else f"a whole number to the power of `stages`, {stages}"
        raise ValueError(f"{times} {power}.")
    return [student_calls * ratio**stage for stage in reversed(range(stages))]
