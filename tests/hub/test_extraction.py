"""The adapter that is extracted from a trained pipeline: as near as its rank allows, saved, loaded, refused."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from denoisers import TRANSFORMER, tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.cli import main
from video_diffusion.hub.adapters import ADAPTER, build_adapter_card, read_settings
from video_diffusion.hub.extraction import extract_adapter
from video_diffusion.hub.finding import embedded_adapters
from video_diffusion.training.text import small_bert

pytest.importorskip("peft")
FRAMES = 4
TOUCHED = ("to_q", "to_out.0", "conv1", "ff.net.2", "query")


def make_pipeline(**changes):
    encoder, tokenizer = small_bert(16)
    shape = {"in_channels": 3, "num_frames": FRAMES, "cross_attention_dim": 128, "transformer_layers": 2}
    unet = tiny_denoiser(0, **TRANSFORMER | {"cross_attention_every": 1} | shape | changes)
    pipe = VideoDiffusionPipeline(unet, VPContinuousScheduler(), encoder.eval(), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def learn(pipe, rank, seed=1):
    """Changes some layers by random matrices of a rank."""
    generator = torch.Generator().manual_seed(seed)
    for part in (pipe.unet, pipe.text_encoder):
        for name, layer in part.named_modules():
            if name.endswith(TOUCHED):
                weight = layer.weight.data
                up = torch.randn(len(weight), rank, generator=generator)
                down = torch.randn(rank, weight[0].numel(), generator=generator)
                weight += 0.02 * (up @ down).reshape(weight.shape)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The base, and the same after changes of rank 2 in some layers."""
    place = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    make_pipeline().save_pretrained(place / "base")
    pipe = VideoDiffusionPipeline.from_pretrained(place / "base")
    learn(pipe, 2)
    pipe.generation_config = {"num_inference_steps": 2, "guidance_scale": 2.0}
    pipe.scheduler = VPContinuousScheduler(deterministic=True)  # as of a student
    pipe.save_pretrained(place / "learned")
    (place / "learned" / "run.json").write_text(json.dumps({"seed": 5, "pretrained_model_name_or_path": "elsewhere"}))
    return str(place / "learned"), str(place / "base")


def sample(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a 1", num_frames=FRAMES, output_type="pt", generator=generator, num_inference_steps=2).frames


def test_a_rank_that_suffices_gives_the_model_again(folders, tmp_path):
    share = extract_adapter(*folders, tmp_path, rank=2, dtype="float32")
    assert share == pytest.approx(1, abs=1e-6)
    learned, loaded = (VideoDiffusionPipeline.from_pretrained(place) for place in (folders[0], tmp_path))
    for part in ("unet", "text_encoder"):
        one, other = (getattr(pipe, part).state_dict() for pipe in (learned, loaded))
        for name, weights in one.items():
            torch.testing.assert_close(other[name], weights, atol=1e-5, rtol=0, msg=name)
    torch.testing.assert_close(sample(loaded), sample(learned), atol=1e-4, rtol=0)
    assert loaded.generation_config == learned.generation_config
    assert loaded.scheduler.config.deterministic
    record = json.loads((tmp_path / "run.json").read_text())
    assert record == {
        "seed": 5,
        "pretrained_model_name_or_path": folders[1],
        "lora_rank": 2,
        "share_of_difference": 1.0,
    }
    settings = read_settings(tmp_path)
    assert settings["unet"]["r"] == 2
    assert settings["text_encoder"]["target_modules"] == ["query"]
    card = (tmp_path / "README.md").read_text()
    for words in ("It was distilled", "deterministic=True"):
        assert words not in card
        assert words in build_adapter_card(embedded_adapters()["moving-mnist-4step"])


def test_a_smaller_rank_holds_the_largest_part_that_it_can(folders, tmp_path):
    share = extract_adapter(*folders, tmp_path, rank=1)
    base, learned = (VideoDiffusionPipeline.from_pretrained(place) for place in reversed(folders))
    kept = total = 0.0
    for part in ("unet", "text_encoder"):
        after = getattr(learned, part).state_dict()
        for name, weights in getattr(base, part).state_dict().items():
            values = torch.linalg.svdvals((after[name] - weights).double().flatten(1)) if weights.ndim > 1 else None
            if values is not None and values.any():
                kept, total = kept + float(values[0] ** 2), total + float(values.square().sum())
    assert 0.5 < share < 0.95
    assert share == pytest.approx(kept / total, abs=1e-5)
    weights = load_file(tmp_path / ADAPTER)
    assert {value.dtype for value in weights.values()} == {torch.float16}


def test_what_no_adapter_can_hold_is_counted_as_lost(folders, tmp_path):
    pipe = VideoDiffusionPipeline.from_pretrained(folders[0])
    whole = extract_adapter(*folders, tmp_path / "whole", rank=2)
    norm = next(layer for layer in pipe.unet.modules() if isinstance(layer, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm))
    norm.weight.data += 1
    pipe.save_pretrained(tmp_path / "more")
    assert extract_adapter(str(tmp_path / "more"), folders[1], tmp_path / "part", rank=2) < whole - 0.001


def test_only_the_layers_that_learned_are_named(tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path / "base")
    names = [name for name, layer in pipe.unet.named_modules() if name.endswith("to_q")]
    assert len(names) > 2
    pipe.unet.get_submodule(names[0]).weight.data[0] += 0.1
    pipe.save_pretrained(tmp_path / "learned")
    extract_adapter(str(tmp_path / "learned"), str(tmp_path / "base"), tmp_path / "out", rank=4)
    layers = {key.removeprefix("unet.").rpartition(".lora_")[0] for key in load_file(tmp_path / "out" / ADAPTER)}
    assert layers == {names[0]}
    (target,) = read_settings(tmp_path / "out")["unet"]["target_modules"]
    assert [name for name in names if f".{name}".endswith(f".{target}")] == [names[0]]


def test_the_command_says_what_the_adapter_holds(folders, tmp_path, capsys):
    words = [
        "export",
        "lora",
        "--model",
        folders[0],
        "--base",
        folders[1],
        "--rank",
        "2",
        "--out",
        str(tmp_path / "x"),
    ]
    assert main(words) == 0
    assert "It holds 100.0% of the squared difference." in capsys.readouterr().out
    VideoDiffusionPipeline.from_pretrained(tmp_path / "x")


def test_what_does_not_fit_is_refused(folders, tmp_path):
    learned, base = folders
    with pytest.raises(ValueError, match="`rank` is 0, expected at least 1"):
        extract_adapter(learned, base, tmp_path, rank=0)
    with pytest.raises(ValueError, match="`dtype` is 'int8', expected one of float16, float32"):
        extract_adapter(learned, base, tmp_path, dtype="int8")
    with pytest.raises(ValueError, match="expected other weights than those of"):
        extract_adapter(base, base, tmp_path)
    make_pipeline(transformer_layers=1).save_pretrained(tmp_path / "short")
    message = r"`model` has unet.mid_block.transformer_blocks.1.* of shape \(.*\), expected that of `base`, none"
    with pytest.raises(ValueError, match=message):
        extract_adapter(learned, str(tmp_path / "short"), tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        extract_adapter("nowhere", base, tmp_path)
    assert not (tmp_path / ADAPTER).exists()
