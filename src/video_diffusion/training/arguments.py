"""What a training is made of: three groups of arguments, and which of them do not fit each other."""

from video_diffusion.data.arrays import MANY_CLIPS, ONE_CLIP
from video_diffusion.data.clips import CACHES, CROPS, ON_BAD
from video_diffusion.data.frames import BACKGROUNDS
from video_diffusion.training.fields import (
    argument,
    each,
    group,
    one_of,
    or_none,
    real,
    repository,
    shares,
    size,
    switch,
    text,
    two,
    whole,
)

WEIGHTINGS = ("epsilon", "sample", "v_prediction", "clipped_v_prediction", "min_snr", "sigmoid", "edm")
CURVES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "trapezoid")
TEXT_CACHES = ("disk", "memory")


@group
class VaeArguments:
    """The VAE."""

    vae: str | None = argument(
        None,
        "Work in the latents of this VAE of diffusers: a folder, a Hub id, or a pipeline that has one.",
        or_none(text()),
        "agrees",
    )
    vae_slicing: bool = argument(False, "Let the VAE take one clip at a time, to save memory.", switch(), "applies")
    vae_tiling: bool = argument(False, "Let the VAE take a frame in tiles, to save memory.", switch(), "applies")


@group
class ModelArguments(VaeArguments):
    """The VAE, the denoiser and the scheduler."""

    latents: str | None = argument(
        "auto",
        "With vae, a folder of `latents build`; auto: those beside the videos, if any; none: encode in each step.",
        or_none(text()),
        "applies",
    )
    patch_size: int = argument(4, "Space-to-depth of the stem.", whole(1, 64), "agrees")
    block_out_channels: list[int] = argument([64, 128, 256], "Width by level.", each(whole(1, 8192)), "agrees")
    layers_per_block: list[int] = argument(
        [1], "Blocks in each level, down and up: one number for all, or one for each.", each(whole(0, 64)), "agrees"
    )
    attention_head_dim: int = argument(32, "Channels of an attention head.", whole(1, 1024), "agrees")
    norm_num_groups: int = argument(32, "Groups of the normalisation.", whole(1, 8192), "agrees")
    temporal_shift: float = argument(
        0.0, "Share of the channels that convolutions take from neighbouring frames.", real(0, 1), "agrees"
    )
    spatial_attention: list[int] = argument(
        [1],
        "For each level, or one for all: 1 attends over space and to the text, 0 does not.",
        each(whole(0, 1)),
        "agrees",
    )
    temporal_attention: list[int] = argument(
        [1], "Likewise: 1 attends over time, 0 does not.", each(whole(0, 1)), "agrees"
    )
    transformer_layers: int | None = argument(
        None,
        "Blocks of the transformer in the middle; left out: one convolutional block.",
        or_none(whole(1, 256)),
        "agrees",
    )
    attention_pattern: list[str] = argument(
        ["joint", "space", "time", "space"],
        "What the transformer's blocks attend to, in turn: joint, space, time.",
        each(one_of("joint", "space", "time")),
        "agrees",
    )
    cross_attention_every: int = argument(
        2, "Every so many-th block of the transformer reads the text.", whole(1, 256), "agrees"
    )
    given_frames: str = argument(
        "channels",
        "How the network reads given frames: channels of their own, or a time for each frame, which is 0 for them.",
        one_of("channels", "time"),
        "agrees",
    )
    schedule: str = argument(
        "cosine", "λ(t): cosine, linear, linear_beta.", one_of("cosine", "linear", "linear_beta"), "agrees"
    )
    logsnr_min: float = argument(-20.0, "λ at t = 1.", real(-60, 60), "agrees")
    logsnr_max: float = argument(20.0, "λ at t = 0.", real(-60, 60), "agrees")
    shift: float = argument(1.0, "Resolution shift; above 1: more noise.", real(above=0, at_most=1000), "agrees")
    prediction_type: str = argument(
        "v_prediction", "epsilon, sample or v_prediction.", one_of("epsilon", "sample", "v_prediction"), "agrees"
    )
    gamma: float = argument(0.3, "γ of the ancestral sampler, 0 to 1.", real(0, 1), "applies")
    text_encoder: str | None = argument(
        None,
        "small-bert (trained jointly), or the Hub id or folder of BERT, CLIP, T5, …; left out: no text.",
        or_none(text()),
        "agrees",
    )
    train_text_encoder: bool = argument(False, "Train an encoder given by id or folder too.", switch(), "agrees")
    max_text_length: int = argument(48, "Tokens of a caption; longer ones are cut.", whole(2, 8192), "agrees")


