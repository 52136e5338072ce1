"""Clips through `datasets`: the builders, the parquet folder, the command, and any data set with a `video` column."""

import argparse
import subprocess
import sys

import numpy as np
import pytest

from video_diffusion.commands import dataset as command
from video_diffusion.data import (
    MovingMNIST,
    build_dataset,
    build_iterable_dataset,
    load_videos,
    write_parquet,
)
from video_diffusion.data.captions import captions

datasets = pytest.importorskip("datasets")

SETTINGS = {"split": "test", "num_frames": 7, "image_size": 40, "num_digits": (1, 2), "seed": 5}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers(required=True))
    args = parser.parse_args(["dataset", "build", *arguments])
    args.run(args)


def same_clips(table, videos: MovingMNIST) -> bool:
    rows = table.with_format("numpy")[:]
    clips = videos.clips(range(len(table)))
    return len(table) == len(videos) and all(np.array_equal(rows[name], clips[name]) for name in clips)


def test_importing_the_data_package_imports_no_heavy_package():
    code = "import sys, video_diffusion.data; print({'datasets', 'pyarrow', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_map_style_dataset_holds_the_generators_clips():
    videos = MovingMNIST(**SETTINGS, num_videos=120)
    table = build_dataset(videos)
    assert same_clips(table, videos)
    assert table.features["video"] == datasets.Array3D((7, 40, 40), "uint8")


def test_iterable_dataset_draws_the_generators_clips_whatever_the_shards():
    videos = MovingMNIST(**SETTINGS, num_videos=11)
    for shards in (1, 3, 11):
        rows = list(build_iterable_dataset(videos, shards))
        assert len(rows) == 11
        for name, values in videos.clips(range(11)).items():
            assert np.array_equal([row[name] for row in rows], values)


def test_iterable_dataset_resumes_where_it_stopped():
    stream = build_iterable_dataset(MovingMNIST(**SETTINGS, num_videos=9), 2)
    iterator = iter(stream)
    for _ in range(5):
        next(iterator)
    state = stream.state_dict()
    rest = [np.asarray(row["video"]) for row in iterator]
    resumed = build_iterable_dataset(MovingMNIST(**SETTINGS, num_videos=9), 2)
    resumed.load_state_dict(state)
    assert np.array_equal(rest, [np.asarray(row["video"]) for row in resumed])


def test_an_endless_generator_streams_but_is_not_held_in_memory():
    first = next(iter(build_iterable_dataset(MovingMNIST(**SETTINGS))))
    assert np.array_equal(first["video"], MovingMNIST(**SETTINGS)[0]["video"])
    with pytest.raises(ValueError, match="`num_videos` is None"):
        build_dataset(MovingMNIST(**SETTINGS))
    with pytest.raises(ValueError, match="`num_shards` is 0; expected 1 to"):
        build_iterable_dataset(MovingMNIST(**SETTINGS), 0)


def test_command_writes_shards_and_a_card_that_load_back_bit_for_bit(tmp_path, capsys):
    out = tmp_path / "clips"
    run(
        *("--num-videos", "2205", "--split", "test", "--out", str(out), "--num-frames", "7", "--image-size", "40"),
        *("--num-digits", "1", "2", "--seed", "5"),
    )
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert names == ["README.md", *(f"data/test-0000{k}-of-00003.parquet" for k in range(3))]
    loaded = datasets.load_dataset(str(out))
    assert list(loaded) == ["test"]
    assert same_clips(loaded["test"], MovingMNIST(**SETTINGS, num_videos=2205))
    assert "2205 clips" in capsys.readouterr().out


def test_a_caption_column_if_asked_for(tmp_path):
    run("--num-videos", "5", "--out", str(tmp_path / "clips"), "--captions", "held_out", "--variant", "stochastic")
    loaded = datasets.load_dataset(str(tmp_path / "clips"), split="test")
    videos = MovingMNIST(split="test", num_frames=20, variant="stochastic", num_videos=5)
    expected = captions(videos.clips(range(5)), range(5), seed=0, span=32, templates="held_out")
    assert loaded["caption"] == expected
    assert build_dataset(videos, "held_out")["caption"] == expected
    assert [row["caption"] for row in build_iterable_dataset(videos, 2, "held_out")] == expected
    assert "`caption`" in (tmp_path / "clips" / "README.md").read_text()
    assert "caption" not in build_dataset(videos).column_names
    with pytest.raises(ValueError, match="`templates` is 'other'"):
        build_dataset(videos, "other")


