"""The protocols on published data: which clips they take, and a whole run of the command on miniature copies."""

import json
import re
from functools import partial

import numpy as np
import pytest

from denoisers import tiny_denoiser
from published import brightness, make_bair, make_kth
from stand_ins import AbsoluteError, run_with, some_pixels
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler, cli, evaluation
from video_diffusion.evaluation import PUBLISHED, PipelineSource
from video_diffusion.evaluation.report import markdown, rows
from video_diffusion.evaluation.run import read_clips
from video_diffusion.hub.cards import Evaluation, eval_results

KTH, BAIR = PUBLISHED["kth"], PUBLISHED["bair"]


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    stub = partial(evaluation.Scorer, features=some_pixels, lpips=AbsoluteError())
    monkeypatch.setattr(evaluation, "Scorer", stub)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return {"kth": make_kth(root / "kth"), "bair": make_bair(root / "bair", "records")}


def test_kth_compares_the_first_50_frames_of_long_sub_sequences_in_an_order_of_its_own(folders):
    protocol = KTH.on(folders["kth"])
    assert protocol.available == 4  # the sub-sequence of 40 frames is left out
    truth, real = protocol.truth(range(4), 64), protocol.real(range(4), 64)
    assert truth.shape == real.shape == (4, 50, 64, 64, 1)
    firsts = sorted(2 * (first - 1) + number for first, number in ((1, 3), (52, 3), (61, 2), (3, 4)))
    lasts = sorted(2 * (last - 50) + number for last, number in ((51, 3), (115, 3), (115, 2), (60, 4)))
    assert sorted(brightness(truth[:, 0])) == pytest.approx(firsts, abs=1)
    assert sorted(brightness(real[:, 0])) == pytest.approx(lasts, abs=1)
    assert brightness(truth[:, 0]) != sorted(brightness(truth[:, 0]))
    assert np.array_equal(protocol.truth([2], 64)[0], truth[2])
    assert protocol.truth([1], 32).shape == (1, 50, 32, 32, 1)


def test_kth_squeezes_the_frame_as_the_code_of_svg_and_mcvd_does(folders):
    videos = KTH.on(folders["kth"]).clips.videos
    assert videos.shape.crop == "none"


def test_bair_compares_the_first_16_frames_in_colour_with_those_of_other_videos(folders):
    protocol = BAIR.on(folders["bair"])
    assert brightness(protocol.truth(range(3), 64)[:, 0]) == [20, 30, 40]
    assert brightness(protocol.real(range(3), 64)[:, 0]) == [44, 34, 24]
    assert protocol.truth([0], 64).shape == (1, 16, 64, 64, 3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_has_the_numbers_of_others_with_their_source_and_says_what_is_not_the_protocol(
    folders, tmp_path, name
):
    protocol = PUBLISHED[name].on(folders[name])
    report = run_with(protocol, tmp_path, num_videos=2, num_samples=2)
    assert {known["row"] for known in report["known"]} <= {row.key for row in rows(report)}
    text = markdown(report)
    for known in report["known"]:
        assert known["value"] in text
        assert "not measured here" in known["source"]
        assert known["source"] in text
    assert report["data"].startswith(f"{protocol.variant}: ")
    files = {"kth": "3 test videos in the folder; KTH has 216", "bair": "3 test videos in the folder; BAIR has 256"}
    assert files[name] in text
    assert "best of 2 samples" in text
    kind = {"kth": "kth", "bair": "bair-robot-pushing"}[name]
    results = {"results": [{"metric": "fvd", "name": "FVD", "value": 1.0}]}
    card = eval_results(Evaluation({**report, **results}, tmp_path, text, False), "video-prediction")
    assert card[0].dataset_type == kind


def save_model(folder, channels, size=32):
    config = {"sample_size": size, "num_frames": 10, "in_channels": 2 * channels + 1, "out_channels": channels}
    unet = tiny_denoiser(block_out_channels=(8,), patch_size=8, **config)
    VideoDiffusionPipeline(unet, VPContinuousScheduler(prediction_type="v_prediction")).save_pretrained(folder)
    return folder


def test_the_command_scores_a_model_on_a_folder_of_the_user(folders, tmp_path, capsys):
    words = ["evaluate", "--model", str(save_model(tmp_path / "model", 3)), "--protocol", "bair"]
    words += ["--data", str(folders["bair"]), "--steps", "1", "--num-samples", "2", "--dtype", "float32"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "bair.json").read_text())
    assert report["num_videos"] == 3
    assert f"--data {folders['bair']}" in report["command"]
    clips = read_clips(tmp_path / "out" / "bair-parts", 3, 16)
    assert clips.shape == (3, 2, 16, 32, 32, 3)
    assert brightness(clips[:, 0, 0]) == [20, 30, 40]
    assert (tmp_path / "out" / "bair.png").is_file()
    other = make_bair(tmp_path / "other", "records", frames=17)
    assert cli.main([*words, "--data", str(other), "--out", str(tmp_path / "out")]) == 2
    assert "holds the parts of another run" in capsys.readouterr().err


