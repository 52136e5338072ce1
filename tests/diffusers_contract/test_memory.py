"""Ways to save memory, dtypes, quantisation: each does what diffusers' pages say, or says why not."""

import pytest
import torch
from diffusers import AutoencoderKL, PipelineQuantizationConfig, UNet3DConditionModel

from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler

pytest.importorskip("accelerate")
CPU = torch.device("cpu")


def offload_models(pipeline):
    pipeline.enable_model_cpu_offload(device="cpu")


def offload_blocks(pipeline):
    pipeline.enable_group_offload(onload_device=CPU, offload_type="block_level", num_blocks_per_group=1)


def offload_leaves(pipeline):
    pipeline.enable_group_offload(onload_device=CPU, offload_type="leaf_level")


@pytest.mark.parametrize("offload", [offload_models, offload_blocks, offload_leaves])
def test_offloading_makes_the_same_bits_call_after_call(make_pipeline, sample, offload):
    pipeline = make_pipeline("bert")
    video = torch.rand(1, 2, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    options = {"prompt": "one", "guidance_scale": 2.0, "video": video, "num_frames": 6}
    plain = sample(pipeline, **options)
    offload(pipeline)
    assert torch.equal(sample(pipeline, **options), plain)
    assert torch.equal(sample(pipeline, **options), plain)


def test_sequential_offloading_says_that_it_needs_an_accelerator(make_pipeline):
    if torch.cuda.is_available():
        pytest.skip("there is an accelerator")
    with pytest.raises(RuntimeError, match="`enable_sequential_cpu_offload` requires accelerator"):
        make_pipeline().enable_sequential_cpu_offload()


def test_layerwise_casting_stores_small_computes_large_and_stays_close(make_pipeline, sample):
    pipeline = make_pipeline()
    plain = sample(pipeline)
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stored = [parameter.dtype for parameter in pipeline.unet.parameters()]
    assert stored.count(torch.float8_e4m3fn) > len(stored) / 3
    cast = sample(pipeline)
    assert cast.dtype == torch.float32
    assert 0 < (cast - plain).abs().mean() < 0.03


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_pipeline_moved_to_a_dtype_samples_in_it(make_pipeline, sample, dtype):
    pipeline = make_pipeline("bert")
    plain, seen = sample(pipeline, prompt="one"), []
    assert pipeline.to(dtype) is pipeline
    assert pipeline.dtype == dtype
    pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append({args[0].dtype, kwargs["encoder_hidden_states"].dtype}),
        with_kwargs=True,
    )
    moved = sample(pipeline, prompt="one")
    assert seen == [{dtype}] * 3
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, plain, atol=0.1 if dtype == torch.bfloat16 else 1e-4, rtol=0)


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_neither_nan_nor_black_frames(make_pipeline, sample, dtype, stock):
    unet = None
    if stock:
        torch.manual_seed(0)
        blocks = {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "block_out_channels": (8, 8)}
        blocks |= {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "layers_per_block": 1}
        unet = UNet3DConditionModel(16, 3, 1, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4, **blocks)
    pipeline = make_pipeline(unet=unet)
    torch.nn.Module.to(pipeline.unet, dtype)
    for seed in range(2):
        for steps in (1, 2, 5):
            generator = torch.Generator().manual_seed(seed)
            clip = sample(pipeline, num_frames=4, num_inference_steps=steps, generator=generator)
            assert clip.isfinite().all()
            assert (clip.amax(dim=(2, 3, 4)) > 0).all(), (seed, steps)


def break_weights(unet):
    next(unet.parameters()).data.flatten()[0] = float("nan")


def overflow(unet):
    unet.conv_out.weight.data *= 1e7
    torch.nn.Module.to(unet, torch.float16)


@pytest.mark.parametrize(("damage", "dtype"), [(break_weights, "float32"), (overflow, "float16")])
@pytest.mark.parametrize("output_type", ["pt", "pil", "latent"])
def test_broken_weights_and_an_overflow_are_said_and_not_shown_as_a_video(
    make_pipeline, sample, damage, dtype, output_type
):
    pipeline = make_pipeline()
    damage(pipeline.unet)
    with pytest.raises(ValueError, match=rf"`unet` \(torch.{dtype}\) gave NaN or infinite values, expected finite"):
        sample(pipeline, output_type=output_type)


