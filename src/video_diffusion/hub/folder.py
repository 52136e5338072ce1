"""Pipelines on disk: where they are, how their weights are read, and the folder that a Hub repository holds."""

import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

PACKAGE = Path(__file__).resolve().parents[1]
SHELVES = (PACKAGE / "pipelines", PACKAGE.parents[1] / "pipelines")  # in an installed package, in the repository
INDEX = "model_index.json"
CODE_FILES = {  # where a Hub repository keeps the code of each of our classes, and where it is here
    "VideoDiffusionPipeline": ("pipeline.py", PACKAGE / "model" / "pipeline.py"),
    "VideoUNet3DConditionModel": ("unet/video_diffusion.py", PACKAGE / "model" / "denoiser.py"),
    "VPContinuousScheduler": ("scheduler/video_diffusion.py", PACKAGE / "model" / "scheduler.py"),
}
SIBLINGS = {  # what such a file imports relatively, flat beside it
    "VideoDiffusionPipeline": ("inputs.py", "guidance.py", "text.py", "windows.py"),
}
HALF = {"fp16": "float16", "bf16": "bfloat16"}
REFUSED = ("quantization_config", "use_flashpack")  # options of diffusers that our loading would ignore
BALANCED = "balanced"  # the `device_map` that spreads models over accelerators; the others name one device
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # reading such a file runs what its author put in it
CARRIED = {  # the folders of an export beside its components, and what of them is carried along
    "evaluation": (".json", ".md", ".png"),
    "samples": (".gif", ".mp4", ".png"),
}


# ------------------------------------------------------------------------------------------------------------- finding
def embedded_models() -> dict[str, Path]:
    """The pipelines that come with the package, by name."""
    found = [index.parent for shelf in reversed(SHELVES) for index in sorted(shelf.glob(f"*/{INDEX}"))]
    return {folder.name: folder for folder in found}


def resolve_model(name: str) -> str:
    """Finds a pipeline: an embedded one by its name, else a folder, else what can be a Hub id.

    Returns:
        a folder's path or a Hub id, for `VideoDiffusionPipeline.from_pretrained`.

    Raises:
        ValueError: where it is none of these.
    """
    embedded = embedded_models()
    if name in embedded:
        return str(embedded[name])
    if Path(name).is_dir():
        if not (Path(name) / INDEX).is_file():
            raise ValueError(f"`model` is the folder {name!r}, expected one that holds a {INDEX}.")
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise ValueError(
        f"`model` is {name!r}, expected an embedded model ({', '.join(embedded) or 'there is none here'}), a folder "
        "or a Hub id 'owner/name'."
    )


