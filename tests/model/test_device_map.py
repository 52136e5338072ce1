"""`device_map` of `VideoDiffusionPipeline.from_pretrained`, as diffusers has it, as far as a CPU can tell."""

import pytest
import torch

from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.hub import loading

accelerate = pytest.importorskip("accelerate")


@pytest.fixture
def folder(make_denoiser, tmp_path):
    unet = make_denoiser(in_channels=3, sample_size=8, block_out_channels=(8, 8))
    VideoDiffusionPipeline(unet, VPContinuousScheduler()).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def check_same(one, other):
    """The same weights, and what they make."""
    clips = []
    for pipeline in (one, other):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        clips.append(pipeline(num_inference_steps=2, generator=generator, output_type="pt").frames)
    weights = [pipeline.unet.state_dict() for pipeline in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert clips[0].isfinite().all()
    torch.testing.assert_close(*clips, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_device_by_name_holds_the_same_model_and_is_recorded(folder, dtype):
    plain = VideoDiffusionPipeline.from_pretrained(folder, dtype=dtype)
    placed = VideoDiffusionPipeline.from_pretrained(folder, device_map="cpu", dtype=dtype)
    assert placed.hf_device_map == "cpu"
    assert placed.unet.device == torch.device("cpu")
    assert placed.unet.dtype == plain.unet.dtype
    assert not placed.unet.training
    check_same(placed, plain)


def test_balanced_without_an_accelerator_is_the_cpu_and_with_one_moves_our_model_there(folder, monkeypatch):
    plain = VideoDiffusionPipeline.from_pretrained(folder, device_map="balanced")
    assert not isinstance(plain.hf_device_map, dict) or torch.cuda.is_available()
    chosen = {"unet": "cpu"}  # what diffusers chooses, which here is the only device
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils._get_final_device_map", lambda **_: chosen)
    placed = VideoDiffusionPipeline.from_pretrained(folder, device_map="balanced")
    assert placed.hf_device_map == chosen
    assert placed.unet._hf_hook.execution_device == "cpu"
    check_same(placed, plain)


@pytest.mark.parametrize("device_map", ["auto", "nowhere", "", {"": "cpu"}, {"unet": 0}, 0])
def test_what_diffusers_does_not_take_is_refused_before_anything_is_read(folder, device_map):
    (folder / "model_index.json").unlink()
    with pytest.raises(ValueError, match=r"`device_map` is .*, expected None or, on this machine, one of 'balanced'"):
        VideoDiffusionPipeline.from_pretrained(folder, device_map=device_map)


def test_it_needs_accelerate_and_low_memory_loading(folder, monkeypatch):
    with pytest.raises(ValueError, match=r"`device_map` is 'cpu', expected None with `low_cpu_mem_usage=False`"):
        VideoDiffusionPipeline.from_pretrained(folder, device_map="cpu", low_cpu_mem_usage=False)
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"`device_map` is 'cpu', which needs accelerate"):
        VideoDiffusionPipeline.from_pretrained(folder, device_map="cpu", low_cpu_mem_usage=True)
