"""A VAE of each class that latents are tested with: random weights, as few as the class allows."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch

_DOWN, _UP = ["DownEncoderBlock2D"] * 2, ["UpDecoderBlock2D"] * 2
_IMAGE = {"down_block_types": _DOWN, "up_block_types": _UP, "block_out_channels": (4, 4), "norm_num_groups": 2}
_LTX = {
    "latent_channels": 4,
    "block_out_channels": (4, 4),
    "decoder_block_out_channels": (4, 4),
    "layers_per_block": (1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1),
    "patch_size": 2,
}
_WAN = {"base_dim": 4, "z_dim": 2, "dim_mult": [1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [True, True]}
_MOMENTS = {"latents_mean": [0.1, -0.2], "latents_std": [0.5, 2.0]}
_HUNYUAN = {"latent_channels": 4, "layers_per_block": 1, "temporal_compression_ratio": 4}

# The class, the arguments of its constructor, and what it does to a clip: spatial and temporal compression.
TINY: dict[str, tuple[dict[str, Any], int, int]] = {
    "AutoencoderKL": (_IMAGE | {"latent_channels": 2, "shift_factor": 0.3}, 2, 1),
    "AutoencoderTiny": (
        {
            "encoder_block_out_channels": (4, 4),
            "decoder_block_out_channels": (4, 4),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
            "latent_channels": 2,
            "scaling_factor": 1.5,
        },
        2,
        1,
    ),
    "AsymmetricAutoencoderKL": (
        {
            "down_block_types": _DOWN,
            "up_block_types": _UP,
            "down_block_out_channels": (4, 4),
            "up_block_out_channels": (4, 4),
            "norm_num_groups": 2,
            "latent_channels": 2,
        },
        2,
        1,
    ),
    "AutoencoderDC": (
        {
            "latent_channels": 4,
            "attention_head_dim": 4,
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), ()),
            "decoder_qkv_multiscales": ((), ()),
            "scaling_factor": 0.4,
        },
        2,
        1,
    ),
    "VQModel": (_IMAGE | {"latent_channels": 2, "num_vq_embeddings": 8}, 2, 1),
    "AutoencoderKLTemporalDecoder": (
        {"down_block_types": _DOWN, "block_out_channels": (32, 32), "latent_channels": 2},
        2,
        1,
    ),
    "AutoencoderKLWan": (_WAN | _MOMENTS, 4, 4),
    "AutoencoderKLQwenImage": (_WAN | _MOMENTS, 4, 4),
    "AutoencoderKLLTXVideo": (
        _LTX
        | {
            "down_block_types": ("LTXVideoDownBlock3D",) * 2,
            "spatio_temporal_scaling": (True, False),
            "decoder_spatio_temporal_scaling": (True, False),
            "decoder_inject_noise": (False,) * 3,
            "downsample_type": ("conv",) * 2,
            "upsample_residual": (False,) * 2,
            "upsample_factor": (1, 1),
            "timestep_conditioning": True,
            "scaling_factor": 0.7,
        },
        4,
        2,
    ),
    "AutoencoderKLLTX2Video": (
        _LTX
        | {
            "down_block_types": ("LTX2VideoDownBlock3D",) * 2,
            "spatio_temporal_scaling": (True, True),
            "decoder_spatio_temporal_scaling": (True, True),
            "decoder_inject_noise": (False,) * 3,
            "downsample_type": ("spatial", "temporal"),
            "upsample_type": ("temporal", "spatial"),
            "upsample_residual": (True,) * 2,
            "upsample_factor": (1, 1),
            "spatial_compression_ratio": 4,
            "temporal_compression_ratio": 2,
        },
        4,
        2,
    ),
    "AutoencoderKLCogVideoX": (
        {
            "down_block_types": ("CogVideoXDownBlock3D",) * 4,
            "up_block_types": ("CogVideoXUpBlock3D",) * 4,
            "block_out_channels": (4, 4, 4, 4),
            "latent_channels": 2,
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "temporal_compression_ratio": 4,
        },
        8,
        4,
    ),
    "AutoencoderKLHunyuanVideo": (
        _HUNYUAN | {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2},
        8,
        4,
    ),
    "AutoencoderKLHunyuanVideo15": (
        _HUNYUAN | {"block_out_channels": (16, 16, 16, 16, 16), "spatial_compression_ratio": 16},
        16,
        4,
    ),
    "AutoencoderKLMochi": (
        {
            "latent_channels": 2,
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
            "latents_mean": (0.1, -0.2),
            "latents_std": (0.5, 2.0),
            "scaling_factor": 0.8,
        },
        8,
        6,
    ),
    "AutoencoderKLMagvit": (
        {
            "latent_channels": 2,
            "block_out_channels": (8, 8, 8, 8),
            "down_block_types": ["SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3],
            "up_block_types": ["SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3],
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "spatial_group_norm": False,
        },
        8,
        4,
    ),
    "AutoencoderKLCosmos": (
        {
            "latent_channels": 2,
            "encoder_block_out_channels": (8, 8, 8, 8),
            "decode_block_out_channels": (8, 8, 8, 8),
            "num_layers": 1,
            "resolution": 64,
            "attention_resolutions": (4,),
            "patch_size": 2,
            "spatial_compression_ratio": 8,
            "temporal_compression_ratio": 4,
            "latents_mean": [0.1, -0.2],
            "latents_std": [0.5, 2.0],
        },
        8,
        4,
    ),
    "AutoencoderKLKVAEVideo": (
        {"ch": 32, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1, "z_channels": 2},
        8,
        4,
    ),
    "AutoencoderKLKVAE": (
        {"channels": 32, "num_enc_blocks": 1, "num_dec_blocks": 1, "z_channels": 2, "ch_mult": (1, 1)},
        2,
        1,
    ),
    "AutoencoderKLHunyuanImage": (
        {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "block_out_channels": (32, 32),
            "layers_per_block": 1,
            "spatial_compression_ratio": 2,
            "sample_size": 32,
            "scaling_factor": 0.75,
        },
        2,
        1,
    ),
}


def tiny_vae(name: str, **changes: Any) -> Any:
    """The VAE of that class, `changes` in its config."""
    torch.manual_seed(0)
    make: Callable[..., Any] = getattr(diffusers, name, None) or getattr(diffusers.models.autoencoders, name)
    return make(**TINY[name][0] | changes).eval()
