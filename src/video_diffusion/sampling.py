"""What commands, demo, evaluation and benchmarks share: samplers by name, tasks, a pipeline on its device."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from video_diffusion.hub.configs import SOLVERS

if TYPE_CHECKING:
    from video_diffusion.data.frames import Video
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

OWN_SAMPLER = "ancestral"
SAMPLERS: dict[str, str | None] = {OWN_SAMPLER: None, **SOLVERS}  # stock solvers of diffusers beside our own
Clips = NDArray[np.uint8]
TEST_CLIPS = 10000  # the clips of Moving MNIST that can be picked by their number
USUAL_FRAMES = 10  # of a clip, where a network does not say what it was trained on


@dataclass
class Task:
    """What is asked of the model.

    Args:
        places: the places of the k given frames in a clip of `num_frames`.
        num_frames: F.
        given: the given frames of N clips, uint8 `[N, k, H, W, C]`, or None for free generation.
        truth: the N whole clips, uint8 `[N, F, H, W, C]`, where they are known.
    """

    places: list[int]
    num_frames: int
    given: Clips | None = None
    truth: Clips | None = None


# --------------------------------------------------------------------------------------------------- the given frames
def ends(length: int, at_start: int, at_end: int) -> list[int]:
    """The places of the first and the last frames of a clip."""
    return [*range(at_start), *range(length - at_end, length)]


def file_task(video: "Video", at_start: int, at_end: int, num_frames: int, height: int, width: int) -> Task:
    """The task of one video: its frames at the start and at the end are given, at the model's size.

    They are resized and cut as in training by default (`data.fitting`): what covers the size, without its edges. No
    more of it is read than the given frames, and the whole clip where the video has the frames for it.
    """
    from video_diffusion.data.fitting import read_fitted

    length = video.num_frames
    if length < at_start + at_end:
        raise ValueError(f"`VIDEO_FILE` has {length} frames, expected the {at_start + at_end} given ones at least.")
    if (video.height, video.width) != (height, width):
        sizes = f"{video.width}×{video.height} to {width}×{height}"
        cropped = video.height * width != video.width * height
        how = "Resized and cropped at the centre" if cropped else "Resized"
        print(f"{how} the given frames from {sizes}, the model's size.", file=sys.stderr)
    whole = length == num_frames or (length > num_frames and not at_end)
    clip = read_fitted(video, range(num_frames) if whole else ends(length, at_start, at_end), height, width)
    given = clip[ends(len(clip), at_start, at_end)]
    return Task(ends(num_frames, at_start, at_end), num_frames, given[None], clip[None] if whole else None)


def dataset_task(
    indices: Sequence[int],
    at_start: int,
    at_end: int,
    num_frames: int,
    height: int,
    width: int,
    variant: str = "classic",
) -> Task:
    """The task of test clips of Moving MNIST, by their numbers, 0 to `TEST_CLIPS` − 1."""
    from video_diffusion.data import MovingMNIST

    for index in indices:
        if not 0 <= index < TEST_CLIPS:
            raise ValueError(
                f"`--from-dataset` is {index}, expected the number of a test clip, 0 to {TEST_CLIPS - 1}."
            )
    if height != width:
        raise ValueError(f"`--from-dataset` makes square frames, expected a file: the model's are {width}×{height}.")
    dataset = MovingMNIST(split="test", num_frames=num_frames, image_size=height, variant=variant, seed=0)
    truth = dataset.batch(np.array(indices))[..., None]
    places = ends(num_frames, at_start, at_end)
    return Task(places, num_frames, truth[:, places], truth)


def to_model(task: Task, channels: int, samples: int) -> Task:
    """The task with the model's number of channels, each of its clips `samples` times."""
    from video_diffusion.data.video_io import to_channels

    given, truth = (
        None if clips is None else np.repeat([to_channels(clip, channels) for clip in clips], samples, axis=0)
        for clips in (task.given, task.truth)
    )
    return Task(task.places, task.num_frames, given, truth)


