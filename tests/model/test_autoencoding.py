"""Latents of the VAE classes of diffusers: sizes, scales, refusals. docs/latents.md has a row for each class here."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from vaes import TINY, tiny_vae
from video_diffusion.model.autoencoding import FrameGrid, LatentSpace, check_vae, save_memory

DOCS = Path(__file__).parents[2] / "docs" / "latents.md"


def clip(space, latent_frames, batch=1, channels=3, edge=32):
    torch.manual_seed(1)
    return torch.rand(batch, channels, space.grid.start(latent_frames), edge, edge) * 2 - 1


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_a_clip_goes_to_latents_of_the_said_size_and_back(name):
    vae, (_, spatial, temporal) = tiny_vae(name), TINY[name]
    check_vae(vae)
    space, seen = LatentSpace(vae), []
    assert (space.spatial, space.temporal) == (spatial, temporal)
    frames = 3 if space.is_video else 2
    x = clip(space, frames, batch=2, edge=max(32, 2 * spatial))
    latents = space.encode(x, rows=3)
    assert latents.shape == (2, *space.shape(*x.shape[2:]))
    assert latents.isfinite().all()
    decode = vae.decode
    vae.decode = lambda z, *args, **kwargs: seen.append(z) or decode(z, *args, **kwargs)
    space._decodes_clips = name == "AutoencoderKLTemporalDecoder"  # the stand-in has no signature
    assert space.decode(latents).shape == x.shape
    encoded = torch.cat([space._encode(part) for part in (x if space.is_video else by_frame(x)).split(1)])
    came = torch.cat(seen)
    came = by_frame(came) if came.ndim > encoded.ndim else came
    torch.testing.assert_close(came, encoded, atol=1e-4, rtol=1e-4)  # scaled and unscaled: what the encoder gave


def by_frame(x):
    return x.transpose(1, 2).flatten(0, 1)


def test_the_table_of_the_docs_has_these_classes_and_factors():
    rows = re.findall(r"^\| `(\w+)` \| (\d+) × (\d+) × (\d+) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, *_ in rows] == [*TINY]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AutoencoderKL", lambda z: (z - 0.3) * 0.18215),
        ("AutoencoderTiny", lambda z: z * 1.5),
        ("AutoencoderKLWan", lambda z: (z - per_channel(0.1, -0.2)) / per_channel(0.5, 2.0)),
        ("AutoencoderKLMochi", lambda z: (z - per_channel(0.1, -0.2)) * 0.8 / per_channel(0.5, 2.0)),
    ],
)
def test_latents_are_scaled_as_the_config_says(name, expected):
    z = torch.randn(2, 2, 3, 4, 4)
    torch.testing.assert_close(LatentSpace(tiny_vae(name)).scale(z), expected(z))


def per_channel(*values):
    return torch.tensor(values)[None, :, None, None, None]


def test_ltx_scales_by_the_moments_among_its_weights():
    vae = tiny_vae("AutoencoderKLLTXVideo")
    vae.latents_mean.copy_(torch.arange(4.0))
    vae.latents_std.fill_(2.0)
    z = torch.randn(1, 4, 2, 3, 3)
    torch.testing.assert_close(LatentSpace(vae).scale(z), (z - per_channel(0, 1, 2, 3)) * 0.7 / 2)


@torch.no_grad()
def test_grey_clips_are_repeated_to_rgb_and_come_back_grey():
    space = LatentSpace(tiny_vae("AutoencoderKL"))
    x = clip(space, 2, channels=1)
    latents = space.encode(x)
    torch.testing.assert_close(latents, space.encode(x.repeat(1, 3, 1, 1, 1)))
    back = space.decode(latents, channels=1)
    torch.testing.assert_close(back, space.decode(latents).mean(1, keepdim=True))
    with pytest.raises(ValueError, match="`clips` have 2 channels, expected 3"):
        space.encode(x.repeat(1, 2, 1, 1, 1))


@pytest.mark.parametrize("name", ["AutoencoderKLWan", "AutoencoderKLHunyuanVideo", "AutoencoderKLLTXVideo"])
@torch.no_grad()
def test_the_first_frames_of_a_clip_have_the_latents_that_they_have_in_the_whole_clip(name):
    space = LatentSpace(tiny_vae(name))
    x = clip(space, 3)
    whole, known = space.encode(x), space.grid.start(2)
    frames = x.transpose(1, 2)[:, :known]
    runs = space.encode_runs(frames, range(known))
    assert [*runs] == [0, 1]
    if name != "AutoencoderKLHunyuanVideo":  # its normalisation looks at all frames
        torch.testing.assert_close(torch.stack([*runs.values()], 2), whole[:, :, :2], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_frames_after_a_gap_are_encoded_as_after_a_still():
    space = LatentSpace(tiny_vae("AutoencoderKLWan"))
    x = clip(space, 3).transpose(1, 2)
    runs = space.encode_runs(x[:, [0, 5, 6, 7, 8]], [0, 5, 6, 7, 8])
    assert [*runs] == [0, 2]
    still = space.encode(x[:, [5, 5, 6, 7, 8]].transpose(1, 2))
    torch.testing.assert_close(runs[2], still[:, :, 1])


def test_frame_counts_and_sizes_that_do_not_fit_are_refused_with_those_that_do():
    wan, cog = (LatentSpace(tiny_vae(f"AutoencoderKL{name}")) for name in ("Wan", "CogVideoX"))
    with pytest.raises(ValueError, match="`num_frames` is 8, expected 1 and a multiple of 4, such as 5 or 9"):
        wan.encode(torch.zeros(1, 3, 8, 32, 32))
    with pytest.raises(ValueError, match="`num_frames` is 5, expected 1 and a multiple of 8, such as 1 or 9"):
        cog.shape(5, 32, 32)
    with pytest.raises(ValueError, match="`height` is 30, expected a multiple of 4, the VAE's factor"):
        wan.shape(5, 30, 32)
    assert wan.shape(9, 32, 16) == (2, 3, 8, 4)


def test_a_grid_knows_which_frames_a_latent_frame_stands_for():
    grid = FrameGrid(4)
    assert [[*grid.frames(place)] for place in range(3)] == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert [grid.place(frame) for frame in range(9)] == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert [grid.length(n) for n in (1, 5, 9)] == [1, 2, 3]
    assert [FrameGrid().length(n) for n in (1, 2, 3)] == [1, 2, 3]


def test_slicing_and_tiling_are_switched_on_or_refused():
    vae = tiny_vae("AutoencoderKL")
    save_memory(vae, slicing=True, tiling=True)
    assert vae.use_slicing
    assert vae.use_tiling
    with pytest.raises(ValueError, match="`vae_tiling` is True, expected False: a AutoencoderKLTemporalDecoder"):
        save_memory(tiny_vae("AutoencoderKLTemporalDecoder"), tiling=True)


def test_what_is_no_vae_of_pictures_is_refused():
    with pytest.raises(ValueError, match="`vae` is a Linear, expected an autoencoder of diffusers"):
        check_vae(nn.Linear(1, 1))
    sound = type("AutoencoderOobleck", (nn.Module,), {})()
    with pytest.raises(ValueError, match="it is of sound"):
        check_vae(sound)
