"""The posterior of a trajectory against one that is enumerated, and against what was seen."""

import numpy as np
import pytest

from video_diffusion.data import MovingMNIST, classic_positions
from video_diffusion.data.posterior import posterior_paths


def test_the_posterior_is_that_of_all_starts_and_directions_on_a_fine_grid():
    """A range of 6 pixels and two frames seen: the distribution of the third place by enumeration."""
    span, steps = 6, 120
    starts, angles = (np.arange(steps) + 0.5) / steps, 2 * np.pi * (np.arange(360) + 0.5) / 360
    y, x, angle = (a.ravel() for a in np.meshgrid(starts, starts, angles, indexing="ij"))
    paths = classic_positions(np.stack([y, x], -1), angle, 3, span, 0.2)
    seen = np.array([[2, 3], [3, 3]])
    allowed = paths[(paths[:, :2] == seen).all((1, 2)), 2]
    places, counts = np.unique(allowed, axis=0, return_counts=True)
    expected = dict(zip(map(tuple, places.tolist()), counts / counts.sum(), strict=True))
    drawn = posterior_paths(seen, 3, 20_000, span, np.random.default_rng(0), 0.2)[:, 2]
    places, counts = np.unique(drawn, axis=0, return_counts=True)
    found = dict(zip(map(tuple, places.tolist()), counts / counts.sum(), strict=True))
    assert len(expected) > 2
    distance = sum(abs(expected.get(place, 0) - found.get(place, 0)) for place in expected | found) / 2
    assert distance < 0.1  # the 200 points behind the paths are a sample too


@pytest.mark.parametrize(("given", "frames"), [(1, 4), (5, 10), (10, 20)])
def test_every_path_goes_through_the_places_that_were_seen_and_the_true_one_is_among_them(given, frames):
    clips = MovingMNIST(split="test", num_frames=frames).clips(range(3))["positions"]
    rng, exact = np.random.default_rng(0), []
    for true in clips.transpose(0, 2, 1, 3).reshape(-1, frames, 2):
        paths = posterior_paths(true[:given], frames, 40, 36, rng)
        assert paths.shape == (40, frames, 2)
        assert (paths[:, :given] == true[:given]).all()
        ahead = np.abs(paths[:, given] - true[given])
        assert ahead.max() <= 8  # a step is 3.6 pixels
        exact.append((ahead == 0).all(1).mean())
    assert np.mean(exact) > 0.3 or given == 1


def test_places_of_no_trajectory_are_refused():
    with pytest.raises(ValueError, match="expected the places of a trajectory"):
        posterior_paths(np.array([[2, 2], [30, 2]]), 4, 5, 36, np.random.default_rng(0))