# ----------------------------------------------------------------------------------------------------------- the model
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_pipeline(
    model: str,
    sampler: str | None = None,
    gamma: float | None = None,
    device: str | None = None,
    dtype: str = "auto",
) -> "VideoDiffusionPipeline":
    """A pipeline with its sampler, on its device, its network in the precision that is fast there.

    Args:
        model: an embedded model's name, a folder or a Hub id.
        sampler: one of `SAMPLERS`; None: that of the model's generation config, else ancestral, which stands for the
            model's own: DDIM for one that was distilled.
        gamma: of the ancestral sampler, 0 to 1, which it then is; None: the model's own.
        device: as PyTorch names it; None: the fastest there is.
        dtype: of the network's weights, one of `DTYPES`; "auto": see `fast_dtype`. The text encoder keeps its own.

    Raises:
        ValueError: where one of these is not there.
    """
    import torch
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    from video_diffusion import VideoDiffusionPipeline
    from video_diffusion.hub.finding import resolve_model

    logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipeline = VideoDiffusionPipeline.from_pretrained(resolve_model(model))
    pipeline.scheduler = choose_sampler(pipeline.scheduler, sampler or default_sampler(pipeline, gamma), gamma)
    device = device or fastest_device()
    if dtype not in DTYPES:
        raise ValueError(f"`--dtype` is {dtype!r}, expected one of {DTYPES}.")
    try:
        pipeline.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device` is {device!r}, expected one that PyTorch has here: {error}") from error
    torch.nn.Module.to(pipeline.unet, getattr(torch, fast_dtype(device) if dtype == "auto" else dtype))
    return pipeline


def default_sampler(pipeline: "VideoDiffusionPipeline", gamma: float | None) -> str:
    """The sampler of a model's generation config; our own with γ, without a config, or under a stock scheduler."""
    from video_diffusion import VPContinuousScheduler

    sampler = pipeline.generation_config.get("sampler", OWN_SAMPLER)
    if sampler not in SAMPLERS:
        raise ValueError(f"`sampler` is {sampler!r} in the generation config, expected one of {tuple(SAMPLERS)}.")
    return sampler if gamma is None and isinstance(pipeline.scheduler, VPContinuousScheduler) else OWN_SAMPLER


def fastest_device() -> str:
    """cuda, mps or cpu: the fastest that this machine has."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def fast_dtype(device: str) -> str:
    """The precision that a network runs fast in: bfloat16 on GPUs and on CPUs with instructions for it, else float32.

    A seed gives slightly different clips in another precision.
    """
    import torch

    if torch.device(device).type == "cpu":
        return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
    return "bfloat16" if torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def choose_sampler(scheduler: Any, sampler: str, gamma: float | None) -> Any:
    """The model's own scheduler, with another γ if asked, or a stock solver on its schedule.

    DDIM of a model whose own step is DDIM's (`deterministic`, as after a distillation) is its own, not the stock one,
    which has whole timesteps and not those of a generation config.
    """
    import diffusers

    from video_diffusion import VPContinuousScheduler

    solver = SAMPLERS[sampler]
    own_ddim = solver == SOLVERS["ddim"] and bool(scheduler.config.get("deterministic"))
    if (solver is None and gamma is None) or own_ddim:
        return scheduler
    if not isinstance(scheduler, VPContinuousScheduler):
        raise ValueError(f"The model's scheduler is a {type(scheduler).__name__}: expected no `--sampler`, `--gamma`.")
    if solver is None:
        if scheduler.config.deterministic:
            raise ValueError(f"`gamma` is {gamma}, expected None: the model's sampler is deterministic.")
        return VPContinuousScheduler.from_config(scheduler.config, gamma=gamma)
    return scheduler.as_diffusers(getattr(diffusers, solver))


def sampler_name(pipeline: "VideoDiffusionPipeline") -> str:
    """The name that `SAMPLERS` has for a pipeline's scheduler; ancestral for its own, but ddim without noise."""
    solver = type(pipeline.scheduler).__name__
    if pipeline.scheduler.config.get("deterministic"):
        solver = SOLVERS["ddim"]
    return next((name for name, stock in SAMPLERS.items() if stock == solver), OWN_SAMPLER)


def trained_frames(pipeline: "VideoDiffusionPipeline") -> int:
    """The number of frames that a model was trained on."""
    frames = pipeline.unet.config.get("num_frames")  # of the latents, where there is a VAE
    return int(pipeline.frame_grid.start(frames) if frames else USUAL_FRAMES)


def frame_size(pipeline: "VideoDiffusionPipeline") -> tuple[int, int]:
    """The model's height and width in pixels."""
    from video_diffusion.model.inputs import resolve_shape

    return resolve_shape(pipeline, num_frames=1)[1:]


def sample(
    pipeline: "VideoDiffusionPipeline",
    task: Task,
    seeds: Sequence[int],
    batch_size: int = 16,
    bar: Mapping[str, Any] | None = None,
    prompts: Sequence[str] | None = None,
    **options: Any,
) -> Clips:
    """The clips of a task.

    Args:
        pipeline: the model.
        task: what is asked of it.
        seeds: one a clip; clip i comes from its own, whatever the batch.
        batch_size: clips at once.
        bar: arguments of tqdm for the progress bar.
        prompts: what each clip shows; None: no text, or that of `options`.
        options: further arguments of the pipeline's call.

    Returns:
        uint8 `[N, F, H, W, C]`.
    """
    import torch

    from video_diffusion.data.video_io import to_uint8

    batches = []
    for first in range(0, len(seeds), batch_size):
        batch = seeds[first : first + batch_size]
        given: dict[str, Any] = {}
        if task.given is not None:
            given |= {"video": task.given[first : first + len(batch)], "frame_indices": task.places}
        if prompts is not None:
            given |= {"prompt": list(prompts[first : first + len(batch)])}
        given = given or {"num_videos_per_prompt": len(batch)}
        title = f"clips {first + 1} to {first + len(batch)} of {len(seeds)}"
        pipeline.set_progress_bar_config(desc=title, **(bar or {}))
        output: Any = pipeline(
            num_frames=task.num_frames,
            generator=[torch.Generator().manual_seed(seed) for seed in batch],
            output_type="np",
            **given,
            **options,
        )
        batches.append(output.frames)
    return to_uint8(np.concatenate(batches))
