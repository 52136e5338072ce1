"""Text conditioning of a run: which encoder reads the captions, and what the denoiser gets of them.

`--text_encoder small-bert` is a small BERT with a WordPiece vocabulary of its own, trained jointly; any other value is
a Hub id or a folder of transformers: BERT (`bert-large-uncased` is the paper's choice), CLIP, T5, UMT5 or an encoder
like them. It is frozen, and the states of each text are computed once and kept.
"""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextModel,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from video_diffusion.data.captions import VOCABULARY
from video_diffusion.model.inputs import encode_tokens
from video_diffusion.training.text_states import NAME, TextStates, encoder_digest, text_keys

SMALL_BERT = "small-bert"
READ_AT_ONCE = 32  # texts that a frozen encoder reads together before the first step
IN_MEMORY = 2**30  # bytes of states of a frozen encoder that are kept in memory
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
    try:
        encoder, tokenizer = load_encoder(name), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().partition("\n")[0]
        raise OSError(
            f"`text_encoder` is {name!r}, expected {SMALL_BERT}, none, or the Hub id or folder of a text encoder of "
            f"transformers with its tokenizer: {first}"
        ) from error
    if not hasattr(encoder.config, "hidden_size"):
        kind = type(encoder).__name__
        raise ValueError(f"`text_encoder` is {name!r}, a {kind}, expected an encoder whose config has `hidden_size`.")
    reach = min(getattr(encoder.config, "max_position_embeddings", max_length), tokenizer.model_max_length)
    if reach < max_length:
        raise ValueError(f"`max_text_length` is {max_length}, expected at most {reach} for {name!r}.")
    if tokenizer.pad_token_id is None:
        raise ValueError(f"`text_encoder` is {name!r}, whose tokenizer cannot pad, expected one with a `pad_token`.")
    if len(tokenizer) > encoder.config.vocab_size:
        raise ValueError(
            f"`text_encoder` is {name!r}, whose tokenizer has {len(tokenizer)} tokens, expected at most those of its "
            f"encoder, {encoder.config.vocab_size}."
        )
    tokenizer.model_max_length = max_length
    return encoder, tokenizer


def load_encoder(name: str) -> PreTrainedModel:
    """A text encoder in float32: of T5 and its like the encoder alone, of CLIP the part that reads text.

    Raises:
        ValueError: if it is of a kind that gives no states of a text.
        OSError: if there is no such model.
    """
    config = AutoConfig.from_pretrained(name)
    if config.model_type == "clip":
        return CLIPTextModel.from_pretrained(name, dtype=torch.float32)
    if type(config) in AutoModelForTextEncoding._model_mapping:
        return AutoModelForTextEncoding.from_pretrained(name, dtype=torch.float32)
    if config.is_encoder_decoder:
        raise ValueError(f"A {config.model_type} model has a decoder, of which transformers knows no encoder alone.")
    return AutoModel.from_pretrained(name, dtype=torch.float32)


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
        capacity: how many texts a frozen encoder's states are kept for in memory; None: as many as fit into 1 GiB.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        trained: bool,
        device: torch.device,
        capacity: int | None = None,
    ) -> None:
        self.encoder, self.tokenizer, self.trained, self.device = encoder.to(device), tokenizer, trained, device
        self.capacity = capacity
        self.states: dict[str, Tensor] = {}
        self.kept: TextStates | None = None
        if not trained:
            self.encoder.eval().requires_grad_(False)
        elif getattr(self.encoder, "pooler", None) is not None:  # not read here: DDP would wait for its gradient
            self.encoder.pooler.requires_grad_(False)

    def tokens(self, texts: list[str]) -> Any:
        """Token ids and mask, `[len(texts), model_max_length]`; a longer text is cut."""
        kwargs = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(texts, max_length=self.tokenizer.model_max_length, **kwargs).to(self.device)

    def read(self, texts: Sequence[str], folder: Path) -> int:
        """Has a frozen encoder read all of these texts, and the empty one, and keeps the states on the disk.

        Args:
            texts: in any number, with repetitions.
            folder: of encoders' states; those of this one get a folder in it.

        Returns:
            how many texts were read now; the others' states were there.

        Raises:
            ValueError: if the folder cannot be written to, or has too little room.
        """
        self.kept = TextStates(folder / encoder_digest(self.encoder)[:NAME], self.tokenizer.model_max_length)
        asked, count = list(dict.fromkeys([*texts, ""])), 0
        parts = [asked[start : start + READ_AT_ONCE] for start in range(0, len(asked), READ_AT_ONCE)]
        for part in tqdm(parts, desc="reading texts", unit="batch", leave=False, disable=None):
            keys = text_keys(*self._ids(part))
            new = {key: text for key, text in zip(keys, part, strict=True) if key not in self.kept}
            if new:
                self.kept.save(dict(zip(new, self._encoded(list(new.values())), strict=True)))
            count += len(new)
        return count

    def _ids(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        tokens = self.tokens(texts)
        return tokens.input_ids, tokens.attention_mask

    @torch.no_grad()
    def _encoded(self, texts: list[str]) -> Tensor:
        return encode_tokens(self.encoder, *self._ids(texts))

    def encode(self, texts: list[str]) -> Tensor:
        """Token states `[len(texts), L, D]` of a frozen encoder, those of known texts from memory or the disk."""
        new = [text for text in dict.fromkeys(texts) if text not in self.states]
        found: dict[str, Tensor] = {}
        if new and self.kept is not None:
            kept = self.kept
            keys = {text: key for text, key in zip(new, text_keys(*self._ids(new)), strict=True) if key in kept}
            states = kept.load(list(keys.values()))
            found = {text: value.to(self.device) for text, value in zip(keys, states, strict=True)}
        if unread := [text for text in new if text not in found]:
            found |= zip(unread, self._encoded(unread), strict=True)
        if found:
            capacity = self.capacity or max(1, IN_MEMORY // next(iter(found.values())).nbytes)
            if len(self.states) + len(found) > capacity:
                self.states = {text: self.states[text] for text in set(texts) if text in self.states}
            self.states |= found
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
