"""`from_config` between our scheduler and those of diffusers, both ways, also after saving and without our package."""

import importlib.util
import json
import logging
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    UniPCMultistepScheduler,
)

import video_diffusion.model.scheduler as module
from video_diffusion import VideoDiffusionPipeline
from video_diffusion.model.inputs import WRONG_OPTIONS
from video_diffusion.model.scheduler import STOCK_SCHEDULERS, VPContinuousScheduler

ROOT = Path(__file__).parents[2]
OWN = {"schedule": "linear", "logsnr_min": -18.0, "shift": 2.0, "gamma": 0.7, "prediction_type": "v_prediction"}
SOLVERS = [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, HeunDiscreteScheduler]


def travelled():
    """Our class as a Hub repository carries it: the file alone, as a module of another name."""
    spec = importlib.util.spec_from_file_location("scheduler_of_the_hub", module.__file__)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded.VPContinuousScheduler


def samples(solver):
    """Three steps towards an estimate that leaves the range; deterministic for the solvers above."""
    solver.set_timesteps(3)
    z = torch.linspace(-2, 2, 64).reshape(1, 1, 1, 8, 8) * solver.init_noise_sigma
    for timestep in solver.timesteps:
        z = solver.step(1.5 * torch.sin(3 * solver.scale_model_input(z, timestep)), timestep, z).prev_sample
    return z


@pytest.mark.parametrize("solver_class", SOLVERS)
def test_from_config_gives_the_schedule_and_the_clip(solver_class):
    scheduler = VPContinuousScheduler(**OWN)
    solver = solver_class.from_config(scheduler.config)
    expected = scheduler.logsnr(torch.arange(500, 950, 50, dtype=torch.float64) / 1000)
    alpha_bar = (1 - torch.tensor(solver.config.trained_betas).double()).cumprod(0)
    torch.testing.assert_close(torch.logit(alpha_bar[500:950:50]), expected, rtol=0, atol=0.01)
    assert torch.equal(samples(solver), samples(scheduler.as_diffusers(solver_class)))
    unclipped = scheduler.as_diffusers(solver_class, clip_sample=False)
    assert (samples(solver) - samples(unclipped)).abs().max() > 0.01


@pytest.mark.parametrize("make", [lambda: VPContinuousScheduler, travelled], ids=["package", "file of the Hub"])
@pytest.mark.parametrize("solver_class", SOLVERS)
def test_saved_and_loaded_it_gives_the_same(solver_class, make, tmp_path):
    """By our class, and by the stock class from our file."""
    scheduler = make()(**OWN)
    scheduler.save_pretrained(tmp_path)
    expected = samples(scheduler.as_diffusers(solver_class))
    for solver in (
        solver_class.from_config(make().from_pretrained(tmp_path).config),
        solver_class.from_pretrained(tmp_path),
    ):
        assert torch.equal(samples(solver), expected)


@pytest.mark.parametrize("solver_class", SOLVERS)
def test_the_way_back_gives_everything_back(solver_class, tmp_path):
    thresholding = {"thresholding": True, "sample_max_value": 3.0, "dynamic_thresholding_ratio": 0.9}
    clips = {"clip_sample_range": 0.5} if solver_class is HeunDiscreteScheduler else thresholding
    scheduler = VPContinuousScheduler(**OWN | clips)
    for solver in (solver_class.from_config(scheduler.config), scheduler.as_diffusers(solver_class)):
        assert VPContinuousScheduler.from_config(solver.config).config.items() >= scheduler.config.items()
        solver.save_pretrained(tmp_path)
        back = VPContinuousScheduler.from_pretrained(tmp_path)
        assert {**back.config} | {**scheduler.config} == {**back.config}


def test_what_is_derived_follows_a_change():
    stock = DPMSolverMultistepScheduler.from_config(VPContinuousScheduler(**OWN).config, solver_order=3)
    changed = VPContinuousScheduler.from_config(stock.config, shift=4.0)
    assert changed.config.trained_betas == VPContinuousScheduler(**OWN | {"shift": 4.0}).trained_betas()
    assert DPMSolverMultistepScheduler.from_config(changed.config).config.solver_order == 3


