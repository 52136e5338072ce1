"""The transformer in the middle of `VideoUNet3DConditionModel`: against plain algebra, its names, its bad input."""

import copy
import json
from pathlib import Path

import pytest
import torch

from denoiser_oracle import Oracle
from denoisers import TRANSFORMER
from video_diffusion.model.denoiser import (
    GroupNorm,
    VideoAttention,
    VideoRotaryPosEmbed,
    VideoTransformerBlock,
    VideoUNet3DConditionModel,
    rotate,
)

EMBEDDED = json.loads((Path(__file__).parents[2] / "pipelines/moving-mnist/unet/config.json").read_text())
REFERENCE = {key: value for key, value in EMBEDDED.items() if not key.startswith("_")}
SMALL = REFERENCE | {
    "block_out_channels": (16, 32),
    "attention_head_dim": 16,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def oracle_of(model):
    config = model.config
    return Oracle(
        {name: value.double() for name, value in model.state_dict().items()},
        config.patch_size,
        config.attention_head_dim,
        config.norm_num_groups,
        config.temporal_shift,
        tuple(block.attn1.pattern for block in model.mid_block.transformer_blocks),
    )


# ------------------------------------------------------------------------------------------- plain algebra
@pytest.mark.parametrize(
    ("frames", "height", "width"), [(10, 64, 64), (20, 64, 64), (10, 96, 96), (3, 48, 48), (1, 32, 80)]
)
def test_it_is_the_reference_network_at_other_lengths_and_sizes_too(make_denoiser, frames, height, width):
    model = make_denoiser(**SMALL)
    sample, timestep = noise(2, 3, frames, height, width), torch.tensor([20.0, 900.0])
    text, mask = noise(2, 7, 12, seed=1), torch.arange(7) < torch.tensor([[7], [3]])
    with torch.no_grad():
        out = model(sample, timestep, text, attention_mask=mask).sample
    expected = oracle_of(model)(sample.double(), timestep, text.double(), mask)
    assert expected.std() > 0.1
    close(out.double(), expected, atol=1e-4)


def test_in_float64_it_is_the_reference_to_more_digits(make_denoiser):
    model = make_denoiser(**SMALL).double()
    sample, timestep = noise(1, 3, 4, 32, 32).double(), torch.tensor([500.0])
    with torch.no_grad():
        close(model(sample, timestep).sample, oracle_of(model)(sample, timestep), atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_pattern": ("time",)},
        {"attention_pattern": ("joint", "space"), "cross_attention_every": 1, "transformer_layers": 3},
        {"block_out_channels": (32, 64), "attention_head_dim": 32, "transformer_inner_dim": 20},
    ],
)
def test_other_patterns_and_widths_are_what_they_say(make_denoiser, changes):
    model = make_denoiser(**SMALL | changes)
    sample, timestep, text = noise(1, 3, 3, 32, 32), torch.tensor([500.0]), noise(1, 4, 12, seed=1)
    mask = torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        out = model(sample, timestep, text).sample
        close(model(sample, timestep).sample.double(), oracle_of(model)(sample.double(), timestep), atol=1e-4)
    close(out.double(), oracle_of(model)(sample.double(), timestep, text.double(), mask), atol=1e-4)


@pytest.mark.parametrize("kind", ["causal", "identity", "random"])
def test_masks_on_frames_are_what_they_say(make_denoiser, kind):
    model, frames = make_denoiser(**SMALL), 5
    sample, timestep = noise(2, 3, frames, 32, 32), torch.tensor([300.0, 600.0])
    every = torch.ones(2, frames, frames, dtype=torch.bool)
    eye = torch.eye(frames, dtype=torch.bool)
    mask = {"causal": every.tril(), "identity": eye.expand_as(every), "random": (noise(2, frames, frames) > 0) | eye}
    with torch.no_grad():
        out = model(sample, timestep, frame_attention_mask=mask[kind]).sample
    close(out.double(), oracle_of(model)(sample.double(), timestep, frame_mask=mask[kind]), atol=1e-4)


def test_under_a_causal_mask_a_frame_changes_none_before_it(make_denoiser):
    model, sample = make_denoiser(**SMALL), noise(1, 3, 6, 32, 32)
    changed = sample.clone()
    changed[:, :, 3] += 1
    mask = torch.ones(1, 6, 6, dtype=torch.bool).tril()
    with torch.no_grad():
        before, after = (model(s, 500.0, frame_attention_mask=mask).sample for s in (sample, changed))
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert ((before - after)[:, :, 3:].abs().amax((0, 1, 3, 4)) > 1e-3).all()


