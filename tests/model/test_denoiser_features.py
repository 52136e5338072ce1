"""What diffusers' users expect of a model, each against the plain forward pass: dtypes, memory, LoRA, files."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from denoisers import MIDDLES, TRANSFORMER
from video_diffusion.model.denoiser import VideoAttention, VideoUNet3DConditionModel

FRAMES = 4


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clip(batch=2, seed=0):
    return noise(batch, 1, FRAMES, 16, 16, seed=seed)


@torch.no_grad()
def run(model, sample=None, **arguments):
    return model(clip() if sample is None else sample, torch.tensor([200.0, 700.0]), **arguments).sample


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def relative(actual, expected):
    return ((actual.float() - expected).square().mean() / expected.square().mean()).sqrt().item()


def gradients(model, **arguments):
    model.zero_grad()
    model(clip(), torch.tensor([200.0, 700.0]), **arguments).sample.square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@MIDDLES
def test_gradient_checkpointing_gives_equal_gradients_and_recomputes(make_denoiser, middle):
    model = make_denoiser(**middle, cross_attention_dim=12).train()
    arguments = {"encoder_hidden_states": noise(2, 3, 12), "frame_attention_mask": torch.ones(2, 4, 4).tril().bool()}
    plain, calls = gradients(model, **arguments), []
    block = model.mid_block.transformer_blocks[0] if middle else model.mid_block
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    model.enable_gradient_checkpointing()
    again = gradients(model, **arguments)
    assert len(calls) == 2  # once forward, once again backward
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        close(again[name], gradient, atol=1e-6)


@MIDDLES
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_stays_close_to_float32(make_denoiser, middle, dtype, limit):
    model = make_denoiser(**middle)
    expected = run(model)
    mask = torch.ones(2, FRAMES, FRAMES, dtype=torch.bool)
    out = run(model.to(dtype), clip().to(dtype), frame_attention_mask=mask)
    assert out.dtype == dtype
    assert relative(out, expected) < limit


@MIDDLES
def test_autocast_to_bfloat16_stays_close_to_float32(make_denoiser, middle):
    model = make_denoiser(**middle, cross_attention_dim=12)
    text = noise(2, 3, 12)
    expected = run(model, encoder_hidden_states=text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(model, encoder_hidden_states=text)
    assert relative(out, expected) < 0.05


@MIDDLES
def test_memory_format_changes_nothing(make_denoiser, middle):
    model = make_denoiser(**middle)
    expected = run(model)
    assert model.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    close(run(model, clip().to(memory_format=torch.channels_last_3d)), expected)
    close(run(model.to(memory_format=torch.contiguous_format)), expected)


@MIDDLES
def test_a_lora_adapter_adds_exactly_its_product_and_scales(make_denoiser, middle):
    peft = pytest.importorskip("peft")
    model = make_denoiser(**middle)
    expected = run(model)
    merged = copy.deepcopy(model)
    model.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"]))
    close(run(model), expected)  # B starts at zero
    for index, (name, module) in enumerate(model.named_modules()):
        if hasattr(module, "lora_A"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            b.data = noise(*b.shape, seed=index) * 0.3
            merged.get_submodule(name).weight.data += 0.5 * 2 * b.data @ a.data  # scale · alpha / r
    half = run(model, cross_attention_kwargs={"scale": 0.5})
    close(half, run(merged))
    assert relative(half, expected) > 0.01
    close(run(model, cross_attention_kwargs={"scale": 0.0}), expected)
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


@MIDDLES
def test_a_lora_adapter_survives_its_file(make_denoiser, middle, tmp_path):
    peft = pytest.importorskip("peft")
    model = make_denoiser(**middle)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    model.save_lora_adapter(tmp_path)
    other = make_denoiser(**middle)
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert torch.equal(run(other), run(model))
    assert relative(run(other), run(make_denoiser(**middle))) > 1e-3


@MIDDLES
def test_fused_projections_give_the_same_output(make_denoiser, middle):
    model = make_denoiser(**middle, cross_attention_dim=12)
    text = noise(2, 3, 12)
    expected = run(model, encoder_hidden_states=text)
    model.fuse_qkv_projections()
    layers = [module for module in model.modules() if isinstance(module, VideoAttention)]
    assert {layer.is_cross_attention for layer in layers} == {True, False}
    for layer in layers:
        assert layer.fused_projections
        for name in ("to_k", "to_v") if layer.is_cross_attention else ("to_q", "to_k", "to_v"):
            getattr(layer, name).weight.data.zero_()  # no longer read
    close(run(model, encoder_hidden_states=text), expected)


@MIDDLES
def test_the_native_attention_backend_gives_the_same_output(make_denoiser, middle):
    model = make_denoiser(**middle)
    expected = run(model)
    model.set_attention_backend("native")
    layers = [module for module in model.modules() if isinstance(module, VideoAttention)]
    assert layers
    assert all(layer.processor._attention_backend is not None for layer in layers)
    close(run(model), expected)
    model.reset_attention_backend()


@MIDDLES
def test_layerwise_casting_computes_with_the_weights_as_stored(make_denoiser, middle):
    model = make_denoiser(**middle)
    rounded = copy.deepcopy(model)
    skipped = ("norm", "conv_in", "conv_out", "time_embedding", "position_bias", "pos_embed", "adaln_single")
    for name, parameter in rounded.named_parameters():
        if not any(part in name for part in (*skipped, "scale_shift_table")):  # the table belongs to no layer
            parameter.data = parameter.data.to(torch.float8_e4m3fn).float()
    expected = run(rounded)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert model.down_blocks[0][0].resnet.conv1.weight.dtype == torch.float8_e4m3fn
    if middle:
        assert model.mid_block.transformer_blocks[1].ff.net[2].weight.dtype == torch.float8_e4m3fn
    assert model.conv_in.weight.dtype == torch.float32
    close(run(model), expected)


@pytest.mark.parametrize("middle", [{"block_out_channels": (16,)}, TRANSFORMER], ids=["block", "transformer"])
def test_repeated_blocks_compile_as_one_graph_each(make_denoiser, middle):
    """Captured without a break and run as captured; generating code from the graph is torch's own affair."""
    model = make_denoiser(**middle, cross_attention_dim=12)
    text = {"encoder_hidden_states": noise(2, 3, 12)}
    expected = run(model, **text)
    torch._dynamo.reset()
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    blocks = [module for module in model.modules() if type(module).__name__ in model._repeated_blocks]
    assert len(blocks) == (6 if middle is TRANSFORMER else 3)
    assert all(block._compiled_call_impl is not None for block in blocks)
    close(run(model, **text), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    torch._dynamo.reset()


@MIDDLES
def test_a_saved_model_loads_bit_for_bit(make_denoiser, middle, tmp_path):
    model = make_denoiser(**middle, cross_attention_dim=12, num_class_embeds=2)
    model.save_pretrained(tmp_path)
    loaded = VideoUNet3DConditionModel.from_pretrained(tmp_path)
    configs = [json.loads(m.to_json_string()) for m in (loaded, model)]
    assert configs[0].pop("_name_or_path") == str(tmp_path)
    assert configs[0] == configs[1]
    arguments = {"encoder_hidden_states": noise(2, 3, 12), "class_labels": torch.tensor([0, 1])}
    assert torch.equal(run(loaded, **arguments), run(model, **arguments))
    stored = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    half = VideoUNet3DConditionModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_a_truncated_file_does_not_load(make_denoiser, tmp_path):
    make_denoiser().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(OSError, match=r"Unable to load weights .*diffusion_pytorch_model.safetensors"):
        VideoUNet3DConditionModel.from_pretrained(tmp_path)


def test_a_tuple_holds_what_the_output_object_holds(make_denoiser):
    model = make_denoiser()
    with torch.no_grad():
        (plain,) = model(clip(), torch.tensor([200.0, 700.0]), return_dict=False)
    assert torch.equal(plain, run(model))
