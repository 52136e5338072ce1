"""The best that any system can do: the exact posterior of the future, the digits and their whole-pixel places known.

The mean of the posterior has the least expected squared error of all predictions; a sample of it scores what a perfect
sampler scores. A model sees pictures and not places, so it can be no better.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from video_diffusion.data import MovingMNIST
from video_diffusion.data.moving_mnist import render
from video_diffusion.data.posterior import posterior_paths

PATHS = 40  # of each digit, behind a mean


def best_possible(dataset: MovingMNIST, indices: Sequence[int], num_given: int) -> dict[str, NDArray[np.uint8]]:
    """A sample of the posterior of each clip, and its mean, given the first frames.

    Args:
        dataset: classic Moving MNIST.
        indices: numbers of its clips, `[n]`; a clip's posterior depends on its own number only.
        num_given: k ≥ 1.

    Returns:
        `best_sample` and `best_mean`, uint8 `[n, F, H, W, 1]`, the true given frames in front.

    Raises:
        ValueError: where the dataset is another variant, or k < 1.
    """
    if dataset.variant != "classic" or num_given < 1:
        raise ValueError(f"`dataset` is {dataset.variant} with {num_given} given frames, expected classic with some.")
    truth, chosen, positions, _ = dataset._draw(np.asarray(indices))
    found: dict[str, list[NDArray[np.uint8]]] = {"best_sample": [], "best_mean": []}
    span, frames = dataset.image_size - dataset.pixels_per_digit, dataset.num_frames
    for row, index in enumerate(indices):
        rng = np.random.default_rng([dataset.seed, int(index), num_given])
        paths = [
            posterior_paths(places[:num_given], frames, PATHS, span, rng, dataset.step) for places in positions[row]
        ]
        digits = np.repeat(dataset.source.images[chosen[row]][None], PATHS, axis=0)
        clips = render(digits, np.stack(paths, axis=1), dataset.image_size)
        for name, future in (("best_sample", clips[0]), ("best_mean", clips.mean(0).round().astype(np.uint8))):
            found[name].append(np.concatenate([truth[row, :num_given], future[num_given:]])[..., None])
    return {name: np.stack(clips) for name, clips in found.items()}
