"""What a run is made of: three groups of arguments, read from a preset or a YAML file and then from flags."""

import argparse
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser

HERE = Path(__file__).resolve().parent
SHELVES = (HERE / "presets", HERE.parents[2] / "training" / "presets")  # in an installed package, in the repository
PRESETS = next((shelf for shelf in SHELVES if shelf.is_dir()), SHELVES[0])


@dataclass
class ModelArguments:
    """The denoiser and the scheduler."""

    patch_size: int = field(default=4, metadata={"help": "Space-to-depth of the stem."})
    block_out_channels: list[int] = field(default_factory=lambda: [64, 128, 256], metadata={"help": "Width by level."})
    layers_per_block: list[int] = field(
        default_factory=lambda: [1],
        metadata={"help": "Blocks in each level, down and up: one number for all, or one for each."},
    )
    attention_head_dim: int = field(default=32, metadata={"help": "Channels of an attention head."})
    norm_num_groups: int = field(default=32, metadata={"help": "Groups of the normalisation."})
    temporal_shift: float = field(
        default=0.0, metadata={"help": "Share of the channels that convolutions take from neighbouring frames."}
    )
    spatial_attention: list[int] = field(
        default_factory=lambda: [1],
        metadata={"help": "For each level, or one for all: 1 attends over space and to the text, 0 does not."},
    )
    temporal_attention: list[int] = field(
        default_factory=lambda: [1], metadata={"help": "Likewise: 1 attends over time, 0 does not."}
    )
    transformer_layers: int | None = field(
        default=None, metadata={"help": "Blocks of the transformer in the middle; left out: one convolutional block."}
    )
    attention_pattern: list[str] = field(
        default_factory=lambda: ["joint", "space", "time", "space"],
        metadata={"help": "What the transformer's blocks attend to, in turn: joint, space, time."},
    )
    cross_attention_every: int = field(
        default=2, metadata={"help": "Every so many-th block of the transformer reads the text."}
    )
    schedule: str = field(default="cosine", metadata={"help": "λ(t): cosine, linear, linear_beta."})
    logsnr_min: float = field(default=-20.0, metadata={"help": "λ at t = 1."})
    logsnr_max: float = field(default=20.0, metadata={"help": "λ at t = 0."})
    shift: float = field(default=1.0, metadata={"help": "Resolution shift; above 1: more noise."})
    prediction_type: str = field(default="v_prediction", metadata={"help": "epsilon, sample or v_prediction."})
    gamma: float = field(default=0.3, metadata={"help": "γ of the ancestral sampler, 0 to 1."})
    text_encoder: str | None = field(
        default=None,
        metadata={"help": "small-bert (trained jointly), or an encoder's Hub id or folder; left out: no text."},
    )
    train_text_encoder: bool = field(default=False, metadata={"help": "Train an encoder given by id or folder too."})
    max_text_length: int = field(default=48, metadata={"help": "Tokens of a caption; longer ones are cut."})


