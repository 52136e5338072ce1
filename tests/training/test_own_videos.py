"""Training on people's own videos: from a folder to a pipeline, what is refused before the first step, resuming."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tiny_training import train
from video_diffusion import VideoDiffusionPipeline
from video_diffusion.data.video_io import write_gif, write_mp4
from video_diffusion.training import command, dry_run
from video_diffusion.training.batches import StepBatches, open_source, passes
from video_diffusion.training.train_arguments import parse_arguments

TINY = [
    *("--block_out_channels", "16", "16", "--patch_size", "4", "--num_frames", "4", "--image_size", "16"),
    *("--norm_num_groups", "8", "--attention_head_dim", "8", "--lr_scheduler", "constant", "--warmup_steps", "0"),
    *("--validation_steps", "0", "--per_device_batch_size", "2", "--tracker", "none"),
]


def run(*flags):
    return command.main([*TINY, *map(str, flags)])


def numbered(frames=20, height=24, width=32):
    """Grey frames, each of one brightness: frame i is 10·i."""
    return np.broadcast_to(10 * np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, height, width, 1))


def coloured(frames, height, width, seed):
    """A bright square on a dark ground, moving to the right."""
    colour = np.random.default_rng(seed).integers(100, 256, 3)
    clip = np.zeros((frames, height, width, 3), np.uint8)
    for i in range(frames):
        clip[i, height // 4 : height // 2, i : i + width // 4] = colour
    return clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Colour videos of three kinds, sizes and rates with captions, in two splits."""
    root = tmp_path_factory.mktemp("own")
    for split, seed in (("train", 0), ("validation", 10)):
        write_mp4(coloured(12, 32, 48, seed), root / split / "a.mp4", fps=24, scale=1)
        write_mp4(coloured(9, 48, 32, seed + 1), root / split / "b.mp4", fps=12, scale=1)
        write_gif(coloured(8, 20, 20, seed + 2), root / split / "c.gif", scale=1)
        for name in "abc":
            (root / split / f"{name}.txt").write_text(f"a square, number {seed}{name}")
    return root


def test_training_sees_all_of_each_video(tmp_path):
    for name in range(4):
        write_mp4(numbered(20), tmp_path / f"{name}.mp4", scale=1)
    flags = ["--videos", str(tmp_path), "--num_frames", "10", "--image_size", "16"]
    data = parse_arguments(flags)[1]
    batches = StepBatches(open_source(data, "train", 0), 1, 0, 1, 0, seed=0)
    seen = np.zeros(20, int)
    for batch in passes(batches, 0, 300, 0):
        numbers = np.rint(batch.clips.numpy().mean((2, 3, 4)) / 10).astype(int)
        assert (np.diff(numbers) == 1).all()
        seen += np.bincount(numbers.ravel(), minlength=20)
    assert (seen > 0).all()
    windows = 300 / 11
    assert np.abs(seen[:10] - windows * np.arange(1, 11)).max() < 0.15 * windows * 10  # each window equally often


def test_workers_and_processes_change_no_clip(folder):
    flags = ["--videos", str(folder), "--num_frames", "4", "--image_size", "16", "32", "--crop", "random"]
    data = parse_arguments([*flags, "--random_flip", "--num_images", "2"])[1]
    source = open_source(data, "train", 7)
    whole = StepBatches(source, 4, 0, 1, 2, seed=7)
    halves = [StepBatches(source, 2, rank, 2, 2, seed=7) for rank in range(2)]
    alone = [batch.clips for batch in passes(whole, 3, 9, 0)]
    for k, clips in enumerate(passes(whole, 3, 9, 2)):
        assert clips.clips.shape == (4, 6, 16, 32, 3)
        assert torch.equal(clips.clips, alone[k])
        assert torch.equal(torch.cat([half[3 + k].clips for half in halves]), alone[k])
    assert len({clips.numpy().tobytes() for clips in alone}) == 6


