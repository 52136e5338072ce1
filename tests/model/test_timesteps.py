"""Own timesteps in a call, and steps that a model's generation config places by log-SNR."""

import json
from statistics import NormalDist

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from benchmarks.schedulers import error_of
from denoisers import tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.hub.onnx import sampler_table
from video_diffusion.model.scheduler import STOCK_SCHEDULERS
from video_diffusion.model.steps import spaced_timesteps, takes_timesteps

SPACING = [-4.0, 2.2]


def make_pipeline(solver=None, frames=4, **config):
    scheduler = VPContinuousScheduler(prediction_type="v_prediction", shift=2.0)
    if solver is not None:
        scheduler = scheduler.as_diffusers(solver)
    pipeline = VideoDiffusionPipeline(
        tiny_denoiser(num_frames=frames, in_channels=3, block_out_channels=(16, 16)), scheduler
    )
    pipeline.generation_config = config
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline, **options):
    """The clip, and the timesteps that a callback saw."""
    seen = []

    def note(pipe, step, timestep, tensors):
        seen.append(float(timestep))
        return {}

    generator = torch.Generator().manual_seed(0)
    clip = pipeline(output_type="pt", generator=generator, callback_on_step_end=note, **options).frames
    return clip, seen


def wanted(steps, mean, std):
    """Quantiles (i + ½)/n of a normal distribution, the first at most 1/8, by bisection."""
    found = []
    for i in range(steps):
        share = (i + 0.5) / steps if i else min(0.5 / steps, 0.125)
        low, high = -20.0, 20.0
        for _ in range(60):
            middle = (low + high) / 2
            below = 0.5 * (1 + torch.erf(torch.tensor((middle - mean) / std / 2**0.5, dtype=torch.float64)).item())
            low, high = (middle, high) if below < share else (low, middle)
        found.append(low)
    return found


# ------------------------------------------------------------------------------------------------------- own timesteps
@pytest.mark.parametrize("solver", [None, DPMSolverMultistepScheduler, DDPMScheduler])
def test_the_schedulers_own_timesteps_change_nothing(solver):
    usual, places = run(make_pipeline(solver), num_inference_steps=5)
    given, seen = run(make_pipeline(solver), timesteps=places)
    assert seen == places
    assert len(places) == 5
    assert torch.equal(given, usual)


@pytest.mark.parametrize(
    "timesteps",
    [[900, 700, 300, 50], (900, 700, 300, 50), np.array([900, 700, 300, 50]), torch.tensor([900, 700, 300, 50])],
)
@pytest.mark.parametrize("solver", [None, DPMSolverMultistepScheduler])
def test_the_network_is_called_at_the_timesteps(solver, timesteps):
    pipeline = make_pipeline(solver)
    assert run(pipeline, timesteps=timesteps)[1] == [900, 700, 300, 50]
    assert pipeline.num_timesteps == 4


def test_our_scheduler_takes_fractions():
    assert run(make_pipeline(), timesteps=[1000, 512.5, 0.25])[1] == [1000, 512.5, 0.25]


def test_each_window_of_a_long_video_has_them():
    assert run(make_pipeline(), timesteps=[900, 400], num_frames=8, window_overlap=2)[1] == 3 * [900, 400]


def test_a_stream_has_them():
    pipeline = make_pipeline(DPMSolverMultistepScheduler)
    options = {"timesteps": [900, 600, 200], "output_type": "pt"}
    frames = list(pipeline.stream(num_frames=4, generator=torch.Generator().manual_seed(3), **options))
    clip = pipeline(num_frames=4, generator=torch.Generator().manual_seed(3), **options).frames
    assert torch.equal(torch.stack(frames, dim=1), clip)


