"""Tiny text encoders of each family with random weights, and tokenizers built here that spell words in letters."""

import string

import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Model,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
    UMT5Model,
)

from denoisers import randomised
from video_diffusion.training.text import small_bert

LETTERS = [*string.ascii_lowercase, *string.digits]
VISION = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
OF_T5 = {"t5": (T5Config, T5EncoderModel, T5Model), "umt5": (UMT5Config, UMT5EncoderModel, UMT5Model)}


def tiny_encoder(kind, vocab_size, length=8, width=8, whole=False, **changes):
    """An encoder of a kind; `whole`: the model that its family publishes, which has a decoder or sees pictures."""
    torch.manual_seed(1)
    size = {"vocab_size": vocab_size, "hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 3}
    size |= {"num_attention_heads": 2, "max_position_embeddings": length}
    if kind in OF_T5:
        config, encoder, full = OF_T5[kind]
        t5 = {"vocab_size": vocab_size, "d_model": width, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
        return randomised((full if whole else encoder)(config(**t5 | changes)))
    if kind == "clip":
        if whole:
            vision = VISION | {"image_size": 8, "patch_size": 4}
            return randomised(CLIPModel(CLIPConfig(text_config=size | changes, vision_config=vision)))
        return randomised(CLIPTextModel(CLIPTextConfig(**size | changes)))
    return randomised(BertModel(BertConfig(**size | changes)))


def letters_tokenizer(kind, length):
    """A tokenizer of a family, of its own class; any text in small letters and digits can be spelled."""
    if kind in OF_T5:
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0), *((one, -2.0) for one in LETTERS)]
        return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)
    if kind == "clip":
        pieces = [*LETTERS, *(f"{one}</w>" for one in LETTERS), "<|startoftext|>", "<|endoftext|>"]
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)
    return small_bert(length)[1]


def save_encoder(kind, folder, length=24, width=8, whole=True):
    """Writes an encoder with its tokenizer as a Hub repository holds it; returns both."""
    tokenizer = letters_tokenizer(kind, length)
    ends = {"clip": {"bos_token_id": 72, "eos_token_id": 73, "pad_token_id": 73}}.get(kind, {})
    encoder = tiny_encoder(kind, len(tokenizer), length, width, whole and not ends, **ends)
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return encoder, tokenizer