def test_a_new_block_is_the_identity():
    block = VideoTransformerBlock(32, 16, "joint", 40, 12)
    tokens, modulation = noise(2, 3, 4, 32), noise(2, 1, 6, 32, seed=1)
    rotary = VideoRotaryPosEmbed(16, (1000.0, 100.0, 100.0))(3, 2, 2, torch.device("cpu"))
    assert torch.equal(block(tokens, modulation, rotary, noise(2, 5, 12)), tokens)


# ------------------------------------------------------------------------------------------- rotary positions
def test_rotary_products_depend_on_the_distance_alone_and_lengths_stay():
    rope = VideoRotaryPosEmbed(32, (1000.0, 100.0, 100.0))
    tables = [t.reshape(6, 5, 4, 32) for t in rope(6, 5, 4, torch.device("cpu"))]
    q, k = noise(32), noise(32, seed=1)

    def product(one, other):
        return rotate(q, *(t[one] for t in tables)) @ rotate(k, *(t[other] for t in tables))

    close(product((1, 2, 0), (3, 0, 1)), product((3, 4, 2), (5, 2, 3)))
    for other in ((4, 0, 1), (3, 1, 1), (3, 0, 2)):
        assert (product((1, 2, 0), (3, 0, 1)) - product((1, 2, 0), other)).abs() > 1e-3
    close(rotate(q, *(t[5, 4, 3] for t in tables)).norm(), q.norm())


def test_rotary_tables_are_made_once_for_a_shape_and_are_no_part_of_the_model(make_denoiser):
    model, sample = make_denoiser(**TRANSFORMER), noise(1, 1, 4, 16, 16)
    rope = model.mid_block.rope
    names = set(model.state_dict())
    with torch.inference_mode():
        model(sample, 500.0)
        first = rope(4, 4, 4, sample.device)
        assert all(a is b for a, b in zip(first, rope(4, 4, 4, sample.device), strict=True))
        assert rope(3, 4, 4, sample.device)[0].shape == (3, 16, 1, 16)
        model(sample, 500.0)
    assert set(model.state_dict()) == names
    model(sample, 500.0).sample.sum().backward()  # tables of inference mode could not be saved for it
    again = copy.deepcopy(model).half().float()
    assert all(torch.equal(a, b) for a, b in zip(first, again.mid_block.rope(4, 4, 4, sample.device), strict=True))
    assert rope(4, 4, 4, torch.device("meta"))[0].device.type == "meta"


def test_the_whole_model_is_captured_without_a_break(make_denoiser):
    model, sample = make_denoiser(**TRANSFORMER, cross_attention_dim=12), noise(1, 1, 4, 16, 16)
    text = noise(1, 3, 12)
    mask = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    with torch.no_grad():
        expected = model(sample, torch.tensor(500.0), text, frame_attention_mask=mask).sample
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        close(compiled(sample, torch.tensor(500.0), text, frame_attention_mask=mask).sample, expected)
    torch._dynamo.reset()


# ------------------------------------------------------------------------------------------- its parts
def test_attention_over_time_is_attention_of_each_place_for_itself():
    attention = VideoAttention(32, 16, "time", norm_eps=1e-5)
    torch.nn.init.normal_(attention.to_out[0].weight, generator=torch.Generator().manual_seed(0))
    tokens, bias = noise(2, 5, 3, 32), noise(1, 2, 5, 5, seed=1)
    whole = attention(tokens, attention_mask=bias.repeat(1, 3, 1, 1))
    for place in range(3):
        close(whole[:, :, place, None], attention(tokens[:, :, place, None], attention_mask=bias))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_group_normalisation_keeps_the_precision_of_its_input(dtype):
    norm, x = GroupNorm(4, 16), (3 + noise(2, 16, 5, 5)).to(dtype)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps)
    for module in (norm, copy.deepcopy(norm).to(dtype)):
        out = module(x)
        assert out.dtype == dtype
        torch.testing.assert_close(
            out.double(), expected, rtol=3 * torch.finfo(dtype).eps, atol=1e-5 if dtype != torch.float64 else 1e-12
        )


def test_levels_without_attention_over_time_hold_none_of_it(make_denoiser):
    model = make_denoiser(temporal_attention=(False, True))
    names = [name for name, _ in model.named_parameters() if "temporal_attention" in name or "position_bias" in name]
    assert names
    assert {name.split(".")[1] for name in names if name.startswith("down_blocks")} == {"1"}
    assert {name.split(".")[1] for name in names if name.startswith("up_blocks")} == {"0"}
    still = make_denoiser(temporal_attention=False)
    sample = noise(1, 1, 4, 16, 16)
    with torch.no_grad():
        alone = [still(sample[:, :, i : i + 1], 500.0).sample for i in range(4)]
        close(still(sample, 500.0).sample, torch.cat(alone, dim=2))


