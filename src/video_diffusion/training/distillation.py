"""Progressive distillation (Salimans and Ho 2022): one step of a student does what several of its teacher do.

The teacher is a pipeline that `teacher_calls` steps sample well. Its student starts from its weights and learns to
need half of them, or with `stages` fewer yet; then the average of its weights teaches the next, and so on down to
`student_calls`. Guidance by text is folded in (Meng et al. 2023): the first teacher is guided at a scale w that is
drawn for each clip, and the students read w as `timestep_cond`. With `lora_rank` a student is its teacher with an
adapter (Hu et al. 2022; Luo et al. 2023, "LCM-LoRA", for few calls). Data, given frames, captions, optimiser,
checkpoints and loop are a training's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor, nn

from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.model.guidance import guidance_embedding, has_frame_times, reads_guidance
from video_diffusion.model.scheduler import PREDICTION_TYPES
from video_diffusion.training.batches import Batch
from video_diffusion.training.checkpoints import save_pipeline
from video_diffusion.training.distillation_arguments import GROUPS, DistillArguments, plan_stages
from video_diffusion.training.distillation_objective import Told, distillation_loss, draw_scales, step_nodes, times_at
from video_diffusion.training.lora import ADAPTER, check_targets, lora_config, require_peft
from video_diffusion.training.objective import Draw, joint_attention_mask
from video_diffusion.training.pretrained import ARGUMENT, open_pipeline
from video_diffusion.training.run import Run
from video_diffusion.training.text import RunText
from video_diffusion.training.validation import held_out

GUIDANCE_WIDTH = 256  # `time_cond_proj_dim` of a student
DEFAULT_SCALE = 4.0  # of guidance, where the teacher's generation config has none


# ------------------------------------------------------------------------------------------------------------- the run
def open_teacher(name: str) -> tuple[VideoDiffusionPipeline, bool]:
    """The pipeline that is to be distilled, which then samples by DDIM's step; and whether it was distilled itself.

    Raises:
        ValueError: if its parts are not those that a training makes.
        OSError: if there is no such pipeline.
    """
    argument, pipe = ARGUMENT, open_pipeline(name)
    if pipe.scheduler.config.prediction_type not in PREDICTION_TYPES:
        found = pipe.scheduler.config.prediction_type
        raise ValueError(f"`{argument}` is {name!r}, which predicts {found!r}, expected one of {PREDICTION_TYPES}.")
    if has_frame_times(pipe.unet.config):
        raise ValueError(f"`{argument}` is {name!r}, which has a time for each frame, expected one for a clip.")
    distilled = bool(pipe.scheduler.config.deterministic)
    pipe.scheduler = VPContinuousScheduler.from_config(pipe.scheduler.config, deterministic=True)
    return pipe, distilled


def student_of(teacher: VideoUNet3DConditionModel, guided: bool) -> VideoUNet3DConditionModel:
    """A copy of a network; where it shall read the guidance scale and does not yet, it starts by not heeding it."""
    config = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    if guided and not reads_guidance(teacher):
        config["time_cond_proj_dim"] = GUIDANCE_WIDTH
    student = VideoUNet3DConditionModel.from_config(config)
    weights = teacher.state_dict()
    added = {key: torch.zeros_like(value) for key, value in student.state_dict().items() if key not in weights}
    student.load_state_dict(weights | added)
    return student


class Stages:
    """Which student is being made, and who teaches it; saved with each checkpoint.

    Args:
        calls: of each stage's student.
        teacher: of the first stage.
        students: a network like the students, which are the later stages' teachers.
    """

    def __init__(self, calls: list[int], teacher: nn.Module, students: Callable[[], nn.Module]) -> None:
        self.calls, self.teacher, self.students, self.index = calls, teacher, students, 0

    def advance(self, weights: Mapping[str, Tensor]) -> None:
        """Goes on to the next stage, whose teacher has these weights."""
        self.index += 1
        device = next(self.teacher.parameters()).device
        self.teacher = self.students().to(device).eval().requires_grad_(False)
        self.teacher.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """Saved by accelerate; the first teacher is not, it is there anyway."""
        return {"index": self.index, "teacher": self.teacher.state_dict() if self.index else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restored by accelerate."""
        if state["index"]:
            self.advance(state["teacher"])
        self.index = state["index"]


