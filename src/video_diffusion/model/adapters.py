"""LoRA adapters on the pipeline: the methods of diffusers, for any text encoder, and what does not fit is refused."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils.peft_utils import get_adapter_name, get_peft_kwargs
from torch import Tensor, nn

from .inputs import is_clip

LAYER = re.compile(r"(.+)\.lora_([AB])\.weight")  # of a state dict as peft names it


class VideoLoraLoaderMixin(StableDiffusionLoraLoaderMixin):
    """`load_lora_weights`, `set_adapters`, `fuse_lora`, `unload_lora_weights` and the others, as in diffusers."""

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Loads an adapter; arguments as in diffusers. Only safetensors are read.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a Hub id, or a state dict.
            adapter_name: how it is called from here on.
            hotswap: whether it takes the place of the adapter of that name.
            kwargs: as in diffusers.

        Raises:
            ValueError: where it is no adapter, or one of another network, naming a layer; then nothing is loaded.
            ImportError: where peft is missing.
        """
        if find_spec("peft") is None:
            raise ImportError("LoRA adapters need peft: pip install peft")
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError(
                f"`use_safetensors` is {kwargs['use_safetensors']}, expected True: loading a pickle can run any code."
            )
        source = pretrained_model_name_or_path_or_dict
        options = {key: value for key, value in kwargs.items() if key != "low_cpu_mem_usage"}
        given = dict(source) if isinstance(source, dict) else source
        state, _, metadata = self.lora_state_dict(given, **options | {"return_lora_metadata": True})
        check_adapter(self, state, metadata or {}, "the adapter" if isinstance(source, dict) else str(source))
        super().load_lora_weights(source, adapter_name=adapter_name, hotswap=hotswap, **kwargs)

    @classmethod
    def load_lora_into_text_encoder(
        cls,
        state_dict: dict[str, Tensor],
        network_alphas: Any,
        text_encoder: Any,
        adapter_name: str | None = None,
        metadata: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """As in diffusers for CLIP, whose layers it knows by name; any other text encoder takes peft's own names."""
        prefix = f"{options.get('prefix') or cls.text_encoder_name}."
        layers, settings = (
            {key.removeprefix(prefix): value for key, value in (part or {}).items() if key.startswith(prefix)}
            for part in (state_dict, metadata)
        )
        if not layers:
            return
        if is_clip(text_encoder):
            super().load_lora_into_text_encoder(
                *(state_dict, network_alphas, text_encoder),
                adapter_name=adapter_name,
                metadata=metadata,
                **options,
            )
            return
        import peft

        config: Any = peft.LoraConfig
        if not settings:
            ranks = {key: weights.shape[1] for key, weights in layers.items() if "lora_B" in key}
            settings = get_peft_kwargs(ranks, None, layers, is_unet=False)
        adapter = adapter_name or get_adapter_name(text_encoder)
        text_encoder.load_adapter(adapter_state_dict=layers, peft_config=config(**settings), adapter_name=adapter)


def check_adapter(pipeline: Any, state: Mapping[str, Tensor], metadata: Mapping[str, Any], name: str) -> None:
    """Refuses an adapter that was made for another network.

    Args:
        pipeline: that it shall be loaded into.
        state: its weights; those that do not have peft's names are left to diffusers.
        metadata: the settings of its `LoraConfig`, with the parts' names before them; may be empty.
        name: of the adapter.

    Raises:
        ValueError: where the pipeline lacks a part or a layer, a layer has another width, or weights are missing.
    """
    parts = pipeline._lora_loadable_modules
    if not state or not all("lora" in key for key in state):
        return  # diffusers says what is wrong
    foreign = sorted({key.partition(".")[0] for key in state} - set(parts))
    if foreign:
        raise ValueError(f"{name} has weights for {', '.join(foreign)}, expected an adapter of {' and '.join(parts)}.")
    for part in parts:
        layers = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in layers.items():
            if match := LAYER.fullmatch(key):
                found.setdefault(match[1], {})[match[2]] = value
        if not found or (part == "text_encoder" and is_clip(pipeline.text_encoder)):  # CLIP's layers are renamed
            continue
        model = getattr(pipeline, part)
        if model is None:
            raise ValueError(f"{name} has weights for the {part}, expected none: this pipeline has no {part}.")
        settings = {
            key.removeprefix(f"{part}."): value for key, value in metadata.items() if key.startswith(f"{part}.")
        }
        _check_layers(model, found, settings, f"{name} does not fit the {part}")


def _check_layers(
    model: nn.Module, found: Mapping[str, Mapping[str, Tensor]], settings: Mapping[str, Any], complaint: str
) -> None:
    """Compares the layers of an adapter with those of a model."""
    modules = {place: getattr(module, "base_layer", module) for place, module in model.named_modules()}
    for place, pair in found.items():
        weight = getattr(modules.get(place), "weight", None)
        if weight is None:
            raise ValueError(f"{complaint}: it has the layer {place}, which is not there.")
        lacking = [letter for letter in "AB" if letter not in pair]
        if lacking:
            raise ValueError(f"{complaint}: {place}.lora_{lacking[0]}.weight is missing.")
        came = (pair["B"].shape[0], *pair["A"].shape[1:])
        if came != tuple(weight.shape):
            raise ValueError(f"{complaint}: its layer {place} is for weights {came}, expected {tuple(weight.shape)}.")
        if pair["A"].shape[0] != pair["B"].shape[1]:
            raise ValueError(
                f"{complaint}: {place} has ranks {pair['A'].shape[0]} and {pair['B'].shape[1]}, expected one rank."
            )
    if settings.get("target_modules") is None:
        return
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    names = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    config: Any = LoraConfig
    targets = config(**{key: settings[key] for key in names if settings.get(key) is not None})
    for place, module in modules.items():
        plain = isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and "lora_" not in place
        without = plain and not place.endswith(".base_layer") and place not in found
        if without and check_target_module_exists(targets, place):
            raise ValueError(f"{complaint}: it has no weights for {place}, which its settings name.")
