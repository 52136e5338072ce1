"""Trainings from their flags to the pipeline, tiny: in this process, and in two of their own."""

import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from tiny_training import command_line, flags_of, in_own_process, scalars, train, weights
from video_diffusion import VideoDiffusionPipeline
from video_diffusion.cli import main as video_diffusion_command
from video_diffusion.data import MovingMNIST
from video_diffusion.data.builders import write_parquet
from video_diffusion.training import command, text, train_arguments
from video_diffusion.training.run import Run

ROOT = Path(__file__).parents[2]


def test_the_output_folder_is_a_pipeline(reference):
    pipe = VideoDiffusionPipeline.from_pretrained(reference)
    clip = pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").frames
    assert clip.shape == (1, 3, 1, 32, 32)
    assert torch.isfinite(clip).all()


def test_the_text_encoder_has_learned_and_the_pipeline_reads_prompts(digits, reference, tmp_path):
    flags = ("--max_steps", 1, "--per_device_batch_size", 1, "--learning_rate", 0, "--weight_decay", 0)
    assert train(digits, tmp_path, *flags) == 0
    new, learned = (load_file(folder / "text_encoder" / "model.safetensors") for folder in (tmp_path, reference))
    key = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(new[key], learned[key])
    pipe = VideoDiffusionPipeline.from_pretrained(reference)
    kwargs = {"num_inference_steps": 1, "output_type": "latent", "return_dict": False}
    one, other, free = (
        pipe(prompt, generator=torch.Generator().manual_seed(0), **kwargs)[0]
        for prompt in ("the digit 3 moves right", "a 7", None)
    )
    assert not torch.equal(one, other)
    assert not torch.equal(one, free)


def test_an_encoder_by_folder_is_frozen_and_saved_with_the_pipeline(digits, tmp_path, capsys):
    encoder, tokenizer = text.small_bert(16)
    encoder.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    flags = ("--text_encoder", tmp_path / "encoder", "--max_steps", 2, "--per_device_batch_size", 1)
    assert train(digits, tmp_path / "run", *flags) == 0
    saved = load_file(tmp_path / "run" / "text_encoder" / "model.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in encoder.state_dict().items())
    assert train(digits, tmp_path / "other", *flags, "--max_text_length", 99) == 2
    assert "`max_text_length` is 99, expected at most 16" in capsys.readouterr().err


def test_a_run_starts_from_the_weights_of_a_pipeline(digits, reference, tmp_path, capsys):
    flags = ("--pretrained_model_name_or_path", reference, "--learning_rate", 0, "--weight_decay", 0)
    assert train(digits, tmp_path / "run", "--max_steps", 1, "--per_device_batch_size", 1, *flags) == 0
    expected, got = weights(reference), weights(tmp_path / "run")
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert train(digits, tmp_path / "other", *flags, "--patch_size", 4) == 2
    assert "`patch_size` is 4, expected 8" in capsys.readouterr().err


def test_a_built_dataset_trains(digits, tmp_path, capsys):
    videos = MovingMNIST(split="test", num_frames=4, image_size=32, num_digits=1, digits=str(digits), num_videos=6)
    write_parquet(tmp_path / "videos", videos)
    flags = ["--dataset_name", tmp_path / "videos", "--train_split", "test", "--validation_steps", "1"]
    flags += ["--caption_column", "labels"]  # a column of any type is read as text
    assert train(digits, tmp_path / "run", "--max_steps", 2, "--per_device_batch_size", 4, *flags) == 0
    assert "validation/generation" in "".join(capsys.readouterr())


def test_a_dataset_without_videos_is_refused_by_name(tmp_path, capsys):
    datasets.Dataset.from_dict({"image": [0, 1]}).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert command.main(["--dataset_name", str(tmp_path), "--output_dir", str(tmp_path / "none")]) == 2
    assert "expected one named 'video'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_dry_run_reports_and_writes_nothing(digits, tmp_path, capsys):
    assert train(digits, tmp_path / "none", "--dry_run", "--per_device_batch_size", 1) == 0
    said = capsys.readouterr().out
    for line in (
        "parameters",
        "clips per step",
        "peak memory",
        "GFLOP a clip",
        "of what one large matrix product reaches here",
        '"patch_size": 8',
    ):
        assert line in said
    assert not (tmp_path / "none").exists()


def test_the_package_trains_by_its_command_and_returns_the_exit_code(digits, tmp_path, capsys):
    flags = flags_of(digits, tmp_path, "--max_steps", 1, "--per_device_batch_size", 1, "--tracker", "none")
    assert video_diffusion_command(["train", *flags, "--part_minutes", "0"]) in (0, 3)
    assert video_diffusion_command(["train", *flags]) == 0
    assert f"Trained 1 steps; the pipeline is in {tmp_path}." in capsys.readouterr().out
    assert video_diffusion_command(["train", "--max_stepps", "1"]) == 2
    assert "train: `--max_stepps` is no argument; the nearest name is --max_steps" in capsys.readouterr().err


def test_two_processes_give_the_loss_curve_of_one_with_twice_the_batch(digits, reference, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    flags = ("--max_steps", 6, "--per_device_batch_size", 2)
    result = in_own_process(command_line(digits, tmp_path, *flags, launcher=launcher))
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(scalars(tmp_path), scalars(reference), rtol=1e-5)
    expected, got = weights(reference), weights(tmp_path)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=2e-5)


def test_sharded_weights_train_as_whole_ones_do_and_resume(digits, reference, tmp_path):
    """The configuration for FSDP, on two processes without a GPU; stopped after three steps of six."""
    config = ["--config_file", str(ROOT / "training" / "accelerate" / "fsdp.yaml"), "--num_processes", "2"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *config, "--mixed_precision", "no"]
    script = str(ROOT / "tests" / "support" / "sharded_training.py")
    words = command_line(digits, tmp_path, "--per_device_batch_size", 2, launcher=launcher, script=script)
    result = in_own_process(words)
    assert result.returncode == 0, result.stderr
    assert f"goes on from {tmp_path / 'checkpoint-3'}" in result.stderr
    assert scalars(tmp_path) == pytest.approx(scalars(reference), rel=1e-5)
    expected, got = weights(reference), weights(tmp_path)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=2e-5)


def test_sharded_weights_refuse_an_optimiser_of_whole_matrices(digits, monkeypatch, tmp_path):
    monkeypatch.setattr("accelerate.Accelerator.distributed_type", property(lambda self: DistributedType.FSDP))
    with pytest.raises(ValueError, match="`optimizer` is 'muon', expected adamw where weights are sharded"):
        Run(train_arguments.parse_arguments(flags_of(digits, tmp_path, "--optimizer", "muon")))
