"""Weights with the reference trial's names become a pipeline; those of another layout are refused."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from video_diffusion import VideoDiffusionPipeline

ROOT = Path(__file__).parents[2]
BASE = ROOT / "pipelines" / "moving-mnist"
WIDTH, INNER, TEXT, TEMB = 32, 85, 128, 128  # of the small network whose names are the trial's


def names_of_the_trial():
    """The trial's names and shapes, for widths of 32, written out anew."""
    shapes = {
        "time_embedding.0": (TEMB, WIDTH),
        "time_embedding.2": (TEMB, TEMB),
        "conv_in": (WIDTH, 3 * 16, 3, 3),
        "downsample": (WIDTH, 4 * WIDTH, 1, 1),
        "upsample": (4 * WIDTH, WIDTH, 1, 1),
        "adaln": (6 * WIDTH, TEMB),
        "conv_out": (16, 2 * WIDTH, 3, 3),
        "norm_out": (WIDTH,),
        "conv_norm_out": (2 * WIDTH,),
    }
    for side, width in (("down", WIDTH), ("up", 2 * WIDTH)):
        for i in range(2):
            block = f"{side}.{i}"
            shapes |= {
                f"{block}.norm1": (width,),
                f"{block}.conv1": (WIDTH, width, 3, 3),
                f"{block}.time_emb_proj": (2 * WIDTH, TEMB),
                f"{block}.norm2": (WIDTH,),
                f"{block}.conv2": (WIDTH, WIDTH, 3, 3),
            }
            if side == "up":
                shapes[f"{block}.conv_shortcut"] = (WIDTH, width, 1, 1)
    alone = {"pos_embed": (1, WIDTH, 8, 8)}
    for i in range(2):
        block = f"blocks.{i}"
        shapes |= {f"{block}.ff.proj": (2 * INNER, WIDTH), f"{block}.ff.out": (WIDTH, INNER)}
        alone[f"{block}.scale_shift_table"] = (6, WIDTH)
        for attention, source in (("attn1", WIDTH), ("attn2", TEXT))[: 1 + i]:
            shapes[f"{block}.{attention}.to_out.0"] = (WIDTH, WIDTH)
            alone |= {f"{block}.{attention}.to_q.weight": (WIDTH, WIDTH)}
            alone |= {f"{block}.{attention}.to_{letter}.weight": (WIDTH, source) for letter in "kv"}
            alone |= {f"{block}.{attention}.norm_{letter}.weight": (16,) for letter in "qk"}
    shapes["blocks.1.norm2"] = (WIDTH,)
    for name, shape in shapes.items():
        alone |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return alone


@pytest.fixture
def script(monkeypatch):
    """The script, for the small network."""
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    import convert_reference

    small = {"block_out_channels": (WIDTH, WIDTH), "attention_head_dim": 16, "transformer_layers": 2}
    monkeypatch.setattr(convert_reference, "NETWORK", convert_reference.NETWORK | small)
    return convert_reference


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    net = {f"net.{n}": torch.randn(shape, generator=generator).half() for n, shape in names_of_the_trial().items()}
    bert = BertModel(BertConfig.from_pretrained(BASE / "text_encoder")).state_dict()
    return net | {f"bert.{name}": value.half() for name, value in bert.items()}


def test_every_weight_arrives_and_a_plain_load_is_in_float32(script, weights, tmp_path):
    save_file(weights, tmp_path / "reference.safetensors")
    words = [str(tmp_path / "reference.safetensors"), str(tmp_path / "out"), "--num_frames", "15"]
    script.main(words)
    file = tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors"
    with safe_open(file, "pt") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"F16"}  # noqa: SIM118
    pipe = VideoDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float32
    assert pipe.unet.config.num_frames == 15
    config = pipe.scheduler.config
    assert (config.schedule, config.shift, config.prediction_type) == ("cosine", 2.0, "sample")
    found = pipe.unet.state_dict()
    assert len(found) == len(names_of_the_trial())
    for here, there in {
        "down_blocks.0.1.resnet.conv2.weight": "down.1.conv2.weight",
        "up_blocks.1.0.resnet.conv_shortcut.bias": "up.0.conv_shortcut.bias",
        "time_embedding.linear_2.weight": "time_embedding.2.weight",
        "downsamplers.0.weight": "downsample.weight",
        "mid_block.pos_embed": "pos_embed",
        "mid_block.adaln_single.bias": "adaln.bias",
        "mid_block.norm_out.weight": "norm_out.weight",
        "mid_block.transformer_blocks.1.attn2.to_k.weight": "blocks.1.attn2.to_k.weight",
        "mid_block.transformer_blocks.0.ff.net.0.proj.weight": "blocks.0.ff.proj.weight",
        "mid_block.transformer_blocks.1.ff.net.2.bias": "blocks.1.ff.out.bias",
        "mid_block.transformer_blocks.1.scale_shift_table": "blocks.1.scale_shift_table",
    }.items():
        assert torch.equal(found[here], weights[f"net.{there}"].float()), here
    text = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    assert all(torch.equal(value, weights[f"bert.{name}"].float()) for name, value in text.items())
    script.main([*words, "--link"])  # in the place of the older one
    assert (tmp_path / "out" / "unet" / "video_diffusion.py").is_symlink()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("net.adaln.bias", None, r"has nothing for the weight 'mid_block.adaln_single.bias', expected shape \(192,\)"),
        ("net.blocks.2.ff.out.bias", torch.ones(32), r"has shape \(32,\) for the weight '.*', expected nothing"),
        ("net.conv_in.bias", torch.ones(8), r"has shape \(8,\) for the weight 'conv_in.bias', expected shape \(32,\)"),
        ("bert.pooler.dense.bias", None, r"has nothing for the weight 'pooler.dense.bias', expected shape"),
        ("ema.conv_in.bias", torch.ones(32), r"has the weight 'ema.conv_in.bias', expected names that begin with"),
    ],
)
def test_weights_of_another_layout_are_refused_by_name(script, weights, tmp_path, name, value, message):
    changed = {key: tensor for key, tensor in weights.items() if key != name}
    save_file(changed if value is None else changed | {name: value}, tmp_path / "reference.safetensors")
    with pytest.raises(ValueError, match=message):
        script.main([str(tmp_path / "reference.safetensors"), str(tmp_path / "out"), "--num_frames", "20"])
    assert not (tmp_path / "out").exists()
