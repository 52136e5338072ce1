"""How a pipeline's folder is read: everything in it is checked before a weight is loaded."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from video_diffusion.hub.configs import (
    GENERATION_CONFIG,
    LIBRARY,
    build,
    check_components,
    check_config,
    check_shapes,
    read_generation_config,
    read_index,
    read_json,
)
from video_diffusion.hub.finding import ADAPTER, find_base, is_adapter
from video_diffusion.hub.integrity import verify_pipeline

if TYPE_CHECKING:
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

SCHEDULER = "scheduler/scheduler_config.json"
BALANCED = "balanced"  # the `device_map` that spreads models over accelerators; the others name one device
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # reading such a file runs what its author put in it


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `from_pretrained`: float32 and safetensors unless said otherwise.

    Raises:
        ValueError: where one is refused.
        ImportError: where accelerate is missing and needed.
    """
    import torch
    from diffusers.quantizers import PipelineQuantizationConfig

    options = dict(options)
    for name in ("dtype", "torch_dtype"):
        if isinstance(options.get(name), str):
            raise ValueError(f"`{name}` is the string {options[name]!r}, expected a torch.dtype or a dict of them.")
    if options.get("use_safetensors", True) is not True:
        raise ValueError(
            f"`use_safetensors` is {options['use_safetensors']}, expected True: loading a pickle can run any code, "
            "none is."
        )
    if options.get("use_flashpack"):
        raise ValueError("`use_flashpack` is True, expected False: weights are read from safetensors only.")
    quantization = options.get("quantization_config")
    if quantization is not None and not isinstance(quantization, PipelineQuantizationConfig):
        kind = type(quantization).__name__
        raise ValueError(
            f"`quantization_config` is a {kind}, expected a diffusers.PipelineQuantizationConfig whose "
            "`quant_mapping` names the components."
        )
    check_device_map(options)
    if "dtype" not in options and "torch_dtype" not in options:
        options["dtype"] = torch.float32  # transformers would take the dtype of the file
    return {"use_safetensors": True, "low_cpu_mem_usage": find_spec("accelerate") is not None} | options


