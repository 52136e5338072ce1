"""Changes to the tiny denoiser of `make_denoiser` that give it the other kind of middle, and both as a parameter."""

import pytest

TRANSFORMER = {
    "block_out_channels": (16, 32),
    "layers_per_block": (1, 0),
    "attention_head_dim": 16,
    "spatial_attention": False,
    "temporal_attention": False,
    "temporal_shift": 0.5,
    "transformer_layers": 4,
}
MIDDLES = pytest.mark.parametrize("middle", [{}, TRANSFORMER], ids=["block", "transformer"])