def test_true_videos_in_a_folder_score_perfectly(folders, tmp_path):
    protocol = KTH.on(folders["kth"])
    truth = protocol.truth(range(4), 64)
    (tmp_path / "videos").mkdir()
    for i, clip in enumerate(truth):
        np.save(tmp_path / "videos" / f"{i}.npy", clip)
    report = run_with(protocol, tmp_path / "out", evaluation.FolderSource(tmp_path / "videos"))
    assert report["num_videos"] == 4
    assert report["figures"]["mse"]["one_sample"]["mse"] == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("kth", r"`--data` is missing, expected a folder with `--protocol kth`: the frame ranges 00sequences.txt"),
        ("bair", r"`--data` is missing, expected a folder with `--protocol bair`: softmotion30_44k/train"),
        (
            "kth --data nowhere",
            r"`--data` is 'nowhere', no folder: expected KTH with the frame ranges 00sequences.txt",
        ),
        ("bair --data .", r"`--data` is '\.', a folder without them: expected BAIR with softmotion30_44k/train"),
        ("paper --data .", r"`--data` is \., expected none with `--protocol paper`"),
    ],
)
def test_missing_data_are_refused_in_a_line_that_says_the_layout(tmp_path, monkeypatch, capsys, words, reason):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "--protocol", *words.split()]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert re.search(reason, line)


def test_videos_that_cannot_be_read_and_too_many_clips_are_refused(folders, tmp_path):
    make_kth(tmp_path / "kth")
    (tmp_path / "kth" / "running" / "person17_running_d1_uncomp.avi").write_bytes(b"RIFF1234AVI rest")
    with pytest.raises(ValueError, match=r"1 test videos in .*kth cannot be read: running/person17_running_d1"):
        KTH.on(tmp_path / "kth")
    with pytest.raises(ValueError, match="`--num-videos` is 9, expected at most the 3 that the data in the folder"):
        run_with(BAIR.on(folders["bair"]), tmp_path / "out", num_videos=9)
    with pytest.raises(ValueError, match=r"the protocol kth needs a folder: PUBLISHED\['kth'\].on\(folder\)"):
        KTH.truth([0], 64)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_of_any_channels_gives_clips_of_the_protocols(folders, tmp_path, channels):
    pipeline = VideoDiffusionPipeline.from_pretrained(save_model(tmp_path / "m", channels))
    protocol = BAIR.on(folders["bair"])
    given = protocol.truth([0], 32)[:, :1]
    clips = PipelineSource(pipeline, {}, steps=1).clips([0], given, 1, [16])[16]
    assert clips.shape == (1, 1, 16, 32, 32, 3)
    assert np.array_equal(clips[:, 0, :1], given)
    assert bool(np.ptp(clips[0, 0, 5].astype(int), axis=-1).max() > 0) is (channels == 3)
