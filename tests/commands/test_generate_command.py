import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.cli import main
from video_diffusion.commands import generate
from video_diffusion.data import MovingMNIST
from video_diffusion.data.moving_mnist import VARIANTS
from video_diffusion.data.reading import read_video
from video_diffusion.data.video_io import FRAME_COLOUR, resize, write_gif

SIZE, FRAMES = 32, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    unet = VideoUNet3DConditionModel(
        sample_size=SIZE,
        num_frames=FRAMES,
        in_channels=3,
        out_channels=1,
        patch_size=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )
    for parameter in unet.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    VideoDiffusionPipeline(unet, VPContinuousScheduler(prediction_type="v_prediction")).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def command(model, tmp_path):
    """Runs a command line with the tiny model; returns the folder of its files."""

    def run(*words, out="samples"):
        parser = argparse.ArgumentParser()
        generate.register(parser.add_subparsers(required=True))
        common = [
            "--model",
            model,
            "--num-frames",
            str(FRAMES),
            "--steps",
            "2",
            "--device",
            "cpu",
            "--dtype",
            "float32",
        ]
        args = parser.parse_args([words[0], *common, "--out", str(tmp_path / out), *words[1:]])
        args.run(args)
        return tmp_path / out

    return run


def frames_of(folder, name):
    return resize(read_video(folder / name), SIZE, SIZE)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A model that reads: its text encoder is a BERT of one layer."""
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"0123456789", "the", "digit", "moves", "right"]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=8)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=8, **sizes)).eval()
    unet = VideoUNet3DConditionModel(
        sample_size=SIZE,
        num_frames=FRAMES,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        attention_head_dim=8,
        cross_attention_dim=8,
    )
    for parameter in unet.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("models") / "reader"
    VideoDiffusionPipeline(unet, VPContinuousScheduler(), encoder, tokenizer).save_pretrained(folder)
    return str(folder)


# --------------------------------------------------------------------------------------------------------------- text
def test_a_prompt_reaches_the_model_with_its_guidance(command, reader):
    words = ("--model", reader, "--prompt", "the digit 3 moves right", "--negative-prompt", "the digit 7")
    out = command("generate", *words, "--num-videos", "2", "--guidance-scale", "3")
    pipeline = VideoDiffusionPipeline.from_pretrained(reader)
    text = {"prompt": "the digit 3 moves right", "negative_prompt": "the digit 7", "guidance_scale": 3.0}
    common = {"num_inference_steps": 2, "output_type": "np"}
    for i in range(2):
        clip = pipeline(**text, **common, generator=torch.Generator().manual_seed(i)).frames
        assert np.abs(frames_of(out, f"generate-{i:02d}.gif") - clip[0] * 255.0).max() < 1
    other = pipeline(**common, generator=torch.Generator().manual_seed(1)).frames
    assert np.abs(frames_of(out, "generate-01.gif") - other[0] * 255.0).max() > 1


def test_a_prompt_is_read_in_every_window_and_beside_given_frames(command, reader):
    words = ("--model", reader, "--prompt", "the digit 3", "--num-frames", "7")
    assert len(frames_of(command("generate", *words, "--num-videos", "1"), "generate-00.gif")) == 7
    predict = ("--from-dataset", "0", "1", "--given", "2", "--model", reader)
    said, silent = (
        frames_of(command("predict", *predict, *prompt, out=name), "predict-01.gif").astype(int)
        for name, prompt in (("said", ("--prompt", "the digit 3")), ("silent", ()))
    )
    assert np.array_equal(said[:2], silent[:2])
    assert np.abs(said[2:] - silent[2:]).max() > 1


def test_without_a_prompt_clips_show_the_example_prompts_of_the_model_in_turn(command, reader, tmp_path, capsys):
    pipeline = VideoDiffusionPipeline.from_pretrained(reader)
    prompts = ["the digit 3", "the digit 7 moves right"]
    pipeline.generation_config = {"example_prompts": prompts, "guidance_scale": 2.0}
    pipeline.save_pretrained(tmp_path / "known")
    words = ("--model", str(tmp_path / "known"), "--num-videos", "3", "--batch-size", "2")
    out = command("generate", *words)
    assert "The model's example prompts: the digit 3; the digit 7 moves right." in capsys.readouterr().out
    silent = command("generate", *words, "--prompt", "", out="silent")
    assert "prompts" not in capsys.readouterr().out
    common = {"num_inference_steps": 2, "output_type": "np"}
    for i, text in enumerate([*prompts, prompts[0]]):
        clips = pipeline(text, **common, generator=torch.Generator().manual_seed(i)).frames
        plain = pipeline(**common, generator=torch.Generator().manual_seed(i)).frames
        assert np.abs(frames_of(out, f"generate-{i:02d}.gif") - clips[0] * 255.0).max() < 1
        assert np.abs(frames_of(silent, f"generate-{i:02d}.gif") - plain[0] * 255.0).max() < 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a 3"], "`prompt` is 'a 3', expected None: the pipeline has no text encoder"),
        (["--prompt", "a 3", "--guidance-scale", "0.5"], "`--guidance-scale` is 0.5, expected a number from 1 up"),
        (["--guidance-scale", "2"], "`--prompt` is missing"),
        (["--negative-prompt", "a 3"], "`--prompt` is missing"),
    ],
)
def test_text_that_cannot_be_used_is_refused(words, message, command):
    with pytest.raises(ValueError, match=re.escape(message)):
        command("generate", *words)


# -------------------------------------------------------------------------------------------------------------- files
def test_generate_writes_a_gif_and_an_mp4_for_each_clip_one_sheet_and_a_closing_line(command, capsys):
    out = command("generate", "--num-videos", "3")
    clips = [f"generate-{i:02d}.{kind}" for i in range(3) for kind in ("gif", "mp4")]
    assert sorted(file.name for file in out.iterdir()) == sorted([*clips, "generate.png"])
    for i in range(3):
        gif, mp4 = frames_of(out, f"generate-{i:02d}.gif"), frames_of(out, f"generate-{i:02d}.mp4")
        assert gif.shape == (FRAMES, SIZE, SIZE, 1)
        assert np.abs(gif.astype(int) - mp4[..., :1]).mean() < 6
    sheet = np.asarray(Image.open(out / "generate.png"))
    assert not (sheet == FRAME_COLOUR).all(axis=-1).any()
    output = capsys.readouterr()
    assert output.out.startswith(f"3 clips of 4 frames in {out} (generate-*.gif, *.mp4)")
    assert re.search(
        r" [\d.]+ s\.\nNext: video-diffusion predict \S+/generate-00\.gif .*--num-videos 4\n$", output.out
    )
    assert "clips 1 to 3 of 3: 100%" in output.err


def test_the_files_hold_what_the_pipeline_makes_from_the_seeds(command, model):
    out = command("generate", "--num-videos", "2", "--seed", "5")
    pipeline = VideoDiffusionPipeline.from_pretrained(model)
    for i in range(2):
        clip = pipeline(num_inference_steps=2, generator=torch.Generator().manual_seed(5 + i), output_type="np").frames
        assert np.abs(frames_of(out, f"generate-{i:02d}.gif") - clip[0] * 255.0).max() < 1


def test_the_batch_size_does_not_change_the_clips(command):
    whole = command("generate", "--num-videos", "3", out="whole")
    split = command("generate", "--num-videos", "3", "--batch-size", "2", out="split")
    for i in range(3):
        difference = frames_of(whole, f"generate-{i:02d}.gif").astype(int) - frames_of(split, f"generate-{i:02d}.gif")
        assert np.abs(difference).max() <= 1


def test_frames_sampler_and_steps_are_the_models_own_where_nothing_is_asked(model, tmp_path, capsys):
    config = Path(model) / "generation_config.json"
    config.write_text('{"sampler": "unipc", "num_inference_steps": 3}')
    try:
        words = ["--model", model, "--num-videos", "1", "--out", str(tmp_path), "--device", "cpu", "--json"]
        assert main(["generate", *words]) == 0
        facts = json.loads(capsys.readouterr().out)
    finally:
        config.unlink()
    assert (facts["num_frames"], facts["sampler"], facts["steps"]) == (FRAMES, "unipc", 3)
    assert read_video(facts["clips"][0]["gif"]).shape == (FRAMES, 256, 256, 1)
    assert Path(facts["sheet"]).is_file()
    assert facts["next"].startswith("video-diffusion predict ")


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "unipc"])
def test_each_sampler_and_gamma_makes_clips_of_its_own(command, sampler):
    plain = command("generate", "--num-videos", "1", out="plain")
    stock = command("generate", "--num-videos", "1", "--sampler", sampler, out="stock")
    wide = command("generate", "--num-videos", "1", "--gamma", "1", out="wide")
    clips = [frames_of(folder, "generate-00.gif").astype(int) for folder in (plain, stock, wide)]
    assert np.abs(clips[0] - clips[1]).max() > 2
    assert np.abs(clips[0] - clips[2]).max() > 2


# ------------------------------------------------------------------------------------------------------- given frames
def test_predict_keeps_the_first_frames_of_the_test_clips_of_these_numbers(command):
    out = command("predict", "--from-dataset", "7", "3", "--given", "2")
    truth = MovingMNIST(split="test", num_frames=FRAMES, image_size=SIZE, seed=0).batch([7, 3])[..., None]
    for i in range(2):
        clip = frames_of(out, f"predict-{i:02d}.gif")
        assert np.array_equal(clip[:2], truth[i, :2])
        assert not np.array_equal(clip[2], truth[i, 2])
    sheet = np.asarray(Image.open(out / "predict.png"))
    rows = 4  # truth and model of each clip
    assert sheet.shape[0] == 22 + rows * (64 + 6)
    assert (sheet == FRAME_COLOUR).all(axis=-1).any()


def test_a_model_continues_test_clips_of_the_variant_that_it_was_trained_on(command, model, tmp_path):
    folder = tmp_path / "stochastic"
    shutil.copytree(model, folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": 64}))
    for variant in ("stochastic", "classic", "of another world"):
        (folder / "run.json").write_text(json.dumps({"variant": variant}))
        out = command("predict", "--model", str(folder), "--from-dataset", "7", "--given", "2", out=variant[:2])
        known = variant if variant in VARIANTS else "classic"
        truth = MovingMNIST(split="test", num_frames=FRAMES, variant=known).batch([7])[0][..., None]
        assert np.array_equal(resize(read_video(out / "predict-00.gif"), 64, 64)[:2], truth[:2])


def test_interpolate_keeps_both_ends(command):
    out = command("interpolate", "--from-dataset", "5")
    truth = MovingMNIST(split="test", num_frames=FRAMES, image_size=SIZE, seed=0).batch([5])[0][..., None]
    clip = frames_of(out, "interpolate-00.gif")
    assert np.array_equal(clip[[0, -1]], truth[[0, -1]])
    assert not np.array_equal(clip[1:-1], truth[1:-1])


# -------------------------------------------------------------------------------------------------------- long videos
@pytest.mark.parametrize("scheme", ["autoregressive", "hierarchy-2", "interpolate"])
def test_frames_beyond_the_trained_length_are_what_the_pipeline_makes_in_windows(command, model, scheme, capsys):
    words = ["--num-frames", "9", "--window-overlap", "1", "--window-scheme", scheme]
    out = command("generate", "--num-videos", "1", *words)
    options = {"num_frames": 9, "window_overlap": 1, "window_scheme": scheme, "num_inference_steps": 2}
    pipeline = VideoDiffusionPipeline.from_pretrained(model)
    clip = pipeline(generator=torch.Generator().manual_seed(0), output_type="np", **options).frames[0]
    made = frames_of(out, "generate-00.gif")
    assert made.shape == (9, SIZE, SIZE, 1)
    assert np.abs(made - clip * 255.0).max() < 1
    assert re.search(r"clips 1 to 1 of 1, window (\d) of \1: 100%", capsys.readouterr().err)


def test_a_long_prediction_keeps_its_given_frames_and_guidance_changes_the_others(command):
    words = ["predict", "--from-dataset", "0", "--given", "2", "--num-frames", "8"]
    plain = frames_of(command(*words, out="plain"), "predict-00.gif")
    truth = MovingMNIST(split="test", num_frames=8, image_size=SIZE, seed=0).batch([0])[0][..., None]
    assert np.array_equal(plain[:2], truth[:2])
    for flag in ("--reconstruction-guidance", "--history-guidance"):
        guided = frames_of(command(*words, flag, "3", out="guided"), "predict-00.gif")
        assert np.array_equal(guided[:2], truth[:2])
        assert not np.array_equal(plain, guided)


@pytest.mark.parametrize("kind", ["gif", "npy"])
def test_predict_continues_a_file_several_times_and_differently(command, tmp_path, kind, capsys):
    video = MovingMNIST(split="test", num_frames=2, image_size=SIZE, seed=3).batch([0])[0][..., None]
    path = tmp_path / f"clip.{kind}"
    write_gif(video, path, scale=4) if kind == "gif" else np.save(path, video)
    out = command("predict", str(path), "--given", "2", "--num-videos", "2")
    clips = [frames_of(out, f"predict-{i:02d}.gif") for i in range(2)]
    for clip in clips:
        assert np.array_equal(clip[:2], video)
    assert not np.array_equal(clips[0], clips[1])
    assert ("Resized the given frames from 128×128 to 32×32" in capsys.readouterr().err) == (kind == "gif")


def test_interpolate_takes_the_ends_of_a_file_of_any_length(command, tmp_path):
    video = MovingMNIST(split="test", num_frames=9, image_size=SIZE, seed=3).batch([0])[0][..., None]
    np.save(tmp_path / "clip.npy", video)
    out = command("interpolate", str(tmp_path / "clip.npy"))
    assert np.array_equal(frames_of(out, "interpolate-00.gif")[[0, -1]], video[[0, -1]])


# ------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "--num-videos", "0"], "`--num-videos` is 0, expected at least 1"),
        (["generate", "--steps", "0"], "`--steps` is 0"),
        (["generate", "--seed", "-1"], "`--seed` is -1"),
        (["generate", "--fps", "0"], "`--fps` is 0"),
        (["generate", "--fps", "1e-30"], r"`--fps` is 1e-30, expected a number from 0\.1 to 100"),
        (["generate", "--seed", str(10**30)], "`--seed` is 1000"),
        (
            ["generate", "--num-videos", str(10**15)],
            "`--num-videos` and `--num-frames` ask for 1000000000000000 clips",
        ),
        (
            ["predict", "--from-dataset", "1", "--given", "1", "--num-videos", str(10**15)],
            "`--num-videos` and `--num-frames` ask for",
        ),
        (["generate", "--num-frames", "9", "--window-overlap", "4"], "`window_overlap` is 4, expected less than 4"),
        (["generate", "--window-overlap", "0"], "`--window-overlap` is 0, expected at least 1"),
        (
            ["generate", "--reconstruction-guidance", "-1"],
            "`--reconstruction-guidance` is -1.0, expected a number from",
        ),
        (["generate", "--reconstruction-guidance", "nan"], "`--reconstruction-guidance` is nan"),
        (["generate", "--reconstruction-guidance", "1"], "`reconstruction_guidance_scale` is 1.0, expected None"),
        (["generate", "--history-guidance", "-1"], "`--history-guidance` is -1.0, expected a number from 0 up"),
        (["generate", "--history-guidance", "2"], "`history_guidance_scale` is 2.0, expected 1: nothing is given"),
        (["generate", "--gamma", "1", "--sampler", "ddim"], "`--gamma` is 1.0, expected none with `--sampler ddim`"),
        (["generate", "--gamma", "2"], "`gamma` is 2.0"),
        (["generate", "--device", "abacus"], "`--device` is 'abacus'"),
        (["generate", "--model", "moving-cats"], "`model` is 'moving-cats'"),
        (["predict", "--from-dataset", "1", "--given", "4"], "`--given` is 4"),
        (["predict", "--from-dataset", "-1", "--given", "1"], "`--from-dataset` is -1, expected the number"),
        (["predict", "--from-dataset", "10000", "--given", "1"], "`--from-dataset` is 10000, .* 0 to 9999"),
        (["interpolate", "--from-dataset", "1", "--given", "2"], "`--given` is 2"),
        (["predict", "nowhere.gif", "--given", "1"], "nowhere.gif"),
    ],
)
def test_bad_input_is_refused_by_name_and_leaves_no_files(command, tmp_path, words, message):
    with pytest.raises((ValueError, OSError), match=message):
        command(*words)
    assert not (tmp_path / "samples").exists()


def test_a_file_with_too_few_frames_is_refused(command, tmp_path):
    np.save(tmp_path / "clip.npy", np.zeros((1, SIZE, SIZE), np.uint8))
    with pytest.raises(ValueError, match="`VIDEO_FILE` has 1 frames, expected the 2 given ones"):
        command("predict", str(tmp_path / "clip.npy"), "--given", "2")


def test_predict_needs_exactly_one_source(command, capsys):
    for words in (["predict"], ["predict", "a.gif", "--from-dataset", "1"]):
        with pytest.raises(SystemExit):
            command(*words)
    assert "VIDEO_FILE" in capsys.readouterr().err
