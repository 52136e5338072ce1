"""The vectorised trajectories against slow loops that follow the published rules one step at a time."""

import math

import numpy as np
import pytest
from scipy import stats

from video_diffusion.data import classic_positions, stochastic_positions
from video_diffusion.data.trajectories import clip_keys, integers, mix, stream_key, uniform


def classic_path(start, angle, num_frames, span, speed):
    """OpenSTL's rules for one digit: step, clamp, turn, record."""
    (y, x), (v_y, v_x) = start, (math.sin(angle), math.cos(angle))
    path = []
    for _ in range(num_frames):
        y, x = y + speed * v_y, x + speed * v_x
        if x <= 0:
            x, v_x = 0.0, -v_x
        if x >= 1:
            x, v_x = 1.0, -v_x
        if y <= 0:
            y, v_y = 0.0, -v_y
        if y >= 1:
            y, v_y = 1.0, -v_y
        path.append((int(span * y), int(span * x)))
    return path


def stochastic_path(start, velocity, redraws, span):
    """SVG's rules for one digit; `redraws[k][axis]` = (speed away from that wall, velocity along the other axis)."""
    (y, x), (v_y, v_x) = map(int, start), map(int, velocity)
    path = []
    for draw_y, draw_x in redraws.tolist():
        if y < 0:
            y, v_y, v_x = 0, draw_y[0], draw_y[1]
        elif y >= span:
            y, v_y, v_x = span - 1, -draw_y[0], draw_y[1]
        if x < 0:
            x, v_x, v_y = 0, draw_x[0], draw_x[1]
        elif x >= span:
            x, v_x, v_y = span - 1, -draw_x[0], draw_x[1]
        path.append((y, x))
        y, x = y + v_y, x + v_x
    return path


@pytest.mark.parametrize(("span", "speed"), [(36, 0.1), (100, 0.33), (7, 1.0), (36, 0.013), (0, 0.1)])
def test_classic_closed_form_equals_the_step_by_step_rules(span, speed):
    rng = np.random.default_rng(1)
    start, angle = rng.random((500, 2, 2)), 2 * np.pi * rng.random((500, 2))
    positions = classic_positions(start, angle, 60, span, speed)
    assert positions.shape == (500, 2, 60, 2)
    for b in range(500):
        for d in range(2):
            assert positions[b, d].tolist() == list(map(list, classic_path(start[b, d], angle[b, d], 60, span, speed)))


def test_classic_from_the_walls_and_along_the_axes_follows_the_rules():
    starts = [(y, x) for y in (0.0, 1.0) for x in (0.0, 1.0)]
    angles = [0.3, 2.0, 4.0, 5.5]
    for start in starts:
        for angle in angles:
            expected = classic_path(start, angle, 30, 36, 0.1)
            assert classic_positions(np.array(start), np.array(angle), 30, 36).tolist() == list(map(list, expected))


def test_classic_at_speed_zero_stands_still():
    positions = classic_positions(np.array([0.5, 0.25]), np.array(1.0), 12, 36, 0.0)
    assert positions.tolist() == [[18, 9]] * 12


@pytest.mark.parametrize(("span", "fastest"), [(32, 4), (5, 4), (1, 2), (40, 9)])
def test_stochastic_equals_the_step_by_step_rules(span, fastest):
    rng = np.random.default_rng(2)
    start = rng.integers(0, span, (300, 3, 2))
    velocity = rng.integers(-fastest, fastest + 1, (300, 3, 2))
    redraws = np.stack(
        [rng.integers(1, fastest + 1, (300, 3, 40, 2)), rng.integers(-fastest, fastest + 1, (300, 3, 40, 2))], -1
    )
    positions = stochastic_positions(start, velocity, redraws, span)
    assert positions.shape == (300, 3, 40, 2)
    for b in range(300):
        for d in range(3):
            expected = stochastic_path(start[b, d], velocity[b, d], redraws[b, d], span)
            assert positions[b, d].tolist() == list(map(list, expected))


def test_the_trajectories_leave_their_arguments_unchanged():
    start, velocity = np.array([[31, 0]]), np.array([[4, -4]])
    redraws = np.ones((1, 10, 2, 2), np.int64)
    copies = start.copy(), velocity.copy(), redraws.copy()
    stochastic_positions(start, velocity, redraws, 32)
    assert all(np.array_equal(now, then) for now, then in zip((start, velocity, redraws), copies, strict=True))


def test_mix_is_splitmix64():
    # The first words of SplitMix64 from the state 1234567, as its authors' C program prints them.
    states = (1234567 + np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_are_uniform_over_clips_and_over_draws():
    u = uniform(clip_keys(stream_key(0, 0), np.arange(20000)), np.arange(10))
    assert u.min() >= 0
    assert u.max() < 1
    for values in (*u.T, u[:1000].ravel(), uniform(clip_keys(stream_key(0, 0), [7]), np.arange(20000))[0]):
        assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_draws_of_neighbouring_clips_draws_seeds_and_streams_are_uncorrelated():
    clips = np.arange(50000)
    base = uniform(clip_keys(stream_key(0, 0), clips), [0, 1])
    others = [
        base[:, 1],
        np.roll(base[:, 0], 1),
        uniform(clip_keys(stream_key(1, 0), clips), 0),
        uniform(clip_keys(stream_key(0, 1), clips), 0),
    ]
    for other in others:
        assert abs(np.corrcoef(base[:, 0], other)[0, 1]) < 4 / math.sqrt(len(clips))


def test_integers_are_equally_frequent_and_within_both_ends():
    drawn = integers(uniform(clip_keys(stream_key(3, 0), np.arange(45000)), 0), -4, 4)
    assert sorted(set(drawn.tolist())) == list(range(-4, 5))
    assert stats.chisquare(np.bincount(drawn + 4)).pvalue > 1e-3
    assert integers(np.array([0.0, np.nextafter(1.0, 0.0)]), 2, 9).tolist() == [2, 9]


def test_keys_of_a_million_clips_are_all_different():
    keys = clip_keys(stream_key(0, 0), np.arange(1_000_000))
    assert len(np.unique(keys)) == len(keys)
