"""Shared by the tests: a small denoiser with weights that hide nothing."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker has one core; threads that wait for each other would take it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from denoisers import READING, TINY, tiny_denoiser


@pytest.fixture
def make_denoiser():
    """A function that makes a tiny denoiser on 16×16 pixels; zero-initialised weights become random."""
    from video_diffusion import VideoUNet3DConditionModel

    def make(randomise=True, seed=0, **changes):
        if randomise:
            return tiny_denoiser(seed, **changes)
        torch.manual_seed(seed)
        return VideoUNet3DConditionModel(**TINY | changes).eval()

    return make


@pytest.fixture(scope="module")
def module_denoiser():
    """A tiny denoiser with channels for given frames and a transformer that reads text of 128 channels."""
    return tiny_denoiser(**READING)
