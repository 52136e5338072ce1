"""What lives through a run: the model, what it learns from and with, and how far it has come.

A run is a pure function of its arguments: clips, times, noise and masks of a step depend on (seed, step) alone. So
two processes compute what one with twice the batch computes, and a run that was stopped goes on as if it had not been.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.data import VideoClips
from video_diffusion.data.streams import VideoStream
from video_diffusion.model.autoencoding import LatentSpace
from video_diffusion.model.guidance import has_frame_times
from video_diffusion.training.arguments import GROUPS, DataArguments, TrainArguments
from video_diffusion.training.batches import (
    Batch,
    StepBatches,
    StreamBatches,
    channels_of,
    open_captions,
    open_source,
    text_folder,
    to_model,
)
from video_diffusion.training.build import (
    build_lr_scheduler,
    build_model,
    compile_blocks,
    load_pretrained,
    ready_to_shard,
)
from video_diffusion.training.flags import as_dict
from video_diffusion.training.latents import ROWS, check_clips, open_latents, open_vae
from video_diffusion.training.objective import Draw, diffusion_loss, draw
from video_diffusion.training.optimizers import build_optimizer
from video_diffusion.training.text import SMALL_BERT, RunText, TextDenoiser, open_text_encoder
from video_diffusion.training.trackers import check_tracker

VIDEOS = (VideoClips, VideoStream)


@dataclass
class Progress:
    """How far the run has come; saved with each checkpoint."""

    step: int = 0
    good_steps: int = 0  # with a finite gradient
    bad_steps: int = 0  # without one, in a row
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Saved by accelerate."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restored by accelerate."""
        for name, value in state.items():
            setattr(self, name, value)