def test_a_folder_of_videos_becomes_a_pipeline_that_reads_their_captions(folder, tmp_path, capsys):
    flags = ("--videos", folder, "--validation_split", "validation", "--image_size", 16, 24, "--fps", 8)
    flags += ("--text_encoder", "small-bert", "--max_text_length", "32", "--validation_steps", "2", "--random_flip")
    assert run(*flags, "--max_steps", 2, "--output_dir", tmp_path, "--num_frames", 3) == 0
    said = "".join(capsys.readouterr())
    assert "validation/prediction" in said
    assert (
        "1 of 3 videos are enlarged to 16×24 pixels (height × width), the first of them train/c.gif with 20×20."
        in said
    )
    pipe = VideoDiffusionPipeline.from_pretrained(tmp_path)
    clip = pipe("a square", num_inference_steps=2, output_type="np").frames[0]
    assert np.shape(clip) == (3, 16, 24, 3)
    assert pipe.generation_config["example_prompts"] == [f"a square, number 0{name}" for name in "abc"]
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["num_channels"] == 3
    assert record["found"].startswith("3 videos, ")


def test_stopping_and_going_on_changes_no_bit(folder, tmp_path, capsys):
    flags = ("--videos", folder, "--crop", "random", "--random_flip", "--max_steps", 6, "--num_images", 1)
    for name, more in (("straight", ()), ("parts", ("--checkpointing_steps", 3))):
        code = run(*flags, *more, "--output_dir", tmp_path / name, "--part_minutes", "0" if more else "none")
        while code == 3:
            cache = ("--video_cache", "memory", "--dataloader_num_workers", 1)  # may differ from part to part
            code = run(*flags, *more, *cache, "--output_dir", tmp_path / name)
        assert code == 0
    assert "goes on from" in capsys.readouterr().err
    one, other = (
        load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors") for name in ("straight", "parts")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_folder_that_has_changed_is_told_when_a_run_goes_on(tmp_path, capsys):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", numbered(6))
    (tmp_path / "videos").mkdir()
    for name in "ab":
        (tmp_path / f"{name}.npy").rename(tmp_path / "videos" / f"{name}.npy")
    flags = ("--videos", tmp_path / "videos", "--num_channels", 1, "--output_dir", tmp_path / "run")
    assert run(*flags, "--max_steps", 1) == 0
    np.save(tmp_path / "videos" / "c.npy", numbered(6))
    assert run(*flags, "--max_steps", 2) == 0
    assert "`found` is now '3 videos, 9 windows" in capsys.readouterr().err