@pytest.mark.parametrize(
    ("solver_class", "reason"),
    [
        (FlowMatchEulerDiscreteScheduler, "flow matching"),
        (IPNDMScheduler, "a schedule of its own"),
        (EulerDiscreteScheduler, "cannot clip"),
    ],
)
def test_from_config_of_a_class_that_would_be_wrong_is_refused(solver_class, reason, tmp_path):
    scheduler = VPContinuousScheduler()
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{solver_class.__name__} cannot take over .*{reason}"):
            solver_class.from_config(scheduler.config)
        scheduler.save_pretrained(tmp_path)  # also after saving
    with pytest.raises(ValueError, match=f"`scheduler_class` is {solver_class.__name__}: .*{reason}"):
        scheduler.as_diffusers(solver_class)


def test_the_pipeline_refuses_the_options_that_no_class_stands():
    allowed = {option for stock in STOCK_SCHEDULERS.values() for option in stock.spacings}
    assert set(WRONG_OPTIONS) == set(module.SPACINGS) - allowed


@pytest.mark.parametrize("solver_class", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, HeunDiscreteScheduler])
def test_an_option_that_comes_beside_the_config_is_refused_by_the_call(solver_class, make_denoiser):
    pipeline = VideoDiffusionPipeline(make_denoiser(), VPContinuousScheduler())
    config = pipeline.scheduler.config
    pipeline.scheduler = solver_class.from_config(config, use_beta_sigmas=True)
    with pytest.raises(ValueError, match=f"is a {solver_class.__name__} .*`use_beta_sigmas` is True"):
        pipeline(num_frames=2, num_inference_steps=2)
    pipeline.scheduler = solver_class.from_config(config, use_karras_sigmas=True)
    pipeline(num_frames=2, num_inference_steps=2, output_type="np")


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip_sample", [True, False])
def test_compatibles_are_the_classes_that_are_not_refused(prediction_type, clip_sample):
    scheduler = VPContinuousScheduler(prediction_type=prediction_type, clip_sample=clip_sample)
    for name in STOCK_SCHEDULERS:
        solver_class = getattr(diffusers, name)
        if solver_class in scheduler.compatibles:
            assert name in solver_class.from_config(scheduler.config).config["_compatible_schedulers"]
        else:
            with pytest.raises(ValueError, match=name):
                solver_class.from_config(scheduler.config)
    assert len(scheduler.compatibles) == {True: 10, False: 13}[clip_sample] + 4 * (prediction_type != "sample") * (
        not clip_sample
    )


def test_a_clip_that_two_keys_contradict_is_refused():
    with pytest.raises(ValueError, match="expected `thresholding=False`"):
        VPContinuousScheduler.from_config(VPContinuousScheduler().config, clip_sample=False)
    loose = VPContinuousScheduler.from_config(VPContinuousScheduler().config, clip_sample=False, thresholding=False)
    assert torch.equal(loose.clip_original(torch.tensor([[3.0]])), torch.tensor([[3.0]]))


@pytest.mark.parametrize("name", ["moving-mnist", "smmnist"])
def test_the_embedded_configs_are_as_they_are_saved(name, tmp_path, caplog):
    """So stock classes find their keys in them; loading says nothing."""
    folder = ROOT / "pipelines" / name / "scheduler"
    with caplog.at_level(logging.WARNING, logger="diffusers"):
        scheduler = VPContinuousScheduler.from_pretrained(folder)
    scheduler.save_pretrained(tmp_path)
    saved, embedded = (
        json.loads((place / "scheduler_config.json").read_text(encoding="utf-8")) for place in (tmp_path, folder)
    )
    betas = [torch.tensor(config.pop("trained_betas")) for config in (saved, embedded)]
    torch.testing.assert_close(*betas, rtol=1e-4, atol=0)
    assert saved == embedded
    assert not caplog.records
