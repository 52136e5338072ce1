"""Shared by the tests: a small denoiser with weights that hide nothing."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker has one core; threads that wait for each other would take it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from denoisers import TINY, tiny_denoiser


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
    return tiny_denoiser(
        layers_per_block=(1, 0),
        attention_head_dim=16,
        cross_attention_dim=128,
        temporal_shift=0.25,
        spatial_attention=False,
        temporal_attention=False,
        transformer_layers=3,
        attention_pattern=("joint", "space", "time"),
        in_channels=3,
    )
