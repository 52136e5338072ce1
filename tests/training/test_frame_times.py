"""Training with a time for each frame, from its flags to a pipeline that predicts."""

import json

import pytest
import torch

import tiny_training
from denoisers import tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.hub.onnx import check_exportable
from video_diffusion.training import command

FLAGS = ("--given_frames", "time", "--max_steps", 2, "--per_device_batch_size", 4)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("by_time") / "run"
    flags = ("--frame_noise", 0.5, "--validation_steps", 2, "--validation_videos", 4, "--checkpointing_steps", 1)
    assert tiny_training.train(digits, output, *FLAGS, *flags) == 0
    return output


def test_the_network_has_no_channels_for_given_frames_and_predicts(trained):
    pipe = VideoDiffusionPipeline.from_pretrained(trained)
    assert (pipe.unet.config.in_channels, pipe.unet.config.frame_timesteps) == (1, True)
    pipe.set_progress_bar_config(disable=True)
    video = torch.rand(1, 2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    made = pipe(video=video, num_inference_steps=2, output_type="pt", noise_pyramid=1.0).frames
    assert made.shape == (1, 3, 1, 32, 32)
    assert torch.equal(made[:, :2], video)


def test_validation_and_resuming_know_it(trained, digits, tmp_path, capsys):
    assert tiny_training.scalars(trained, "validation/prediction")[0] > 0
    assert tiny_training.scalars(trained, "validation/one_call_1_to_2")[0] > 0
    assert json.loads((trained / "run.json").read_text())["given_frames"] == "time"
    whole = tiny_training.weights(trained)
    other = tmp_path / "run"
    flags = ("--frame_noise", 0.5, "--checkpointing_steps", 1)
    assert tiny_training.train(digits, other, *FLAGS[:2], "--max_steps", 1, *FLAGS[4:], *flags) == 0
    assert tiny_training.train(digits, other, *FLAGS, *flags) == 0
    assert all(torch.equal(whole[name], value) for name, value in tiny_training.weights(other).items())
    assert tiny_training.train(digits, other, *FLAGS[2:], *flags[2:]) == 2
    assert "`given_frames` is 'channels', expected 'time'" in capsys.readouterr().err


def test_a_share_of_frames_with_own_times_is_refused_where_it_would_be_ignored(digits, tmp_path, capsys):
    assert tiny_training.train(digits, tmp_path / "run", "--frame_noise", 0.5) == 2
    assert "`frame_noise` is 0.5, expected none without `given_frames` time" in capsys.readouterr().err


def test_what_it_cannot_do_yet_says_so(trained, digits, tmp_path, capsys):
    pipe = VideoDiffusionPipeline(
        tiny_denoiser(in_channels=1, frame_timesteps=True), VPContinuousScheduler(prediction_type="sample")
    )
    with pytest.raises(ValueError, match=r"`pipeline.unet` has a time for each frame, expected one for a clip"):
        check_exportable(pipe, (4,))
    words = ["--pretrained_model_name_or_path", str(trained), "--output_dir", str(tmp_path / "student")]
    assert command.distill([*words, "--digits", str(digits)]) == 2
    assert "which has a time for each frame, expected one for a clip" in capsys.readouterr().err