class Run:
    """Everything that lives through a run.

    Args:
        arguments: of the run, checked: of `groups`, those of the data and of the training last.

    Attributes:
        name: of what the run does, for messages.
        groups: its arguments.
        num_stages: parts of the run, of which each has a curve of the learning rate of its own.
        reports_start: whether a validation comes before the first step too.

    Raises:
        ValueError: if they do not fit each other, or what they name.
        OSError: if a file or a model that they name is not there.
    """

    name = "train"
    groups = GROUPS
    num_stages = 1
    reports_start = False
    data: DataArguments
    args: TrainArguments

    def __init__(self, arguments: Sequence[Any]) -> None:
        self.arguments = arguments
        self.data, self.args = arguments[-2:]
        args = self.args
        self.history: list[dict[str, Any]] = []  # arguments that were in force before, each until a step
        self.output = Path(args.output_dir)
        check_tracker(args.tracker)
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=None if args.tracker == "none" else args.tracker,
            project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=str(self.output / "logs")),
        )
        set_seed(args.seed)  # the same weights on every process
        self.train_source = open_source(self.data, self.data.train_split, args.seed)
        self.data.num_channels = channels_of(self.train_source)
        self.validation_source = self.open_validation()
        self.space = self.open_space()
        self.config = as_dict(arguments)
        for source in {id(source): source for source in (self.train_source, self.validation_source)}.values():
            if isinstance(source, VIDEOS):
                self.tell(source.notes)
        if isinstance(self.train_source, VIDEOS):
            self.config["found"] = self.train_source.description
        source = self.train_source
        if self.space is not None:
            found, said = open_latents(arguments[0].latents, self.space.vae, self.data, args.seed, source)
            source = source if found is None else found
            self.tell([said])
        self.text = self.open_text()
        if args.sample_prompts is not None and self.text is None:
            raise ValueError(f"`sample_prompts` is {args.sample_prompts}, expected none without a `text_encoder`.")
        encoder = None if self.text is None else self.text.encoder
        denoiser, self.scheduler = self.open_model()
        if args.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        if args.attention_backend is not None:
            denoiser.set_attention_backend(args.attention_backend)
        if args.compile:
            compile_blocks(denoiser)
        self.denoiser, self.learner = denoiser, self.with_text(denoiser, encoder)
        ready_to_shard(self.learner, self.accelerator, args)
        self.ema = EMAModel(self.learned(self.learner), decay=args.ema_decay, foreach=True)
        optimizer = build_optimizer(self.learner, args)
        stage = replace(args, max_steps=math.ceil(args.max_steps / self.num_stages))
        self.lr_scheduler = build_lr_scheduler(optimizer, stage)
        self.model, self.optimizer = self.accelerator.prepare(self.learner, optimizer)
        self.ema.to(self.accelerator.device)
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.ema, self.lr_scheduler, self.progress)
        batches = StreamBatches if isinstance(self.train_source, VideoStream) else StepBatches
        self.batches = batches(
            source,
            args.per_device_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.data.num_images,
            args.seed,
            None if self.text is None else self.open_captions(),
        )

    def open_validation(self) -> Any:
        """The held-out clips; where no split of videos is held out, the training clips."""
        split = self.data.validation_split
        if self.data.source is None:
            split = split or "test"
        elif split is None or split == self.data.train_split:
            return self.train_source
        return open_source(self.data, split, self.args.seed)

    def tell(self, lines: Sequence[str]) -> None:
        """Says something before the first step, once for all processes."""
        if self.accelerator.is_main_process:
            for line in lines:
                print(f"{self.name}: {line}", file=sys.stderr)

    def open_space(self) -> LatentSpace | None:
        """The VAE in whose latents this run works, or None; checks that it can take the clips."""
        model = self.arguments[0]
        if getattr(model, "vae", None) is None:
            return None
        space = LatentSpace(open_vae(model).to(self.accelerator.device))
        levels = len(model.block_out_channels)
        of = f", `patch_size` {model.patch_size}, halved between {levels} levels"
        check_clips(space, self.data, model.patch_size * 2 ** (levels - 1), of)
        return space

    @torch.no_grad()
    def encoded(self, clips: Tensor, num_images: int = 0) -> Tensor:
        """What the denoiser works on: `[B, C, F, H, W]` in [-1, 1], or latents of it.

        Args:
            clips: uint8 `[B, F, H, W, C]`; latents, float32, are taken as they are.
            num_images: how many of the last frames are independent images.
        """
        if clips.is_floating_point():
            return clips.to(self.accelerator.device).permute(0, 4, 1, 2, 3)
        x = to_model(clips, self.accelerator.device)
        if self.space is None:
            return x
        if self.space.temporal == 1 or not num_images:
            return self.space.encode(x, ROWS)
        frames = x.shape[2] - num_images
        parts = [x[:, :, :frames], *x[:, :, frames:].split(1, dim=2)]
        return torch.cat([self.space.encode(part, ROWS) for part in parts], dim=2)

    def open_text(self) -> RunText | None:
        """The text encoder of this run, or None."""
        model = self.arguments[0]
        if model.text_encoder is None:
            return None
        encoder, tokenizer = open_text_encoder(model.text_encoder, model.max_text_length)
        trained = model.text_encoder == SMALL_BERT or model.train_text_encoder
        return RunText(encoder, tokenizer, trained, self.accelerator.device)

    def read_texts(self) -> None:
        """Has a frozen text encoder read the videos' captions, once for all runs; called before the first step.

        Raises:
            ValueError: if their states cannot be kept on the disk.
        """
        source, cached = self.train_source, self.data.text_cache == "disk"
        if self.text is None or self.text.trained or not cached or not isinstance(source, VideoClips):
            return
        texts, folder = source.captions(self.data.caption_column), text_folder(self.data)
        with self.accelerator.main_process_first():
            count = self.text.read(texts, folder)
        if count:
            self.tell([f"the text encoder has read {count} texts; their states are kept in {folder}."])

    def open_model(self) -> tuple[VideoUNet3DConditionModel, VPContinuousScheduler]:
        """The denoiser that learns, with the weights that it starts from, and its scheduler."""
        encoder = None if self.text is None else self.text.encoder
        width = None if encoder is None else encoder.config.hidden_size
        denoiser, scheduler = build_model(self.arguments[0], self.data, width, self.space)
        if self.args.pretrained_model_name_or_path is not None:
            load_pretrained(denoiser, encoder, scheduler, self.args.pretrained_model_name_or_path)
        return denoiser, scheduler

    def with_text(self, denoiser: nn.Module, encoder: nn.Module | None) -> nn.Module:
        """Everything that learns, as one module."""
        if self.text is None or not self.text.trained or encoder is None:
            return denoiser
        return TextDenoiser(denoiser, encoder)

    def learned(self, learner: nn.Module) -> list[nn.Parameter]:
        """The weights of a learner that are averaged; the others stay as they are."""
        return list(learner.parameters())

    def open_captions(self) -> Callable[[Any], Any]:
        """Gives the captions of the training source, as `batches.open_captions` does."""
        return open_captions(self.train_source, self.data, self.args.seed)

    @property
    def global_batch(self) -> int:
        """Clips of all processes in one pass."""
        return self.args.per_device_batch_size * self.accelerator.num_processes

    def drawn(self, batch: Batch, index: int) -> tuple[Tensor, Draw]:
        """This process's clips of pass `index`, in [-1, 1] or as latents, and what is random about them."""
        images = self.data.num_images
        x = self.encoded(batch.clips, images)
        shape = (self.global_batch, *x.shape[1:])
        share = 1.0 if self.args.frame_noise is None else self.args.frame_noise
        noise = draw(
            shape,
            self.args.mask_probabilities,
            self.args.seed,
            index,
            images,
            x.device,
            self.args.caption_dropout,
            share if has_frame_times(self.denoiser.config) else None,
            self.args.logit_normal,
        )
        first = self.accelerator.process_index * len(x)
        return x, noise.rows(first, first + len(x))

    def loss(self, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        """The loss and the error of x̂ in pass `index`, each averaged over this process's clips."""
        (x, noise), images = self.drawn(batch, index), self.data.num_images
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

    def next_stage(self) -> None:
        """Goes on to the next stage where this one is at its end; called after every step but the last."""

    def minutes_left(self) -> float:
        """Until this stage of a run by the clock ends."""
        return (self.args.max_minutes or 0.0) - self.progress.seconds / 60

    def cost(self, seconds: float) -> list[str]:
        """What a dry run says further, where a step takes so many seconds."""
        return []

    def pipeline(self) -> VideoDiffusionPipeline:
        """A pipeline around a copy of the averaged weights."""
        unet = VideoUNet3DConditionModel.from_config(self.denoiser.config).to(self.accelerator.device)
        encoder = None if self.text is None else self.text.encoder
        if self.text is not None and self.text.trained:
            encoder = type(self.text.encoder)(self.text.encoder.config).to(self.accelerator.device).eval()
        self.ema.copy_to(self.with_text(unet, encoder).parameters())
        pipe = VideoDiffusionPipeline(
            unet=unet.eval(),
            scheduler=self.scheduler,
            text_encoder=encoder,
            tokenizer=None if self.text is None else self.text.tokenizer,
            vae=None if self.space is None else self.space.vae,
            num_channels=None if self.space is None or self.space.pixel_channels == self.data.channels else 1,
        )
        if self.text is not None and isinstance(self.train_source, VIDEOS):
            said = dict.fromkeys(self.train_source.captions(self.data.caption_column))
            pipe.generation_config = {"example_prompts": [text for text in said if text][:4]}
        return pipe
