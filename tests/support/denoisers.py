"""Tiny networks for tests: a denoiser, what gives it the other kind of middle, and a text encoder."""

import json

import pytest
import torch

TINY = {
    "sample_size": 16,
    "num_frames": 4,
    "in_channels": 1,
    "out_channels": 1,
    "patch_size": 2,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
SMALLEST = {"sample_size": 8, "in_channels": 3, "block_out_channels": (8, 8)}  # changes for tests of files
TRANSFORMER = {
    "block_out_channels": (16, 32),
    "layers_per_block": (1, 0),
    "attention_head_dim": 16,
    "spatial_attention": False,
    "temporal_attention": False,
    "temporal_shift": 0.5,
    "transformer_layers": 4,
}
READING = {  # a transformer with every pattern of attention, channels for given frames, text of 128 channels
    "layers_per_block": (1, 0),
    "attention_head_dim": 16,
    "cross_attention_dim": 128,
    "temporal_shift": 0.25,
    "spatial_attention": False,
    "temporal_attention": False,
    "transformer_layers": 3,
    "attention_pattern": ("joint", "space", "time"),
    "in_channels": 3,
}
MIDDLES = pytest.mark.parametrize("middle", [{}, TRANSFORMER], ids=["block", "transformer"])


def randomised(model):
    """The model with noise on all weights: those that start at zero would hide errors."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def tiny_denoiser(seed=0, **changes):
    """A denoiser on 16×16 pixels with random weights; `changes` go to its config."""
    from video_diffusion import VideoUNet3DConditionModel

    torch.manual_seed(seed)
    return randomised(VideoUNet3DConditionModel(**TINY | changes))


def tiny_text(words, length=8, width=8):
    """A text encoder of one layer and its tokenizer of some words, as arguments of the pipeline."""
    from transformers import BertConfig, BertModel, BertTokenizer

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    sizes = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": width}
    torch.manual_seed(0)
    encoder = BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=length, **sizes)).eval()
    return {"text_encoder": encoder, "tokenizer": BertTokenizer(vocab=vocabulary, model_max_length=length)}


def small_moving_mnist():
    """A pipeline that is asked for as the embedded `moving-mnist` is and needs milliseconds for what that one does.

    20 frames of 64×64 pixels, a prompt, its generation config; weights are random.
    """
    from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
    from video_diffusion.hub.finding import embedded_models
    from video_diffusion.training.text import small_bert

    changes = {"transformer_layers": 1, "cross_attention_every": 1, "cross_attention_dim": 128}
    shape = {"in_channels": 3, "num_frames": 20, "sample_size": 64, "patch_size": 16}
    encoder, tokenizer = small_bert(48)
    pipeline = VideoDiffusionPipeline(
        tiny_denoiser(**TRANSFORMER | changes | shape), VPContinuousScheduler(), encoder.eval(), tokenizer
    )
    file = embedded_models()["moving-mnist"] / "generation_config.json"
    pipeline.generation_config = json.loads(file.read_text(encoding="utf-8"))
    return pipeline