def test_left_out_videos_are_named_before_the_first_step(tmp_path, capsys):
    np.save(tmp_path / "good.npy", numbered(6))
    np.save(tmp_path / "short.npy", numbered(3))
    (tmp_path / "bad.mp4").write_bytes(b"\0\0\0\x20ftypisom and no more")
    flags = ("--videos", tmp_path, "--max_steps", 1, "--num_channels", 1)
    assert run(*flags, "--output_dir", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert f"train: 2 of 3 videos of {tmp_path} (1 unreadable, 1 too short) are left out:" in said
    assert "short.npy has 3 frames, expected at least 4." in said
    assert run(*flags, "--output_dir", tmp_path / "none", "--on_bad_video", "fail") == 2
    assert not (tmp_path / "none").exists()


def test_a_dataset_of_videos_by_its_folder_trains_with_its_captions(tmp_path):
    write_mp4(coloured(8, 32, 48, 0), tmp_path / "a.mp4", scale=1)
    content = (tmp_path / "a.mp4").read_bytes()
    rows = {"clip": [{"bytes": content, "path": None}] * 2, "words": ["one", "two"]}
    features = datasets.Features({"clip": datasets.Video(decode=False), "words": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    flags = ("--dataset_name", tmp_path / "set", "--video_column", "clip", "--caption_column", "words")
    flags += ("--text_encoder", "small-bert", "--max_steps", 1, "--output_dir", tmp_path / "run")
    assert run(*flags) == 0
    assert VideoDiffusionPipeline.from_pretrained(tmp_path / "run").generation_config["example_prompts"] == [
        "one",
        "two",
    ]


def bad_folders(folder):
    """Folders with something wrong, by name."""
    for name in ("empty", "short", "mixed", "grey"):
        (folder / name).mkdir()
    np.save(folder / "short" / "a.npy", numbered(3))
    np.save(folder / "short" / "b.npy", numbered(2))
    np.save(folder / "mixed" / "a.npy", numbered(5))
    np.save(folder / "mixed" / "b.npy", coloured(5, 16, 16, 0))
    np.save(folder / "grey" / "a.npy", numbered(5))
    (folder / "file.txt").write_text("no video")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--videos", "nowhere"], "`videos` is 'nowhere', expected a folder of videos: there is none of that name."),
        (["--videos", "empty"], "empty holds no videos, expected files (.npy"),
        (["--videos", "file.txt"], "file.txt is not a video"),
        (
            ["--videos", "short"],
            "no video of short can be used (2 too short): a.npy has 3 frames, expected at least 4.",
        ),
        (["--videos", "mixed"], "`num_channels` is not given, but a.npy is grey and b.npy is in colour: expected 3"),
        (["--videos", "grey", "--dataset_name", "x"], "`videos` is 'grey', expected none beside `dataset_name`, 'x'."),
        (
            ["--videos", "grey", "--image_size", "20"],
            "`image_size` gives a height of 20, expected a multiple of 8, such as 16 or 24",
        ),
        (
            ["--videos", "grey", "--image_size", "16", "4"],
            "`image_size` gives a width of 4, expected a multiple of 8, such as 8:",
        ),
        (["--videos", "grey", "--image_size", "1", "2", "3"], "`image_size` is [1, 2, 3], expected a whole number"),
        (["--videos", "grey", "--fps", "8", "--frame_stride", "2"], "`frame_stride` is 2, expected 1 beside `fps`"),
        (["--videos", "grey", "--fps", "8"], "a.npy does not say when its frames are shown: `fps` needs that."),
        (["--videos", "grey", "--train_split", "test"], "`split` is 'test', expected one that grey has: train"),
        (["--videos", "grey", "--validation_split", "test"], "`split` is 'test', expected one that grey has: train"),
        (["--videos", "grey", "--video_axes", "FNHWC"], "expected [F, N, H, W, C]"),
        (["--videos", "grey", "--text_encoder", "small-bert"], "Without captions, train with `text_encoder` none."),
        (
            ["--videos", "grey", "--video_cache", "disk", "--video_cache_dir", "grey/kept"],
            "expected a folder outside of 'grey'",
        ),
        (["--image_size", "16", "24"], "`image_size` is [16, 24], expected one number for Moving MNIST."),
        (["--num_channels", "3"], "`num_channels` is 3, expected 1 for Moving MNIST."),
    ],
)
def test_what_is_wrong_with_videos_is_said_in_one_line_before_the_first_step(
    flags, message, tmp_path, capsys, monkeypatch
):
    bad_folders(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(*flags, "--output_dir", "run", "--max_steps", 1) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train:")]
    assert len(said) == 1
    assert message in said[0]
    assert not (tmp_path / "run").exists()


def test_a_video_that_breaks_in_the_middle_ends_no_run(tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    values = numbered(8).astype(np.float32) / 255
    values[4:] = 7.0
    np.save(folder / "broken.npy", values)
    np.save(folder / "good.npy", numbered(8))
    flags = ("--videos", folder, "--num_channels", 1, "--max_steps", 4)
    with pytest.warns(UserWarning, match=r"broken.npy is replaced by the next video"):
        assert run(*flags, "--output_dir", tmp_path / "run") == 0
    assert run(*flags, "--output_dir", tmp_path / "other", "--on_bad_video", "fail") == 1
    assert "broken.npy runs from 7 to 7, expected floats in [0, 1]." in capsys.readouterr().err


def test_a_dry_run_compares_the_loader_with_the_step(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dry_run, "LOADING", 0.1)
    monkeypatch.setattr(dry_run, "loader_speed", lambda run, timed=dry_run.loader_speed: min(timed(run), 0.1))
    assert run("--videos", folder, "--dry_run", "--output_dir", tmp_path / "none") == 0
    said = capsys.readouterr().out
    assert "0.1 from the loader alone, workers: 0" in said
    assert "take more `--dataloader_num_workers`, or keep decoded videos: `--video_cache memory` or disk." in said
    assert not (tmp_path / "none").exists()


def test_moving_mnist_is_trained_on_as_before(digits, tmp_path):
    assert train(digits, tmp_path, "--max_steps", 1, "--per_device_batch_size", 1) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["num_channels"], record["image_size"]) == (1, 32)
    assert "found" not in record


def test_pictures_of_two_sizes_in_one_video_are_no_video(tmp_path):
    (tmp_path / "clip").mkdir()
    for i in range(6):
        Image.new("L", (16 + i, 16)).save(tmp_path / "clip" / f"{i}.png")
    np.save(tmp_path / "good.npy", numbered(6))
    data = parse_arguments(["--videos", str(tmp_path), "--num_frames", "4", "--num_channels", "1"])[1]
    with pytest.warns(UserWarning, match="clip has frames of sizes"):
        open_source(data, "train", 0).draw([0], [0])
