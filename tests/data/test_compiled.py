"""The loops that numba compiles against their NumPy counterparts, bit by bit."""

import os
import subprocess
import sys

import numpy as np
import pytest

from video_diffusion.data import MovingMNIST, moving_mnist, trajectories

compiled = pytest.importorskip("video_diffusion.data.compiled", reason="needs the extra `fast`", exc_type=ImportError)

VARIANTS = ("classic", "stochastic")
SETTINGS = [
    {},
    {"num_digits": (1, 4), "seed": 2**64 - 1},
    {"num_digits": 3, "image_size": 71, "num_frames": 33},
    {"num_digits": 2, "image_size": 40, "digit_size": 15, "speed": 1, "split": "train"},
]


@pytest.fixture
def without_numba(monkeypatch):
    """A switch to NumPy alone."""
    return lambda: monkeypatch.setattr(moving_mnist, "compiled_kernels", lambda: None)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_clips_are_the_same_bytes_with_and_without_numba(variant, settings, without_numba):
    assert moving_mnist.compiled_kernels() is compiled
    videos = MovingMNIST(**{"variant": variant, "split": "test", **settings})
    indices = [2**31 - 2, *range(200), 5]
    fast = videos.clips(indices)
    without_numba()
    for name, value in videos.clips(indices).items():
        assert np.array_equal(fast[name], value), name
        assert fast[name].dtype == value.dtype


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_batch_is_the_same_with_and_without_numba(variant, without_numba):
    videos = MovingMNIST(variant=variant, split="test", num_digits=(1, 2))
    fast = videos.clips([])
    without_numba()
    assert {name: value.shape for name, value in videos.clips([]).items()} == {k: v.shape for k, v in fast.items()}


@pytest.mark.parametrize(("span", "speed"), [(36, 0.1), (100, 0.33), (7, 1.0), (36, 0.013), (0, 0.1), (36, 0.0)])
def test_classic_positions_agree_at_every_speed_and_at_the_walls(span, speed):
    rng = np.random.default_rng(1)
    start, angle = rng.random((4000, 2)), 2 * np.pi * rng.random(4000)
    start[:100] = np.round(start[:100])  # in the corners
    angle[:500:5] = np.pi / 2 * rng.integers(0, 5, 100)  # along an axis
    expected = trajectories.classic_positions(start, angle, 60, span, speed)
    velocity = trajectories.classic_velocity(angle, speed)
    assert np.array_equal(compiled.classic_positions(start, velocity, 60, span), expected)


def test_clipped_sums_agree_for_every_pair_of_grey_levels():
    levels = np.arange(256, dtype=np.uint8)
    images = levels.reshape(256, 1, 1)
    chosen = np.stack(np.meshgrid(levels, levels), -1).reshape(-1, 2).astype(np.int64)
    corner, both = np.zeros((len(chosen), 2, 1, 2), np.int64), np.full((len(chosen), 1), 2)
    for add, expected in ((True, np.minimum(chosen.sum(1), 255)), (False, chosen.max(1))):
        video = compiled.render(images, chosen, both, corner, 1, add)
        assert np.array_equal(video.ravel(), expected)


def test_numpy_draws_where_numba_is_missing_or_switched_off():
    code = """
import sys
if sys.argv[1] == "missing":
    sys.modules["numba"] = None
from video_diffusion.data import MovingMNIST, moving_mnist
assert moving_mnist.compiled_kernels() is None
assert "video_diffusion.data.compiled" not in sys.modules
print(MovingMNIST(split="test").batch([3, 4]).astype(int).sum())
"""
    expected = str(MovingMNIST(split="test").batch([3, 4]).astype(int).sum())
    for how, environment in (("missing", {}), ("off", {"NUMBA_DISABLE_JIT": "1"})):
        words = [sys.executable, "-c", code, how]
        result = subprocess.run(words, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
        assert result.stdout.strip() == expected, result.stderr


def test_without_a_folder_to_keep_machine_code_in_the_loops_are_compiled_all_the_same(monkeypatch):
    njit = compiled.numba.njit

    def read_only(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(compiled.numba, "njit", read_only)
    assert compiled.kernel(lambda x: x + 1)(2) == 3
