"""Captions on their way to the denoiser."""

import torch

from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.training import text


def test_training_and_the_pipeline_read_a_caption_alike():
    encoder, tokenizer = text.small_bert(16)
    kept = torch.tensor([True, False])
    frozen = text.RunText(encoder, tokenizer, trained=False, device=torch.device("cpu"))
    captions = ["the digit 3 moves up", "a 7"]
    states = frozen.inputs(captions, kept, videos=2, images=1)["encoder_hidden_states"]
    unet = VideoUNet3DConditionModel(block_out_channels=(32,), cross_attention_dim=128)
    pipe = VideoDiffusionPipeline(unet, VPContinuousScheduler(), encoder, tokenizer)
    said, silent = pipe.encode_prompt([captions[0], ""])[0]
    torch.testing.assert_close(states, torch.stack([torch.stack([said, said, silent]), torch.stack([silent] * 3)]))
    trained = text.RunText(encoder, tokenizer, trained=True, device=torch.device("cpu"))
    inputs = trained.inputs(captions, kept, videos=2, images=1)
    again = encoder(inputs["input_ids"], attention_mask=inputs["input_mask"]).last_hidden_state[inputs["text_index"]]
    torch.testing.assert_close(again, states)


def test_a_frozen_encoder_reads_each_text_once():
    encoder, tokenizer = text.small_bert(16)
    frozen = text.RunText(encoder, tokenizer, trained=False, device=torch.device("cpu"), capacity=2)
    calls = []
    encoder.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    first = frozen.encode(["a 7", "a 3", "a 7"])
    assert torch.equal(frozen.encode(["a 3", "a 7"]), first[[1, 0]])
    assert calls == [2]
    frozen.encode(["a 1"])  # beyond the capacity: the others are forgotten
    assert len(frozen.states) == 1
    assert not any(p.requires_grad for p in encoder.parameters())
