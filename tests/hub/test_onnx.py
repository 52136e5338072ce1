"""The exported graphs against the networks, and the exported table against diffusers' own loop."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from denoisers import READING, tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.cli import main
from video_diffusion.hub.onnx import export_onnx, sampler_table
from video_diffusion.model.guidance import guidance_embedding
from video_diffusion.training.text import small_bert


@pytest.fixture(scope="module")
def pipeline():
    """One that has every input: text, given frames, and a scale of guidance, as after distillation."""
    network = tiny_denoiser(**READING, time_cond_proj_dim=16)
    encoder, tokenizer = small_bert(16)
    scheduler = VPContinuousScheduler(shift=2.0, prediction_type="sample")
    return VideoDiffusionPipeline(network, scheduler, encoder.eval(), tokenizer)


@pytest.fixture(scope="module")
def exported(pipeline, tmp_path_factory):
    """What the command writes of a model, whatever its usual sampler."""
    out = tmp_path_factory.mktemp("onnx")
    pipeline.generation_config = {"sampler": "dpm++"}
    pipeline.save_pretrained(out / "tiny")
    assert main(["export", "onnx", "--model", str(out / "tiny"), "--out", str(out / "files")]) == 0
    files = {file.stem: file for file in (out / "files").iterdir()}
    assert files.keys() == {"unet", "text_encoder", "sampler"}
    return files


def session(file):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("batch", "frames", "length"), [(2, 4, 16), (1, 7, 5), (3, 2, 1)])
def test_the_graphs_give_what_the_networks_give(pipeline, exported, batch, frames, length):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (batch, length), generator=generator)
    mask = torch.arange(length)[None] <= torch.arange(batch)[:, None]  # another length of the text in each row
    clips = torch.randn(batch, 3, frames, 16, 16, generator=generator)
    times = torch.rand(batch, generator=generator) * 1000
    scale = 1 + 4 * torch.rand(batch, generator=generator)
    with torch.no_grad():
        states = pipeline.text_encoder(ids, attention_mask=mask.long()).last_hidden_state
        text = {"encoder_hidden_states": states, "attention_mask": mask}
        expected, other = (
            pipeline.unet(clips, times, timestep_cond=guidance_embedding(asked, 16), **text).sample
            for asked in (scale, scale + 1)
        )
    read = session(exported["text_encoder"]).run(
        None, {"input_ids": ids.numpy(), "attention_mask": mask.long().numpy()}
    )[0]
    np.testing.assert_allclose(read, states.numpy(), atol=5e-3)  # weights are stored in half precision
    feed = {"sample": clips, "timestep": times, **text, "guidance_scale": scale}
    made = session(exported["unet"]).run(None, {name: value.numpy() for name, value in feed.items()})[0]
    assert np.abs(expected.numpy()).max() > 0.1
    np.testing.assert_allclose(made, expected.numpy(), atol=5e-3)
    assert np.abs(made - other.numpy()).max() > 0.02


@pytest.mark.parametrize("calls", [1, 4, 20])
def test_a_loop_over_the_table_is_the_loop_of_diffusers(pipeline, exported, calls):
    """The dozen lines that another language needs, here in NumPy, with x\u0302 = a fixed function of x and t."""
    table = json.loads(exported["sampler"].read_text())
    row = table["steps"][str(calls)]
    solver = pipeline.scheduler.as_diffusers(DPMSolverMultistepScheduler)
    solver.set_timesteps(calls)
    x = start = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in solver.timesteps:
        x = solver.step(torch.tanh(0.5 * x + t / 1000), t, x, return_dict=False)[0]
    z, before = start.numpy(), None
    alpha, sigma, half = row["alpha"], row["sigma"], row["logsnr_half"]
    for i, t in enumerate(row["timesteps"]):
        now = np.tanh(0.5 * z + t / 1000)
        last = half[i + 1] is None
        shrink = -1.0 if last else np.expm1(half[i] - half[i + 1])
        guess = now
        if before is not None and not last:
            ratio = (half[i] - half[i - 1]) / (half[i + 1] - half[i])
            guess = now + (now - before) / (2 * ratio)
        z, before = sigma[i + 1] / sigma[i] * z - alpha[i + 1] * shrink * guess, now
    np.testing.assert_allclose(z, x.numpy(), atol=1e-5)


def test_the_step_of_a_distilled_model_is_of_first_order(pipeline):
    scheduler = VPContinuousScheduler(shift=2.0, prediction_type="sample", deterministic=True)
    assert sampler_table(VideoDiffusionPipeline(pipeline.unet, scheduler), (4,))["solver_order"] == 1


def test_a_model_that_was_not_distilled_reads_no_guidance(module_denoiser):
    assert (
        sampler_table(VideoDiffusionPipeline(module_denoiser, VPContinuousScheduler()), (4,))["reads_guidance"]
        is False
    )


def test_the_table_says_what_a_loop_must_know(pipeline):
    table = sampler_table(pipeline, (4,))
    assert (table["solver_order"], table["reads_guidance"]) == (2, True)
    assert (table["prediction_type"], table["in_channels"], table["out_channels"]) == ("sample", 3, 1)
    assert len(table["steps"]["4"]["timesteps"]) == 4
    assert table["steps"]["4"]["logsnr_half"][-1] is None
    assert table["steps"]["4"]["alpha"][-1] == 1


def test_the_network_is_as_it_was(pipeline, exported):
    assert all(parameter.requires_grad for parameter in pipeline.unet.parameters())
    assert pipeline.unet.dtype == torch.float32


@pytest.mark.parametrize("calls", [(), (0,), (True,), (2.0,)])
def test_what_is_no_number_of_calls_is_refused(pipeline, tmp_path, calls):
    with pytest.raises(ValueError, match=r"`calls` is .*, expected integers of at least 1"):
        export_onnx(pipeline, tmp_path, calls)


def test_another_scheduler_is_refused(pipeline, tmp_path):
    other = VideoDiffusionPipeline(pipeline.unet, DPMSolverMultistepScheduler())
    with pytest.raises(ValueError, match=r"`pipeline.scheduler` is a DPMSolver.*, expected a VPContinuousScheduler"):
        export_onnx(other, tmp_path)


def test_the_graphs_do_not_say_where_they_were_made(exported):
    here = str(Path(__file__).parents[2]).encode()
    assert not [file for file in exported.values() if here in file.read_bytes()]


def test_the_command_refuses_a_file_in_the_place_of_its_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["export", "onnx", "--out", str(tmp_path / "file")]) == 2
    assert "expected a folder" in capsys.readouterr().err
