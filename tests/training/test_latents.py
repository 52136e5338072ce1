"""Training in latents: built once or encoded in each step, what is refused, and the pipeline at the end."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vaes import tiny_vae
from video_diffusion import VideoDiffusionPipeline
from video_diffusion.cli import main as video_diffusion
from video_diffusion.data.video_io import write_gif, write_mp4
from video_diffusion.training import command
from video_diffusion.training.batches import StepBatches, open_source, to_model
from video_diffusion.training.latents import LatentClips, LatentStore, vae_digest
from video_diffusion.training.run import Run
from video_diffusion.training.train_arguments import parse_arguments

SHAPE = ["--num_frames", "5", "--image_size", "32"]
TINY = [
    *("--block_out_channels", "16", "16", "--patch_size", "2", "--norm_num_groups", "8", "--attention_head_dim", "8"),
    *("--lr_scheduler", "constant", "--warmup_steps", "0", "--validation_steps", "0", "--tracker", "none"),
    *("--per_device_batch_size", "2", "--max_steps", "3"),
]


def run(*flags):
    return command.main([*TINY, *SHAPE, *map(str, flags)])


def build(*flags):
    return video_diffusion(["latents", "build", *SHAPE, *map(str, flags)])


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    root = tmp_path_factory.mktemp("vaes")
    for name, of, changes in (
        ("wan", "AutoencoderKLWan", {}),
        ("other", "AutoencoderKLWan", {"latents_mean": [0.0, 0.0]}),
        ("image", "AutoencoderKL", {}),
    ):
        tiny_vae(of, **changes).save_pretrained(root / name)
    return root


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "own"
    rng = np.random.default_rng(0)
    for name in range(3):
        clip = np.repeat(rng.integers(0, 256, (9, 4, 4, 3), np.uint8), 8, axis=1).repeat(8, axis=2)
        write_mp4(clip, folder / f"{name}.mp4", scale=1)
    return folder


def test_latents_are_built_once_and_read_back_bit_for_bit(vaes, videos, capsys):
    flags = ("--vae", vaes / "wan", "--videos", videos, "--crop", "random", "--random_flip", "--windows", 2)
    assert build(*flags) == 0
    assert "2 × 2 × 8 × 8 (channels × frames × height × width)" in capsys.readouterr().out
    folder = videos.with_name("own-latents")
    assert sorted(file.name for file in folder.iterdir()) == ["latents-00000.safetensors", "latents.json"]
    data = parse_arguments([*SHAPE, "--videos", str(videos), "--crop", "random", "--random_flip"])[1]
    source = open_source(data, "train", 0)
    stored = LatentClips(LatentStore(folder), compressed=True)
    one, other = StepBatches(source, 2, 0, 1, 0, seed=0), StepBatches(stored, 2, 0, 1, 0, seed=0)
    arguments = parse_arguments([*TINY, *SHAPE, "--vae", str(vaes / "wan"), "--videos", str(videos), *flags[4:7]])
    learner = Run(arguments)
    for step in range(3):  # the first two epochs
        torch.testing.assert_close(
            learner.encoded(torch.as_tensor(one[step].clips)), learner.encoded(other[step].clips), rtol=0, atol=1e-5
        )
    assert torch.equal(other[0].clips, other[3].clips) is False  # another order in each epoch
    assert sorted(stored.draw(range(3), [0] * 3)[1]) == [0, 1, 2]
    assert np.array_equal(stored.draw([1], [0])[0], stored.draw([1], [2])[0])  # windows come again


def test_building_again_keeps_what_is_there_and_makes_what_is_missing(vaes, videos):
    flags = ("--vae", vaes / "wan", "--videos", videos, "--windows", 2)
    assert build(*flags) == 0
    shard = videos.with_name("own-latents") / "latents-00000.safetensors"
    before, content = shard.stat().st_mtime_ns, load_file(shard)
    assert build(*flags) == 0
    assert shard.stat().st_mtime_ns == before
    shard.unlink()
    assert run("--vae", vaes / "wan", "--videos", videos, "--output_dir", videos.with_name("run")) == 2
    assert build(*flags) == 0
    assert all(torch.equal(value, content[key]) for key, value in load_file(shard).items())


@pytest.mark.parametrize("built", [True, False])
def test_a_model_in_latents_becomes_a_pipeline_with_its_vae(vaes, videos, tmp_path, capsys, built):
    more = ("--vae", vaes / "wan", "--videos", videos)
    if built:
        assert build(*more) == 0
    out, images = tmp_path / "run", ("--num_images", 1, "--validation_steps", 3, "--validation_videos", 2)
    assert run(*more, *images, "--output_dir", out) == 0
    said = "".join(capsys.readouterr())
    assert ("are read from" in said) is built
    assert ("encoded in each step; `video-diffusion latents build`" in said) is not built
    assert "validation/one_call_1_to_4 " in said
    pipe = VideoDiffusionPipeline.from_pretrained(out)
    assert vae_digest(pipe.vae) == vae_digest(tiny_vae("AutoencoderKLWan"))
    assert pipe.unet.config.num_frames == 2
    assert not pipe.scheduler.config.clip_sample
    clip = pipe(num_inference_steps=2, output_type="np").frames[0]
    assert clip.shape == (5, 32, 32, 3)


def test_grey_clips_train_in_the_latents_of_an_image_vae_of_colours(vaes, digits, tmp_path):
    flags = ("--vae", vaes / "image", "--digits", digits, "--num_digits", 1)
    assert build(*flags, "--out", tmp_path / "latents", "--num_clips", 4) == 0
    more = ("--latents", tmp_path / "latents", "--text_encoder", "small-bert", "--num_images", 2)
    assert run(*flags, *more, "--output_dir", tmp_path / "run") == 0
    pipe = VideoDiffusionPipeline.from_pretrained(tmp_path / "run")
    assert pipe("the digit 3", num_inference_steps=1, output_type="np").frames[0].shape == (5, 32, 32, 1)


def test_independent_images_are_encoded_for_themselves(vaes, videos):
    arguments = parse_arguments([*TINY, *SHAPE, "--vae", str(vaes / "wan"), "--videos", str(videos)])
    learner, clips = Run(arguments), torch.randint(0, 256, (1, 7, 32, 32, 3), dtype=torch.uint8)
    latents = learner.encoded(clips, num_images=2)
    assert latents.shape == (1, 2, 4, 8, 8)
    alone = learner.space.encode(to_model(clips[:, 6:], "cpu"))
    torch.testing.assert_close(latents[:, :, 3:], alone)


def test_latents_of_another_vae_or_transform_are_refused_by_name(vaes, videos, tmp_path, capsys):
    assert build("--vae", vaes / "wan", "--videos", videos) == 0
    kinds = {
        (vaes / "other", ()): "holds latents of another VAE, a AutoencoderKLWan with hash",
        (vaes / "image", ()): "expected a AutoencoderKL with",
        (vaes / "wan", ("--frame_stride", 2)): "another transform: `frame_stride` 1, expected 2",
        (vaes / "wan", ("--seed", 5)): "another transform: `seed` 0, expected 5",
    }
    for (vae, more), message in kinds.items():
        assert run("--vae", vae, "--videos", videos, *more, "--output_dir", tmp_path / "run") == 2
        assert message in capsys.readouterr().err
        assert build("--vae", vae, "--videos", videos, *more) == 2
        assert message in capsys.readouterr().err
    write_gif(np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8), videos / "new.gif", scale=1)
    assert run("--vae", vaes / "wan", "--videos", videos, "--output_dir", tmp_path / "run") == 2
    assert "another transform: `found` '3 videos" in capsys.readouterr().err
    assert run("--vae", vaes / "wan", "--videos", videos, "--latents", "none", "--output_dir", tmp_path / "run") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--image_size", 20),
            "a height of 20, expected a multiple of 16, such as 16 or 32: 4 of `vae`, `patch_size` 2",
        ),
        (("--num_frames", 8), "`num_frames` is 8, expected 1 and a multiple of 4, such as 5 or 9"),
        (("--vae", "nowhere"), "`vae` is 'nowhere', expected a folder that exists, or a Hub id"),
        (("--vae", "."), "`vae` is the folder '.', expected one with the config.json of a VAE"),
        (("--latents", "nowhere"), "`latents` is 'nowhere', expected a folder of `video-diffusion latents build`"),
        (("--vae_tiling", "--vae", "TEMPORAL"), "`vae_tiling` is True, expected False"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(vaes, videos, tmp_path, capsys, flags, message):
    tiny_vae("AutoencoderKLTemporalDecoder").save_pretrained(tmp_path / "temporal")
    flags = [str(tmp_path / "temporal") if flag == "TEMPORAL" else flag for flag in flags]
    assert run("--vae", vaes / "wan", "--videos", videos, "--output_dir", tmp_path / "run", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_vae_inside_of_a_pipeline_serves_and_a_broken_one_is_named(vaes, videos, tmp_path, capsys):
    tiny_vae("AutoencoderKLWan").save_pretrained(tmp_path / "pipe" / "vae")
    assert build("--vae", tmp_path / "pipe", "--videos", videos, "--out", tmp_path / "latents") == 0
    assert json.loads((tmp_path / "latents" / "latents.json").read_text())["vae_class"] == "AutoencoderKLWan"
    weights = tmp_path / "pipe" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert build("--vae", tmp_path / "pipe", "--videos", videos, "--out", tmp_path / "latents") == 2
    assert "is broken or truncated" in capsys.readouterr().err
