"""The folder that a Hub repository holds: a pipeline's configs and weights, and the code for those without it."""

import copy
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_diffusion.data.modes import as_usual
from video_diffusion.hub.configs import INDEX
from video_diffusion.hub.finding import PACKAGE
from video_diffusion.hub.integrity import seal_pipeline

if TYPE_CHECKING:
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

CODE_FILES = {  # where a Hub repository keeps the code of each of our classes, and where it is here
    "VideoDiffusionPipeline": ("pipeline.py", PACKAGE / "model" / "pipeline.py"),
    "VideoUNet3DConditionModel": ("unet/video_diffusion.py", PACKAGE / "model" / "denoiser.py"),
    "VPContinuousScheduler": ("scheduler/video_diffusion.py", PACKAGE / "model" / "scheduler.py"),
}
SIBLINGS = {  # what such a file imports relatively, flat beside it
    "VideoDiffusionPipeline": (
        "adapters.py",
        "autoencoding.py",
        "checks.py",
        "guidance.py",
        "inputs.py",
        "steps.py",
        "windows.py",
    ),
}
HALF = {"fp16": "float16", "bf16": "bfloat16"}
CARRIED = {  # the folders of an export beside its components, and what of them is carried along
    "evaluation": (".json", ".md", ".png"),
    "samples": (".gif", ".mp4", ".png"),
}


def export_folder(
    pipeline: "VideoDiffusionPipeline | str | os.PathLike[str]",
    out: str | os.PathLike[str],
    variant: str | None = None,
    max_shard_size: str = "15MB",
    link: bool = False,
) -> Path:
    """Writes a pipeline as a Hub repository holds it: configs, safetensors, and the code for those without it.

    The folder appears whole or not at all. An older export in its place is replaced. What is no component comes along,
    from the pipeline's folder and from the older export: the card, run.json, evaluations, samples.

    Args:
        pipeline: a pipeline, or the folder of one.
        out: the folder to write.
        variant: "fp16" or "bf16" adds half-precision weights beside the full ones.
        max_shard_size: the largest weights file, as "15MB".
        link: whether code files are relative links to this package (for the repository) and not copies.

    Returns:
        `out`.

    Raises:
        ValueError: where `variant` is unknown, a component cannot be saved (see `unwrap`), or `out` is something else
            than a pipeline.
    """
    from video_diffusion.model.pipeline import VideoDiffusionPipeline, forget_origin, unwrap

    if variant is not None and variant not in HALF:
        raise ValueError(f"`variant` is {variant!r}, expected None or one of {tuple(HALF)}.")
    out = check_target(out)
    extras = [Path(out)] if isinstance(pipeline, VideoDiffusionPipeline) else [Path(pipeline), Path(out)]
    if not isinstance(pipeline, VideoDiffusionPipeline):
        pipeline = VideoDiffusionPipeline.from_pretrained(pipeline)
    parts: dict[str, Any] = {name: unwrap(name, part) for name, part in pipeline.components.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        as_usual(draft)
        pipeline.save_pretrained(str(draft), max_shard_size=max_shard_size)
        if variant is not None:
            _save_half(parts, draft, variant, max_shard_size)
        write_code((pipeline, *parts.values()), draft, link)
        for folder in extras:
            _keep_other_files(folder, draft)
        forget_origin(draft)
        seal_pipeline(draft)
        for file in draft.glob("*/*.safetensors"):
            as_usual(file)  # safetensors makes them readable for their owner only
        swap(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out


def check_target(out: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder that a pipeline may be written to; raises ValueError where it is none."""
    out = Path(out).absolute()
    if out.exists() and not (out.is_dir() and ((out / INDEX).is_file() or not any(out.iterdir()))):
        raise ValueError(f"`out` is {out}, expected a new or empty folder or that of a pipeline.")
    return out


def _save_half(parts: Mapping[str, Any], folder: Path, variant: str, max_shard_size: str) -> None:
    """Adds the weights of each model in half precision, under the variant's file names."""
    import torch

    for name, model in parts.items():
        if isinstance(model, torch.nn.Module):
            half: Any = copy.deepcopy(model)
            torch.nn.Module.to(half, getattr(torch, HALF[variant]))  # diffusers' own one warns
            half.save_pretrained(str(folder / name), variant=variant, max_shard_size=max_shard_size)


def write_code(parts: Iterable[Any], folder: Path, link: bool = False) -> None:
    """Puts the files of our classes among `parts` to their places in `folder`, as copies or as relative links."""
    for class_name in [type(part).__name__ for part in parts if type(part).__name__ in CODE_FILES]:
        place, source = CODE_FILES[class_name]
        files = {folder / place: source}
        files |= {(folder / place).with_name(name): source.with_name(name) for name in SIBLINGS.get(class_name, ())}
        for target, file in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if link:
                target.symlink_to(os.path.relpath(file, target.parent))
            else:
                shutil.copyfile(file, target)


def carried_files(folder: Path) -> list[str]:
    """The evaluations and samples in a folder, by their names in it."""
    found = [file for name, endings in CARRIED.items() for file in folder.glob(f"{name}/*") if file.suffix in endings]
    return sorted(file.relative_to(folder).as_posix() for file in found if file.is_file())


def _keep_other_files(source: Path, folder: Path) -> None:
    """Copies what of `source` is no component and `folder` lacks: card, licence, run.json, evaluations, samples."""
    files = [file for file in source.iterdir() if file.is_file()] if source.is_dir() else []
    for file in (*files, *(source / name for name in carried_files(source))):
        target = folder / file.relative_to(source)
        if not target.exists() and not target.is_symlink():
            target.parent.mkdir(exist_ok=True)
            shutil.copy2(file, target)


def swap(draft: Path, out: Path) -> None:
    """Moves `draft` to `out`; what was there goes away only once the new folder is complete."""
    old = draft.with_name(f"{draft.name}-old")
    if not out.exists():
        draft.rename(out)
        return
    out.rename(old)
    try:
        draft.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