@pytest.mark.parametrize(
    ("solver", "timesteps", "message"),
    [
        (None, [], r"`timesteps` is \[\], expected numbers that fall, from at most 1000 to above 0"),
        (None, [1001, 500], "expected numbers that fall, from at most 1000"),
        (None, [500, 500], "expected numbers that fall"),
        (None, [500, 600], "expected numbers that fall"),
        (None, [500, 0], "expected numbers that fall"),
        (None, [500, float("nan")], "expected numbers that fall"),
        (None, [[500, 300]], "expected numbers that fall"),
        (None, "fast", "`timesteps` is 'fast', expected numbers that fall"),
        (None, ["900", "400"], "expected numbers that fall"),
        (None, [True, False], "expected numbers that fall"),
        (None, [900, [400]], "expected numbers that fall"),
        (None, {900, 400}, "expected numbers that fall"),
        (None, torch.zeros(2, device="meta"), "expected numbers that fall"),
        (None, np.linspace(1000, 1, 10_001), "`num_inference_steps` is 10001, expected at most 10000"),
        (None, 500, "`timesteps` is 500, expected numbers that fall"),
        (DPMSolverMultistepScheduler, [1000, 500], "expected whole numbers that fall, from at most 999 to above 0"),
        (DPMSolverMultistepScheduler, [900, 400.5], "expected whole numbers that fall"),
        (DPMSolverMultistepScheduler, [900, 0], "expected whole numbers that fall"),
        (DDIMScheduler, [900, 400], "expected None: the scheduler, a DDIMScheduler, places its steps itself"),
    ],
)
def test_what_are_no_timesteps_is_refused(solver, timesteps, message):
    with pytest.raises(ValueError, match=message):
        run(make_pipeline(solver), timesteps=timesteps)


def test_timesteps_and_their_number_exclude_each_other():
    with pytest.raises(ValueError, match="`timesteps` and `num_inference_steps` are both given, expected at most one"):
        run(make_pipeline(), timesteps=[900, 400], num_inference_steps=2)


def test_a_scheduler_that_moves_its_steps_takes_none():
    pipeline = make_pipeline()
    pipeline.scheduler = pipeline.scheduler.as_diffusers(DPMSolverMultistepScheduler, use_karras_sigmas=True)
    with pytest.raises(ValueError, match="DPMSolverMultistepScheduler, places its steps itself"):
        run(pipeline, timesteps=[900, 400])
    pipeline.generation_config = {"logsnr_spacing": SPACING}
    assert len(run(pipeline, num_inference_steps=3)[1]) == 3


