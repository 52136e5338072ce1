"""Callbacks as users of diffusers write them, and the ones that come with it."""

import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback

PROMPTS = {"prompt": "one left", "negative_prompt": "two", "guidance_scale": 3.0}


def cutoff(after):
    return SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=after)


def spy(pipeline):
    """What the network is called with: clips and text."""
    calls = []

    def keep(module, args, kwargs):
        calls.append((len(args[0]), kwargs["encoder_hidden_states"].clone()))

    pipeline.unet.register_forward_pre_hook(keep, with_kwargs=True)
    return calls


def test_after_the_cutoff_of_guidance_the_conditional_call_is_left_alone(make_pipeline, sample):
    pipeline = make_pipeline("bert")
    calls = spy(pipeline)
    sample(pipeline, **PROMPTS, num_inference_steps=4, callback_on_step_end=cutoff(after=1))
    embeds, negative = pipeline.encode_prompt("one left", negative_prompt="two")
    assert [count for count, _ in calls] == [2, 2, 1, 1]
    assert torch.equal(calls[0][1], torch.cat([negative, embeds]))
    assert torch.equal(calls[2][1], embeds)


def test_the_clip_after_an_early_cutoff_is_nearer_to_the_conditional_one(make_pipeline, sample):
    pipeline = make_pipeline("bert")
    bound = sample(pipeline, prompt="one left")
    guided = sample(pipeline, **PROMPTS)
    cut = sample(pipeline, **PROMPTS, callback_on_step_end=cutoff(after=0))
    assert (cut - bound).abs().mean() < (guided - bound).abs().mean()
    assert not torch.equal(cut, bound)


def test_a_scale_of_0_and_1_are_the_conditional_call_alone(make_pipeline, sample):
    pipeline = make_pipeline("bert")
    calls = spy(pipeline)
    clips = [sample(pipeline, prompt="one left", guidance_scale=scale) for scale in (0, 1, None)]
    assert torch.equal(clips[0], clips[1])
    assert torch.equal(clips[0], clips[2])
    assert {count for count, _ in calls} == {1}
    assert not torch.equal(clips[0], sample(pipeline, prompt="two left"))


def test_the_stock_cutoff_keeps_one_text_so_it_is_refused_for_several_clips(make_pipeline, sample):
    options = PROMPTS | {"prompt": ["one", "two"], "generator": None}
    with pytest.raises(ValueError, match=r"returned `prompt_embeds` as .*\[1, 8, 8\].*, expected .*\[2, 8, 8\]"):
        sample(make_pipeline("bert"), **options, callback_on_step_end=cutoff(after=0))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"`callback_on_step_end` returned None, expected a dict of \['latents'\]"),
        ({"prompt_embeds": torch.zeros(1)}, r"expected a dict of \['latents'\]"),
        ({"latents": torch.zeros(1, 1, 4, 8, 8)}, r"returned `latents` as .*8, 8\]\), expected .*16, 16\]"),
        ({"latents": "noise"}, "returned `latents` as str"),
    ],
)
def test_what_a_callback_may_not_return_is_said(make_pipeline, sample, returned, message):
    with pytest.raises(ValueError, match=message):
        sample(make_pipeline(), callback_on_step_end=lambda *args: returned)


def test_the_number_of_steps_is_what_the_scheduler_runs(make_pipeline, sample):
    from diffusers import HeunDiscreteScheduler

    pipeline, seen = make_pipeline(), []
    pipeline.scheduler = HeunDiscreteScheduler()  # calls the network twice a step but for the last
    calls = []
    pipeline.unet.register_forward_pre_hook(lambda *args: calls.append(1))
    sample(pipeline, num_frames=6, callback_on_step_end=lambda pipe, i, t, k: seen.append(pipe.num_timesteps) or {})
    assert len(seen) == len(calls) == seen[0] == 2 * 5  # two windows