class Distillation(Run):
    """A distillation: a run whose model starts as the teacher and learns from it, in stages.

    Args:
        arguments: of `parse_distillation`.

    Raises:
        ValueError: if they do not fit the teacher.
        OSError: if there is no such teacher.
    """

    name = "distill"
    groups = GROUPS
    args: DistillArguments

    def __init__(self, arguments: Sequence[Any]) -> None:
        args = arguments[-1]
        if args.lora_rank is not None:
            require_peft()
        calls = plan_stages(args.teacher_calls, args.student_calls, args.stages)
        self.num_stages = len(calls)
        self.source, distilled = open_teacher(args.pretrained_model_name_or_path)
        config = self.source.generation_config
        self.nodes = step_nodes(self.source.scheduler, config, args.student_calls, args.spaced)
        self.parts = args.teacher_calls // calls[0]
        self.order = 1 if distilled else args.solver_order
        self.scales = self._scales(args)
        if args.lora_rank is not None:
            check_targets(self.source.unet, args.lora_target_modules)
        super().__init__(arguments)
        teacher: Any = self.source.unet.to(self.accelerator.device).eval().requires_grad_(False)
        if args.attention_backend is not None:
            teacher.set_attention_backend(args.attention_backend)
        self.stages = Stages(calls, teacher, self._network)
        self.accelerator.register_for_checkpointing(self.stages)
        self.reference: dict[tuple[str, int], Tensor] = {}  # what the first teacher makes of the held-out clips

    def _scales(self, args: DistillArguments) -> list[float] | None:
        """The ends of the guidance scales that are folded in, or None."""
        asked = args.guidance_range
        if self.source.text_encoder is None:
            if asked is not None:
                raise ValueError(f"`guidance_range` is {asked}, expected none: the teacher reads no text.")
            return None
        reads = reads_guidance(self.source.unet)
        default = [1.0, max(1.0, float(self.source.generation_config.get("guidance_scale", DEFAULT_SCALE)))]
        if args.lora_rank is not None and not reads:
            default = [1.0, 1.0]
        ends = default if asked is None else asked
        if ends[0] == ends[1] and reads:
            raise ValueError(f"`guidance_range` is {ends}, expected a range: the teacher reads the scale.")
        return None if ends == [1.0, 1.0] else ends

    @property
    def reads_scale(self) -> bool:
        """Whether the students read the guidance scale."""
        return self.scales is not None and self.scales[0] < self.scales[1]

    def _network(self) -> VideoUNet3DConditionModel:
        """A network as the one that learns, with other weights."""
        unet = VideoUNet3DConditionModel.from_config(self.denoiser.config)
        self._adapt(unet)
        return unet

    def _adapt(self, unet: Any) -> None:
        """Gives a network the run's adapter, if it has one; nothing else of it learns."""
        if self.args.lora_rank is not None:
            unet.requires_grad_(False)
            unet.add_adapter(lora_config(self.args.lora_rank, self.args.lora_target_modules), adapter_name=ADAPTER)

    def open_text(self) -> RunText | None:
        """The teacher's text encoder, frozen, or None."""
        if self.source.text_encoder is None:
            return None
        return RunText(self.source.text_encoder, self.source.tokenizer, False, self.accelerator.device)

    def open_model(self) -> tuple[VideoUNet3DConditionModel, VPContinuousScheduler]:
        """The first student, and the scheduler that samples from it."""
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError("The weights are sharded, expected whole ones (DDP): a student's become its teacher's.")
        if self.data.num_channels != self.source.unet.config.out_channels:
            channels = self.source.unet.config.out_channels
            raise ValueError(f"`num_channels` is {self.data.num_channels}, expected the teacher's, {channels}.")
        student = student_of(self.source.unet, self.reads_scale)
        self._adapt(student)
        return student, self.source.scheduler

    def learned(self, learner: nn.Module) -> list[nn.Parameter]:
        """All weights, or the adapter's."""
        adapted = self.args.lora_rank is not None
        return [weight for name, weight in learner.named_parameters() if "lora_" in name or not adapted]

    @property
    def calls(self) -> int:
        """Of this stage's student."""
        return self.stages.calls[self.stages.index]

    def timesteps(self, calls: int) -> list[float]:
        """Those of a sampler of so many calls, from noise to data."""
        shares = torch.arange(calls, 0, -1, dtype=torch.float64) / calls
        return (times_at(shares, self.nodes) * self.scheduler.config.num_train_timesteps).tolist()

    def loss(self, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        """The loss and the error against the teacher in pass `index`, each averaged over this process's clips."""
        x, noise = self.drawn(batch, index)
        told, network = self._told(batch, noise, index, x), self.stages.teacher

        def teacher(*args: Any, **conditions: Any) -> Any:
            with self.accelerator.autocast():
                return network(*args, **conditions)

        loss, error = distillation_loss(
            self.model,
            teacher,
            self.scheduler,
            x,
            noise,
            self.calls,
            self.nodes,
            self.args.weighting,
            told,
            self.denoiser.config.in_channels,
            self.parts,
            1 if self.stages.index else self.order,
        )
        return loss.mean(), error.mean()

    def _told(self, batch: Batch, noise: Draw, index: int, x: Tensor) -> Told:
        """The conditions of both networks in pass `index`."""
        size, images = len(x), self.data.num_images
        common: dict[str, Any] = {}
        if images:
            common["frame_attention_mask"] = joint_attention_mask(size, x.shape[2], images, x.device)
        if self.text is None or batch.captions is None or noise.captioned is None:
            return Told(common, common)
        free, bound = (
            common | self.text.inputs(batch.captions, kept, x.shape[2] - images, images)
            for kept in (torch.zeros_like(noise.captioned), noise.captioned)
        )
        if self.scales is None:
            return Told(bound, bound)
        first, world = self.accelerator.process_index * size, self.accelerator.num_processes
        scale = draw_scales(size * world, self.scales, self.args.seed, index, x.device)[first : first + size]
        scale = torch.where(noise.captioned, scale, 1.0)  # nothing to guide by
        width = self.denoiser.config.time_cond_proj_dim
        student = bound | ({"timestep_cond": guidance_embedding(scale, width)} if self.reads_scale else {})
        if self.stages.index and not self.reads_scale:
            return Told(student, student)
        if reads_guidance(self.stages.teacher):
            return Told(student, student)
        return Told(student, bound, free, scale)

    def next_stage(self) -> None:
        """Makes the averaged student the teacher of the next, which starts from the same weights."""
        done, count = self.progress.step * self.num_stages // self.args.max_steps, self.num_stages
        if self.args.max_minutes is not None:
            seconds = torch.tensor(self.progress.seconds, device=self.accelerator.device)
            minutes = float(self.accelerator.reduce(seconds, "mean")) / 60  # the same on all processes
            done = max(done, int(minutes / self.args.max_minutes * count))
        if min(done, count - 1) <= self.stages.index:
            return
        if self.accelerator.is_main_process:
            save_pipeline(self.pipeline(), self.output / f"calls-{self.calls}")
        self.ema.copy_to(self.learned(self.learner))
        self.stages.advance(self.denoiser.state_dict())
        self.ema.optimization_step = 0
        self.optimizer.state.clear()
        self.lr_scheduler.last_epoch = -1
        self.lr_scheduler.step()

    def minutes_left(self) -> float:
        """Until this stage of a run by the clock ends."""
        share = (self.stages.index + 1) / self.num_stages
        return (self.args.max_minutes or 0.0) * share - self.progress.seconds / 60

    def cost(self, seconds: float) -> list[str]:
        """The stages, and how long all of them take at the speed of the first."""
        steps, calls = self.args.max_steps, " → ".join(map(str, [self.args.teacher_calls, *self.stages.calls]))
        hours = steps * seconds / 3600
        weights = sum(weight.numel() for weight in self.learned(self.learner))
        adapter = [] if self.args.lora_rank is None else [f"adapter              {weights / 1e6:.2f} million weights"]
        return [
            *adapter,
            f"stages               {calls} calls, {steps / self.num_stages:,.0f} steps each",
            f"whole run            {hours:.2f} hours at the speed of the first stage",
        ]

    def pipeline(self, merged: bool = True) -> VideoDiffusionPipeline:
        """A pipeline around a copy of the averaged student; its generation config says how it samples.

        Args:
            merged: whether an adapter is added to the weights.
        """
        pipe = super().pipeline() if self.args.lora_rank is None else self._adapted(merged)
        own, teachers = (one.generation_config.get("example_prompts") for one in (pipe, self.source))
        prompts = {"example_prompts": own or teachers} if own or teachers else {}
        pipe.generation_config = {"num_inference_steps": self.calls, **prompts}
        if not torch.equal(self.nodes, torch.linspace(0, 1, len(self.nodes), dtype=torch.float64)):
            pipe.generation_config["timesteps"] = self.timesteps(self.calls)
        scale = self.source.generation_config.get("guidance_scale")
        if self.scales is not None and not self.reads_scale:
            pipe.generation_config["guidance_scale"] = 1.0  # it is in the weights
        elif scale is not None:
            low, high = self.scales or (scale, scale)
            pipe.generation_config["guidance_scale"] = min(max(scale, low), high)
        return pipe

    def _adapted(self, merged: bool) -> VideoDiffusionPipeline:
        """A pipeline around a copy of the averaged adapter."""
        unet = self._network()
        unet.load_state_dict(self.denoiser.state_dict())
        self.ema.copy_to(self.learned(unet.to(self.accelerator.device)))
        pipe = VideoDiffusionPipeline(
            unet=unet.eval(),
            scheduler=self.scheduler,
            text_encoder=None if self.text is None else self.text.encoder,
            tokenizer=None if self.text is None else self.text.tokenizer,
        )
        if merged:
            pipe.fuse_lora()
            pipe.unload_lora_weights()
        return pipe


# ------------------------------------------------------------------------------------------------------- its reports
@torch.no_grad()
def measure(run: Distillation) -> dict[str, float]:
    """How far samples of the averaged student are from those of the first teacher, without captions.

    Squared, on [0, 1], summed over a frame's pixels, mean over the frames that are made of held-out clips: both start
    from the same noise. Beside it the same for the teacher with as few calls as the student, by its own solver.
    """
    clips = held_out(run, run.args.validation_videos).permute(0, 1, 4, 2, 3)  # [B, F, C, H, W]
    student, calls, values = run.pipeline(), run.calls, {}
    student.set_progress_bar_config(disable=True)
    half, reads = clips.shape[1] // 2, run.denoiser.config.in_channels > clips.shape[2]
    for task, given in {"generation": 0, "prediction": half}.items():
        if task == "prediction" and not (half and reads):
            continue
        for steps in (run.args.teacher_calls, calls):
            if (task, steps) not in run.reference:
                run.reference[task, steps] = samples(*sampler_of_teacher(run, steps), clips, given)
        made = {"": samples(student, run.timesteps(calls), clips, given), "_of_teacher": run.reference[task, calls]}
        for name, frames in made.items():
            errors = (frames - run.reference[task, run.args.teacher_calls]).square().sum((2, 3, 4))
            values[f"validation/{task}_in_{calls}{name}"] = errors.mean().item()
    return values


def sampler_of_teacher(run: Distillation, calls: int) -> tuple[VideoDiffusionPipeline, list[float]]:
    """The first teacher with its solver, and timesteps: whole ones for DPM-Solver++, which so cannot be too many."""
    timesteps = run.timesteps(calls)
    whole = [min(round(timestep), run.scheduler.config.num_train_timesteps - 1) for timestep in timesteps]
    if run.order == 1 or len(set(whole)) < calls or whole[-1] < 1:
        return run.source, timesteps
    solver = run.source.scheduler.as_diffusers(DPMSolverMultistepScheduler)
    pipe = VideoDiffusionPipeline(**{**run.source.components, "scheduler": solver})
    pipe.set_progress_bar_config(disable=True)
    return pipe, [float(timestep) for timestep in whole]


def samples(pipe: VideoDiffusionPipeline, timesteps: list[float], clips: Tensor, given: int) -> Tensor:
    """What a pipeline makes after the first `given` frames of uint8 clips `[B, F, C, H, W]`, `[B, F − given, …]`."""
    made = []
    for start in range(0, len(clips), 16):
        part = clips[start : start + 16]
        output: Any = pipe(
            video=part[:, :given] if given else None,
            num_frames=part.shape[1],
            height=part.shape[3],
            width=part.shape[4],
            num_videos_per_prompt=1 if given else len(part),
            timesteps=timesteps,
            guidance_scale=1.0,
            history_guidance_scale=1.0,
            output_type="pt",
            generator=torch.Generator().manual_seed(start),
        )
        made.append(output.frames[:, given:])
    return torch.cat(made)