# --------------------------------------------------------------------------------------------------- spaced by log-SNR
@pytest.mark.parametrize("schedule", ["cosine", "linear", "linear_beta"])
@pytest.mark.parametrize("steps", [1, 2, 4, 20])
def test_the_steps_are_at_the_quantiles_of_a_normal_distribution(schedule, steps):
    scheduler = VPContinuousScheduler(schedule, shift=2.0)
    found = torch.tensor(spaced_timesteps(scheduler, steps, -3.0, 2.0), dtype=torch.float64)
    logsnr = scheduler.logsnr(found / 1000)
    torch.testing.assert_close(logsnr, torch.tensor(wanted(steps, -3.0, 2.0), dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_a_solver_of_diffusers_has_the_nearest_of_its_levels(steps):
    scheduler = VPContinuousScheduler(shift=2.0)
    solver = scheduler.as_diffusers(DPMSolverMultistepScheduler, clip_sample=False)
    levels = torch.logit(solver.alphas_cumprod.double())
    found = spaced_timesteps(solver, steps, *SPACING)
    nearest = [(levels - value).abs().argmin().item() for value in wanted(steps, *SPACING)]
    assert found == nearest
    assert all(isinstance(timestep, int) for timestep in found)


@pytest.mark.parametrize("solver", [None, DPMSolverMultistepScheduler])
def test_a_call_takes_the_spacing_of_the_generation_config(solver):
    spaced = make_pipeline(solver, num_inference_steps=3, logsnr_spacing=SPACING)
    clip, seen = run(spaced)
    assert seen == pytest.approx(spaced_timesteps(spaced.scheduler, 3, *SPACING), abs=1e-3)
    assert seen[0] < 960
    assert torch.equal(clip, run(make_pipeline(solver), timesteps=spaced_timesteps(spaced.scheduler, 3, *SPACING))[0])
    assert run(spaced, timesteps=[900, 400])[1] == [900, 400]  # what is asked for comes first


@pytest.mark.parametrize("solver", [None, DPMSolverMultistepScheduler])
def test_where_frames_are_known_the_scheduler_places_the_steps(solver):
    """In a call with given frames, and in the windows of a long video that go on from others."""
    video = torch.rand(1, 2, 1, 16, 16)
    pipeline = make_pipeline(solver, logsnr_spacing=SPACING)
    usual, places = run(make_pipeline(solver), num_inference_steps=3, video=video)
    given, seen = run(pipeline, num_inference_steps=3, video=video)
    assert seen == places
    assert torch.equal(given, usual)
    free = run(pipeline, num_inference_steps=3)[1]
    assert free != places
    assert run(pipeline, num_inference_steps=3, num_frames=8, window_overlap=2)[1] == [*free, *places, *places]
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:4] = True
    if solver is None:
        options = {"video": torch.rand(1, 4, 1, 16, 16), "mask_image": mask, "reconstruction_guidance_scale": 0.0}
        assert run(pipeline, num_inference_steps=3, **options)[1] == places


def test_a_scheduler_that_takes_no_timesteps_keeps_its_own():
    usual, places = run(make_pipeline(DDIMScheduler), num_inference_steps=3)
    spaced, seen = run(make_pipeline(DDIMScheduler, logsnr_spacing=SPACING), num_inference_steps=3)
    assert seen == places
    assert torch.equal(spaced, usual)


def test_more_steps_than_there_are_levels_are_placed_by_the_scheduler():
    pipeline = make_pipeline(DPMSolverMultistepScheduler, logsnr_spacing=[-4.0, 0.01])
    assert spaced_timesteps(pipeline.scheduler, 50, -4.0, 0.01) is None
    assert len(run(pipeline, num_inference_steps=50)[1]) == 50
    assert spaced_timesteps(pipeline.scheduler, 50, *SPACING) is not None


def test_the_spacing_is_saved_and_loaded(tmp_path):
    pipeline = make_pipeline(logsnr_spacing=SPACING, num_inference_steps=2)
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["logsnr_spacing"] == SPACING
    loaded = VideoDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(run(loaded)[0], run(pipeline)[0])


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        (3, r"`logsnr_spacing` is 3, expected two numbers: mean and standard deviation"),
        ([1.0], "expected two numbers"),
        ([1.0, 2.0, 3.0], "expected two numbers"),
        ([True, 2.0], "expected two numbers"),
        ([float("nan"), 2.0], "expected two numbers"),
        ("ab", "expected two numbers"),
        ([-4.0, 0.0], "expected a positive standard deviation"),
        ([-4.0, -1.0], "expected a positive standard deviation"),
    ],
)
def test_what_is_no_spacing_is_refused(tmp_path, spacing, message):
    pipeline = make_pipeline(logsnr_spacing=spacing)
    with pytest.raises(ValueError, match=message):
        pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        pipeline(num_inference_steps=2)


# ------------------------------------------------------------------------------------------ those of a distilled model
def test_a_call_of_as_many_steps_takes_the_timesteps_of_the_generation_config(tmp_path):
    pipeline = make_pipeline(num_inference_steps=3, timesteps=[950.5, 800, 300])
    pipeline.save_pretrained(tmp_path)
    loaded = VideoDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert run(loaded)[1] == [950.5, 800, 300]
    assert run(loaded, num_inference_steps=2)[1] == [1000, 500]
    loaded.scheduler = loaded.scheduler.as_diffusers(DPMSolverMultistepScheduler)
    assert run(loaded)[1] == run(make_pipeline(DPMSolverMultistepScheduler), num_inference_steps=3)[1]


