"""LoRA adapters on disk and on the Hub: the file in diffusers' format, a card of its own, the upload."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_diffusion.data.video_io import atomic_path
from video_diffusion.hub.cards import (
    CARD,
    MARK,
    dataset_of,
    describe_data,
    describe_recipe,
    eval_results,
    find_template,
    is_ours,
    read_evaluations,
    read_json,
)
from video_diffusion.hub.configs import GENERATION_CONFIG, read_generation_config
from video_diffusion.hub.finding import ADAPTER, is_adapter
from video_diffusion.hub.folder import carried_files
from video_diffusion.hub.integrity import write_json
from video_diffusion.hub.loading import SCHEDULER
from video_diffusion.hub.transfer import Destination, full_id, upload

if TYPE_CHECKING:
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

WORKING = (ADAPTER, "run.json", GENERATION_CONFIG, SCHEDULER)  # what an adapter's folder needs to work
SETTINGS = "lora_adapter_metadata"  # in its header: the settings of peft's LoraConfig


def save_adapter(pipeline: "VideoDiffusionPipeline", folder: str | os.PathLike[str], adapter: str = "default") -> Path:
    """Writes an adapter of a pipeline with the settings of its `LoraConfig`, whole or not at all.

    Args:
        pipeline: holds it.
        folder: where to.
        adapter: its name.

    Returns:
        the file.

    Raises:
        ValueError: where there is no such adapter.
    """
    from peft.utils import get_peft_model_state_dict

    file, parts = Path(folder) / ADAPTER, {}
    for name in pipeline._lora_loadable_modules:
        part = getattr(pipeline, name)
        config = getattr(part, "peft_config", {}).get(adapter)
        if config is not None:
            layers = get_peft_model_state_dict(part, adapter_name=adapter)
            parts[f"{name}_lora_layers"] = {key: value.contiguous() for key, value in layers.items()}
            # without the place of the base, which may be a folder of this machine; `run.json` names it
            parts[f"{name}_lora_adapter_metadata"] = config.to_dict() | {"base_model_name_or_path": None}
    if not parts:
        raise ValueError(f"`adapter` is {adapter!r}, expected one that the pipeline holds.")
    with atomic_path(file) as draft:
        pipeline.save_lora_weights(draft.parent, weight_name=draft.name, **parts)
    return file


def save_sampling(pipeline: "VideoDiffusionPipeline", folder: str | os.PathLike[str]) -> None:
    """Writes beside an adapter how it samples: the scheduler and the generation config of its pipeline."""
    from video_diffusion.model.steps import check_generation_config

    write_json(Path(folder) / GENERATION_CONFIG, check_generation_config(pipeline.generation_config))
    pipeline.scheduler.save_pretrained(Path(folder) / "scheduler")


def read_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """The settings of an adapter's parts, by the part's name; empty where the file has none."""
    from safetensors import safe_open

    with safe_open(str(folder / ADAPTER), framework="np") as weights:
        found = json.loads((weights.metadata() or {}).get(SETTINGS, "{}"))
    parts: dict[str, dict[str, Any]] = {}
    for key, value in found.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    return parts


def count_weights(folder: Path) -> int:
    """The number of an adapter's weights."""
    from safetensors import safe_open

    with safe_open(str(folder / ADAPTER), framework="np") as weights:
        return sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118  it is no mapping


