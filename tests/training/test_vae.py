"""Training of a VAE, and all of it in a row: a VAE, a denoiser in its latents, a pipeline that makes a clip."""

import os
import subprocess
from pathlib import Path

import diffusers
import pytest
import torch

from tiny_training import scalars
from video_diffusion import VideoDiffusionPipeline
from video_diffusion.metrics.lpips import LPIPS
from video_diffusion.model.autoencoding import LatentSpace
from video_diffusion.training import command, vae

ROOT = Path(__file__).parents[2]
CLIPS = ["--num_frames", "5", "--image_size", "32", "--num_digits", "1"]
TINY = [
    *("--width", "4", "--latent_channels", "2", "--spatial_compression", "4", "--per_device_batch_size", "2"),
    *("--lr_scheduler", "constant", "--warmup_steps", "0", "--validation_videos", "4", "--log_steps", "1"),
]
IMAGE = ["--vae_class", "AutoencoderKL", "--temporal_compression", "1"]


def train(digits, output, *flags):
    return command.train_vae([*CLIPS, *TINY, "--digits", str(digits), "--output_dir", str(output), *map(str, flags)])


@pytest.mark.parametrize("flags", [IMAGE, []], ids=["by frame", "over time"])
def test_a_vae_learns_and_is_saved_as_diffusers_does_with_the_scale_of_its_latents(digits, tmp_path, flags):
    more = ("--max_steps", 10, "--validation_steps", 1, "--learning_rate", 0.005, "--ema_decay", 0.5)
    assert train(digits, tmp_path / "vae", *flags, *more) == 0
    losses, quality = scalars(tmp_path / "vae"), scalars(tmp_path / "vae", "validation/psnr")
    assert losses[-1] < losses[0]
    assert len(quality) == 10
    assert quality[-1] > quality[0]
    cls = diffusers.AutoencoderKL if flags else diffusers.AutoencoderKLWan
    space = LatentSpace(cls.from_pretrained(tmp_path / "vae"))
    assert (space.spatial, space.temporal, space.channels, space.pixel_channels) == (4, 1 if flags else 4, 2, 1)
    run = vae.VaeRun(vae.parse_vae([*CLIPS, *TINY, *flags, "--digits", str(digits), "--tracker", "none"]))
    latents = torch.cat([space.encode(x) for x in run._clips(run.train_source)])
    assert latents.mean().abs() < 0.05
    assert (latents.std() - 1).abs() < 0.1


def test_stopping_and_going_on_changes_no_bit(digits, tmp_path):
    assert train(digits, tmp_path / "straight", *IMAGE, "--max_steps", 3, "--validation_steps", 0) == 0
    more = ("--max_steps", 3, "--validation_steps", 0, "--checkpointing_steps", 1)
    assert train(digits, tmp_path / "parts", *IMAGE, *more, "--part_minutes", 0) == 3
    assert train(digits, tmp_path / "parts", *IMAGE, *more) == 0
    one, other = (diffusers.AutoencoderKL.from_pretrained(tmp_path / name) for name in ("straight", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.config.scaling_factor == other.config.scaling_factor


def test_lpips_pulls_on_the_weights_where_it_is_asked_for(digits, tmp_path, monkeypatch):
    def untrained(**kwargs):
        torch.manual_seed(0)
        network = LPIPS()
        for head in network.heads:
            head.data.fill_(1.0)
        return network.requires_grad_(False)

    monkeypatch.setattr(LPIPS, "from_pretrained", untrained)
    flags = [*CLIPS, *TINY, *IMAGE, "--digits", str(digits), "--tracker", "none", "--output_dir", str(tmp_path)]
    losses = {}
    for weight in ("0", "1"):
        run = vae.VaeRun(vae.parse_vae([*flags, "--lpips_weight", weight]))
        loss = run.loss(run.batches[0], 0)[0]
        loss.backward()
        losses[weight] = loss.item()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in run.learner.parameters())
    assert losses["1"] > losses["0"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*IMAGE[:2],), "`temporal_compression` is 4, expected 1: AutoencoderKL takes frame by frame"),
        (("--image_size", 30), "`image_size` gives a height of 30, expected a multiple of 4, such as 28 or 32"),
        (("--num_frames", 6), "`num_frames` is 6, expected 1 and a multiple of 4, such as 5 or 9"),
        (("--num_images", 2), "`num_images` is 2, expected 0"),
        (("--spatial_compression", 2), "`temporal_compression` is 4, expected at most `spatial_compression`, 2"),
        (("--text_encoder", "small-bert"), "`--text_encoder` is no argument"),
        (("--vae_class", "AutoencoderTiny"), "`vae_class` is 'AutoencoderTiny', expected one of AutoencoderKL,"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(digits, tmp_path, capsys, flags, message):
    assert train(digits, tmp_path / "vae", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "vae").exists()


def test_the_recipe_trains_a_vae_then_a_denoiser_and_its_pipeline_makes_a_clip(digits, tmp_path):
    """The shell runs the recipe with stand-ins that note what they are asked; that is then done here, at tiny size."""
    for name in ("python", "trainer", "video-diffusion"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $@" >> {tmp_path / "asked"}\n')
        (tmp_path / name).chmod(0o755)
    runs = tmp_path / "runs"
    environment = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SCALE": "tiny-cpu",
        "OUT": str(runs),
        "TRAIN": "trainer",
        "VAE_FLAGS": "--seed 5",
    }
    recipe = ["bash", str(ROOT / "training" / "recipes" / "moving-mnist-latents.sh"), "--seed", "6"]
    done = subprocess.run(recipe, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert [words[0] for words in asked] == ["python", "trainer", "video-diffusion"]
    assert asked[0][1] == "training/train_vae.py"
    small = ["--digits", str(digits), "--max_steps", "2", "--per_device_batch_size", "1", "--tracker", "none"]
    small += ["--image_size", "32", "--num_frames", "5", "--validation_videos", "2"]
    assert command.train_vae([*asked[0][2:], *small, "--width", "4"]) == 0
    small += ["--block_out_channels", "64", "64", "--transformer_layers", "1", "--validation_steps", "0"]
    assert command.main([*asked[1][1:], *small]) == 0
    pipe = VideoDiffusionPipeline.from_pretrained(runs / "tiny-cpu-latents")
    space = LatentSpace(pipe.vae)
    assert (space.temporal, space.spatial) == (4, 8)
    clip = pipe("the digit 3", num_inference_steps=2, output_type="np").frames[0]
    assert clip.shape == (5, 32, 32, 1)