@dataclass
class DataArguments:
    """Moving MNIST made on the fly, or any dataset with a `video` column."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Folder or Hub id with a `video` column; left out: Moving MNIST on the fly."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Held-out split; left out: test for Moving MNIST, else the training split."}
    )
    digits: str | None = field(
        default=None, metadata={"help": "Digits: folder, .npz or Hub id; left out: the embedded MNIST."}
    )
    variant: str = field(default="classic", metadata={"help": "Moving MNIST: classic or stochastic."})
    num_digits: int = field(default=2, metadata={"help": "Digits in a clip."})
    num_frames: int = field(default=10, metadata={"help": "Frames of a clip."})
    image_size: int = field(default=64, metadata={"help": "Height and width in pixels."})
    num_channels: int = field(default=1, metadata={"help": "1: grey, 3: RGB."})
    caption_column: str = field(default="caption", metadata={"help": "Captions in the dataset `dataset_name`."})
    num_images: int = field(
        default=0, metadata={"help": "Independent images added to each clip as further frames (joint training)."}
    )
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that prepare batches."})


@dataclass
class TrainArguments:
    """Optimisation, checkpoints and reports."""

    output_dir: str = field(default="runs/moving-mnist", metadata={"help": "Where everything is written."})
    seed: int = field(default=0, metadata={"help": "Of the weights, the clips, the times and the noise."})
    pretrained_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Start from the weights of this pipeline: folder, Hub id or embedded name."}
    )
    max_steps: int = field(default=10_000, metadata={"help": "Optimiser steps of the whole run."})
    max_minutes: float | None = field(
        default=None,
        metadata={"help": "End the run after so long, parts together; the rate falls to zero in time."},
    )
    cooldown_minutes: float | None = field(
        default=None, metadata={"help": "Of max_minutes, the last in which the rate falls; left out: a fifth of them."}
    )
    part_minutes: float | None = field(
        default=None, metadata={"help": "Stop this part of the run after so long, with a checkpoint to resume from."}
    )
    per_device_batch_size: int = field(default=8, metadata={"help": "Clips on one device in one pass."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Passes in one optimiser step."})
    mask_probabilities: list[float] = field(
        default_factory=lambda: [0.3, 0.4, 0.15, 0.15],
        metadata={"help": "Shares of generation, prediction, interpolation and in-painting."},
    )
    caption_dropout: float = field(
        default=0.1, metadata={"help": "Share of captions that are hidden, for classifier-free guidance."}
    )
    weighting: str = field(default="v_prediction", metadata={"help": "See log_loss_weight in scheduler.py."})
    optimizer: str = field(default="adamw", metadata={"help": "adamw, or muon on matrices with AdamW on the rest."})
    learning_rate: float = field(default=8e-4, metadata={"help": "Peak learning rate."})
    adam_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Of what Muon does not take, the text encoder's before its scale; left out: the same."},
    )
    text_encoder_lr_scale: float = field(
        default=0.1,
        metadata={"help": "Learning rate of a trained text encoder, as a share of the others'."},
    )
    lr_scheduler: str = field(
        default="cosine",
        metadata={"help": "A name that diffusers' get_scheduler knows, or trapezoid: constant between both ramps."},
    )
    warmup_steps: int = field(default=100, metadata={"help": "Steps of linear warm-up."})
    cooldown_steps: int = field(default=1000, metadata={"help": "Last steps, in which a trapezoid falls to zero."})
    weight_decay: float = field(default=0.01, metadata={"help": "Decoupled weight decay."})
    adam_beta2: float = field(default=0.99, metadata={"help": "β₂ of AdamW."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Bound on the gradient's norm."})
    max_bad_steps: int = field(default=10, metadata={"help": "Stop after so many non-finite gradients in a row."})
    ema_decay: float = field(default=0.999, metadata={"help": "Decay of the averaged weights."})
    mixed_precision: str = field(default="no", metadata={"help": "no, fp16 or bf16."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})
    attention_backend: str | None = field(
        default=None, metadata={"help": "As in diffusers; `_native_math` is faster in bf16 on a CPU."}
    )
    compile: bool = field(default=False, metadata={"help": "torch.compile the repeated blocks."})
    log_steps: int = field(default=20, metadata={"help": "Steps between loss reports."})
    validation_steps: int = field(default=1000, metadata={"help": "Steps between validations; 0: never."})
    validation_videos: int = field(default=64, metadata={"help": "Held-out clips of a validation."})
    sample_steps: int = field(default=2000, metadata={"help": "Steps between sample grids; 0: never."})
    checkpointing_steps: int = field(default=1000, metadata={"help": "Steps between checkpoints; 0: only the last."})
    checkpoints_total_limit: int = field(default=2, metadata={"help": "Checkpoints that are kept."})
    resume: bool = field(default=True, metadata={"help": "Go on from the newest checkpoint in output_dir."})
    tracker: str = field(default="tensorboard", metadata={"help": "A tracker of accelerate, or none."})
    dry_run: bool = field(default=False, metadata={"help": "Report the resolved run and what a step costs; stop."})
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the pipeline at the end."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository for push_to_hub."})


Arguments = tuple[ModelArguments, DataArguments, TrainArguments]


def parse_arguments(argv: list[str]) -> Arguments:
    """Resolves a run: dataclass defaults, then `--preset NAME` or `--config FILE.yaml`, then flags.

    Raises:
        ValueError: if the preset does not exist, the file has a key that no argument has, or a value is out of range.
    """
    chooser = argparse.ArgumentParser(add_help=False)
    chooser.add_argument("--preset")
    chooser.add_argument("--config")
    chosen, rest = chooser.parse_known_args(argv)
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, TrainArguments),
        description="Trains a video diffusion model. --preset NAME or --config FILE.yaml set the defaults.",
    )
    for path in _files(chosen):
        parser.set_defaults(**_read(path))
    model, data, train = parser.parse_args_into_dataclasses(rest)
    _check(model, data, train)
    return model, data, train


def as_dict(arguments: Arguments) -> dict[str, object]:
    """The resolved run as one flat mapping, as it is saved beside the weights."""
    return {key: value for group in arguments for key, value in dataclasses.asdict(group).items()}


def _files(chosen: argparse.Namespace) -> list[Path]:
    files = []
    if chosen.preset is not None:
        files.append(PRESETS / f"{chosen.preset}.yaml")
        if not files[0].is_file():
            names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
            raise ValueError(f"`preset` is {chosen.preset!r}, expected one of {names}.")
    if chosen.config is not None:
        files.append(Path(chosen.config))
        if not files[-1].is_file():
            raise ValueError(f"`config` is {chosen.config!r}, expected a YAML file.")
    return files


def _read(path: Path) -> dict[str, object]:
    values = yaml.safe_load(path.read_text())
    known = {f.name for group in (ModelArguments, DataArguments, TrainArguments) for f in dataclasses.fields(group)}
    if not isinstance(values, dict) or not set(values) <= known:
        unknown = sorted(set(values) - known) if isinstance(values, dict) else values
        raise ValueError(f"{path.name} has {unknown}, expected a mapping of known arguments.")
    return values


def _check(model: ModelArguments, data: DataArguments, train: TrainArguments) -> None:
    at_least_one = {
        "max_steps": train.max_steps,
        "per_device_batch_size": train.per_device_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "log_steps": train.log_steps,
        "cooldown_steps": train.cooldown_steps,
        "checkpoints_total_limit": train.checkpoints_total_limit,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"`{name}` is {value}, expected at least 1.")
    if data.num_channels not in (1, 3):
        raise ValueError(f"`num_channels` is {data.num_channels}, expected 1 or 3.")
    if data.num_images < 0:
        raise ValueError(f"`num_images` is {data.num_images}, expected at least 0.")
    shares = train.mask_probabilities
    if len(shares) != 4 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"`mask_probabilities` is {shares}, expected 4 shares that sum to 1.")
    weightings = ("epsilon", "sample", "v_prediction", "clipped_v_prediction", "min_snr", "sigmoid", "edm")
    if train.weighting not in weightings:
        raise ValueError(f"`weighting` is {train.weighting!r}, expected one of {weightings}.")
    if not 0 <= train.caption_dropout <= 1:
        raise ValueError(f"`caption_dropout` is {train.caption_dropout}, expected a share in [0, 1].")
    if model.max_text_length < 2:
        raise ValueError(f"`max_text_length` is {model.max_text_length}, expected at least 2.")
    if train.optimizer not in ("adamw", "muon"):
        raise ValueError(f"`optimizer` is {train.optimizer!r}, expected adamw or muon.")
    for name in ("max_minutes", "part_minutes", "cooldown_minutes"):
        value = getattr(train, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"`{name}` is {value}, expected a number of minutes.")
    if train.cooldown_minutes is not None and train.cooldown_minutes > (train.max_minutes or 0):
        raise ValueError(f"`cooldown_minutes` is {train.cooldown_minutes}, expected at most `max_minutes`.")
    if train.push_to_hub and train.hub_model_id is None:
        raise ValueError("`hub_model_id` is None, expected a repository id because `push_to_hub` is set.")
