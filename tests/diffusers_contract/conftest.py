"""Shared by the tests of what users of diffusers rely on: tiny pipelines without and with text."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from text_encoders import tiny_encoder
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler

WORDS = ["[PAD]", "[START]", "[END]", "[UNK]", "one", "two", "left", "right"]
LENGTH, WIDTH = 8, 8


@pytest.fixture
def tokenizer():
    """Words to tokens, `[START] … [END]`, padded to 8."""
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="[START] $A [END]", special_tokens=[("[START]", 1), ("[END]", 2)])
    tokens = {"pad_token": "[PAD]", "bos_token": "[START]", "eos_token": "[END]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LENGTH, **tokens)


@pytest.fixture
def make_text_encoder():
    """A function that makes a tiny text encoder of a kind; zero-initialised weights become random."""

    def make(kind, **changes):
        ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} if kind == "clip" else {}
        return tiny_encoder(kind, len(WORDS), LENGTH, WIDTH, **ends | changes)

    return make


@pytest.fixture
def make_pipeline(make_denoiser, make_text_encoder, tokenizer):
    """A function that makes a tiny pipeline; `text` names the kind of its text encoder."""

    def make(text=None, unet=None, **changes):
        parts = {}
        if text is not None:
            parts = {"text_encoder": make_text_encoder(text), "tokenizer": tokenizer}
            changes = {"cross_attention_dim": WIDTH} | changes
        unet = unet or make_denoiser(**{"in_channels": 3} | changes)
        pipeline = VideoDiffusionPipeline(unet, VPContinuousScheduler(prediction_type="v_prediction"), **parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture
def sample():
    """A function that runs a pipeline from seed 0 in three steps; further arguments as in its call."""

    def run(pipeline, **options):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipeline(**{"num_inference_steps": 3, "output_type": "pt", "generator": generator} | options).frames

    return run