@pytest.mark.parametrize("timesteps", [[], [300, 800], [300.0, 0.0], "fast", [[3]], None, [float("inf"), 3]])
def test_what_are_no_timesteps_of_a_generation_config_is_refused(tmp_path, timesteps):
    pipeline = make_pipeline(timesteps=timesteps)
    for use in (lambda: pipeline.save_pretrained(tmp_path), lambda: pipeline(num_inference_steps=2)):
        with pytest.raises(ValueError, match=r"`timesteps` is .*, expected numbers that fall, to above 0"):
            use()


# -------------------------------------------------------------------------------------------------- with stock solvers
def spaceable():
    """The classes of diffusers that sample rightly on our schedule and let the caller place the steps."""
    scheduler = VPContinuousScheduler(prediction_type="v_prediction", clip_sample=False)
    return [n for n in STOCK_SCHEDULERS if takes_timesteps(scheduler.as_diffusers(getattr(diffusers, n)))]


def test_some_classes_of_diffusers_take_timesteps():
    assert {"DPMSolverMultistepScheduler", "DDPMScheduler", "EulerDiscreteScheduler"} <= set(spaceable())


@pytest.mark.parametrize("name", spaceable())
def test_a_solver_of_diffusers_is_right_at_spaced_timesteps(name):
    """With the exact denoiser of Gaussian data: the distance to the data falls as the steps become many."""
    scheduler = VPContinuousScheduler(prediction_type="v_prediction", clip_sample=False)
    solver = scheduler.as_diffusers(getattr(diffusers, name))
    few, many = (error_of(scheduler, solver, n, spaced_timesteps(solver, n, 0.0, 4.0)) for n in (12, 80))
    assert many < 0.03  # DDPM, of order 1, has 0.020
    assert many < few / 2


def test_the_error_at_spaced_timesteps_sees_a_wrong_level():
    scheduler = VPContinuousScheduler(prediction_type="v_prediction", clip_sample=False)
    solver = scheduler.as_diffusers(EulerDiscreteScheduler)
    places = spaced_timesteps(solver, 80, 0.0, 4.0)
    assert error_of(scheduler, solver, 80, [place for place in places if place > 500]) > 0.1


# ------------------------------------------------------------------------------------------------------ in the browser
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_table_of_the_page_has_the_same_timesteps(deterministic):
    scheduler = VPContinuousScheduler(prediction_type="v_prediction", deterministic=deterministic)
    pipeline = VideoDiffusionPipeline(tiny_denoiser(num_frames=4, in_channels=3), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    assert "free_steps" not in sampler_table(pipeline, (4,))
    pipeline.generation_config = {"logsnr_spacing": SPACING}
    table = sampler_table(pipeline, (4,))
    if not deterministic:
        pipeline.scheduler = scheduler.as_diffusers(DPMSolverMultistepScheduler)
    free, told = (
        run(pipeline, num_inference_steps=4, video=video)[1] for video in (None, torch.rand(1, 1, 1, 16, 16))
    )
    assert table["free_steps"]["4"]["timesteps"] == pytest.approx(free, abs=1e-3)
    assert table["steps"]["4"]["timesteps"] == pytest.approx(told, abs=1e-3)
    normal = NormalDist(*SPACING)
    half = [normal.inv_cdf((i + 0.5) / 4) / 2 for i in range(4)]
    assert table["free_steps"]["4"]["logsnr_half"] == [*(pytest.approx(value, abs=0.03) for value in half), None]


def test_the_table_of_a_distilled_model_has_its_timesteps():
    scheduler = VPContinuousScheduler(prediction_type="v_prediction", deterministic=True)
    pipeline = VideoDiffusionPipeline(tiny_denoiser(num_frames=4, in_channels=3), scheduler)
    pipeline.generation_config = {"num_inference_steps": 2, "timesteps": [950.0, 400.0]}
    table = sampler_table(pipeline, (2, 4))
    assert [row["timesteps"] for row in table["steps"].values()] == [[950, 400], [1000, 750, 500, 250]]
    assert "free_steps" not in table
