"""`encode_prompt` against the stock pipelines that read each kind of text encoder."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, WanPipeline

PROMPTS = ["one left", "two right left"]


@pytest.mark.parametrize("clip_skip", [None, 1, 2])
@pytest.mark.parametrize("use_attention_mask", [False, True])
def test_clip_is_read_as_in_stable_diffusion(make_pipeline, clip_skip, use_attention_mask):
    pipeline = make_pipeline("clip")
    encoder = pipeline.text_encoder
    encoder.config.use_attention_mask = use_attention_mask
    if not hasattr(encoder, "text_model"):  # where transformers laid it flat, stock pipelines still look for it
        object.__setattr__(encoder, "text_model", encoder)
    stock = StableDiffusionPipeline(
        *(None, encoder, pipeline.tokenizer, None, None, None, None), requires_safety_checker=False
    )
    options = {"device": torch.device("cpu"), "negative_prompt": ["two", "two"], "clip_skip": clip_skip}
    theirs = stock.encode_prompt(PROMPTS, num_images_per_prompt=2, do_classifier_free_guidance=True, **options)
    ours = pipeline.encode_prompt(PROMPTS, num_videos_per_prompt=2, do_classifier_free_guidance=True, **options)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == (4, 8, 8)
        assert torch.equal(one, other)


def test_the_mask_and_the_skipped_layers_of_clip_change_what_is_read(make_pipeline):
    pipeline = make_pipeline("clip")
    plain, skipped = (pipeline.encode_prompt(PROMPTS, clip_skip=n)[0] for n in (None, 1))
    pipeline.text_encoder.config.use_attention_mask = True
    masked = pipeline.encode_prompt(PROMPTS)[0]
    assert not torch.allclose(plain, skipped)
    assert not torch.allclose(plain, masked)


@pytest.mark.parametrize("kind", ["umt5", "t5"])
def test_t5_is_read_as_in_wan(make_pipeline, kind):
    pipeline = make_pipeline(kind)
    stock = WanPipeline(pipeline.tokenizer, pipeline.text_encoder, None, pipeline.scheduler)
    theirs = stock.encode_prompt(PROMPTS, "two", num_videos_per_prompt=2, max_sequence_length=8, device="cpu")
    ours = pipeline.encode_prompt(PROMPTS, num_videos_per_prompt=2, negative_prompt="two")
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert not ours[0][0, 4:].any()  # the padding


def test_bert_does_not_see_its_padding(make_pipeline):
    pipeline = make_pipeline("bert")
    tokens = pipeline.tokenizer(PROMPTS, padding="max_length", return_tensors="pt")
    encoder = pipeline.text_encoder
    seen = encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    blind = encoder(tokens.input_ids).last_hidden_state
    assert torch.equal(pipeline.encode_prompt(PROMPTS)[0], seen)
    assert not torch.allclose(seen, blind)


def test_clip_skip_reaches_the_call_and_is_refused_elsewhere(make_pipeline, sample):
    clip = make_pipeline("clip")
    assert not torch.allclose(sample(clip, prompt="one left"), sample(clip, prompt="one left", clip_skip=2))
    with pytest.raises(ValueError, match=r"`clip_skip` is 4, expected None or, for CLIP alone, at most 3"):
        sample(clip, prompt="one left", clip_skip=4)
    with pytest.raises(ValueError, match=r"`clip_skip` is 1, expected None or, for CLIP alone, .* BertModel"):
        sample(make_pipeline("bert"), prompt="one left", clip_skip=1)


def test_one_negative_text_serves_all_prompts_and_no_guidance_has_none(make_pipeline):
    pipeline = make_pipeline("bert")
    both = pipeline.encode_prompt(PROMPTS, negative_prompt="two")
    assert torch.equal(both[1][0], both[1][1])
    assert torch.equal(both[1][:1], pipeline.encode_prompt("two")[0])
    assert torch.equal(pipeline.encode_prompt("one")[1], pipeline.encode_prompt("")[0])  # the empty text
    assert pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)[1] is None
    assert make_pipeline().encode_prompt(None) == (None, None)


def test_what_encode_prompt_gives_is_what_the_call_takes(make_pipeline, sample):
    pipeline = make_pipeline("clip")
    embeds, negative = pipeline.encode_prompt("one left", negative_prompt="two")
    read = sample(pipeline, prompt="one left", negative_prompt="two", guidance_scale=2.0)
    given = sample(pipeline, prompt_embeds=embeds, negative_prompt_embeds=negative, guidance_scale=2.0)
    assert torch.equal(read, given)