@pytest.mark.parametrize(
    ("part", "options"), [("text_encoder", {"prompt": "one"}), ("vae", {}), ("vae", {"video": 1})]
)
def test_a_text_encoder_and_a_vae_that_give_nan_are_named(make_pipeline, sample, part, options):
    torch.manual_seed(0)
    small = {"block_out_channels": (8,), "norm_num_groups": 4}
    vae = AutoencoderKL(1, 1, latent_channels=1, **small) if part == "vae" else None
    pipeline = make_pipeline("bert" if part == "text_encoder" else None)
    pipeline.register_modules(vae=vae)
    side = "encoder" if "video" in options else "decoder"
    broken = getattr(vae, side).conv_out if vae is not None else pipeline.text_encoder.embeddings.LayerNorm
    broken.weight.data.flatten()[0] = float("nan")
    if "video" in options:
        options = {"video": torch.rand(1, 1, 1, 16, 16)}
    with pytest.raises(ValueError, match=rf"`{part}` \(torch.float32\) gave NaN or infinite values, expected finite"):
        sample(pipeline, **options)


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), None), (float("inf"), None), (1e6, torch.float16)])
def test_weights_that_are_not_finite_in_their_dtype_are_said_when_they_are_loaded(
    make_pipeline, tmp_path, value, dtype
):
    pipeline = make_pipeline("bert")
    for name, weights in (
        ("text_encoder", pipeline.text_encoder.pooler.dense.bias),
        ("unet", pipeline.unet.conv_out.bias),
    ):
        kept = weights.data.clone()
        weights.data[0] = value
        pipeline.save_pretrained(tmp_path / name)
        weights.data[:] = kept
        with pytest.raises(ValueError, match=rf"`{name}` has NaN or infinite values in .*bias \(torch.float"):
            VideoDiffusionPipeline.from_pretrained(tmp_path / name, **({} if dtype is None else {"dtype": dtype}))


def test_a_clip_of_one_colour_is_said(make_pipeline, sample, caplog):
    """As after an overflow that is finite and clipped: all values lie beyond the range, so every frame is black."""
    pipeline = make_pipeline()
    assert "one value" not in (sample(pipeline), caplog.text)[1]
    pipeline.scheduler = VPContinuousScheduler(prediction_type="sample")
    pipeline.unet.conv_out.bias.data -= 1e4
    clip = sample(pipeline, num_videos_per_prompt=2)
    assert clip.amax() == 0
    assert "Clips [0, 1] have one value in all pixels of the frames 0 to 3: the weights may be broken" in caplog.text


# ------------------------------------------------------------------------------------------------------------- loading
def test_a_quantisation_config_reaches_the_component_that_it_names(make_pipeline, tmp_path, monkeypatch):
    make_pipeline("bert").save_pretrained(tmp_path)
    from diffusers import GGUFQuantizationConfig  # needs no library to be made

    load, seen = VideoUNet3DConditionModel.from_pretrained, []

    def spy(cls, *args, **kwargs):
        seen.append(kwargs.pop("quantization_config"))
        return load(*args, **kwargs)

    monkeypatch.setattr(VideoUNet3DConditionModel, "from_pretrained", classmethod(spy))
    config = PipelineQuantizationConfig(quant_mapping={"unet": GGUFQuantizationConfig()})
    loaded = VideoDiffusionPipeline.from_pretrained(tmp_path, quantization_config=config)
    assert [type(item) for item in seen] == [GGUFQuantizationConfig]
    assert loaded.quantization_config is config


def test_a_library_that_is_not_here_is_named(make_pipeline, tmp_path):
    from diffusers import BitsAndBytesConfig

    make_pipeline().save_pretrained(tmp_path)
    config = PipelineQuantizationConfig(quant_mapping={"unet": BitsAndBytesConfig(load_in_8bit=True)})
    with pytest.raises((ImportError, ValueError), match=r"bitsandbytes|BitsAndBytesConfig: No GPU found"):
        VideoDiffusionPipeline.from_pretrained(tmp_path, quantization_config=config)


def test_weights_quantised_by_torchao_sample_and_come_back_from_their_folder(make_pipeline, sample, tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    from diffusers import TorchAoConfig

    pipeline = make_pipeline()
    plain = sample(pipeline)
    pipeline.save_pretrained(tmp_path / "full")
    mapping = {"unet": TorchAoConfig(quantization.Int8WeightOnlyConfig())}
    config = PipelineQuantizationConfig(quant_mapping=mapping)
    loaded = VideoDiffusionPipeline.from_pretrained(tmp_path / "full", quantization_config=config)
    made = sample(loaded)
    assert 0 < (made - plain).abs().mean() < 0.02
    loaded.save_pretrained(tmp_path / "small")
    assert torch.equal(sample(VideoDiffusionPipeline.from_pretrained(tmp_path / "small")), made)


def test_a_variant_that_is_not_there_is_refused(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="variant=fp16"):
        VideoDiffusionPipeline.from_pretrained(tmp_path, variant="fp16")


def test_a_stock_scheduler_with_other_sigmas_runs_to_its_end(make_pipeline, sample):
    """With the spacing of Karras, several steps share an integer timestep: the first step has to be said."""
    from diffusers import DPMSolverMultistepScheduler

    pipeline = make_pipeline()
    own = VPContinuousScheduler(prediction_type="v_prediction")
    pipeline.scheduler = own.as_diffusers(DPMSolverMultistepScheduler, use_karras_sigmas=True)
    seen = []
    sample(pipeline, num_inference_steps=20, callback_on_step_end=lambda p, i, t, k: seen.append(i) or {})
    assert seen == list(range(20))
