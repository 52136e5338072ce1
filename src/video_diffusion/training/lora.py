"""Adapters (LoRA, Hu et al. 2022): a run in which a saved pipeline stays as it is and small matrices beside its
weights learn. Data, given frames, captions, optimiser, trackers, checkpoints and loop are a training's.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
from accelerate.utils import DistributedType
from numpy.typing import NDArray
from torch import nn

from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.data.streams import VideoStream
from video_diffusion.hub.finding import training_record
from video_diffusion.model.guidance import has_frame_times
from video_diffusion.training.arguments import (
    DataArguments,
    TrainArguments,
    check_data,
    check_frame_noise,
    check_train,
)
from video_diffusion.training.fields import argument, each, group, or_none, real, switch, text, whole
from video_diffusion.training.flags import flag_parser, resolve
from video_diffusion.training.pretrained import OF_PARTS, SHARES, described, open_pipeline, without_data
from video_diffusion.training.run import VIDEOS, Run
from video_diffusion.training.text import RunText

ADAPTER = "default"  # its name while it is trained
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
OF_ENCODERS = {  # the layers of a text encoder that get an adapter, by the beginning of its kind
    "clip": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "t5": ["q", "k", "v", "o"],
    "mt5": ["q", "k", "v", "o"],
    "umt5": ["q", "k", "v", "o"],
    "": ["query", "key", "value"],
}


@group
class LoraArguments(TrainArguments):
    """The base, the adapter, and what a training has too: optimisation, checkpoints and reports."""

    output_dir: str = argument("runs/lora", "Where everything is written.", text(), "applies")
    pretrained_model_name_or_path: str | None = argument(
        "moving-mnist", "The base, a pipeline: folder, Hub id or embedded name.", text(), "agrees"
    )
    max_steps: int = argument(1000, "Optimiser steps of the whole run.", whole(1), "applies")
    per_device_batch_size: int = argument(4, "Clips on one device in one pass.", whole(1, 65536), "applies")
    learning_rate: float = argument(0.001, "Peak learning rate.", real(0, 10), "applies")
    warmup_steps: int = argument(20, "Steps of linear warm-up.", whole(0), "applies")
    ema_decay: float = argument(0.98, "Decay of the averaged weights.", real(0, below=1), "applies")
    validation_steps: int = argument(
        100, "Steps between validations, the first before the first step; 0: never.", whole(0), "applies"
    )
    sample_steps: int = argument(500, "Steps between samples, shown as videos; 0: never.", whole(0), "applies")
    checkpointing_steps: int = argument(250, "Steps between checkpoints; 0: only the last.", whole(0), "applies")
    lora_rank: int = argument(16, "Rank of the adapter's matrices.", whole(1, 4096), "agrees")
    lora_alpha: float | None = argument(
        None, "Its output is scaled by this over the rank; left out: the rank.", or_none(real(above=0)), "agrees"
    )
    lora_dropout: float = argument(0.0, "Share of its inputs that are dropped.", real(0, below=1), "agrees")
    lora_target_modules: list[str] = argument(
        list(TARGETS),
        "Layers of the network that get one, by the ends of their names.",
        each(text()),
        "agrees",
    )
    lora_text_encoder: bool = argument(False, "The text encoder's attention gets one too.", switch(), "agrees")
    captions: bool = argument(True, "Learn with captions; false: with the empty text.", switch(), "agrees")
    merged: bool = argument(False, "Write a whole pipeline that holds the adapter.", switch(), "applies")


GROUPS = (DataArguments, LoraArguments)


def parse_adaptation(argv: Sequence[str]) -> list[Any]:
    """Resolves the training of an adapter: what its base was trained on, then `--config FILE.yaml`, then flags.

    Raises:
        ValueError: if a flag or a key is unknown, a value is not allowed, or two do not fit each other.
        OSError: if there is no such base.
    """
    does = "Trains an adapter of a video diffusion model."
    data, args = resolve(flag_parser("train-lora", does, GROUPS, presets=False), GROUPS, argv, of_base)
    check_data(data)
    check_train(args)
    return [data, args]


def of_base(values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of a run: sizes and shares of the base; its data, where no other are named."""
    return without_data(values, described(values, LoraArguments, SHARES))


def require_peft() -> None:
    """Raises an ImportError where peft is missing."""
    if find_spec("peft") is None:
        raise ImportError("Adapters need peft: pip install peft")


def lora_config(rank: int, targets: Sequence[str], alpha: float | None = None, dropout: float = 0.0) -> Any:
    """The settings of an adapter of these layers, as peft has them; it does nothing yet. α: if left out, the rank."""
    from peft import LoraConfig

    return cast(Any, LoraConfig)(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        lora_dropout=dropout,
        init_lora_weights="gaussian",
        target_modules=list(targets),
    )


def check_targets(unet: nn.Module, targets: Sequence[str]) -> None:
    """Refuses ends of names that no layer of a network has. Raises ValueError."""
    plain = [name for name, part in unet.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in plain):
            known = sorted({name.rpartition(".")[2] for name in plain if not name.rpartition(".")[2].isdigit()})
            names = ", ".join(known)
            raise ValueError(f"`lora_target_modules` has {target!r}, expected the end of a layer's name, as {names}.")


