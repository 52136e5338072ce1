"""Text conditioning of a run: which encoder reads the captions, and what the denoiser gets of them.

`--text_encoder small-bert` is a small BERT with a WordPiece vocabulary of its own, trained jointly; any other value is
a Hub id or a folder of transformers (`bert-large-uncased` is the paper's choice), frozen, its states kept in memory.
"""

import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from video_diffusion.data.captions import VOCABULARY
from video_diffusion.model.inputs import encode_tokens

SMALL_BERT = "small-bert"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_pieces(words: Sequence[str]) -> list[str]:
    """A WordPiece vocabulary: whole words, and letters and digits to spell any other word with."""
    letters = [*string.ascii_lowercase, *string.digits]
    pieces = [*SPECIAL, *string.punctuation, *letters, *(f"##{letter}" for letter in letters), *words]
    return list(dict.fromkeys(pieces))


def small_bert(max_length: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An untrained BERT of 2 layers and 128 channels (Turc et al. 2019 call that size tiny), and its tokenizer."""
    vocabulary = {piece: i for i, piece in enumerate(word_pieces(VOCABULARY))}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=max_length)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=max_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config), tokenizer


def open_text_encoder(name: str, max_length: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder and the tokenizer that `name` means; the tokenizer pads to `max_length` tokens.

    Raises:
        ValueError: if the encoder is of another kind, or reads fewer tokens.
        OSError: if there is no such model.
    """
    if name == SMALL_BERT:
        return small_bert(max_length)
    encoder, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    if not hasattr(encoder.config, "hidden_size") or encoder.config.is_encoder_decoder:
        raise ValueError(f"`text_encoder` is {name!r}, expected a text encoder whose config has `hidden_size`.")
    if encoder.config.max_position_embeddings < max_length:
        reach = encoder.config.max_position_embeddings
        raise ValueError(f"`max_text_length` is {max_length}, expected at most {reach} for {name!r}.")
    tokenizer.model_max_length = max_length
    return encoder, tokenizer


class TextDenoiser(nn.Module):
    """A denoiser and the text encoder that is trained with it, as one module for the optimiser and for DDP."""

    def __init__(self, denoiser: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.text_encoder = denoiser, text_encoder
        self.config: Any = denoiser.config

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        input_ids: Tensor,
        input_mask: Tensor,
        text_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The denoiser's output; see `RunText.inputs` for the text."""
        states = encode_tokens(self.text_encoder, input_ids, input_mask)
        states = states if text_index is None else states[text_index]
        return self.denoiser(sample, timestep, encoder_hidden_states=states, **kwargs)


class RunText:
    """The captions of a run on their way to the denoiser.

    Args:
        encoder: a text model of transformers.
        tokenizer: its tokenizer.
        trained: whether the encoder learns; a frozen one reads each text once.
        device: where the tensors go.
        capacity: how many texts a frozen encoder's states are kept for.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        trained: bool,
        device: torch.device,
        capacity: int = 20_000,
    ) -> None:
        self.encoder, self.tokenizer, self.trained, self.device = encoder.to(device), tokenizer, trained, device
        self.capacity = capacity
        self.states: dict[str, Tensor] = {}
        if not trained:
            self.encoder.eval().requires_grad_(False)
        elif getattr(self.encoder, "pooler", None) is not None:  # not read here: DDP would wait for its gradient
            self.encoder.pooler.requires_grad_(False)

    def tokens(self, texts: list[str]) -> Any:
        """Token ids and mask, `[len(texts), model_max_length]`; a longer text is cut."""
        kwargs = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(texts, max_length=self.tokenizer.model_max_length, **kwargs).to(self.device)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Token states `[len(texts), L, D]` of a frozen encoder, those of known texts from memory."""
        new = [text for text in dict.fromkeys(texts) if text not in self.states]
        if new:
            tokens = self.tokens(new)
            states = encode_tokens(self.encoder, tokens.input_ids, tokens.attention_mask)
            if len(self.states) + len(new) > self.capacity:
                self.states = {text: self.states[text] for text in set(texts) if text in self.states}
            self.states |= zip(new, states, strict=True)
        return torch.stack([self.states[text] for text in texts])

    def inputs(self, captions: list[str], kept: Tensor, videos: int, images: int = 0) -> dict[str, Tensor]:
        """What the model is called with, beside the noisy clips.

        Args:
            captions: one a clip, B.
            kept: bool `[B]`; a caption that is not kept becomes the empty text (classifier-free guidance).
            videos: frames of a clip that belong to its video; they share its text.
            images: independent images after them; their text is the empty one.
        """
        texts = [caption if keep else "" for caption, keep in zip(captions, kept.tolist(), strict=True)]
        index = None
        if images:
            texts.append("")
            of_video = torch.arange(len(captions), device=self.device)[:, None].expand(-1, videos)
            index = torch.cat([of_video, torch.full((len(captions), images), len(captions), device=self.device)], 1)
        if not self.trained:
            states = self.encode(texts)
            return {"encoder_hidden_states": states if index is None else states[index]}
        tokens = self.tokens(texts)
        inputs = {"input_ids": tokens.input_ids, "input_mask": tokens.attention_mask}
        return inputs if index is None else inputs | {"text_index": index}
