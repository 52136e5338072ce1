"""The pipeline's text: prompts to the token states that the model attends to.

It travels to the Hub beside `pipeline.py`, so it imports nothing local.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class TextConditioning:
    """The part of the pipeline that reads prompts."""

    unet: Any
    text_encoder: Any
    tokenizer: Any
    _execution_device: Any

    def encode_text(self, name: str, text: list[str]) -> Tensor:
        """Text embeddings `[len(text), L, D]`, padded to the text model's full length."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        longest = max(len(tokens) for tokens in self.tokenizer(text).input_ids)
        if longest > length:
            raise ValueError(f"`{name}` has {longest} tokens, expected at most {length}.")
        tokens = self.tokenizer(text, padding="max_length", max_length=length, return_tensors="pt")
        tokens = tokens.to(self._execution_device)
        return self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state

    def prepare_text(self, name: str, texts: Mapping[str, Any], base: int, repeats: int) -> Tensor | None:
        """The text condition `[base · repeats, L, D]` of the argument `name` or `{name}_embeds`.

        None for a model without text; zeros `[B, 1, D]` for one that wants text where there is no text encoder.
        """
        width, text, embeds = self.unet.config.get("cross_attention_dim"), texts[name], texts[f"{name}_embeds"]
        if embeds is not None:
            if embeds.ndim != 3 or embeds.shape[-1] != width:
                raise ValueError(f"`{name}_embeds` has shape {tuple(embeds.shape)}, expected [B, L, {width}].")
        elif self.text_encoder is not None:
            embeds = self.encode_text(name, text if isinstance(text, list) else [text or ""])
        elif width is None:
            return None
        else:
            embeds = torch.zeros(1, 1, width)
        embeds = embeds.to(self._execution_device, self.unet.dtype).expand(base, -1, -1)
        return embeds.repeat_interleave(repeats, dim=0)

    def check_text(self, texts: Mapping[str, Any], guidance_scale: float) -> None:
        """Refuses text arguments that exclude each other or that nothing here can read. Raises ValueError."""
        for name in ("prompt", "negative_prompt"):
            text = texts[name]
            if text is not None and texts[f"{name}_embeds"] is not None:
                raise ValueError(f"`{name}` and `{name}_embeds` are both given, expected at most one of them.")
            if text is not None and (self.text_encoder is None or self.tokenizer is None):
                raise ValueError(f"`{name}` is {text!r}, expected None: the pipeline has no text encoder.")
            if not all(isinstance(item, str) for item in (text if isinstance(text, list) else [text or ""])):
                raise ValueError(f"`{name}` is {text!r}, expected a string or a list of strings.")
        embeds = [texts["prompt_embeds"], texts["negative_prompt_embeds"]]
        if guidance_scale == 1 and (texts["negative_prompt"] is not None or embeds[1] is not None):
            raise ValueError("`guidance_scale` is 1, expected more with a negative prompt.")
        if guidance_scale > 1 and self.text_encoder is None and any(item is None for item in embeds):
            raise ValueError(
                f"`guidance_scale` is {guidance_scale}, expected 1: there is no text encoder, and not both of "
                "`prompt_embeds` and `negative_prompt_embeds`."
            )
        if all(item is not None for item in embeds) and embeds[0].shape[1:] != embeds[1].shape[1:]:
            raise ValueError(
                f"`negative_prompt_embeds` has shape {tuple(embeds[1].shape)}, expected [B, L, D] with the "
                f"L and D of `prompt_embeds`, {tuple(embeds[0].shape)}."
            )