class Adaptation(Run):
    """The training of an adapter.

    Args:
        arguments: of `parse_adaptation`.

    Raises:
        ValueError: if they do not fit the base.
        OSError: if there is no such base.
        ImportError: if peft is missing.
    """

    name = "train-lora"
    groups = GROUPS
    reports_start = True
    args: LoraArguments

    def __init__(self, arguments: Sequence[Any]) -> None:
        require_peft()
        args = arguments[-1]
        self.source = open_pipeline(args.pretrained_model_name_or_path)
        check_targets(self.source.unet, args.lora_target_modules)
        check_frame_noise(args, has_frame_times(self.source.unet.config))
        if args.lora_text_encoder and self.source.text_encoder is None:
            raise ValueError("`lora_text_encoder` is True, expected False: the base reads no text.")
        super().__init__(arguments)
        known = training_record(args.pretrained_model_name_or_path)
        self.config |= {key: known[key] for key in OF_PARTS if key in known}  # for a training that goes on from it
        if self.text is not None and args.captions and isinstance(self.train_source, VIDEOS):
            said = dict.fromkeys(self.train_source.captions(self.data.caption_column))
            self.config["example_prompts"] = [text for text in said if text][:4]

    def _config(self, targets: Sequence[str]) -> Any:
        """Settings of an adapter of these layers, as peft has them."""
        args = self.args
        return lora_config(args.lora_rank, targets, args.lora_alpha, args.lora_dropout)

    def _adapt_encoder(self, encoder: Any) -> None:
        """Gives a text encoder an adapter; nothing else of it learns."""
        kind = next(kind for kind in OF_ENCODERS if encoder.config.model_type.startswith(kind))
        encoder.requires_grad_(False)
        encoder.add_adapter(self._config(OF_ENCODERS[kind]), adapter_name=ADAPTER)

    def _adapt(self, unet: Any) -> None:
        """Gives a network an adapter; nothing else of it learns."""
        unet.requires_grad_(False)
        unet.add_adapter(self._config(self.args.lora_target_modules), adapter_name=ADAPTER)

    def open_text(self) -> RunText | None:
        """The base's text encoder, or None."""
        if self.source.text_encoder is None:
            return None
        trained, encoder = self.args.lora_text_encoder, self.source.text_encoder
        made = RunText(encoder, self.source.tokenizer, trained, self.accelerator.device)
        if trained:
            self._adapt_encoder(encoder)
        return made

    def open_captions(self) -> Callable[[Any], Any]:
        """As of a training; with `captions` false every text is the empty one."""
        if not self.args.captions:
            return _no_caption if isinstance(self.train_source, VideoStream) else _no_captions
        try:
            return super().open_captions()
        except ValueError as error:
            said = str(error).partition(" Without captions,")[0]
            raise ValueError(f"{said} Without captions, give `--captions false`.") from error

    def read_texts(self) -> None:
        """As of a training, where there are captions."""
        if self.args.captions:
            super().read_texts()

    def open_model(self) -> tuple[VideoUNet3DConditionModel, VPContinuousScheduler]:
        """The base's network with a new adapter, which does nothing yet, and its scheduler."""
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError("The weights are sharded, expected whole ones (DDP): few of them learn.")
        unet = self.source.unet
        if self.data.num_channels != unet.config.out_channels:
            raise ValueError(
                f"`num_channels` is {self.data.num_channels}, expected the base's, {unet.config.out_channels}."
            )
        factor = unet.config.patch_size * 2 ** (len(unet.config.block_out_channels) - 1)
        for name, edge in zip(("height", "width"), self.data.height_width, strict=True):
            if edge % factor:
                raise ValueError(f"`image_size` gives a {name} of {edge}, expected a multiple of the base's {factor}.")
        self._adapt(unet)
        return unet, self.source.scheduler

    def learned(self, learner: nn.Module) -> list[nn.Parameter]:
        """The adapter's weights."""
        return [parameter for parameter in learner.parameters() if parameter.requires_grad]

    def pipeline(self, merged: bool | None = None) -> VideoDiffusionPipeline:
        """The base around a copy of the averaged adapter.

        Args:
            merged: whether the adapter is added to the weights; None: as the run's arguments say.
        """
        unet: Any = VideoUNet3DConditionModel.from_config(self.denoiser.config)
        self._adapt(unet)
        unet.load_state_dict(self.denoiser.state_dict())
        encoder = None if self.text is None else self.text.encoder
        if self.text is not None and self.text.trained:
            encoder = type(self.text.encoder)(self.text.encoder.config)
            self._adapt_encoder(encoder)
            encoder.load_state_dict(self.text.encoder.state_dict())
        copy = self.with_text(unet, encoder).to(self.accelerator.device).eval()
        self.ema.copy_to(self.learned(copy))
        pipe = VideoDiffusionPipeline(
            unet=unet,
            scheduler=self.source.scheduler,
            text_encoder=encoder,
            tokenizer=None if self.text is None else self.text.tokenizer,
        )
        pipe.generation_config = dict(self.source.generation_config)
        if "example_prompts" in self.config:
            pipe.generation_config["example_prompts"] = self.config["example_prompts"]
        if self.args.merged if merged is None else merged:
            pipe.fuse_lora()
            pipe.unload_lora_weights()
        return pipe


def _no_captions(numbers: NDArray[np.int64]) -> list[str]:
    return [""] * len(numbers)


def _no_caption(row: Any) -> str:
    return ""