def read_folder(folder: Path, given: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Checks a pipeline's folder before a weight is loaded: all JSON files, pickles, the manifest if there is one.

    Args:
        folder: of the pipeline.
        given: options of `from_pretrained`; the components among them are not read from the folder.

    Returns:
        the components whose classes are ours, by name: which class; and the generation config.

    Raises:
        ValueError: where one of them is refused, naming the file and the key.
        OSError: where a file is missing.
    """
    index = read_index(folder)
    check_components(index, given)
    refuse_pickles((file.relative_to(folder).as_posix() for file in folder.glob("*/*")), index)
    generation_config = read_generation_config(folder)
    own = {
        name: entry[1]
        for name, entry in index.items()
        if not name.startswith("_") and isinstance(entry, list) and entry[0] == LIBRARY and name not in given
    }
    for name, class_name in own.items():
        check_component(folder / name, class_name)
    if folder.parent.name != "snapshots":  # in the cache of the Hub's files lie those that were asked for only
        verify_pipeline(folder, skipped=given)
    return own, generation_config


def check_component(folder: Path, class_name: str) -> None:
    """Checks one of our components without loading it; errors as in `read_folder`."""
    import video_diffusion as library

    component = getattr(library, class_name)
    if issubclass(component, library.ModelMixin):
        file = folder / "config.json"
        arguments = check_config(component, file)
        check_weights(folder)
        if "quantization_config" not in read_json(file):  # quantised weights have other shapes
            check_shapes(component, file, arguments)
    else:
        file = folder / "scheduler_config.json"
        build(component, file, check_config(component, file))


def load_component(folder: Path, name: str, class_name: str, options: Mapping[str, Any]) -> Any:
    """Loads one of our components from the installed package's code, strictly.

    A model's folder holds every weight of its config, in its shape, and no other. `read_folder` has checked it.

    Raises:
        ValueError: where that is not so, or a file is broken.
    """
    import video_diffusion as library

    component, place = getattr(library, class_name), folder / name
    is_model = issubclass(component, library.ModelMixin)
    passed = _model_options(place, options) | {"output_loading_info": True} if is_model else {}
    try:
        loaded = component.from_pretrained(str(place), **passed)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = "weights that are not those of its config.json" if is_model else "a config that does not fit"
        if passed.get("quantization_config") is not None:
            what = f"weights that were not quantised by {type(passed['quantization_config']).__name__}"
        raise ValueError(f"{place} holds {what}: {error}") from error
    if not is_model:
        return loaded
    model, report = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if report[kind]:
            raise ValueError(
                f"{place} has {len(report[kind])} {kind} ({next(iter(report[kind]))}, …), expected just the weights "
                "of its config.json."
            )
    return model


def load_adapted(pipeline_class: Any, folder: Path, options: Mapping[str, Any]) -> "VideoDiffusionPipeline":
    """The pipeline that an adapter makes of its base: its weights are added to the base's.

    Args:
        pipeline_class: whose `from_pretrained` loads the base.
        folder: of the adapter. Its `run.json` names the base; where it says how to sample (`scheduler`,
            `generation_config.json`), as a distilled one does, so the pipeline samples.
        options: of `from_pretrained`.

    Raises:
        ValueError: where it names no base, or does not fit it.
        OSError: where the base is not there.
        ImportError: where peft is missing.
    """
    options = {key: value for key, value in options.items() if key != "revision"}  # it is the adapter's
    base = find_base(folder, options)
    own_config = read_generation_config(folder) if (folder / GENERATION_CONFIG).is_file() else None
    scheduler = None
    if (folder / SCHEDULER).is_file() and "scheduler" not in options:
        check_component(folder / "scheduler", "VPContinuousScheduler")
        scheduler = load_component(folder, "scheduler", "VPContinuousScheduler", options)
    pipeline = pipeline_class.from_pretrained(str(base), **options)
    pipeline.load_lora_weights(str(folder))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    check_finite_weights(pipeline)
    if scheduler is not None:
        pipeline.register_modules(scheduler=scheduler)
    if own_config is not None:
        pipeline.generation_config = own_config
    return pipeline


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Turns what the libraries raise where a file of a component is broken into a ValueError that names the folder."""
    from safetensors import SafetensorError

    raw = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError)
    try:
        yield
    except (*raw, json.JSONDecodeError, UnicodeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds a component whose files are broken: {error}") from error


def check_finite_weights(pipeline: "VideoDiffusionPipeline") -> None:
    """Refuses a pipeline whose weights hold NaN or infinite values; raises ValueError, naming the first of them."""
    import torch

    for part, model in pipeline.components.items():
        for name, value in model.named_parameters() if isinstance(model, torch.nn.Module) else ():
            plain = type(value.data) is torch.Tensor and value.is_floating_point() and not value.is_meta
            if plain and value.dtype.itemsize > 1 and not value.isfinite().all():
                raise ValueError(
                    f"`{part}` has NaN or infinite values in {name} ({value.dtype}), expected finite ones: the "
                    "weights are broken, or too large for the dtype."
                )


def _model_options(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """What of the pipeline's options a model is loaded with."""
    dtype, variant = options.get("dtype", options.get("torch_dtype")), options.get("variant")
    if isinstance(dtype, Mapping):
        dtype = dtype.get(folder.name, dtype.get("default"))
    names = ("low_cpu_mem_usage", "disable_mmap", "max_memory", "offload_folder", "offload_state_dict")
    passed = {key: options[key] for key in names if key in options}
    passed |= {"torch_dtype": dtype, "use_safetensors": True}
    if options.get("device_map") not in (None, BALANCED):
        passed["device_map"] = options["device_map"]
    if variant is not None and any(folder.glob(f"*.{variant}*")):
        passed["variant"] = variant
    if (quantization := options.get("quantization_config")) is not None:
        passed["quantization_config"] = quantization._resolve_quant_config(is_diffusers=True, module_name=folder.name)
    return passed


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
        own: the names of the components that `load_component` loaded.
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
    model still belongs to it after an export. Of an adapter: that of its own weights and its base's.

    Raises:
        OSError: where an adapter's base is not there.
        ValueError: where an adapter names none.
    """
    from safetensors import safe_open

    found: dict[str, str] = {}
    files = sorted(folder.glob("*/*.safetensors"))
    if is_adapter(folder):
        files = [folder / ADAPTER]
        found["base"] = weights_digest(find_base(folder))
    for file in files:
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