def build_adapter_card(folder: str | os.PathLike[str], repo_id: str | None = None) -> str:
    """The text of an adapter's card, from its settings and `run.json`.

    Args:
        folder: of an adapter.
        repo_id: its name on the Hub; None: what run.json says, else the folder's name.

    Raises:
        ValueError: where `folder` holds no adapter.
    """
    from huggingface_hub import ModelCard, ModelCardData

    folder = Path(folder).absolute()
    if not is_adapter(folder):
        raise ValueError(f"`folder` is {folder}, expected one that holds a {ADAPTER}.")
    run, settings, generation = read_json(folder / "run.json"), read_settings(folder), read_generation_config(folder)
    model_id = repo_id or run.get("hub_model_id") or folder.name
    base = base_of(run)
    dataset = dataset_of(run)
    on_hub = base.count("/") == 1
    size = run.get("image_size") or 64
    height, width = [size, size] if isinstance(size, int) else size
    steps = generation.get("num_inference_steps")
    of_text = "text_encoder" in settings or bool(run.get("captions")) or "guidance_scale" in generation
    evaluations = read_evaluations(folder)
    task = "text-to-video" if of_text else "video-to-video"
    results = [result for e in evaluations if not e.other_weights for result in eval_results(e, task)]
    data = ModelCardData(
        license="apache-2.0",
        library_name="diffusers",
        base_model=base,
        base_model_relation="adapter",
        pipeline_tag=task,
        tags=["lora", "video-diffusion", "diffusers-training", "template:diffusion-lora"],
        datasets=[run["dataset_name"]] if str(run.get("dataset_name") or "").count("/") == 1 else None,
        instance_prompt=_prompt(run),
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=model_id.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    values: dict[str, Any] = {
        "name": model_id.rpartition("/")[2],
        "model_id": model_id,
        "base": base,
        "on_hub": on_hub,
        "adapter": model_id.rpartition("/")[2],
        "prompt": _prompt({**generation, **run}),
        "calls": steps,
        "distilled": run.get("student_calls") is not None,
        "scale": generation.get("guidance_scale", 1.0),
        "timesteps": generation.get("timesteps"),
        "reports": evaluations,
        "samples": sorted(folder.glob("samples/*.gif")),
        "frames": run.get("num_frames") or 10,
        "height": height,
        "width": width,
        "adapter_rows": _rows(folder, settings),
        "origin": run.get("origin"),
        "recipe": [row for row in describe_recipe(run) if row[0] != "weights it started from"],
        "dataset": describe_data(run) if dataset or run else None,
    }
    template = find_template("adapter.md").read_text(encoding="utf-8")
    return str(ModelCard.from_template(data, template_str=template, **values))


def base_of(run: Mapping[str, Any]) -> str:
    """The base's Hub id or embedded name; of a folder its name, and not where it lay."""
    base = str(run.get("pretrained_model_name_or_path") or "moving-mnist")
    on_hub = base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).is_dir()
    return base if on_hub else Path(base).name


def _prompt(run: Mapping[str, Any]) -> str | None:
    prompts = run.get("example_prompts") or run.get("sample_prompts")
    return str(prompts[0]) if prompts else None


def _rows(folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    found = [("weights", f"{count_weights(folder) / 1e6:.2f} million")]
    for part, values in settings.items():
        targets = values.get("target_modules") or []
        layers = targets if isinstance(targets, str) else ", ".join(sorted(targets))
        found.append((part, f"rank {values.get('r')}, alpha {values.get('lora_alpha')}; {layers}"))
    return found


def write_adapter_card(folder: str | os.PathLike[str], repo_id: str | None = None) -> Path:
    """Writes `build_adapter_card` to `folder/README.md`, whole or not at all, and returns its path.

    Raises:
        ValueError: as `build_adapter_card`, or where there is a card that was written by hand.
    """
    file = Path(folder).absolute() / CARD
    if not is_ours(file):
        raise ValueError(f"{file} was written by hand, expected a card with the line {MARK!r} or none. Move it away.")
    text = build_adapter_card(folder, repo_id)
    with atomic_path(file) as draft:
        draft.write_text(text, encoding="utf-8")
    return file


def push_adapter(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
) -> str:
    """Publishes an adapter in one commit: weights, card, `run.json`, how it samples, evaluations and samples.

    The folder is only read.

    Args:
        folder: of an adapter.
        repo_id: "owner/name", or "name" for the owner of the token.
        private: as in `push_pipeline`.
        token: as in `push_pipeline`.
        revision: as in `push_pipeline`.
        create_pr: as in `push_pipeline`.
        commit_message: as in `push_pipeline`.

    Returns:
        the address of the commit, or of the pull request.

    Raises:
        ValueError: where an argument or the folder is refused, before anything is sent.
        OSError: where the upload failed, with the reason and how to go on.
    """
    source = Path(folder).absolute()
    if not is_adapter(source):
        raise ValueError(f"`folder` is {source}, expected one that holds a {ADAPTER}.")
    repo_id = full_id(repo_id, token)
    message = commit_message or "Upload adapter and card"
    to = Destination(repo_id, "model", private, token, revision, create_pr, message)
    with tempfile.TemporaryDirectory() as desk:
        for name in [*WORKING, CARD, *carried_files(source)]:
            if (source / name).is_file():
                (Path(desk) / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source / name, Path(desk) / name)
        if is_ours(Path(desk) / CARD):
            write_adapter_card(desk, repo_id)
        found = sorted(file for file in Path(desk).rglob("*") if file.is_file())
        files = {file.relative_to(desk).as_posix(): file for file in found}
        return upload(files, to, to.command("push", source))
