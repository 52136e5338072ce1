"""The model card: a pure function of a pipeline's folder (configs, run.json, evaluations, samples) and name.

No figure in it is written by hand: the results come from the JSON files of `video-diffusion evaluate`.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_diffusion.data.video_io import atomic_path
from video_diffusion.hub.configs import INDEX, SOLVERS
from video_diffusion.hub.finding import PACKAGE
from video_diffusion.hub.folder import HALF
from video_diffusion.hub.loading import weights_digest

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

CARD = "README.md"
MARK = "<!-- Written by `video-diffusion card`"  # in each card that may be written anew
TEMPLATES = (PACKAGE / "model_cards", PACKAGE.parents[1] / "model_cards")
RECIPE = {  # keys of run.json, as the card calls them
    "found": "of these",
    "variant": "Moving MNIST",
    "num_digits": "digits in a clip",
    "num_frames": "frames",
    "image_size": "pixels along an edge",
    "num_images": "independent images beside each clip",
    "mask_probabilities": "shares of generation, prediction, interpolation, in-painting",
    "text_encoder": "text encoder",
    "captions": "learned with captions",
    "caption_dropout": "share of hidden captions",
    "vae": "in the latents of",
    "pretrained_model_name_or_path": "weights it started from",
    "weighting": "weighting of the loss",
    "teacher_calls": "calls of the network, of the teacher",
    "student_calls": "calls of the network, of the last student",
    "stages": "stages between them",
    "solver_order": "order of the teacher's solver",
    "guidance_range": "scales of guidance that are folded in",
    "max_steps": "steps",
    "minutes_taken": "minutes",
    "per_device_batch_size": "clips on a device in a pass",
    "gradient_accumulation_steps": "passes in a step",
    "optimizer": "optimiser",
    "learning_rate": "learning rate",
    "lr_scheduler": "its schedule",
    "warmup_steps": "steps of warm-up",
    "weight_decay": "weight decay",
    "max_grad_norm": "bound on the gradient's norm",
    "ema_decay": "decay of the averaged weights",
    "mixed_precision": "mixed precision",
    "seed": "seed",
}


@dataclass(frozen=True)
class Evaluation:
    """A report of `video-diffusion evaluate`.

    Args:
        report: its JSON.
        file: where it was read from.
        text: as Markdown, one level below the card's headings.
        other_weights: whether it is of other weights than the folder's, as their hashes show.
    """

    report: Mapping[str, Any]
    file: Path
    text: str
    other_weights: bool

    @property
    def protocol(self) -> str:
        """The protocol's name."""
        return str(self.report["protocol"])

    @property
    def picture(self) -> str | None:
        """The name of its picture, where there is one."""
        name = self.file.with_suffix(".png").name
        return name if self.file.with_name(name).is_file() else None


# ------------------------------------------------------------------------------------------------------------- reading
def read_json(file: Path) -> dict[str, Any]:
    """A file that holds a JSON object; empty where there is no such file. Raises a ValueError where it is broken."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a {type(value).__name__}, expected an object.")
    return value


def read_evaluations(folder: Path) -> list[Evaluation]:
    """The reports in `folder/evaluation`, by protocol.

    Raises:
        ValueError: where a file is none of `video-diffusion evaluate`.
    """
    files, found = sorted(folder.glob("evaluation/*.json")), []
    digest = weights_digest(folder) if files else ""  # of an adapter it needs the base
    for file in files:
        report = read_json(file)
        try:
            text = re.sub("^##", "###", report["markdown"], flags=re.MULTILINE).rstrip()
            measured = report["model"].get("weights") or digest
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is no report of `video-diffusion evaluate`: {error!r} is missing.") from error
        found.append(Evaluation(report, file, text, measured != digest))
    return sorted(found, key=lambda evaluation: evaluation.protocol)


def count_parameters(folder: Path) -> int:
    """The number of weights in the safetensors files of a model's folder, without its half-precision variants."""
    from safetensors import safe_open

    count = 0
    for file in folder.glob("*.safetensors"):
        if not any(part in HALF for part in file.stem.replace("-", ".").split(".")):
            with safe_open(str(file), framework="np") as weights:
                for name in weights.keys():  # noqa: SIM118  it is no mapping
                    size = 1
                    for length in weights.get_slice(name).get_shape():
                        size *= length
                    count += size
    return count


# ------------------------------------------------------------------------------------------------------- front matter
def eval_results(evaluation: Evaluation, task: str) -> "list[EvalResult]":
    """The figures of the model in a report (its headline column), for the `model-index` of the front matter."""
    from huggingface_hub import EvalResult

    report, protocol = evaluation.report, evaluation.protocol
    variant = "stochastic" if protocol == "mcvd" else "classic"
    kind, name = {
        "kth": ("kth", "KTH actions"),
        "bair": ("bair-robot-pushing", "BAIR robot pushing"),
        "videos": ("videos", "videos of its own"),
    }.get(protocol, ("moving-mnist", f"Moving MNIST ({variant})"))
    return [
        EvalResult(
            task_type=task,
            task_name=f"protocol {protocol}",
            dataset_type=kind,
            dataset_name=name,
            dataset_config=protocol,
            dataset_split="test",
            metric_type=result["metric"],
            metric_name=result["name"],
            metric_value=result["value"],
        )
        for result in report["results"]
    ]