@group
class DataArguments:
    """Moving MNIST made on the fly, videos in a folder, or a dataset with a column of videos."""

    videos: str | None = argument(
        None, "Folder of videos: MP4, WebM, MOV, AVI, GIF, pictures, npy, npz.", or_none(text()), "agrees"
    )
    dataset_name: str | None = argument(
        None,
        "Hub id or folder of a dataset with a column of videos, or as --videos; neither: Moving MNIST on the fly.",
        or_none(text()),
        "agrees",
    )
    train_split: str = argument("train", "Split to train on.", text(), "agrees")
    validation_split: str | None = argument(
        None, "Held-out split; left out: test for Moving MNIST, else the training split.", or_none(text()), "applies"
    )
    digits: str | None = argument(
        None, "Digits: folder, .npz or Hub id; left out: the embedded MNIST.", or_none(text()), "agrees"
    )
    variant: str = argument(
        "classic", "Moving MNIST: classic or stochastic.", one_of("classic", "stochastic"), "agrees"
    )
    num_digits: int = argument(2, "Digits in a clip.", whole(1, 256), "agrees")
    num_frames: int = argument(10, "Frames of a clip.", whole(1, 4096), "agrees")
    image_size: int | list[int] = argument(64, "Pixels along an edge, or height and width.", size(), "agrees")
    num_channels: int | None = argument(
        None, "1: grey, 3: RGB; left out: as the videos are.", or_none(one_of(1, 3)), "agrees"
    )
    frame_stride: int = argument(1, "Of a video, every so many-th frame.", whole(1, 4096), "agrees")
    fps: float | None = argument(
        None,
        "Frames a second that clips show, whatever the videos' rates; left out: by frame_stride.",
        or_none(real(above=0, at_most=1000)),
        "agrees",
    )
    crop: str = argument(
        "center",
        "What image_size cannot show is cut: center or random; none: squeeze it.",
        one_of(*CROPS),
        "agrees",
    )
    random_flip: bool = argument(False, "Mirror half of the clips left to right.", switch(), "agrees")
    video_column: str = argument("video", "Column of the dataset `dataset_name` with videos.", text(), "agrees")
    streaming: bool = argument(
        False, "Read `dataset_name` as it comes, without a copy on the disk.", switch(), "agrees"
    )
    shuffle_buffer: int = argument(
        256, "Of a stream, the videos held in memory to be shuffled; 1: none.", whole(1, 10**6), "agrees"
    )
    video_axes: str | None = argument(
        None,
        "Axes of npy and npz files, where they are not recognised: such as FHW, NFHW, FNHW, FHWC.",
        or_none(one_of(*ONE_CLIP, *MANY_CLIPS)),
        "agrees",
    )
    video_background: str = argument(
        "black", "Under transparent pixels: black or white.", one_of(*BACKGROUNDS), "agrees"
    )
    on_bad_video: str = argument(
        "skip", "Videos that cannot be read or are too short: skip or fail.", one_of(*ON_BAD), "applies"
    )
    video_cache: str = argument(
        "none", "Decode each video once, and keep it in memory or on the disk.", one_of(*CACHES), "applies"
    )
    video_cache_dir: str | None = argument(
        None, "Where the disk's cache is; left out: among the assets of huggingface_hub.", or_none(text()), "applies"
    )
    caption_column: str = argument(
        "caption", "Captions: a column of the dataset, or of the folder's metadata.", text(), "agrees"
    )
    text_cache: str = argument(
        "disk",
        "What a frozen text encoder reads of videos' captions is kept on the disk, or in memory only.",
        one_of(*TEXT_CACHES),
        "applies",
    )
    text_cache_dir: str | None = argument(
        None, "Where on the disk; left out: among the assets of huggingface_hub.", or_none(text()), "applies"
    )
    num_images: int = argument(
        0, "Independent images added to each clip as further frames (joint training).", whole(0, 4096), "agrees"
    )
    dataloader_num_workers: int = argument(0, "Processes that prepare batches.", whole(0, 256), "applies")

    @property
    def source(self) -> str | None:
        """What is trained on: a folder, a file or a Hub id; None: Moving MNIST on the fly."""
        return self.dataset_name if self.videos is None else self.videos

    @property
    def channels(self) -> int:
        """Channels of a frame: 1 until it is known that the videos have more."""
        return self.num_channels or 1

    @property
    def height_width(self) -> tuple[int, int]:
        """H and W, pixels."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        return self.image_size[0], self.image_size[1]


@group
class LoopArguments:
    """What each training has: optimisation, checkpoints and reports."""

    output_dir: str = argument("runs/moving-mnist", "Where everything is written.", text(), "applies")
    seed: int = argument(0, "Of the weights, the clips, the times and the noise.", whole(0, 2**32 - 1), "agrees")
    max_steps: int = argument(10000, "Optimiser steps of the whole run.", whole(1), "applies")
    max_minutes: float | None = argument(
        None,
        "End the run after so long, parts together; the rate falls to zero in time.",
        or_none(real(above=0, at_most=10**6)),
        "applies",
    )
    cooldown_minutes: float | None = argument(
        None,
        "Of max_minutes, the last in which the rate falls; left out: a fifth of them.",
        or_none(real(0, 10**6)),
        "applies",
    )
    part_minutes: float | None = argument(
        None,
        "Stop this part of the run after so long, with a checkpoint to resume from.",
        or_none(real(0, 10**6)),
        "applies",
    )
    per_device_batch_size: int = argument(8, "Clips on one device in one pass.", whole(1, 65536), "applies")
    gradient_accumulation_steps: int = argument(1, "Passes in one optimiser step.", whole(1, 65536), "applies")
    learning_rate: float = argument(0.0008, "Peak learning rate.", real(0, 10), "applies")
    lr_scheduler: str = argument(
        "cosine",
        "A name that diffusers' get_scheduler knows, or trapezoid: constant between both ramps.",
        one_of(*CURVES),
        "applies",
    )
    warmup_steps: int = argument(100, "Steps of linear warm-up.", whole(0), "applies")
    cooldown_steps: int = argument(1000, "Last steps, in which a trapezoid falls to zero.", whole(1), "applies")
    weight_decay: float = argument(0.01, "Decoupled weight decay.", real(0, 10), "applies")
    adam_beta2: float = argument(0.99, "β₂ of AdamW.", real(0, below=1), "applies")
    max_grad_norm: float = argument(1.0, "Bound on the gradient's norm.", real(above=0, at_most=10**6), "applies")
    max_bad_steps: int = argument(10, "Stop after so many non-finite gradients in a row.", whole(1), "applies")
    ema_decay: float = argument(0.999, "Decay of the averaged weights.", real(0, below=1), "applies")
    mixed_precision: str = argument("no", "no, fp16 or bf16.", one_of("no", "fp16", "bf16"), "agrees")
    gradient_checkpointing: bool = argument(False, "Recompute activations to save memory.", switch(), "applies")
    log_steps: int = argument(20, "Steps between loss reports.", whole(1), "applies")
    validation_steps: int = argument(1000, "Steps between validations; 0: never.", whole(0), "applies")
    validation_videos: int = argument(64, "Held-out clips of a validation.", whole(1), "applies")
    checkpointing_steps: int = argument(1000, "Steps between checkpoints; 0: only the last.", whole(0), "applies")
    checkpoints_total_limit: int = argument(2, "Checkpoints that are kept.", whole(1), "applies")
    resume: bool = argument(True, "Go on from the newest checkpoint in output_dir.", switch(), "applies")
    tracker: str = argument("tensorboard", "A tracker of accelerate (wandb, trackio, …), or none.", text(), "applies")
    dry_run: bool = argument(False, "Report the resolved run and what a step costs; stop.", switch(), "applies")


@group
class TrainArguments(LoopArguments):
    """Optimisation, checkpoints and reports."""

    pretrained_model_name_or_path: str | None = argument(
        None, "Start from the weights of this pipeline: folder, Hub id or embedded name.", or_none(text()), "agrees"
    )
    mask_probabilities: list[float] = argument(
        [0.3, 0.4, 0.15, 0.15], "Shares of generation, prediction, interpolation and in-painting.", shares(4), "agrees"
    )
    caption_dropout: float = argument(
        0.1, "Share of captions that are hidden, for classifier-free guidance.", real(0, 1), "agrees"
    )
    frame_noise: float | None = argument(
        None,
        "With given_frames time: share of clips whose frames have times of their own; left out: all of them.",
        or_none(real(0, 1)),
        "agrees",
    )
    logit_normal: list[float] | None = argument(
        None,
        "Mean and standard deviation of the logit of t, which so is often near sigmoid(mean); left out: t is uniform.",
        or_none(two(real(-20, 20))),
        "agrees",
    )
    weighting: str = argument("v_prediction", "See log_loss_weight in scheduler.py.", one_of(*WEIGHTINGS), "agrees")
    optimizer: str = argument(
        "adamw", "adamw, or muon on matrices with AdamW on the rest.", one_of("adamw", "muon"), "agrees"
    )
    adam_learning_rate: float | None = argument(
        None,
        "Of what Muon does not take, the text encoder's before its scale; left out: the same.",
        or_none(real(0, 10)),
        "applies",
    )
    text_encoder_lr_scale: float = argument(
        0.1, "Learning rate of a trained text encoder, as a share of the others'.", real(0, 100), "applies"
    )
    attention_backend: str | None = argument(
        None, "As in diffusers; which is fastest depends on the machine.", or_none(text()), "applies"
    )
    compile: bool = argument(False, "torch.compile the repeated blocks.", switch(), "applies")
    sample_steps: int = argument(2000, "Steps between samples, shown as videos; 0: never.", whole(0), "applies")
    sample_videos: int = argument(4, "Held-out clips of which samples are made.", whole(1, 64), "applies")
    sample_prompts: list[str] | None = argument(
        None, "Prompts of samples; left out: captions of these clips.", or_none(each(text())), "applies"
    )
    push_to_hub: bool = argument(False, "Upload the pipeline at the end.", switch(), "applies")
    hub_model_id: str | None = argument(None, "Repository for push_to_hub.", or_none(repository()), "applies")


GROUPS: tuple[type, ...] = (ModelArguments, DataArguments, TrainArguments)
Arguments = tuple[ModelArguments, DataArguments, TrainArguments]


def check_data(data: DataArguments) -> None:
    """Raises a ValueError where two arguments do not fit each other."""
    if data.videos is not None and data.dataset_name is not None:
        raise ValueError(f"`videos` is {data.videos!r}, expected none beside `dataset_name`, {data.dataset_name!r}.")
    if data.streaming and data.dataset_name is None:
        raise ValueError("`streaming` is true, expected `dataset_name` with it: files of your own need no stream.")
    if data.streaming and data.video_cache != "none":
        raise ValueError(f"`video_cache` is {data.video_cache!r}, expected none: a stream is not kept.")
    if data.fps is not None and data.frame_stride != 1:
        raise ValueError(f"`frame_stride` is {data.frame_stride}, expected 1 beside `fps`, which says the same.")


def check_multiple(data: DataArguments, factor: int, because: str) -> None:
    """Raises a ValueError where an edge of the frames is no multiple of `factor`, which comes from `because`."""
    for name, edge in zip(("height", "width"), data.height_width, strict=True):
        if edge % factor:
            near = " or ".join(str(n) for n in (edge // factor * factor, (edge // factor + 1) * factor) if n)
            raise ValueError(
                f"`image_size` gives a {name} of {edge}, expected a multiple of {factor}, such as {near}: {because}."
            )


def check_loop(train: LoopArguments) -> None:
    """Raises a ValueError where two arguments do not fit each other."""
    if train.cooldown_minutes is not None and train.cooldown_minutes > (train.max_minutes or 0):
        raise ValueError(f"`cooldown_minutes` is {train.cooldown_minutes}, expected at most `max_minutes`.")


def check_frame_noise(train: TrainArguments, has_times: bool) -> None:
    """Raises a ValueError where the share would be ignored: the network has one time for a clip."""
    if train.frame_noise is not None and not has_times:
        raise ValueError(f"`frame_noise` is {train.frame_noise}, expected none without `given_frames` time.")


def check_train(train: TrainArguments) -> None:
    """Raises a ValueError where two arguments do not fit each other."""
    check_loop(train)
    if train.logit_normal is not None and train.logit_normal[1] <= 0:
        raise ValueError(f"`logit_normal` is {train.logit_normal}, expected a deviation above 0 after the mean.")
    if train.push_to_hub and train.hub_model_id is None:
        raise ValueError("`hub_model_id` is None, expected a repository id because `push_to_hub` is set.")