# ------------------------------------------------------------------------------------------- names
def both(*names):
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


def test_the_names_of_the_released_weights_stay():
    """Files on the Hub hold them: a change here breaks every published pipeline."""
    with torch.device("meta"):
        model = VideoUNet3DConditionModel(**REFERENCE)
    resnet = both("norm1", "conv1", "time_emb_proj", "norm2", "conv2")
    attention = {"to_q.weight", "to_k.weight", "to_v.weight", "norm_q.weight", "norm_k.weight"} | both("to_out.0")
    names = both("conv_in", "conv_out", "conv_norm_out", "time_embedding.linear_1", "time_embedding.linear_2")
    names |= both("downsamplers.0", "upsamplers.0", "mid_block.adaln_single", "mid_block.norm_out")
    names |= {"mid_block.pos_embed"}
    names |= {f"down_blocks.0.{i}.resnet.{name}" for i in range(2) for name in resnet}
    names |= {f"up_blocks.1.{i}.resnet.{name}" for i in range(2) for name in resnet | both("conv_shortcut")}
    for i in range(8):
        inside = {"scale_shift_table"} | both("ff.net.0.proj", "ff.net.2") | {f"attn1.{name}" for name in attention}
        if i % 2:
            inside |= both("norm2") | {f"attn2.{name}" for name in attention}
        names |= {f"mid_block.transformer_blocks.{i}.{name}" for name in inside}
    assert set(model.state_dict()) == names
    assert sum(parameter.numel() for parameter in model.parameters()) == 19_867_920
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes["mid_block.pos_embed"] == (1, 384, 8, 8)
    assert shapes["mid_block.adaln_single.weight"] == (6 * 384, 512)
    assert shapes["mid_block.transformer_blocks.1.attn2.to_k.weight"] == (384, 128)
    assert shapes["mid_block.transformer_blocks.0.ff.net.0.proj.weight"] == (2048, 384)


# ------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer_layers": 0}, "`transformer_layers` is 0, expected an integer of at least 1, or None"),
        ({"transformer_layers": 2.5}, r"`transformer_layers` is 2\.5, expected an integer"),
        (
            {"attention_pattern": ("joint", "spatial")},
            r"`attention_pattern` is \('joint', 'spatial'\), expected a sequence of names among \('joint', 'space'",
        ),
        ({"attention_pattern": ()}, r"`attention_pattern` is \(\), expected a sequence of names"),
        ({"attention_pattern": "joint"}, "`attention_pattern` is 'joint', expected a sequence of names"),
        ({"attention_head_dim": 8}, "`attention_head_dim` is 8, expected a multiple of 16 beside"),
        ({"block_out_channels": (16, 40)}, r"`block_out_channels` is \(16, 40\), expected multiples of `attention_h"),
        ({"cross_attention_every": 0}, "`cross_attention_every` is 0, expected an integer of at least 1"),
        ({"rope_theta": (1000.0, 100.0)}, r"`rope_theta` is \(1000\.0, 100\.0\), expected three numbers above 0"),
        ({"rope_theta": (1000.0, 0.0, 1.0)}, r"`rope_theta` is .*, expected three numbers above 0"),
        ({"transformer_inner_dim": 0}, "`transformer_inner_dim` is 0, expected None or an integer of at least 1"),
        ({"sample_size": 18}, "`sample_size` is 18, expected multiples of 4 beside `transformer_layers`"),
        ({"layers_per_block": (1, -1)}, r"`layers_per_block` is \(1, -1\), expected at least 0"),
        (
            {"transformer_layers": None},
            r"`layers_per_block` is \(1, 0\), expected at least 1 \(0 beside `trans",
        ),
        (
            {"transformer_layers": None, "layers_per_block": 1, "transformer_inner_dim": 64},
            "`transformer_inner_dim` is 64, expected None without `transformer_layers`",
        ),
        ({"temporal_attention": (True,)}, r"`temporal_attention` is \(True,\), expected a bool or one for each of 2"),
        (
            {"cross_attention_dim": 12, "cross_attention_every": 5},
            "`cross_attention_dim` is 12, expected None where no block attends to the text",
        ),
    ],
)
def test_a_bad_config_value_is_named(make_denoiser, changes, message):
    with pytest.raises(ValueError, match=message):
        make_denoiser(**TRANSFORMER | changes)
