"""The exported graphs against the networks, and the exported table against diffusers' own loop."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from denoisers import TRANSFORMER
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.cli import main
from video_diffusion.hub.onnx import export_onnx, sampler_table
from video_diffusion.model.guidance import guidance_embedding
from video_diffusion.training.text import small_bert

SMALL = TRANSFORMER | {"transformer_layers": 1}


@pytest.fixture(scope="module")
def pipeline(module_denoiser):
    encoder, tokenizer = small_bert(16)
    scheduler = VPContinuousScheduler(shift=2.0, prediction_type="sample")
    return VideoDiffusionPipeline(module_denoiser, scheduler, encoder.eval(), tokenizer)


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
    with torch.no_grad():
        states = pipeline.text_encoder(ids, attention_mask=mask.long()).last_hidden_state
        text = {"encoder_hidden_states": states, "attention_mask": mask}
        expected = pipeline.unet(clips, times, **text).sample
    read = session(exported["text_encoder"]).run(
        None, {"input_ids": ids.numpy(), "attention_mask": mask.long().numpy()}
    )[0]
    np.testing.assert_allclose(read, states.numpy(), atol=5e-3)  # weights are stored in half precision
    feed = {"sample": clips, "timestep": times, **text}
    made = session(exported["unet"]).run(None, {name: value.numpy() for name, value in feed.items()})[0]
    assert np.abs(expected.numpy()).max() > 0.1
    np.testing.assert_allclose(made, expected.numpy(), atol=5e-3)


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


def test_a_distilled_model_is_exported_with_its_guidance_and_its_step(make_denoiser, tmp_path):
    reading = {"cross_attention_dim": 8, "cross_attention_every": 1, "time_cond_proj_dim": 16}
    network = make_denoiser(in_channels=3, **reading, **SMALL)
    scheduler = VPContinuousScheduler(shift=2.0, prediction_type="sample", deterministic=True)
    files = export_onnx(VideoDiffusionPipeline(network, scheduler), tmp_path, calls=(4,))
    generator = torch.Generator().manual_seed(0)
    feed = {"sample": torch.randn(2, 3, 3, 16, 16, generator=generator), "timestep": torch.tensor([900.0, 250.0])}
    feed |= {"encoder_hidden_states": torch.randn(2, 5, 8, generator=generator)}
    feed |= {"attention_mask": torch.ones(2, 5, dtype=torch.bool)}
    scale = torch.tensor([1.0, 3.5])
    with torch.no_grad():
        expected = network(**feed, timestep_cond=guidance_embedding(scale, 16)).sample
        other = network(**feed, timestep_cond=guidance_embedding(scale + 1, 16)).sample
    feed["guidance_scale"] = scale
    made = session(files["unet"]).run(None, {name: value.numpy() for name, value in feed.items()})[0]
    np.testing.assert_allclose(made, expected.numpy(), atol=5e-3)
    assert np.abs(made - other.numpy()).max() > 0.02
    table = json.loads(files["sampler"].read_text())
    assert (table["solver_order"], table["reads_guidance"]) == (1, True)
    row = table["steps"]["4"]
    assert row["timesteps"] == [1000, 750, 500, 250]
    scheduler.set_timesteps(4)
    x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    z = x.numpy()
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(torch.tanh(0.5 * x + t / 1000), t, x, return_dict=False)[0]
        half, alpha, sigma = row["logsnr_half"], row["alpha"], row["sigma"]
        shrink = -1.0 if half[i + 1] is None else np.expm1(half[i] - half[i + 1])
        z = sigma[i + 1] / sigma[i] * z - alpha[i + 1] * shrink * np.tanh(0.5 * z + row["timesteps"][i] / 1000)
    np.testing.assert_allclose(z, x.numpy(), atol=2e-4)  # ours ends at λ = 20, the table at infinity


def test_the_table_says_what_a_loop_must_know(pipeline):
    table = sampler_table(pipeline, (4,))
    assert (table["solver_order"], table["reads_guidance"]) == (2, False)
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
