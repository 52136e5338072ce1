import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet3DConditionModel,
    UniPCMultistepScheduler,
)

from denoisers import randomised, tiny_denoiser, tiny_text
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler

STEPS = 3


def own_unet(**changes):
    return tiny_denoiser(**{"num_frames": 6, "in_channels": 3, "block_out_channels": (16, 16)} | changes)


def stock_unet(**changes):
    torch.manual_seed(0)
    config = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 1,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    }
    return UNet3DConditionModel(**config | changes).eval()


def make_pipeline(unet=None, scheduler=None, **components):
    pipeline = VideoDiffusionPipeline(unet or own_unet(), scheduler or VPContinuousScheduler(), **components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def clips(batch=2, frames=2, channels=1, size=16):
    return torch.rand(batch, frames, channels, size, size, generator=torch.Generator().manual_seed(9))


def run(pipeline, **options):
    defaults = {"num_inference_steps": STEPS, "output_type": "pt"}
    return pipeline(**defaults | options).frames


# -------------------------------------------------------------------------------------------------------- given frames
@pytest.mark.parametrize("indices", [None, [0, 5], [4, 1], [3, 2]])
def test_given_frames_come_back_bit_for_bit_at_their_places(pipeline, indices):
    video = clips()
    made = run(pipeline, video=video, frame_indices=indices)
    places = indices or [0, 1]
    assert torch.equal(made[:, places], video)
    others = [i for i in range(6) if i not in places]
    assert (made[:, others] - video[:, :1]).abs().amax(dim=(2, 3, 4)).min() > 0.01


def test_given_uint8_frames_come_back_as_the_same_bytes(pipeline):
    video = (clips() * 255).byte()
    made = pipeline(video=video.permute(0, 1, 3, 4, 2).numpy(), num_inference_steps=1).frames
    for clip, given in zip(made, video, strict=True):
        assert all(np.array_equal(np.asarray(clip[i]), given[i, 0].numpy()) for i in range(2))


def test_given_frames_stay_untouched_even_if_a_callback_overwrites_the_latents(pipeline):
    made = run(pipeline, video=clips(), callback_on_step_end=lambda p, i, t, k: {"latents": k["latents"] + 100})
    assert torch.equal(made[:, :2], clips())


def test_given_frames_change_the_frames_that_are_made(pipeline):
    one = run(pipeline, video=clips()[:1], generator=seeds(0))
    other = run(pipeline, video=1 - clips()[:1], generator=seeds(0))
    assert (one[:, 2:] - other[:, 2:]).abs().max() > 0.01


def test_the_model_reads_noise_given_frames_and_mask_on_the_channel_axis():
    pipeline, seen = make_pipeline(), []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    run(pipeline, video=clips(), frame_indices=[5, 2])
    assert len(seen) == STEPS
    for z_t, given, mask in (x.unbind(1) for x in seen):
        assert torch.equal(z_t[:, [5, 2]], clips()[:, :, 0] * 2 - 1)
        assert torch.equal(given[:, [5, 2]], clips()[:, :, 0] * 2 - 1)
        assert not given[:, [0, 1, 3, 4]].any()
        assert torch.equal(mask, torch.tensor([0.0, 0, 1, 0, 0, 1])[None, :, None, None].expand_as(mask))


def test_under_a_scheduler_with_noise_levels_the_noise_is_scaled_and_given_frames_are_not():
    pipeline, seen = make_pipeline(scheduler=EulerDiscreteScheduler()), []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    noise = torch.randn(1, 1, 6, 16, 16, generator=torch.Generator().manual_seed(3))
    made = run(pipeline, video=clips()[:1], latents=noise)
    sigma = pipeline.scheduler.sigmas[0]  # what the scheduler starts at; its model sees z/sqrt(σ² + 1)
    scale = pipeline.scheduler.init_noise_sigma / (sigma**2 + 1) ** 0.5
    torch.testing.assert_close(seen[0][:, :1, 2:], noise[:, :, 2:] * scale)
    assert torch.equal(seen[0][:, 0, :2], clips()[:1, :, 0] * 2 - 1)
    assert torch.equal(made[:, :2], clips()[:1])


def test_an_oracle_denoiser_recovers_its_clip_and_is_called_at_the_schedulers_times():
    """ε = (z_t − α_t x)/σ_t for one known x: every sampler must land on x."""
    scheduler, pipeline = VPContinuousScheduler(), make_pipeline()
    truth, times = clips(1, 6)[:, :, 0][:, None] * 2 - 1, []

    def oracle(x, t, encoder_hidden_states, return_dict):
        times.append(t[0].item())
        noisy = scheduler.add_noise(truth, torch.zeros_like(truth), t)
        unit = scheduler.add_noise(torch.zeros_like(truth), torch.ones_like(truth), t)
        return ((x[:, :1] - noisy) / unit,)

    pipeline.unet.forward = oracle
    made = run(pipeline, num_inference_steps=10)
    assert times == pytest.approx([1000 - 100 * i for i in range(10)])
    torch.testing.assert_close(made[:, :, 0], (truth[:, 0] + 1) / 2, atol=1e-4, rtol=0)
    for solver in (DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler):
        pipeline.scheduler = scheduler.as_diffusers(solver)
        torch.testing.assert_close(run(pipeline)[:, :, 0], (truth[:, 0] + 1) / 2, atol=5e-3, rtol=0)


# ---------------------------------------------------------------------------------------------------------- randomness
@pytest.mark.parametrize("solver", [None, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("unet", [own_unet, stock_unet])
def test_a_clip_with_its_own_generator_does_not_depend_on_its_batch(unet, solver):
    scheduler = VPContinuousScheduler(gamma=1.0, prediction_type="v_prediction")
    pipeline = make_pipeline(unet(), scheduler.as_diffusers(solver) if solver else scheduler)
    video = clips(3)
    whole = run(pipeline, video=video, num_frames=4, generator=seeds(0, 1, 2))
    for b in range(3):
        alone = run(pipeline, video=video[b : b + 1], num_frames=4, generator=seeds(b))
        torch.testing.assert_close(alone[0], whole[b], atol=1e-4, rtol=0)
    assert (whole[0, 2:] - whole[1, 2:]).abs().max() > 0.01


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_clip(pipeline):
    first, again, other = (run(pipeline, generator=torch.Generator().manual_seed(s)) for s in (4, 4, 5))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.01


def test_latents_take_the_place_of_the_drawn_noise():
    pipeline = make_pipeline(scheduler=VPContinuousScheduler().as_diffusers(DDIMScheduler))
    noise = torch.randn(1, 1, 6, 16, 16, generator=torch.Generator().manual_seed(3))
    assert torch.equal(run(pipeline, latents=noise), run(pipeline, generator=torch.Generator().manual_seed(3)))


def test_several_videos_of_each_given_clip_lie_side_by_side(pipeline):
    video = clips()
    made = run(pipeline, video=video, num_videos_per_prompt=2, generator=seeds(0, 1, 2, 3))
    repeated = run(pipeline, video=video[[0, 0, 1, 1]], generator=seeds(0, 1, 2, 3))
    assert torch.equal(made, repeated)


# -------------------------------------------------------------------------------------------------- outputs, callbacks
def test_output_types_agree_with_each_other(pipeline):
    made = {
        t: run(pipeline, video=clips(), generator=seeds(0, 1), output_type=t) for t in ("pt", "np", "pil", "latent")
    }
    assert made["pt"].shape == (2, 6, 1, 16, 16)
    assert np.array_equal(made["np"], made["pt"].permute(0, 1, 3, 4, 2).numpy())
    pixels = np.stack([[np.asarray(frame) for frame in clip] for clip in made["pil"]])
    assert np.array_equal(pixels, (made["np"][..., 0] * 255).round().astype(np.uint8))
    assert made["pil"][0][0].mode == "L"
    latents = made["latent"].permute(0, 2, 1, 3, 4)
    torch.testing.assert_close((latents / 2 + 0.5).clamp(0, 1), made["pt"], atol=1e-6, rtol=0)


def test_a_tuple_comes_back_where_no_output_object_is_asked_for(pipeline):
    made = pipeline(num_inference_steps=1, output_type="np", generator=seeds(0), return_dict=False)
    assert isinstance(made, tuple)
    assert np.array_equal(made[0], run(pipeline, num_inference_steps=1, output_type="np", generator=seeds(0)))


def test_a_callback_sees_every_step_and_can_change_the_latents(pipeline):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, timestep.item(), pipe.num_timesteps, tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"]) if step == STEPS - 1 else tensors["latents"]}

    made = run(pipeline, callback_on_step_end=callback)
    assert [entry[0] for entry in seen] == list(range(STEPS))
    assert [entry[1] for entry in seen] == pytest.approx([1000 * (1 - i / STEPS) for i in range(STEPS)])
    assert all(entry[2:] == (STEPS, (1, 1, 6, 16, 16)) for entry in seen)
    assert torch.equal(made, torch.full_like(made, 0.5))


def test_an_interrupt_skips_the_steps_that_are_left(pipeline):
    calls = []

    def callback(pipe, step, timestep, tensors):
        calls.append(step)
        pipe._interrupt = step == 0
        return {}

    run(pipeline, callback_on_step_end=callback)
    assert calls == [0]


# -------------------------------------------------------------------------------------------- stock parts, types, text
def test_a_stock_unet_runs_with_given_frames_under_stock_and_own_schedulers():
    for scheduler in (VPContinuousScheduler(), DDPMScheduler(), DDIMScheduler(), UniPCMultistepScheduler()):
        made = run(make_pipeline(stock_unet(), scheduler), video=clips(), num_frames=5)
        assert torch.equal(made[:, :2], clips())
        assert made[:, 2:].isfinite().all()
        assert made[:, 2:].std() > 0


def test_our_denoiser_runs_in_the_text_to_video_pipeline_of_diffusers():
    from diffusers import TextToVideoSDPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vae = AutoencoderKL(
        block_out_channels=(4, 4),
        latent_channels=4,
        norm_num_groups=2,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    )
    unet = own_unet(in_channels=4, out_channels=4, cross_attention_dim=8)
    stock = TextToVideoSDPipeline(
        vae, CLIPTextModel(CLIPTextConfig(vocab_size=9, **size)), None, unet, DDIMScheduler()
    )
    stock.set_progress_bar_config(disable=True)
    text = torch.randn(1, 3, 8)
    options = {"prompt_embeds": text, "num_frames": 4, "height": 32, "width": 32, "num_inference_steps": 2}
    options |= {"guidance_scale": 1.0, "output_type": "latent"}
    theirs = stock(**options, generator=torch.Generator().manual_seed(0)).frames
    ours = make_pipeline(unet, DDIMScheduler(), vae=vae)(**options, generator=torch.Generator().manual_seed(0)).frames
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_sample_in_float32_and_stay_close(dtype):
    scheduler = VPContinuousScheduler(prediction_type="v_prediction")  # ε would magnify rounding by 1/α at t = 1
    full, half = (
        run(make_pipeline(own_unet().to(d), scheduler), video=clips(), generator=seeds(0, 1))
        for d in (torch.float32, dtype)
    )
    assert half.dtype == torch.float32
    assert torch.equal(half[:, :2], clips())
    assert (half - full).abs().mean() < 0.01


def tiny_vae():
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(
        block_out_channels=(4, 4), latent_channels=2, norm_num_groups=2, scaling_factor=0.5, **blocks
    ).eval()


def test_a_vae_encodes_given_frames_and_decodes_frame_by_frame():
    vae, video, seen = tiny_vae(), clips(1, 2, 3, 32), []
    pipeline = make_pipeline(own_unet(in_channels=5, out_channels=2), vae=vae)
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    latents = run(pipeline, video=video, generator=seeds(0), output_type="latent")
    made = run(pipeline, video=video, generator=seeds(0))
    with torch.no_grad():
        encoded = vae.encode(video[0] * 2 - 1).latent_dist.mode() * 0.5
        decoded = vae.decode(latents[0].transpose(0, 1) / 0.5).sample / 2 + 0.5
    assert latents.shape == (1, 2, 6, 16, 16)
    torch.testing.assert_close(seen[0][0, 2:4, :2].transpose(0, 1), encoded, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made[0, 2:], decoded[2:].clamp(0, 1), atol=1e-5, rtol=1e-4)
    assert torch.equal(made[:, :2], video)


@pytest.fixture(scope="module")
def text_pipeline():
    text = tiny_text(["one", "two", "left", "right"])
    randomised(text["text_encoder"])
    return make_pipeline(own_unet(cross_attention_dim=8), **text)


def test_text_changes_the_clip_and_guidance_extrapolates_between_two_prompts(text_pipeline):
    unclipped = VPContinuousScheduler(prediction_type="sample", clip_sample=False)
    pipeline = make_pipeline(
        text_pipeline.unet, unclipped, text_encoder=text_pipeline.text_encoder, tokenizer=text_pipeline.tokenizer
    )
    options = {"num_inference_steps": 1, "output_type": "latent"}
    free = run(pipeline, prompt="two left", generator=seeds(0), **options)
    bound = run(pipeline, prompt="one right", generator=seeds(0), **options)
    more = {"prompt": "one right", "negative_prompt": "two left", "guidance_scale": 3.0}
    guided = run(pipeline, generator=seeds(0), **more, **options)
    assert (free - bound).abs().max() > 1e-3
    torch.testing.assert_close(guided, free + 3 * (bound - free), atol=1e-4, rtol=1e-3)


def test_prompt_embeddings_and_lists_of_prompts_equal_single_prompts(text_pipeline):
    both = run(text_pipeline, prompt=["one", "two left"], generator=seeds(0, 1))
    alone = run(text_pipeline, prompt="two left", generator=seeds(1))
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)
    embeds = text_pipeline.encode_prompt(["two left"])[0].detach()
    torch.testing.assert_close(run(text_pipeline, prompt_embeds=embeds, generator=seeds(1)), alone, atol=1e-5, rtol=0)