def test_both_splits_fit_one_folder(tmp_path):
    digits = tmp_path / "digits.npz"
    np.savez(digits, images=np.full((3, 28, 28), 9, np.uint8), labels=np.arange(3))
    splits = [MovingMNIST(split=split, digits=digits, num_videos=4) for split in ("train", "test")]
    write_parquet(tmp_path / "clips", *splits)
    loaded = datasets.load_dataset(str(tmp_path / "clips"))
    assert same_clips(loaded["train"], splits[0])
    assert same_clips(loaded["test"], splits[1])


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupt(written: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_parquet(tmp_path / "clips", MovingMNIST(**SETTINGS, num_videos=5), progress=interrupt)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os
from video_diffusion.data import MovingMNIST, write_parquet
calls = []
def die(written):
    calls.append(written)
    if len(calls) == 2:
        os._exit(9)
write_parquet("clips", MovingMNIST(split="test", num_videos=5), videos_per_file=2, progress=die)
"""


def test_a_killed_write_leaves_no_folder_that_loads(tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, check=False).returncode == 9
    assert not (tmp_path / "clips").exists()
    (partial,) = tmp_path.iterdir()
    assert len(list(partial.rglob("*.parquet"))) == 2  # it died with one file complete
    with pytest.raises(FileNotFoundError):
        datasets.load_dataset(str(partial))


def test_writing_refuses_what_it_cannot_do_before_it_draws(tmp_path):
    videos = MovingMNIST(**SETTINGS, num_videos=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError, match="expected a new name or an empty folder"):
        write_parquet(tmp_path / "full", videos)
    with pytest.raises(ValueError, match="expected each at most once"):
        write_parquet(tmp_path / "new", videos, videos)
    with pytest.raises(ValueError, match="at least one"):
        write_parquet(tmp_path / "new")
    with pytest.raises(ValueError, match="expected the same for all"):
        write_parquet(tmp_path / "new", videos, MovingMNIST(split="train", num_videos=2))
    with pytest.raises(ValueError, match="`videos_per_file` is 0"):
        write_parquet(tmp_path / "new", videos, videos_per_file=0)
    with pytest.raises(ValueError, match="`num_videos` is None"):
        write_parquet(tmp_path / "new", MovingMNIST(**SETTINGS))
    with pytest.raises(ValueError, match="`--num-digits` is"):
        run("--out", str(tmp_path / "new"), "--num-digits", "1", "2", "3")
    assert not (tmp_path / "new").exists()


def test_without_datasets_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for attempt in (
        lambda: build_dataset(MovingMNIST(**SETTINGS, num_videos=1)),
        lambda: write_parquet(tmp_path / "clips", MovingMNIST(**SETTINGS, num_videos=1)),
        lambda: load_videos(tmp_path, "test", num_frames=7, image_size=40),
    ):
        with pytest.raises(ImportError, match="pip install"):
            attempt()


def test_load_videos_reads_a_written_folder_in_any_order(tmp_path):
    videos = MovingMNIST(**SETTINGS, num_videos=9)
    write_parquet(tmp_path / "clips", videos, videos_per_file=4)
    column = load_videos(tmp_path / "clips", "test", num_frames=7, image_size=40)
    assert len(column) == 9
    assert np.array_equal(column.batch([8, 0, 0, 5]), videos.batch([8, 0, 0, 5])[..., None])
    with pytest.raises(ValueError, match="valid"):
        load_videos(tmp_path / "clips", "valid", num_frames=7, image_size=40)
    with pytest.raises(FileNotFoundError):
        load_videos(tmp_path / "nowhere" / "else", "test", num_frames=7, image_size=40)
