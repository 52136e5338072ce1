"""Caches of diffusers: the two that work change the clip and save calls; the others are refused."""

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import MagCacheConfig, SeaCacheConfig, TextKVCacheConfig

TRANSFORMER = {"transformer_layers": 4, "attention_head_dim": 16, "block_out_channels": (16, 32)}
STEPS = 8


def broadcast(pipeline):
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 900),
        current_timestep_callback=lambda: pipeline.current_timestep,
    )


def faster(pipeline, **changes):
    options = {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (-1, 900),
        "unconditional_batch_skip_range": 3,
        "unconditional_batch_timestep_skip_range": (-1, 900),
        "tensor_format": "BCFHW",
        "current_timestep_callback": lambda: pipeline.current_timestep,
    }
    return FasterCacheConfig(**options | changes)


def count(pipeline):
    """Rows of text or noise that attention layers compute."""
    calls = []

    def inner(module):  # a cache takes the place of the layer's forward, so what is counted is inside of it
        module.to_q.register_forward_pre_hook(lambda module, args: calls.append(args[0].numel() // args[0].shape[-1]))

    for module in pipeline.unet.modules():
        if hasattr(module, "to_q"):
            inner(module)
    return calls


@pytest.mark.parametrize("changes", [{}, TRANSFORMER])
def test_pyramid_attention_broadcast_saves_attention_and_changes_the_clip_a_little(make_pipeline, sample, changes):
    pipeline = make_pipeline(**changes)
    rows = count(pipeline)
    plain, all_rows = sample(pipeline, num_inference_steps=STEPS), sum(rows)
    pipeline.unet.enable_cache(broadcast(pipeline))
    rows.clear()
    cached, fewer = sample(pipeline, num_inference_steps=STEPS), sum(rows)
    assert fewer < 0.75 * all_rows
    assert 1e-4 < (cached - plain).abs().mean() < 0.1
    assert torch.equal(sample(pipeline, num_inference_steps=STEPS), cached)  # nothing is left of the call before
    pipeline.unet.disable_cache()
    assert torch.equal(sample(pipeline, num_inference_steps=STEPS), plain)


@pytest.mark.parametrize("changes", [{}, TRANSFORMER])
def test_faster_cache_saves_half_of_some_guided_steps_and_changes_the_clip(make_pipeline, sample, changes):
    pipeline = make_pipeline("bert", **changes)
    options = {"prompt": "one left", "guidance_scale": 3.0, "num_inference_steps": STEPS}
    rows = count(pipeline)
    plain, all_rows = sample(pipeline, **options), sum(rows)
    pipeline.unet.enable_cache(faster(pipeline))
    rows.clear()
    cached, fewer = sample(pipeline, **options), sum(rows)
    assert fewer < 0.85 * all_rows
    assert 1e-4 < (cached - plain).abs().mean() < 0.2
    assert torch.equal(sample(pipeline, **options), cached)


def test_a_cache_begins_anew_in_every_window(make_pipeline, sample):
    pipeline = make_pipeline()
    pipeline.unet.enable_cache(broadcast(pipeline))
    long = sample(pipeline, num_frames=6, num_inference_steps=STEPS, output_type="latent")
    short = sample(pipeline, num_frames=4, num_inference_steps=STEPS, output_type="latent")
    assert torch.equal(long[:, :, :4], short)


@pytest.mark.parametrize(
    "config",
    [
        FirstBlockCacheConfig(threshold=0.1),
        TaylorSeerCacheConfig(cache_interval=3),
        MagCacheConfig(num_inference_steps=4, mag_ratios=torch.ones(4)),
        SeaCacheConfig(),
        TextKVCacheConfig(),
    ],
    ids=lambda config: type(config).__name__,
)
def test_caches_that_have_no_place_in_a_u_net_are_refused(make_pipeline, config):
    unet = make_pipeline().unet
    with pytest.raises(ValueError, match=rf"`config` is a {type(config).__name__}, expected a PyramidAttention"):
        unet.enable_cache(config)
    assert not unet.is_cache_enabled


def test_a_cache_without_effect_is_refused_and_leaves_nothing(make_pipeline):
    pipeline = make_pipeline("bert")
    nothing = broadcast(pipeline)
    nothing.spatial_attention_block_skip_range = None
    nothing.temporal_attention_block_skip_range = 2
    with pytest.raises(ValueError, match="`config` names no attention layer of this model"):
        pipeline.unet.enable_cache(nothing)
    with pytest.raises(ValueError, match="`is_guidance_distilled` is True, expected False"):
        pipeline.unet.enable_cache(faster(pipeline, is_guidance_distilled=True))
    assert not pipeline.unet.is_cache_enabled


def test_guidance_by_given_frames_calls_twice_a_step_and_takes_no_cache(make_pipeline, sample):
    pipeline = make_pipeline()
    pipeline.unet.enable_cache(broadcast(pipeline))
    video = torch.rand(1, 2, 1, 16, 16)
    for scale in ("history_guidance_scale", "reconstruction_guidance_scale"):
        with pytest.raises(ValueError, match="`unet` has a cache, expected none with guidance by given frames"):
            sample(pipeline, video=video, **{scale: 2.0})
