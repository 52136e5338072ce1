"""Long videos, measured over time: real clips, standstill, noise, and blanks each look like what they are."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from benchmarks.drift import MEASURES, QUANTILES, measure_drift, neighbour_ssim, smooth
from video_diffusion.data import MovingMNIST
from video_diffusion.evaluation.figure import Panel, colours_of, draw_panels


@pytest.fixture(scope="module")
def real():
    return MovingMNIST(split="test", num_frames=40, num_digits=1).batch(range(6))


def test_of_real_clips_it_finds_the_digit_its_speed_and_its_ink(real):
    drift = measure_drift(real)
    assert set(drift.frames) == set(MEASURES)
    assert np.allclose(drift.frames["ink"], (real / 255).sum((2, 3)).mean(0))
    assert abs(np.mean(drift.frames["digits"]) - 1) < 0.1
    assert np.nanmean(drift.frames["confidence"]) > 0.95
    found = drift.summary(0, 40)
    assert len(found["speed_quantiles"]) == len(QUANTILES)
    assert found["speed_quantiles"][2] == pytest.approx(3.6, abs=0.25)  # a tenth of 36 pixels
    assert np.isnan([drift.frames["ssim"][-1], drift.frames["speed"][-1]]).all()
    assert not np.isnan(drift.frames["speed"][:-1]).any()


def test_neighbour_ssim_is_that_of_scikit_image(real):
    clip = real[0] / 255
    expected = [
        structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=False
        )
        for a, b in zip(clip[1:], clip, strict=False)
    ]
    assert np.allclose(neighbour_ssim(real[:1])[0], expected, atol=1e-5)


def test_a_still_does_not_move_and_a_blank_holds_nothing(real):
    still = np.repeat(real[:, :1], 5, axis=1)
    drift = measure_drift(still)
    assert np.allclose(drift.frames["ssim"][:-1], 1)
    assert np.allclose(drift.speeds[:, 1], 0)
    assert drift.summary(0, 5)["speed"] == 0
    blank = measure_drift(np.zeros((2, 4, 64, 64), np.uint8)).summary(0, 4)
    assert blank == {"ssim": 1, "confidence": None, "digits": 0, "speed": None, "ink": 0, "speed_quantiles": None}


def test_what_goes_on_only_in_the_second_half_shows_there_only(real):
    clips = real.copy()
    clips[:, 20:] = 0
    drift = measure_drift(clips)
    assert drift.summary(0, 20)["digits"] > 0.9
    assert drift.summary(20, 40)["digits"] == 0
    assert (drift.speeds[:, 0] < 20).all()


@pytest.mark.parametrize(
    "clips", [np.zeros((1, 1, 64, 64), np.uint8), np.zeros((4, 64, 64), np.uint8), np.zeros((1, 4, 64, 64))]
)
def test_other_clips_are_refused(clips):
    with pytest.raises(ValueError, match=r"expected uint8 \[N, F, H, W\] with F ≥ 2"):
        measure_drift(clips)


def test_smoothing_is_a_mean_over_the_frames_around():
    assert smooth([1, 2, 3, 4, 5], 3) == [1.5, 2, 3, 4, 4.5]
    assert smooth([1, float("nan"), 3], 1) == [1, None, 3]
    assert smooth([1, float("nan"), 3], 3) == [1, 2, 3]


def test_a_chart_has_its_lines_in_their_colours_and_leaves_gaps_out():
    lines = {"rising": [0.0, 0.5, 1.0], "gap": [1.0, None, 1.0], "across": [0.25]}
    image = draw_panels([Panel("title", lines, {0: "a", 2: "c"}, (0, 1))], colours_of(list(lines)), per_row=1)
    axes = image[20:235]  # without the legend
    ys = {}
    for name, colour in colours_of(list(lines)).items():
        rows, columns = np.nonzero((axes == colour).all(-1))
        ys[name] = rows
        assert len(rows)
        if name == "rising":
            assert rows[columns.argmin()] > rows[columns.argmax()]
    assert np.ptp(ys["across"]) <= 2
    assert len(ys["gap"]) < 120  # two dots


def test_the_benchmark_measures_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys, make_denoiser):
    from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler

    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    benchmark = importlib.import_module("benchmarks.long_quality")
    unet = make_denoiser(sample_size=32, in_channels=3, num_frames=4)
    VideoDiffusionPipeline(unet, VPContinuousScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / "m")
    out = tmp_path / "long.json"
    words = [
        "--model",
        str(tmp_path / "m"),
        "--num-frames",
        "9",
        "--num-videos",
        "1",
        "--steps",
        "1",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(sys, "argv", ["long_quality", *words, "--out", str(out)])
    benchmark.main()
    first = json.loads(out.read_text())
    assert list(first["runs"]) == ["real", "autoregressive", "hierarchy-2", "interpolate"]
    for run in first["runs"].values():
        assert all(len(values) == 9 for values in run["per_frame"].values())
    assert Image.open(out.with_suffix(".png")).size[0] >= 840

    def refuse(*args, **kwargs):
        raise AssertionError("the pipeline was called")

    monkeypatch.setattr(VideoDiffusionPipeline, "__call__", refuse)
    benchmark.main()
    assert json.loads(out.read_text()) == first
