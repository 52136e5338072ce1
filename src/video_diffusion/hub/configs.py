"""The JSON files of a pipeline's folder: types, ranges and names, checked before a weight is read."""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

INDEX = "model_index.json"
GENERATION_CONFIG = "generation_config.json"
SOLVERS = {  # the stock schedulers that `sampler` in a generation config may name, beside the model's own
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
LIBRARY = "video_diffusion"  # how `model_index.json` names the home of our components
OWN_COMPONENTS = ("VideoUNet3DConditionModel", "VPContinuousScheduler")
LIBRARIES = ("diffusers", "transformers")
NEEDED, OPTIONAL = ("unet", "scheduler"), ("text_encoder", "tokenizer", "vae")
LARGEST_JSON = 64 * 2**20  # bytes; a tokenizer's vocabulary is the largest that there is
LONGEST = 256  # levels, or kinds of attention in a row
WIDTH = (1, 2**20)  # channels
RANGES: dict[str, tuple[float, float]] = {  # of every number in our configs; beyond them it is a slip or an attack
    "sample_size": (1, 2**16),
    "num_frames": (1, 10**6),
    "in_channels": WIDTH,
    "out_channels": WIDTH,
    "patch_size": (1, 2**10),
    "block_out_channels": WIDTH,
    "layers_per_block": (0, 10**3),
    "attention_head_dim": WIDTH,
    "norm_num_groups": WIDTH,
    "norm_eps": (0, 1),
    "cross_attention_dim": WIDTH,
    "time_cond_proj_dim": WIDTH,
    "num_class_embeds": (1, 10**8),
    "temporal_shift": (0, 1),
    "transformer_layers": (1, 10**3),
    "cross_attention_every": (1, 10**3),
    "rope_theta": (1e-6, 1e12),
    "transformer_inner_dim": WIDTH,
    "logsnr_min": (-1e3, 1e3),
    "logsnr_max": (-1e3, 1e3),
    "shift": (1e-6, 1e6),
    "gamma": (0, 1),
    "clip_sample_range": (1e-6, 1e6),
    "dynamic_thresholding_ratio": (0, 1),
    "sample_max_value": (1, 1e6),
    "num_train_timesteps": (1, 10**6),
}


def shown(value: Any) -> str:
    """As `model.checks.shown`, which is imported late: the command line must not load PyTorch for its help."""
    from video_diffusion.model.checks import shown

    return shown(value)


# ------------------------------------------------------------------------------------------------------------- reading
def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds a dict; raises ValueError, naming it, where it does not."""
    try:
        if (size := file.stat().st_size) > LARGEST_JSON:
            raise ValueError(f"it has {size} bytes, expected at most {LARGEST_JSON}")
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # also where it is no UTF-8
        raise ValueError(f"{file} is no JSON: {error}.") from error
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply, expected a dict.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected a dict.")
    return content


def read_index(folder: Path) -> dict[str, Any]:
    """The `model_index.json` of a pipeline's folder, checked.

    Raises:
        ValueError: naming the entry that is refused.
        OSError: where there is no such file.
    """
    file = folder / INDEX
    if not file.is_file():
        raise OSError(f"{folder} holds no {INDEX}, expected the folder of a saved pipeline.")
    index = read_json(file)
    try:
        check_index(index)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return index


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The generation config of a pipeline's folder, empty without one; raises ValueError where it is refused."""
    from video_diffusion.model.steps import check_generation_config

    file = folder / GENERATION_CONFIG
    if not file.is_file():
        return {}
    try:
        return check_generation_config(read_json(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


# ----------------------------------------------------------------------------------------------------------- the index
def check_index(index: Mapping[str, Any]) -> None:
    """Refuses a `model_index.json` whose names would lead out of its folder or to what is no component.

    Raises:
        ValueError: naming the entry.
    """
    for name, entry in index.items():
        if name.startswith("_") or (name not in NEEDED + OPTIONAL and not isinstance(entry, list)):
            continue
        if not name.isidentifier():
            raise ValueError(f"{INDEX} has the component {shown(name)}, expected a plain name.")
        if entry == [None, None] and name not in NEEDED:
            continue
        if not _is_pair(entry):
            raise ValueError(f"{INDEX} has {name} = {shown(entry)}, expected a library and a class.")
        if entry[0] == LIBRARY and entry[1] not in OWN_COMPONENTS:
            raise ValueError(f"{INDEX} has {name} = {entry}, expected one of our components: {OWN_COMPONENTS}.")
        if entry[0] != LIBRARY and not _is_loadable(*entry):
            raise ValueError(
                f"{INDEX} has {name} = {shown(entry)}, expected a class with `from_pretrained` of "
                f"{', '.join(LIBRARIES)} or of a library that this program has imported."
            )
    kind, version = index.get("_class_name"), index.get("_diffusers_version", "")
    if not (isinstance(kind, str) and kind) and not _is_pair(kind):
        raise ValueError(f"{INDEX} has `_class_name` = {shown(kind)}, expected the name of a class.")
    if not isinstance(version, str):
        raise ValueError(f"{INDEX} has `_diffusers_version` = {shown(version)}, expected a string.")


def check_components(index: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuses an index that lacks a component which the pipeline needs and which is not among those `given`.

    Raises:
        ValueError: naming it.
    """
    for name in NEEDED:
        if name not in index and name not in given:
            raise ValueError(f"{INDEX} has no `{name}`, expected {NEEDED}.")


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(item, str) and item for item in entry)


def _is_loadable(library: str, name: str) -> bool:
    """Whether a class is there without importing what this program has not: the name comes from a file."""
    if library.partition(".")[0] in LIBRARIES:
        try:
            module: Any = import_module(library)
        except ImportError:
            return False
    else:
        module = sys.modules.get(library) or getattr(import_module("diffusers.pipelines"), library, None)
    found = getattr(module, name, None)
    return isinstance(found, type) and hasattr(found, "from_pretrained")


# --------------------------------------------------------------------------------------------------------- our configs
def check_config(component: Any, file: Path) -> dict[str, Any]:
    """Refuses a config whose values are not of the types that the class's constructor names, or out of `RANGES`.

    Returns:
        the arguments of the constructor that it holds.

    Raises:
        ValueError: naming the file and the key.
        OSError: where there is no such file.
    """
    if not file.is_file():
        raise OSError(f"{file} is missing, expected the config of a {component.__name__}.")
    hints, config = get_type_hints(component.__init__), read_json(file)
    if config.get("_class_name") != component.__name__:
        raise ValueError(
            f"{file} has `_class_name` = {shown(config.get('_class_name'))}, expected {component.__name__!r}."
        )
    if not isinstance(config.get("quantization_config", {}), dict):
        raise ValueError(
            f"{file} has `quantization_config` = {shown(config['quantization_config'])}, expected a dict."
        )
    known = {name: value for name, value in config.items() if name in hints}
    for name, value in known.items():
        if not fits(value, hints[name]):
            hint = getattr(hints[name], "__name__", None) or str(hints[name])
            hint = str(hints[name]) if get_args(hints[name]) else hint
            raise ValueError(f"{file} has `{name}` = {shown(value)}, expected {hint}.")
        if isinstance(value, list) and len(value) > LONGEST:
            raise ValueError(f"{file} has `{name}` with {len(value)} items, expected at most {LONGEST}.")
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if not all(low <= number <= high for number in numbers(value)):
            raise ValueError(f"{file} has `{name}` = {shown(value)}, expected {low:.10g} to {high:.10g}.")
    return known


def numbers(value: Any) -> Iterator[float]:
    """The numbers in a value of a JSON file, those in lists too."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a JSON file is what an annotation of numbers, strings, tuples and None says."""
    kind, items = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, item) for item in items)
    if hint in (None, NoneType):
        return value is None
    if kind in (tuple, list) or hint in (tuple, list):
        if not isinstance(value, list | tuple):
            return False
        if not items or items[-1] is ... or kind is list:
            return all(fits(item, items[0]) for item in value) if items else True
        return len(value) == len(items) and all(map(fits, value, items))
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


# ----------------------------------------------------------------------------------------------- configs and weights
def check_shapes(component: Any, file: Path, arguments: Mapping[str, Any]) -> None:
    """Compares the weights that a config asks for with those that the files beside it hold, by name and shape.

    No weight is read: the model is built without memory, and the heads of the files say what is in them.

    Args:
        component: the class of the model.
        file: its `config.json`; weights that were quantised have other shapes and are left to the loader.
        arguments: of `check_config`.

    Raises:
        ValueError: where the constructor refuses the config, or the weights are those of another.
    """
    import torch

    with torch.device("meta"):
        model = build(component, file, arguments)
    held = weight_shapes(file.parent)
    for name, value in model.state_dict().items():
        if name not in held:
            raise ValueError(
                f"{file} asks for {name}, which the weights beside it lack: they are not those of its config.json."
            )
        if tuple(value.shape) not in held[name]:
            raise ValueError(
                f"{file} asks for {name} of shape {tuple(value.shape)}, but the weights beside it have "
                f"{min(held[name])}: they are not those of its config.json."
            )


def build(component: Any, file: Path, arguments: Mapping[str, Any]) -> Any:
    """A component of the arguments that `file` holds; raises ValueError, naming the file, where it refuses them."""
    try:
        return component(**arguments)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is refused by {component.__name__}: {error}") from error


def weight_shapes(folder: Path) -> dict[str, set[tuple[int, ...]]]:
    """The names of the tensors in a folder's safetensors files, with their shapes in each set of weights there."""
    from safetensors import safe_open

    found: dict[str, set[tuple[int, ...]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  it is no mapping
                found.setdefault(name, set()).add(tuple(weights.get_slice(name).get_shape()))
    return found
