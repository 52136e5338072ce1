"""What a trained pipeline has learned beyond its base, as a LoRA adapter of a chosen rank."""

import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from video_diffusion.hub.adapters import save_adapter, save_sampling, write_adapter_card
from video_diffusion.hub.cards import read_json
from video_diffusion.hub.finding import RECORD, find_folder
from video_diffusion.hub.integrity import write_json

NAME = "default"  # of the adapter while it is made
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def extract_adapter(
    model: str, base: str, folder: str | os.PathLike[str], *, rank: int = 64, dtype: str = "float16"
) -> float:
    """Writes the difference between two pipelines of one shape as an adapter of the second.

    In each linear layer and each convolution that has learned, the difference is replaced by the nearest matrix of the
    rank: that of its largest singular values (Eckart and Young 1936). The rest of it is lost, and so is what weights
    of other kinds have learned. The result says how much is kept.

    Args:
        model: the pipeline that has learned: a folder, an embedded name or a Hub id. Its `run.json`, where it has one,
            its scheduler and its generation config go into the adapter's folder.
        base: what it was trained from, likewise; `run.json` names it.
        folder: where to.
        rank: of the adapter's matrices, at least 1.
        dtype: of the adapter's weights, "float16" or "float32".

    Returns:
        the share of the squared difference of all weights that the adapter holds, in (0, 1].

    Raises:
        ValueError: where an argument is refused, or the pipelines have other layers or the same weights.
        OSError: where one is not there, or the folder cannot be written.
        ImportError: where peft is missing.
    """
    from video_diffusion import VideoDiffusionPipeline

    if rank < 1:
        raise ValueError(f"`rank` is {rank}, expected at least 1.")
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` is {dtype!r}, expected one of {', '.join(DTYPES)}.")
    place = find_folder(VideoDiffusionPipeline, model, {})
    record = read_json(place / RECORD)
    learned = VideoDiffusionPipeline.from_pretrained(place)
    plain = VideoDiffusionPipeline.from_pretrained(base)
    total = held = 0.0
    for part in plain._lora_loadable_modules:
        sums = _extract(part, getattr(learned, part), getattr(plain, part), rank, DTYPES[dtype])
        total, held = total + sums[0], held + sums[1]
    if held == 0:
        raise ValueError(f"`model` is {model!r}, expected other weights than those of {base!r} in some layer.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(plain, folder, NAME)
    save_sampling(learned, folder)
    own = {"pretrained_model_name_or_path": base, "lora_rank": rank, "share_of_difference": round(held / total, 4)}
    write_json(folder / RECORD, record | own)
    write_adapter_card(folder)
    return held / total


def _extract(
    part: str, learned: nn.Module | None, plain: nn.Module | None, rank: int, dtype: torch.dtype
) -> tuple[float, float]:
    """Gives a model an adapter that makes it nearly another; their squared difference, and what of it that holds."""
    if plain is None and learned is None:
        return 0.0, 0.0
    before, after = ({} if model is None else dict(model.named_parameters()) for model in (plain, learned))
    for name in sorted(before.keys() | after.keys()):
        was, now = (tuple(known[name].shape) if name in known else "none" for known in (before, after))
        if was != now:
            raise ValueError(f"`model` has {part}.{name} of shape {now}, expected that of `base`, {was}.")
    assert plain is not None  # they have the same parts
    changes = {name: (after[name] - before[name]).detach().float() for name in before}
    total = sum(float(change.double().square().sum()) for change in changes.values())
    layers = {f"{name}.weight": name for name in _layers(plain)}
    wanted = {layers[name]: change for name, change in changes.items() if name in layers and change.any()}
    if not wanted:
        return total, 0.0
    factors = {name: _factors(change, rank) for name, change in wanted.items()}
    _add_adapter(plain, list(wanted), rank)
    held = 0.0
    modules = dict(plain.named_modules())
    for name, change in wanted.items():
        layer: Any = modules[name]
        for matrix, values in zip((layer.lora_A[NAME], layer.lora_B[NAME]), factors[name], strict=True):
            matrix.weight = nn.Parameter(values.to(dtype).reshape(matrix.weight.shape))
        down, up = (matrix.weight.detach().double() for matrix in (layer.lora_A[NAME], layer.lora_B[NAME]))
        rest = change.double().flatten(1) - up.flatten(1) @ down.flatten(1)
        held += float(change.double().square().sum() - rest.square().sum())
    return total, held


def _layers(model: nn.Module) -> list[str]:
    """The names of the layers that an adapter can change."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def _factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A `[rank, in]` and B `[out, rank]` whose product is nearest to a change of weights `[out, ...]`."""
    left, values, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
    roots = values[:rank].sqrt()
    kept = len(roots)
    down, up = change.new_zeros(rank, right.shape[1]), change.new_zeros(len(left), rank)
    down[:kept] = roots[:, None] * right[:rank]
    up[:, :kept] = left[:, :rank] * roots
    return down, up


def _add_adapter(model: nn.Module, names: list[str], rank: int) -> None:
    """Gives these layers an adapter that does nothing yet; its settings name them by the ends of their names."""
    from peft import LoraConfig

    others = [name for name in _layers(model) if name not in names]
    targets = sorted({_end(name, others) for name in names})
    config = cast(Any, LoraConfig)(r=rank, lora_alpha=rank, target_modules=targets)
    cast(Any, model).add_adapter(config, adapter_name=NAME)


def _end(name: str, others: list[str]) -> str:
    """The shortest end of a layer's name that none of the others has."""
    words = name.split(".")
    for start in range(len(words) - 1, 0, -1):
        end = ".".join(words[start:])
        if not end.isdigit() and not any(f".{other}".endswith(f".{end}") for other in others):
            return end
    return name
