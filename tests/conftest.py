"""Shared by the tests: a small denoiser with weights that hide nothing."""

import pytest
import torch


@pytest.fixture
def make_denoiser():
    """A function that makes a tiny denoiser on 16×16 pixels; zero-initialised weights become random."""
    from video_diffusion import VideoUNet3DConditionModel

    def make(randomise=True, seed=0, **changes):
        config = {
            "sample_size": 16,
            "num_frames": 4,
            "in_channels": 1,
            "out_channels": 1,
            "patch_size": 2,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "attention_head_dim": 8,
            "norm_num_groups": 4,
        }
        torch.manual_seed(seed)
        model = VideoUNet3DConditionModel(**config | changes)
        if randomise:
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        return model.eval()

    return make


@pytest.fixture(scope="module")
def module_denoiser():
    """A tiny denoiser with channels for given frames and a transformer that reads text of 128 channels."""
    from video_diffusion import VideoUNet3DConditionModel

    torch.manual_seed(0)
    model = VideoUNet3DConditionModel(
        sample_size=16,
        num_frames=4,
        patch_size=2,
        block_out_channels=(16, 32),
        layers_per_block=(1, 0),
        attention_head_dim=16,
        norm_num_groups=4,
        cross_attention_dim=128,
        temporal_shift=0.25,
        spatial_attention=False,
        temporal_attention=False,
        transformer_layers=3,
        attention_pattern=("joint", "space", "time"),
    )
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()
