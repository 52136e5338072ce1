"""Where pipelines and adapters are: those that come with the package, folders, and what is downloaded from the Hub."""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from os.path import isdir, isfile  # unlike those of a Path they take any text
from pathlib import Path
from typing import Any

from video_diffusion.hub.configs import GENERATION_CONFIG, INDEX, read_json

PACKAGE = Path(__file__).resolve().parents[1]
SHELVES = (PACKAGE / "pipelines", PACKAGE.parents[1] / "pipelines")  # in an installed package, in the repository
RECORD = "run.json"
ADAPTER = "pytorch_lora_weights.safetensors"  # as diffusers calls it


def embedded_models() -> dict[str, Path]:
    """The pipelines that come with the package, by name."""
    found = [index.parent for shelf in reversed(SHELVES) for index in sorted(shelf.glob(f"*/{INDEX}"))]
    return {folder.name: folder for folder in found}


def embedded_adapters() -> dict[str, Path]:
    """The adapters that come with the package, by name; each makes a pipeline of its base."""
    found = [file.parent for shelf in reversed(SHELVES) for file in sorted(shelf.glob(f"*/{ADAPTER}"))]
    return {folder.name: folder for folder in found if is_adapter(folder)}


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an adapter and no pipeline."""
    return isfile(Path(folder) / ADAPTER) and not isfile(Path(folder) / INDEX)


def find_base(adapter: Path, options: Mapping[str, Any] | None = None) -> Path:
    """The folder of what an adapter was made for, downloaded where it is on the Hub: a pipeline, or an adapter again.

    Args:
        adapter: the adapter's folder, whose `run.json` names the base.
        options: keyword arguments of `from_pretrained`.

    Raises:
        ValueError: where it names none, or one that leads back to itself.
        OSError: where the base is not there.
    """
    from video_diffusion import VideoDiffusionPipeline

    seen, found = [adapter.resolve()], adapter
    while is_adapter(found):
        file = found / RECORD
        base = read_json(file).get("pretrained_model_name_or_path") if file.is_file() else None
        if not isinstance(base, str) or not base:
            raise ValueError(f"{file} has `pretrained_model_name_or_path` = {base!r}, expected the name of the base.")
        found = find_folder(VideoDiffusionPipeline, base, options or {})
        if found.resolve() in seen:
            raise ValueError(f"{file} names {base!r} as the base, which leads back to it, expected a pipeline.")
        seen.append(found.resolve())
    return seen[1]


def resolve_model(name: str, argument: str = "model") -> str:
    """Finds a pipeline, or an adapter: a folder, else an embedded one by its name, else what can be a Hub id.

    Returns:
        a folder's path or a Hub id, for `VideoDiffusionPipeline.from_pretrained`.

    Raises:
        ValueError: where it is none of these, naming `argument`.
    """
    if isfile(Path(name) / INDEX) or is_adapter(name):
        return name
    embedded = embedded_models() | embedded_adapters()
    if name in embedded:
        return str(embedded[name])
    if isdir(name):
        raise ValueError(f"`{argument}` is the folder {name!r}, expected one that holds a {INDEX} or a {ADAPTER}.")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    near = get_close_matches(name, embedded, n=1)
    raise ValueError(
        f"`{argument}` is {name!r}, expected an embedded model ({', '.join(embedded) or 'there is none here'}), a "
        f"folder that exists, or a Hub id 'owner/name'.{f' Did you mean {near[0]}?' if near else ''}"
    )


def find_folder(pipeline_class: Any, name: str, options: Mapping[str, Any]) -> Path:
    """The folder of a pipeline or an adapter, downloaded where it is on the Hub.

    Args:
        pipeline_class: its `download` is used.
        name: a folder, the name of an embedded model, or a Hub id.
        options: keyword arguments of `from_pretrained`.

    Raises:
        OSError: where there is no such pipeline.
    """
    try:
        place = resolve_model(name, "pretrained_model_name_or_path")
    except ValueError as error:
        raise OSError(str(error)) from None
    if isdir(place):
        return Path(place)
    try:
        folder = Path(pipeline_class.download(place, **options))
        _download_generation_config(place, folder, options)
    except OSError as error:
        if (adapter := _download_adapter(place, options)) is not None:
            return adapter
        where = f"{name!r} is no folder in {Path.cwd()}"
        raise OSError(f"{where}, and as a Hub id it was not loaded: {error}") from error
    return folder


def training_record(name: str) -> dict[str, Any]:
    """How a pipeline or an adapter was trained, as its `run.json` says; empty where there is none.

    Args:
        name: a folder, the name of an embedded model, or a Hub id.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        place = resolve_model(name)
        file = Path(place) / RECORD if isdir(place) else Path(hf_hub_download(place, RECORD))
        return read_json(file)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError):
        return {}


def variant_of(model: str) -> str:
    """The variant of Moving MNIST that a model was trained on, by its name; classic where nothing says another."""
    from video_diffusion.data.moving_mnist import VARIANTS

    found = training_record(model).get("variant")
    return found if found in VARIANTS else VARIANTS[0]


def _download_adapter(repo_id: str, options: Mapping[str, Any]) -> Path | None:
    """The folder of an adapter's repository, or None where there is no such repository."""
    from huggingface_hub import HfApi, snapshot_download

    passed = {key: options[key] for key in ("revision", "token") if options.get(key) is not None}
    local = bool(options.get("local_files_only"))
    try:
        files = {file.rfilename for file in HfApi().model_info(repo_id, **passed).siblings or ()}
        if ADAPTER not in files or INDEX in files:
            return None
    except Exception:  # the Hub, or its way of saying no, is not there: what was downloaded before may be
        local = True
    wanted = [ADAPTER, RECORD, GENERATION_CONFIG, "scheduler/*.json"]
    passed |= {"cache_dir": options.get("cache_dir"), "local_files_only": local}
    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=wanted, **passed))
    except OSError:
        return None
    return folder if is_adapter(folder) else None


def _download_generation_config(repo_id: str, snapshot: Path, options: Mapping[str, Any]) -> None:
    """Puts the repository's generation config, if any, beside what diffusers downloaded."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    passed = {key: options[key] for key in ("cache_dir", "token", "local_files_only") if options.get(key) is not None}
    try:
        hf_hub_download(repo_id, GENERATION_CONFIG, revision=snapshot.name, **passed)
    except EntryNotFoundError:  # also where we are offline and it is not in the cache
        return