def front_matter(name: str, task: str, run: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> "ModelCardData":
    """The card's YAML; figures of other weights stay out of it."""
    from huggingface_hub import ModelCardData

    results = [result for e in evaluations if not e.other_weights for result in eval_results(e, task)]
    dataset = dataset_of(run)
    on_hub = isinstance(dataset, str) and dataset.count("/") == 1 and not dataset.startswith((".", "/", "~"))
    return ModelCardData(
        license="apache-2.0",
        library_name="diffusers",
        pipeline_tag=task,
        tags=["video-diffusion", "video-prediction", "video-generation", "moving-mnist"],
        datasets=[str(dataset)] if on_hub else ["ylecun/mnist"] if run and dataset is None else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )


# ------------------------------------------------------------------------------------------------------------ the card
def build_card(folder: str | os.PathLike[str], repo_id: str | None = None) -> str:
    """The text of the model card.

    Args:
        folder: of a pipeline; `run.json`, `evaluation/*.json` and `samples/*.gif` in it are used where they are there.
        repo_id: its name on the Hub; None: what run.json says, else the folder's name.

    Raises:
        ValueError: where `folder` is no pipeline's, or a JSON file in it is broken or of another kind.
    """
    from huggingface_hub import ModelCard

    folder = Path(folder).absolute()
    if not (folder / INDEX).is_file():
        raise ValueError(f"`folder` is {folder}, expected one that holds a {INDEX}.")
    run, index = read_json(folder / "run.json"), read_json(folder / INDEX)
    config, scheduler = (
        read_json(folder / place) for place in ("unet/config.json", "scheduler/scheduler_config.json")
    )
    generation = read_json(folder / "generation_config.json")
    model_id = repo_id or run.get("hub_model_id") or folder.name
    evaluations, name = read_evaluations(folder), model_id.rpartition("/")[2]
    text = bool((index.get("text_encoder") or [None])[0])
    by_channels = config.get("in_channels") == 2 * config.get("out_channels", 0) + 1
    conditional = by_channels or bool(config.get("frame_timesteps"))
    task = "text-to-video" if text else "video-to-video" if conditional else "unconditional-image-generation"
    half = next((variant for variant in HALF if any(folder.glob(f"unet/*.{variant}*.safetensors"))), None)
    latent = bool((index.get("vae") or [None])[0])
    frames = (run if latent else config).get("num_frames") or run.get("num_frames") or 10
    compressed = latent and frames != config.get("num_frames")
    values = {
        "name": name,
        "model_id": model_id,
        "conditional": conditional,
        "text": text,
        "frames": frames,
        "given": 1 if compressed else max(frames // 2, 1),
        "compressed": compressed,
        "size": pixels_of(run, "image_size") if latent else pixels_of(config),
        "prompt": (generation.get("example_prompts") if dataset_of(run) else None) or ["the digit 3 moves right"],
        "half": half,
        "half_dtype": half and HALF[half],
        "samples": sorted(folder.glob("samples/*.gif")),
        "model": describe_model(folder, config, scheduler, generation),
        "origin": run.get("origin"),
        "recipe": describe_recipe(run),
        "scale": generation.get("guidance_scale", 4.0),
        "steps": generation.get("num_inference_steps", 50),
        "solver": SOLVERS.get(generation.get("sampler") or ""),
        "reports": evaluations,
        "dataset": describe_data(run),
        "mnist": bool(run) and dataset_of(run) is None and run.get("digits") is None,
    }
    template = find_template().read_text(encoding="utf-8")
    return str(ModelCard.from_template(front_matter(name, task, run, evaluations), template_str=template, **values))


def find_template(name: str = "template.md") -> Path:
    """A card's template, in an installed package or in the repository. Raises an OSError without it."""
    for shelf in TEMPLATES:
        if (shelf / name).is_file():
            return shelf / name
    raise FileNotFoundError(f"The card's template {name} is in none of {[str(shelf) for shelf in TEMPLATES]}.")


def describe_model(
    folder: Path, config: Mapping[str, Any], scheduler: Mapping[str, Any], generation: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """The rows about the networks, the process and the places of the steps."""
    size, names = pixels_of(config), ("block_out_channels", "layers_per_block", "patch_size")
    shape = f"{config.get('num_frames') or 'any number of'} frames"
    shape += f" of {size} pixels" if size else ""
    found = [
        ("denoiser", f"`{config.get('_class_name')}`, {count_parameters(folder / 'unet') / 1e6:.2f} million weights"),
        ("latents" if (folder / "vae").is_dir() else "clip", f"{shape}, {config.get('out_channels')} channel(s)"),
        ("layout", ", ".join(f"{name} {config[name]}" for name in names if name in config)),
        ("scheduler", f"`{scheduler.get('_class_name')}`"),
    ]
    settings = ("schedule", "logsnr_min", "logsnr_max", "shift", "prediction_type", "gamma")
    process = ", ".join(f"{name} {scheduler[name]}" for name in settings if name in scheduler)
    found += [("process", process)] if process else []
    if "logsnr_spacing" in generation:
        mean, std = generation["logsnr_spacing"]
        places = f"at a log-SNR of {mean:g} ± {std:g} where no frames are given (`logsnr_spacing`)"
        found.append(("steps of the sampler", places))
    return found


def pixels_of(config: Mapping[str, Any], key: str = "sample_size") -> str | None:
    """Height × width of a frame, where the denoiser's config, or the run's `image_size`, says it."""
    size = config.get(key)
    height, width = [size, size] if isinstance(size, int) else size or (None, None)
    return f"{height}×{width}" if size else None


def describe_recipe(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows about the training that run.json tells of; none where it is empty."""
    skipped = ("variant", "num_digits") if dataset_of(run) else ()
    found = [("data", str(dataset_of(run)))] if dataset_of(run) else []
    for key, title in RECIPE.items():
        value = run.get("steps_taken", run.get(key)) if key == "max_steps" else run.get(key)
        if value is not None and key not in skipped:
            found.append((title, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return found


def dataset_of(run: Mapping[str, Any]) -> str | None:
    """The dataset of a training, or the name of the folder of videos without where it lay; None for Moving MNIST."""
    if run.get("videos"):
        return f"videos of the folder `{Path(run['videos']).name or 'videos'}`"
    return run.get("dataset_name")


def describe_data(run: Mapping[str, Any]) -> str | None:
    """What the model was trained on, in a few words."""
    if not run:
        return None
    return str(dataset_of(run) or f"Moving MNIST, {run.get('variant', 'classic')} variant")


def write_card(folder: str | os.PathLike[str], repo_id: str | None = None) -> Path:
    """Writes `build_card` to `folder/README.md`, whole or not at all, and returns its path.

    Raises:
        ValueError: as `build_card`, or where there is a card that was written by hand.
    """
    file = Path(folder).absolute() / CARD
    if not is_ours(file):
        raise ValueError(f"{file} was written by hand, expected a card with the line {MARK!r} or none. Move it away.")
    text = build_card(folder, repo_id)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        with atomic_path(file) as draft:
            draft.write_text(text, encoding="utf-8")
    return file


def is_ours(file: Path) -> bool:
    """Whether a card may be written there: it was written by `write_card`, or is not there."""
    return not file.is_file() or MARK in file.read_text(encoding="utf-8")


def refresh_card(folder: Path, repo_id: str) -> None:
    """Writes the card for the Hub, unless there is one that was written by hand."""
    if is_ours(folder / CARD):
        write_card(folder, repo_id)


def write_samples(folder: str | os.PathLike[str], pipeline: Any) -> list[Path]:
    """Makes `samples/generated.gif` (4 clips) and, where frames can be given, `samples/predicted.gif`; seed 0.

    The first shows the example prompts of the model's generation config, where it has some. The second goes on from
    the first half of each clip of the first.

    Args:
        folder: of the pipeline.
        pipeline: the `VideoDiffusionPipeline` itself, under the sampler that it is to be shown with; steps and
            guidance are those of its generation config.

    Returns:
        the files.
    """
    import torch
    from einops import rearrange

    from video_diffusion.data.video_io import to_uint8, write_gif
    from video_diffusion.model.guidance import reads_frames

    seeds = [torch.Generator().manual_seed(i) for i in range(4)]
    prompts = pipeline.generation_config.get("example_prompts") if pipeline.text_encoder is not None else None
    shown = {"prompt": [prompts[i % len(prompts)] for i in range(4)]} if prompts else {"num_videos_per_prompt": 4}
    clips = {"generated": pipeline(**shown, generator=seeds, output_type="np").frames}  # [4, F, H, W, C]
    if reads_frames(pipeline.unet.config):
        given = clips["generated"][:, : max(clips["generated"].shape[1] // 2, 1)]
        clips["predicted"] = pipeline(video=given, generator=seeds, output_type="np").frames
    folder = Path(folder).absolute()
    files = []
    for name, videos in clips.items():
        files.append(folder / "samples" / f"{name}.gif")
        write_gif(rearrange(to_uint8(videos), "b f h w c -> f h (b w) c"), files[-1], scale=2)
    return files
