"""The protocol on a folder of one's own: which clips it takes, and what it refuses."""

import json
from functools import partial

import numpy as np
import pytest

from denoisers import tiny_denoiser
from stand_ins import AbsoluteError, some_pixels
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler, evaluation
from video_diffusion.cli import main
from video_diffusion.evaluation.own import cut_of, own_protocol, usual_given
from video_diffusion.model.autoencoding import FrameGrid

LENGTHS = (14, 5, 20, 11)  # the second is shorter than a clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four videos in grey; frame f of video v has the brightness 40 v + 2 f."""
    root = tmp_path_factory.mktemp("own") / "mine"
    (root / "validation").mkdir(parents=True)
    for v, frames in enumerate(LENGTHS):
        clip = (
            np.ones((frames, 48, 48, 1), np.uint8)
            * (40 * v + 2 * np.arange(frames, dtype=np.uint8))[:, None, None, None]
        )
        np.save(root / "validation" / f"{v}.npy", clip)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A pipeline of ten frames of 32×32 whose training took every second frame."""
    out = tmp_path_factory.mktemp("models") / "tiny"
    unet = tiny_denoiser(sample_size=32, num_frames=10, in_channels=3, patch_size=8, block_out_channels=(8,))
    VideoDiffusionPipeline(unet, VPContinuousScheduler(prediction_type="v_prediction")).save_pretrained(out)
    (out / "run.json").write_text(json.dumps({"frame_stride": 2, "crop": "none", "validation_split": "validation"}))
    return out


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    stub = partial(evaluation.Scorer, features=some_pixels, lpips=AbsoluteError())
    monkeypatch.setattr(evaluation, "Scorer", stub)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_it_compares_the_first_frames_of_each_long_video_and_knows_the_last_ones_of_others(folder):
    protocol = own_protocol(folder, "validation", 4, 10, 32)
    assert (protocol.available, protocol.num_videos, protocol.num_given, protocol.lengths) == (3, 3, 4, (10,))
    truth, real = protocol.truth(range(3), 32), protocol.real(range(3), 32)
    assert truth.shape == real.shape == (3, 10, 32, 32, 1)
    assert truth[:, 0, 0, 0, 0].tolist() == [0, 80, 120]
    assert truth[0, :, 0, 0, 0].tolist() == list(range(0, 20, 2))
    assert real[:, -1, 0, 0, 0].tolist() == [120 + 2 * 10, 80 + 2 * 19, 2 * 13]
    assert protocol.departures(2, 1, 32, (10,)) == []
    assert "FVD" in protocol.text
    assert own_protocol(folder, "validation", 4, 10, 32, {"frame_stride": 2}).available == 1


def test_what_is_too_short_or_alone_has_no_fvd_and_small_frames_are_enlarged_for_lpips(folder):
    assert not own_protocol(folder, "validation", 2, 5, 32).fvd
    assert not own_protocol(folder, "validation", 2, 15, 32).fvd  # one video has 15 frames
    assert "lpips_128" in own_protocol(folder, "validation", 2, 10, 32).metrics
    assert "lpips" in own_protocol(folder, "validation", 2, 10, 64).metrics


def test_the_command_cuts_the_videos_as_the_training_did_and_tells_how_to_do_it_again(folder, model, tmp_path, capsys):
    words = ["evaluate", "--model", str(model), "--protocol", "videos", "--data", str(folder), "--steps", "1"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "videos.json").read_text())
    assert (report["num_videos"], report["num_given"]) == (1, 5)  # one video has 19 frames, for ten with that stride
    assert report["data"].startswith("the split validation: 1 videos")
    assert "--split validation --given 5" in report["command"]
    assert "departs" not in capsys.readouterr().out
    assert (tmp_path / "out" / "videos.png").is_file()
    assert main([*words, "--given", "3", "--out", str(tmp_path / "other")]) == 0
    assert json.loads((tmp_path / "other" / "videos.json").read_text())["num_given"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--protocol", "videos"), "`--data` is missing, expected a folder of videos with `--protocol videos`"),
        (
            ("--protocol", "videos", "--data", "DATA", "--given", "10"),
            "`--given` is 10, expected 1 to 9 of the 10 frames",
        ),
        (("--protocol", "videos", "--data", "DATA", "--given", "0"), "`--given` is 0, expected 1 to 9"),
        (("--protocol", "videos", "--data", "DATA", "--split", "test"), "test"),
        (("--protocol", "videos", "--data", "nowhere"), "`--data` is 'nowhere', which is not there"),
        (("--protocol", "paper", "--split", "test"), "`--split` is test, expected none with `--protocol paper`"),
        (("--protocol", "kth", "--given", "3"), "`--given` is 3, expected none with `--protocol kth`"),
    ],
)
def test_what_does_not_fit_is_refused(folder, model, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    words = [str(folder) if word == "DATA" else word for word in words]
    assert main(["evaluate", "--model", str(model), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_videos_is_no_model_here(folder, capsys):
    words = ["--model", str(folder / "validation"), "--protocol", "videos", "--data", str(folder)]
    assert main(["evaluate", *words]) == 2
    assert "expected a pipeline with `--protocol videos`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("frames", "ratio", "given"), [(10, 1, 5), (20, 1, 10), (9, 1, 4), (2, 1, 1), (9, 4, 5), (17, 4, 9)]
)
def test_about_half_is_given_in_whole_frames_of_the_latents(frames, ratio, given):
    assert usual_given(frames, FrameGrid(ratio)) == given


def test_how_a_training_cut_its_videos_is_read_from_its_record():
    run = {
        "fps": 8,
        "frame_stride": 1,
        "crop": "random",
        "video_axes": None,
        "learning_rate": 1.0,
        "num_channels": None,
    }
    assert cut_of(run) == {"fps": 8, "frame_stride": 1, "crop": "random", "video_axes": None}
