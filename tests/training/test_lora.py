"""Adapters from their flags to the Hub and back: trained, saved, loaded, merged, resumed, published, refused."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from denoisers import TRANSFORMER, tiny_denoiser
from loopback_hub import LoopbackHub
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.cli import main
from video_diffusion.data.reading import read_video
from video_diffusion.hub.adapters import ADAPTER, read_settings
from video_diffusion.training import command, samples
from video_diffusion.training.text import small_bert

pytest.importorskip("peft")
FRAMES, SIZE = 4, 16
TOKEN = "hf_" + "t" * 34
TINY = [
    *("--num_frames", FRAMES, "--per_device_batch_size", 2, "--learning_rate", 0.05, "--lora_rank", 2),
    *("--warmup_steps", 0, "--tracker", "none", "--validation_steps", 2, "--text_cache", "memory"),
    *("--lora_target_modules", "to_q", "to_out.0", "conv1", "--validation_videos", 2, "--ema_decay", 0.5),
]


def make_pipeline(seed=0, **changes):
    encoder, tokenizer = small_bert(16)
    shape = {"in_channels": 3, "num_frames": FRAMES, "cross_attention_dim": 128, "transformer_layers": 1}
    unet = tiny_denoiser(seed, **TRANSFORMER | {"cross_attention_every": 1} | shape | changes)
    pipe = VideoDiffusionPipeline(unet, VPContinuousScheduler(), encoder.eval(), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    torch.manual_seed(0)
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos") / "mine"
    folder.mkdir()
    for number in range(2):
        np.save(folder / f"{number}.npy", np.full((6, SIZE, SIZE), 90 * number, np.uint8))
        (folder / f"{number}.txt").write_text(f"a {number}")
    return folder


def run(base, videos, output, *flags):
    words = [*TINY, "--pretrained_model_name_or_path", base, "--videos", videos, "--output_dir", output, *flags]
    return command.train_lora([*map(str, words)])


@pytest.fixture(scope="module")
def trained(base, videos, tmp_path_factory):
    """The folder of an adapter of network and text encoder after four steps."""
    output = tmp_path_factory.mktemp("runs") / "red"
    assert run(base, videos, output, "--max_steps", 4, "--lora_text_encoder") == 0
    return output


def load(folder):
    pipe = VideoDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe("a 1", num_inference_steps=2, num_frames=FRAMES, output_type="pt", generator=generator).frames


def test_an_adapter_changes_its_base_and_every_method_works(base, trained):
    assert {path.name for path in trained.iterdir() if path.is_file()} == {ADAPTER, "README.md", "run.json"}
    pipe = load(base)
    plain = sample(pipe)
    pipe.load_lora_weights(trained, adapter_name="red")
    full = sample(pipe)
    assert (full - plain).abs().max() > 0.01
    assert pipe.get_list_adapters() == {"unet": ["red"], "text_encoder": ["red"]}
    assert pipe.get_active_adapters() == ["red"]
    pipe.load_lora_weights(trained, adapter_name="twin")
    pipe.set_adapters(["red", "twin"], [0.5, 0.5])
    torch.testing.assert_close(sample(pipe), full, atol=1e-4, rtol=0)
    pipe.delete_adapters("twin")
    pipe.set_adapters("red", 0.0)
    torch.testing.assert_close(sample(pipe), plain, atol=1e-5, rtol=0)
    pipe.set_adapters("red")
    pipe.fuse_lora()
    torch.testing.assert_close(sample(pipe), full, atol=1e-4, rtol=0)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(sample(pipe), plain, atol=1e-5, rtol=0)


def test_the_file_is_in_the_format_of_diffusers_with_the_settings_of_peft(base, trained):
    weights, settings = load_file(trained / ADAPTER), read_settings(trained)
    assert {key.partition(".")[0] for key in weights} == {"unet", "text_encoder"}
    assert settings["unet"]["r"] == settings["text_encoder"]["r"] == 2
    assert sorted(settings["unet"]["target_modules"]) == ["conv1", "to_out.0", "to_q"]
    assert settings["text_encoder"]["base_model_name_or_path"] is None
    assert str(base.parent).encode() not in (trained / ADAPTER).read_bytes()
    assert not any("base_layer" in key for key in weights)
    record = json.loads((trained / "run.json").read_text())
    assert (record["image_size"], record["num_channels"], record["lora_rank"]) == (SIZE, 1, 2)
    assert record["example_prompts"] == ["a 0", "a 1"]


def test_a_merged_adapter_is_a_pipeline_that_does_the_same(base, videos, trained, tmp_path):
    shutil.copytree(base, tmp_path / "known")
    said = {"text_encoder": "small-bert", "max_text_length": 8}
    (tmp_path / "known" / "run.json").write_text(json.dumps(said))
    assert (
        run(tmp_path / "known", videos, tmp_path / "whole", "--max_steps", 4, "--lora_text_encoder", "--merged") == 0
    )
    merged, pipe = load(tmp_path / "whole"), load(base)
    pipe.load_lora_weights(trained)
    torch.testing.assert_close(sample(merged), sample(pipe), atol=1e-4, rtol=0)
    assert not hasattr(merged.unet, "peft_config")
    assert merged.generation_config["example_prompts"] == ["a 0", "a 1"]
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert {key: record[key] for key in said} == said  # so that a training can go on from it by its name


def test_a_run_that_was_stopped_goes_on_bit_for_bit(base, videos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(samples, "STEPS", 1)
    flags = ("--max_steps", 4, "--captions", "false", "--sample_steps", 4, "--sample_videos", 1)
    assert run(base, videos, tmp_path / "straight", *flags) == 0
    said = "".join(capsys.readouterr())
    assert "step 0: validation/generation" in said  # before the first step
    assert "step 4: validation/generation" in said
    code = run(base, videos, tmp_path / "parts", *flags, "--part_minutes", 0)
    while code == 3:
        code = run(base, videos, tmp_path / "parts", *flags)
    assert code == 0
    one, other = (load_file(tmp_path / name / ADAPTER) for name in ("straight", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert {key.partition(".")[0] for key in one} == {"unet"}
    assert "example_prompts" not in json.loads((tmp_path / "parts" / "run.json").read_text())
    assert (tmp_path / "straight" / "logs" / "samples" / "generated-0000004.gif").is_file()


# --------------------------------------------------------------------------------------------------------- the Hub
def test_an_adapter_is_published_with_a_card_of_its_own_and_loads_from_the_hub(base, trained, tmp_path, monkeypatch):
    with LoopbackHub({TOKEN: "you"}) as hub:
        hub.log_in(monkeypatch, tmp_path, TOKEN)
        assert main(["push", str(trained), "you/red"]) == 0
        pipe, expected = load(base), load(base)
        pipe.load_lora_weights("you/red", weight_name=ADAPTER, adapter_name="red", cache_dir=tmp_path / "cache")
    expected.load_lora_weights(trained)
    assert torch.equal(sample(pipe), sample(expected))


def test_the_card_names_base_and_settings_and_its_example_runs(base, trained, tmp_path, monkeypatch, capsys):
    assert main(["card", str(trained), "--repo-id", "you/red"]) == 0
    card = ModelCard.load(trained / "README.md")
    assert card.data.base_model == "tiny"
    assert {"lora", "video-diffusion"} <= set(card.data.tags)
    assert str(base) not in card.text
    assert "rank 2, alpha 2; conv1, to_out.0, to_q" in card.text
    assert "| data | videos of the folder `mine` |" in card.text
    code = card.text.split("```python\n")[1].split("```")[0]
    code = code.replace('"you/red"', repr(str(trained))).replace('"tiny"', repr(str(base)))
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("num_inference_steps=20", "num_inference_steps=1"), "card", "exec"), {})
    assert len(read_video(tmp_path / "clip.gif")) == FRAMES
    assert main(["card", str(trained), "--samples"]) == 2
    assert "`--samples` is for a pipeline, or an adapter with a generation_config.json" in capsys.readouterr().err


def test_the_command_generates_with_an_adapter(base, trained, tmp_path):
    common = ["--model", str(base), "--steps", "1", "--num-videos", "1", "--sampler", "ddim", "--prompt", "a 1"]
    for name, more in {"plain": [], "full": ["--lora", str(trained)], "off": ["--lora-scale", "0"]}.items():
        more = [*more, "--lora", str(trained)] if name == "off" else more
        assert main(["generate", *common, *more, "--out", str(tmp_path / name)]) == 0
    plain, full, off = (read_video(tmp_path / name / "generate-00.gif") for name in ("plain", "full", "off"))
    assert np.array_equal(plain, off)
    assert not np.array_equal(plain, full)


# ------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_out_channels": (16, 48)}, r"does not fit the unet: its layer .* is for weights \(.*\), expected \("),
        (
            {"transformer_layers": None, "layers_per_block": (1, 1), "spatial_attention": True},
            "does not fit the unet: it has the layer mid_block.*, which is not there",
        ),
        ({"transformer_layers": 2}, "it has no weights for mid_block.transformer_blocks.1.*, which its settings name"),
    ],
)
def test_an_adapter_of_another_network_is_refused_by_name(change, message, trained):
    pipe = make_pipeline(**change)
    plain = sample(pipe)
    with pytest.raises(ValueError, match=f"red .*{message}"):
        pipe.load_lora_weights(trained)
    assert pipe.get_list_adapters() == {}
    assert torch.equal(sample(pipe), plain)


def test_missing_and_foreign_weights_and_pickles_are_refused(base, trained, tmp_path):
    weights, pipe = load_file(trained / ADAPTER), load(base)
    key = next(key for key in weights if "lora_B" in key and key.startswith("unet."))
    with pytest.raises(ValueError, match=rf"{key.removeprefix('unet.')} is missing"):
        pipe.load_lora_weights({name: value for name, value in weights.items() if name != key})
    with pytest.raises(ValueError, match=r"the adapter has weights for transformer, expected an adapter of unet and"):
        pipe.load_lora_weights({"transformer.to_q.lora_A.weight": torch.zeros(2, 8)})
    pipe.text_encoder = None
    with pytest.raises(ValueError, match="has weights for the text_encoder, expected none"):
        pipe.load_lora_weights(trained)
    torch.save(weights, tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(OSError, match="safetensors"):
        pipe.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="`use_safetensors` is False"):
        pipe.load_lora_weights(tmp_path, use_safetensors=False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_target_modules", "to_x"], "`lora_target_modules` has 'to_x', expected the end of a layer's name"),
        (["--image_size", "14"], "`image_size` gives a height of 14, expected a multiple of the base's 4."),
        (["--num_channels", "3"], "`num_channels` is 3, expected the base's, 1."),
        (["--pretrained_model_name_or_path", "nowhere"], "`pretrained_model_name_or_path` is 'nowhere', expected"),
        (["--caption_column", "x", "--lora_rank", "0"], "`lora_rank` is 0, expected a whole number from 1"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line_before_the_first_step(flags, message, base, videos, tmp_path, capsys):
    assert run(base, videos, tmp_path / "run", *flags) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train-lora:")]
    assert len(said) == 1
    assert message in said[0]
    assert not (tmp_path / "run").exists()


def test_videos_without_captions_are_told_how_to_go_on(base, videos, tmp_path, capsys):
    (tmp_path / "silent").mkdir()
    np.save(tmp_path / "silent" / "a.npy", np.zeros((6, SIZE, SIZE), np.uint8))
    assert run(base, tmp_path / "silent", tmp_path / "run") == 2
    assert "Without captions, give `--captions false`." in capsys.readouterr().err


def test_the_script_does_what_the_command_does(base, videos, tmp_path, monkeypatch, capsys):
    words = ["train_lora.py", "--videos", str(videos), "--pretrained_model_name_or_path", str(base), "--max_steps"]
    monkeypatch.setattr(sys, "argv", [*words, "none"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(Path(__file__).parents[2] / "training" / "train_lora.py"), run_name="__main__")
    assert ended.value.code == main(["train-lora", *words[1:], "none"]) == 2
    assert capsys.readouterr().err.count("train-lora: `max_steps` is 'none', expected a whole number") == 2
