"""The network that reads clips, and the tracker, on real clips: what they find is what was drawn."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion.data import MovingMNIST, load_digits
from video_diffusion.data.captions import DIRECTIONS, STILL, Caption, describe_clips
from video_diffusion.digit_reader.reader import (
    WEIGHTS,
    DigitReader,
    Findings,
    classify,
    find_digits,
    load_reader,
    reader_report,
)
from video_diffusion.digit_reader.tracking import read_clip, read_clips, start_sector, track_digits, walls_of
from video_diffusion.evaluation.text import shares

NAMES = (*DIRECTIONS, STILL)


# --------------------------------------------------------------------------------------------------------- the network
def test_the_weights_are_small_and_read_99_percent_of_the_test_digits():
    assert WEIGHTS.stat().st_size < 500_000
    test = load_digits("test")
    accuracy = (classify(test.images).argmax(-1) == test.labels).mean()
    assert accuracy >= 0.99
    assert accuracy == pytest.approx(reader_report()["accuracy"], abs=5e-4)  # other processors round otherwise


def test_on_a_picture_it_says_the_same_as_on_each_of_its_windows():
    picture = torch.rand(1, 1, 40, 36, generator=torch.Generator().manual_seed(0))
    reader = load_reader()
    whole = reader(picture)
    assert whole.shape == (1, 13, 4, 3)
    for i in range(4):
        for j in range(3):
            window = picture[:, :, 4 * i : 4 * i + 28, 4 * j : 4 * j + 28]
            torch.testing.assert_close(reader(window)[..., 0, 0], whole[..., i, j], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("place", [(0, 0), (18, 5), (36, 36), (11, 30)])
def test_a_digit_is_found_where_it_was_drawn(place):
    test = load_digits("test")
    y, x = place
    frames = np.zeros((200, 64, 64), np.uint8)
    frames[:, y : y + 28, x : x + 28] = test.images[:200]
    found = find_digits(frames)
    counts = Counter(len(f.present) for f in found)
    assert counts[1] >= 190
    assert np.mean([f.classes[0].argmax() == label for f, label in zip(found, test.labels, strict=False)]) > 0.98
    off = np.array([f.centres[0] for f in found]) - np.array([y + 14, x + 14])
    assert np.abs(np.median(off, 0)).max() < 0.3
    assert np.quantile(np.abs(off), 0.9) < 1.5


def test_black_frames_noise_and_broken_digits_hold_fewer_digits_than_real_ones():
    rng = np.random.default_rng(0)
    assert all(len(f.present) == 0 for f in find_digits(np.zeros((3, 64, 64), np.uint8)))
    grey = np.repeat(np.arange(0, 256, 51, dtype=np.uint8), 64 * 64).reshape(-1, 64, 64)
    assert all(len(f.present) == 0 for f in find_digits(grey))
    noise = rng.integers(0, 60, (20, 64, 64), dtype=np.uint8)
    assert sum(len(f.present) for f in find_digits(noise)) <= 2
    frames = np.zeros((200, 64, 64), np.uint8)
    frames[:, 18:46, 18:46] = np.roll(load_digits("test").images[:200], (14, 14), (1, 2))
    in_the_middle = sum(any(np.abs(c - 32).max() < 3 for c in f.centres) for f in find_digits(frames))
    assert in_the_middle < 30


def test_findings_of_one_digit_are_one_and_the_most_certain_comes_first():
    clips = MovingMNIST(split="test").batch(range(20))
    for found in find_digits(clips.reshape(-1, 64, 64)):
        assert (np.diff(found.present) <= 0).all()
        apart = np.abs(found.centres[:, None] - found.centres).max(-1)
        assert (apart + 100 * np.eye(len(apart)) >= 5).all()  # places are refined after they are told apart
        assert np.allclose(np.exp(found.classes).sum(-1), 1)
        assert ((found.confidence > 0.1) & (found.confidence <= 1)).all()


@pytest.mark.parametrize(
    "frames", [np.zeros((1, 64, 62), np.uint8), np.zeros((1, 24, 64), np.uint8), np.zeros((64, 64), np.uint8)]
)
def test_other_shapes_and_types_are_refused(frames):
    with pytest.raises(ValueError, match=r"expected uint8 \[N, H, W\], multiples of 4, at least 28"):
        find_digits(frames)
    with pytest.raises(ValueError, match="`frames` is float64"):
        find_digits(np.zeros((1, 64, 64)))
    with pytest.raises(ValueError, match=r"expected \[N, 28, 28\]"):
        classify(frames)


def test_the_training_script_writes_what_the_reader_loads(tmp_path):
    import runpy
    import sys

    from safetensors.torch import load_file

    script = Path(__file__).parents[2] / "training" / "train_reader.py"
    argv, sys.argv = (
        sys.argv,
        [str(script), "--steps", "2", "--batch-size", "8", "--out", str(tmp_path / "w.safetensors")],
    )
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = argv
    weights = load_file(tmp_path / "w.safetensors")
    DigitReader().load_state_dict(weights)
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float16}
    assert json.loads(WEIGHTS.with_suffix(".json").read_text())["command"].startswith(
        "python training/train_reader.py"
    )


# --------------------------------------------------------------------------------------------------------- the tracker
def straight(start, velocity, frames):
    return np.array(start) + np.outer(np.arange(frames), velocity)


@pytest.mark.parametrize("direction", range(8))
def test_the_direction_of_a_straight_path_of_a_noisy_one_and_of_one_that_bounces(direction):
    rng = np.random.default_rng(direction)
    angle = np.pi / 4 * direction
    velocity = 3.6 * np.array([np.sin(angle), np.cos(angle)])
    walls, path = walls_of(64, 28), straight((32, 32), velocity, 5)
    assert start_sector(np.arange(5), path, walls) == direction
    assert start_sector(np.arange(5), path + rng.uniform(-0.3, 0.3, path.shape), walls) == direction
    seen = np.array([0, 1, 3, 4])  # hidden in one frame
    assert start_sector(seen, path[seen], walls) == direction
    bounced = np.clip(np.concatenate([path, path[-1] + straight((0, 0), -velocity, 12)[1:]]), *walls)
    assert start_sector(np.arange(len(bounced)), bounced, walls) == direction


def test_a_digit_that_does_not_move_is_still():
    path = np.full((6, 2), 30.0) + np.random.default_rng(0).uniform(-0.2, 0.2, (6, 2))
    assert NAMES[start_sector(np.arange(6), path, walls_of(64, 28))] == STILL
    assert NAMES[start_sector(np.arange(1), path[:1], walls_of(64, 28))] == STILL


def findings(*digits):
    """Of one frame: (y, x, class) each, all but certain."""
    classes = np.full((len(digits), 10), np.log(0.01))
    for i, (_, _, digit) in enumerate(digits):
        classes[i, digit] = np.log(0.91)
    return Findings(np.array([d[:2] for d in digits], float).reshape(-1, 2), classes, np.full(len(digits), 0.9))


def test_two_digits_that_cross_keep_their_classes_and_directions():
    frames = [findings((20 + 3 * t, 30, 4), (44 - 3 * t, 33, 8)) for t in range(9)]
    frames[4] = findings((32, 31, 4))  # one hides the other
    tracks = {track.digit: track for track in read_clip(frames, 2)}
    assert set(tracks) == {4, 8}
    assert tracks[4].direction(walls_of(64, 28)) == "down"
    assert tracks[8].direction(walls_of(64, 28)) == "up"
    assert np.allclose(tracks[4].speeds, 3, atol=0.2)
    assert len(tracks[8].speeds) == 6  # not over the gap


def test_a_leap_is_another_digit_and_what_is_seen_once_does_not_count():
    frames = [findings((20 + 2 * t, 20, 1)) for t in range(5)] + [findings((50 - 2 * t, 50, 1)) for t in range(5)]
    frames[2] = findings((24, 20, 1), (10, 50, 6))
    assert sorted(len(track.frames) for track in track_digits(frames)) == [1, 5, 5]
    assert [track.digit for track in read_clip(frames, 4)] == [1, 1]


def test_a_wrong_reading_is_outvoted():
    frames = [findings((20 + 2 * t, 20, 5 if t == 3 else 2)) for t in range(8)]
    assert [(track.digit, len(track.frames)) for track in read_clip(frames, 2)] == [(2, 8)]


@pytest.mark.parametrize(
    ("variant", "clips", "least"),
    [("classic", 100, (0.9, 0.99, 0.6, 0.8)), ("stochastic", 200, (0.85, 0.99, 0.5, 0.7))],
)
def test_real_clips_are_read_rightly(variant, clips, least):
    videos = MovingMNIST(split="test", variant=variant, seed=2)
    drawn, span = videos.clips(range(clips)), videos.image_size - videos.pixels_per_digit
    asked = [Caption("", tuple(facts), True) for facts in describe_clips(drawn["labels"], drawn["positions"], span)]
    read = read_clips(drawn["video"], 2, videos.pixels_per_digit)
    found = shares(asked, read)
    for key, share in zip(("all_digits", "one_digit", "obeyed", "nearly_obeyed"), least, strict=True):
        assert found[key]["share"] > share
    others = shares(asked, [*read[1:], read[0]])
    assert others["all_digits"]["share"] < 0.1
    assert others["obeyed"]["share"] < 0.02