# ------------------------------------------------------------------------------------------------------------- loading
def load_own_components(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Loads the components of a pipeline folder whose classes are ours, from the installed package's code.

    Args:
        folder: holds a `model_index.json`.
        options: keyword arguments of `from_pretrained`; components that are among them are left out.

    Raises:
        ValueError: where the weights are broken, or are not those of the folder's config, or an option is refused.
        OSError: where the folder lacks a file.
    """
    from video_diffusion.model.pipeline import LIBRARY, OWN_COMPONENTS, VideoDiffusionPipeline

    for name in REFUSED:
        if options.get(name):
            raise ValueError(f"`{name}` is {options[name]!r}, expected None: load first, then `pipeline.to(device)`.")
    check_device_map(options)
    if not (folder / INDEX).is_file():
        raise OSError(f"{folder} holds no {INDEX}, expected the folder of a saved pipeline.")
    if options.get("use_safetensors") is False:
        raise ValueError("`use_safetensors` is False, expected True: loading a pickle can run any code, none is.")
    library, components = import_module(LIBRARY), {}
    index: Any = VideoDiffusionPipeline.load_config(str(folder))
    check_index(index, OWN_COMPONENTS)
    refuse_pickles((file.relative_to(folder).as_posix() for file in folder.glob("*/*")), index)
    for name, entry in index.items():
        if name in options or not isinstance(entry, list | tuple) or entry[0] != LIBRARY:
            continue
        component = getattr(library, entry[1])
        is_model = issubclass(component, library.ModelMixin)
        components[name] = (
            load_model(component, folder / name, options)
            if is_model
            else component.from_pretrained(str(folder / name))
        )
    return components


def load_model(model_class: Any, folder: Path, options: Mapping[str, Any]) -> Any:
    """Loads a model strictly: its folder holds every weight of its config, in its shape, and no other.

    Raises:
        ValueError: where that is not so, or a file is broken.
        OSError: where there are no weights.
    """
    dtype, variant = options.get("dtype", options.get("torch_dtype")), options.get("variant")
    if isinstance(dtype, Mapping):
        dtype = dtype.get(folder.name, dtype.get("default"))
    passed = {key: options[key] for key in ("low_cpu_mem_usage", "disable_mmap") if key in options}
    passed["use_safetensors"] = True
    if options.get("device_map") not in (None, BALANCED):
        passed["device_map"] = options["device_map"]
    if variant is not None and any(folder.glob(f"*.{variant}*")):
        passed["variant"] = variant
    check_weights(folder)
    try:
        model, report = model_class.from_pretrained(str(folder), torch_dtype=dtype, output_loading_info=True, **passed)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} holds weights that are not those of its config.json: {error}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if report[kind]:
            raise ValueError(
                f"{folder} has {len(report[kind])} {kind} ({next(iter(report[kind]))}, …), expected just the weights "
                "of its config.json."
            )
    return model


def check_device_map(options: Mapping[str, Any]) -> None:
    """Refuses a `device_map` that diffusers does not know for pipelines, or that cannot be used here.

    Raises:
        ValueError: where it is none of "cpu", this machine's accelerator and "balanced", or memory is not to be saved.
        ImportError: where accelerate, which puts the weights in their places, is missing.
    """
    device_map = options.get("device_map")
    if device_map is None:
        return
    from diffusers.pipelines.pipeline_utils import SUPPORTED_DEVICE_MAP

    if device_map not in SUPPORTED_DEVICE_MAP:
        known = ", ".join(map(repr, dict.fromkeys(SUPPORTED_DEVICE_MAP)))
        raise ValueError(f"`device_map` is {device_map!r}, expected None or, on this machine, one of {known}.")
    if options.get("low_cpu_mem_usage") is False:
        raise ValueError(f"`device_map` is {device_map!r}, expected None with `low_cpu_mem_usage=False`.")
    if find_spec("accelerate") is None:
        raise ImportError(f"`device_map` is {device_map!r}, which needs accelerate: pip install accelerate")


def spread(pipeline: "VideoDiffusionPipeline", own: Iterable[str]) -> None:
    """Moves our own models to the devices that `device_map="balanced"` chose, as diffusers did with the others.

    Args:
        pipeline: as diffusers loaded it; its `hf_device_map` is None on a machine without accelerators.
        own: the names of the components that `load_own_components` loaded.
    """
    if not isinstance(pipeline.hf_device_map, Mapping):
        return
    from accelerate import dispatch_model

    for name in set(own) & set(pipeline.hf_device_map):
        dispatch_model(getattr(pipeline, name), {"": pipeline.hf_device_map[name]}, force_hooks=True)


def check_weights(folder: Path) -> None:
    """Opens every safetensors file of a folder, so that a truncated one is named, and the lists of sharded weights.

    Raises:
        OSError: where there is none.
        ValueError: where one is broken, or a list names a file that is not in the folder.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise OSError(f"{folder} holds no weights, expected a .safetensors file.")
    for file in files:
        try:
            with safe_open(str(file), framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file} ({file.stat().st_size} bytes) is broken or truncated: {error}") from error
    for listing in sorted(folder.glob("*.safetensors.index*.json")):
        named = set(json.loads(listing.read_text())["weight_map"].values())
        if foreign := sorted(named - {file.name for file in files}):
            raise ValueError(f"{listing} names the weights file {foreign[0]!r}, expected files of its folder.")


def weights_digest(folder: Path) -> str:
    """What weights a pipeline's folder holds: the SHA-256 of their values in half precision, whatever the files.

    Full weights, their fp16 variant and the shards of either have one digest; so a figure that was measured with a
    model still belongs to it after an export.
    """
    from safetensors import safe_open

    found: dict[str, str] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        with safe_open(str(file), framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  it is no mapping
                if (key := f"{file.parent.name}/{name}") not in found:
                    value = weights.get_tensor(name)
                    value = value.half() if value.is_floating_point() else value
                    content = f"{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes()
                    found[key] = hashlib.sha256(content).hexdigest()
    return hashlib.sha256(" ".join(sorted(found.values())).encode()).hexdigest()


def refuse_pickles(names: Iterable[str], index: Mapping[str, Any]) -> None:
    """Refuses the files of a pipeline where a component's folder has weights in pickles and none in safetensors.

    Args:
        names: paths in the pipeline's folder, as "unet/config.json".
        index: its `model_index.json`, which names the components; pickles in other folders are never loaded.

    Raises:
        ValueError: naming such a file.
    """
    files = [PurePosixPath(name) for name in names]
    safe = {file.parent for file in files if file.suffix == ".safetensors"}
    for file in sorted(files):
        if file.suffix in PICKLES and file.parent.as_posix() in index and file.parent not in safe:
            raise ValueError(
                f"{file} is a pickle, expected .safetensors: loading a pickle can run any code, so it is refused. Ask "
                "its author to save with `safe_serialization=True`."
            )


def check_index(index: Mapping[str, Any], own: Sequence[str]) -> None:
    """Refuses a `model_index.json` whose names would lead out of its folder or to what is no component of ours.

    Raises:
        ValueError: naming the entry.
    """
    for name, entry in index.items():
        if isinstance(entry, list | tuple) and not name.isidentifier():
            raise ValueError(f"{INDEX} has the component {name!r}, expected a plain name.")
        if isinstance(entry, list | tuple) and entry[0] == "video_diffusion" and entry[1] not in own:
            raise ValueError(f"{INDEX} has {name} = {list(entry)}, expected one of our components: {tuple(own)}.")


# ----------------------------------------------------------------------------------------------------------- exporting
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
        ValueError: where `variant` is unknown, or `out` is something else than a pipeline.
    """
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

    if variant is not None and variant not in HALF:
        raise ValueError(f"`variant` is {variant!r}, expected None or one of {tuple(HALF)}.")
    out = check_target(out)
    extras = [Path(out)] if isinstance(pipeline, VideoDiffusionPipeline) else [Path(pipeline), Path(out)]
    if not isinstance(pipeline, VideoDiffusionPipeline):
        pipeline = VideoDiffusionPipeline.from_pretrained(pipeline)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        draft.chmod(0o755)
        pipeline.save_pretrained(str(draft), max_shard_size=max_shard_size)
        if variant is not None:
            _save_half(pipeline, draft, variant, max_shard_size)
        for part in (pipeline, *pipeline.components.values()):
            _write_code(type(part).__name__, draft, link)
        for folder in extras:
            _keep_other_files(folder, draft)
        _forget_origin(draft)
        for file in draft.glob("*/*.safetensors"):
            file.chmod(0o644)  # safetensors makes them readable for their owner only
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


def _save_half(pipeline: "VideoDiffusionPipeline", folder: Path, variant: str, max_shard_size: str) -> None:
    """Adds the weights of each model in half precision, under the variant's file names."""
    import torch

    components: dict[str, Any] = pipeline.components
    for name, model in components.items():
        if isinstance(model, torch.nn.Module):
            half: Any = copy.deepcopy(model)
            torch.nn.Module.to(half, getattr(torch, HALF[variant]))  # diffusers' own one warns
            half.save_pretrained(str(folder / name), variant=variant, max_shard_size=max_shard_size)


def _write_code(class_name: str, folder: Path, link: bool) -> None:
    """Puts the files of one of our classes to their places in `folder`; nothing for other classes."""
    if class_name not in CODE_FILES:
        return
    place, source = CODE_FILES[class_name]
    files = {folder / place: source}
    files |= {(folder / place).with_name(name): source.with_name(name) for name in SIBLINGS.get(class_name, ())}
    for target, file in files.items():
        if link:
            target.symlink_to(os.path.relpath(file, target.parent))
        else:
            shutil.copyfile(file, target)


def _keep_other_files(source: Path, folder: Path) -> None:
    """Copies what of `source` is no component and `folder` lacks: card, licence, run.json, evaluations, samples."""
    files = [file for file in source.iterdir() if file.is_file()] if source.is_dir() else []
    for name, endings in CARRIED.items():
        files += [file for file in source.glob(f"{name}/*") if file.is_file() and file.suffix in endings]
    for file in files:
        target = folder / file.relative_to(source)
        if not target.exists() and not target.is_symlink():
            target.parent.mkdir(exist_ok=True)
            shutil.copy2(file, target)


def _forget_origin(folder: Path) -> None:
    """Drops from the configs the path that the weights were loaded from: it means nothing to others."""
    for file in (folder / INDEX, *folder.glob("*/config.json")):
        config = json.loads(file.read_text())
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


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
