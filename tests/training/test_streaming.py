"""Training on a stream: from tar files to a pipeline, resuming bit for bit, threads and processes, what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from shards import make_shards
from video_diffusion import VideoDiffusionPipeline
from video_diffusion.training import command
from video_diffusion.training.batches import StreamBatches, ahead, open_captions, open_source, passes
from video_diffusion.training.train_arguments import parse_arguments

TINY = [
    *("--block_out_channels", "16", "16", "--patch_size", "4", "--num_frames", "4", "--image_size", "16"),
    *("--norm_num_groups", "8", "--attention_head_dim", "8", "--lr_scheduler", "constant", "--warmup_steps", "0"),
    *("--validation_steps", "0", "--per_device_batch_size", "2", "--tracker", "none", "--streaming"),
]


def run(*flags):
    return command.main([*TINY, *map(str, flags)])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    make_shards(folder)
    return make_shards(folder, "validation", (2,))


def batches_of(shards, rank=0, world=1, size=4, images=2):
    flags = ["--dataset_name", str(shards), "--num_frames", "4", "--image_size", "16", "--shuffle_buffer", "3"]
    data = parse_arguments([*flags, "--streaming", "--random_flip", "--crop", "random"])[1]
    source = open_source(data, "train", 7)
    return StreamBatches(source, size, rank, world, images, 7, open_captions(source, data, 7))


def test_threads_and_processes_change_no_clip_and_captions_stay_with_theirs(shards):
    alone = list(passes(batches_of(shards), 3, 7, 0))
    assert len({batch.clips.numpy().tobytes() for batch in alone}) == 4
    for one, other in zip(alone, passes(batches_of(shards), 3, 7, 2), strict=True):
        assert torch.equal(one.clips, other.clips)
        assert one.captions == other.captions
    halves = [list(passes(batches_of(shards, rank, 2, size=2), 3, 7, 0)) for rank in range(2)]
    for k, batch in enumerate(alone):
        assert batch.clips.shape == (4, 6, 16, 16, 1)
        assert torch.equal(torch.cat([half[k].clips for half in halves]), batch.clips)
        assert halves[0][k].captions + halves[1][k].captions == batch.captions
        numbers = [int(caption.removeprefix("json ")) for caption in batch.captions]
        assert ((batch.clips[:, 0].float().mean((1, 2, 3)) + 2) // 20).int().tolist() == numbers
    assert torch.equal(batches_of(shards)[5].clips, alone[2].clips)


def test_tar_files_become_a_pipeline(shards, tmp_path, capsys):
    flags = ("--dataset_name", shards, "--validation_split", "validation", "--validation_steps", 2, "--max_steps", 2)
    flags += ("--text_encoder", "small-bert", "--max_text_length", 16, "--validation_videos", 4)
    assert run(*flags, "--output_dir", tmp_path) == 0
    assert "validation/prediction" in "".join(capsys.readouterr())
    pipe = VideoDiffusionPipeline.from_pretrained(tmp_path)
    assert pipe.generation_config["example_prompts"] == [f"json {k}" for k in range(4)]
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["found"].startswith("a stream, its first 7 videos sha256 ")
    assert record["num_channels"] == 1


def test_stopping_and_going_on_changes_no_bit(shards, tmp_path, capsys):
    flags = ("--dataset_name", shards, "--random_flip", "--max_steps", 6, "--num_images", 1, "--shuffle_buffer", 3)
    for name, more in (("straight", ()), ("parts", ("--checkpointing_steps", 3))):
        code = run(*flags, *more, "--output_dir", tmp_path / name, "--part_minutes", "0" if more else "none")
        while code == 3:
            code = run(*flags, *more, "--dataloader_num_workers", 1, "--output_dir", tmp_path / name)
        assert code == 0
    assert "goes on from" in capsys.readouterr().err
    one, other = (
        load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors") for name in ("straight", "parts")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_is_made_ahead_stops_with_its_user_and_passes_errors_on():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number
            if number == 20:
                raise ValueError("the disk is gone")

    few = ahead(items(), 2)
    assert [next(few) for _ in range(3)] == [0, 1, 2]
    few.close()
    assert len(made) < 10
    with pytest.raises(ValueError, match="the disk is gone"):
        list(ahead(items(), 2))
    assert list(ahead(iter("abc"), 2)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--max_steps 1", "`streaming` is true, expected `dataset_name` with it"),
        ("--dataset_name {} --video_cache memory", "`video_cache` is 'memory', expected none: a stream is not kept."),
        ("--dataset_name {} --video_column film", "the data set has the columns ['mp4', 'txt', 'json', "),
        (
            "--dataset_name {} --text_encoder small-bert --caption_column label",
            "`caption_column` is 'label', expected",
        ),
        (
            "--dataset_name {} --num_frames 12",
            "7 of the first 7 videos of the stream cannot be used: row 0 has 8 frames",
        ),
    ],
)
def test_what_cannot_work_is_said_in_one_line_before_the_first_step(shards, tmp_path, capsys, flags, reason):
    assert run(*flags.format(shards).split(), "--output_dir", tmp_path / "run") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("train: ")
    assert reason in line
    assert not (tmp_path / "run").exists()
