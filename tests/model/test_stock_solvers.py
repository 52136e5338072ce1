"""Stock solvers of diffusers on our schedule: order of convergence against the exact ODE of the Gaussian oracle."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from oracle import Gaussian, observed_order
from video_diffusion.model.scheduler import VPContinuousScheduler, alpha_sigma

SCHEDULES = ("cosine", "linear", "linear_beta")
DATA = Gaussian(mean=0.3, std=0.5)
START = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1)
CLEAN = torch.tensor(60.0, dtype=torch.float64)  # λ where a stock solver ends: ᾱ = 1


def logsnr_at(scheduler, timestep):
    return scheduler.logsnr(torch.tensor(timestep / 1000, dtype=torch.float64))


def ode_error(scheduler, solver_class, steps, end=None):
    """Root mean squared error at timestep `end`, or after the last step, against the exact ODE."""
    solver = scheduler.as_diffusers(solver_class)
    solver.set_timesteps(steps)
    timesteps, z = solver.timesteps.tolist(), START
    for timestep in timesteps:
        if timestep == end:
            break
        output = DATA.denoise(z, logsnr_at(scheduler, timestep), scheduler.config.prediction_type)
        z = solver.step(output, timestep, z).prev_sample.double()
    logsnr_s = CLEAN if end is None else logsnr_at(scheduler, end)
    exact = DATA.solve_ode(START, logsnr_at(scheduler, timesteps[0]), logsnr_s)
    return (z - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_has_order_1(schedule, prediction_type):
    """To t = 0.199, which every n here visits; measured 0.95–1.0."""
    scheduler = VPContinuousScheduler(schedule, clip_sample=False, prediction_type=prediction_type)
    steps = [50, 100, 200]
    errors = [ode_error(scheduler, DDIMScheduler, n, end=199) for n in steps]
    assert observed_order(errors, steps) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("solver_class", "lowest"), [(DPMSolverMultistepScheduler, 1.8), (UniPCMultistepScheduler, 2)]
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_multistep_solvers_have_order_2(schedule, solver_class, lowest):
    """To t = 0.199; measured 1.84–1.98 for DPM++ 2M and 2.7–3.1 for UniPC, whose corrector adds up to one order."""
    scheduler = VPContinuousScheduler(schedule, clip_sample=False, prediction_type="v_prediction")
    steps = [50, 100, 200]
    errors = [ode_error(scheduler, solver_class, n, end=199) for n in steps]
    assert lowest < observed_order(errors, steps) < 3.5


@pytest.mark.parametrize("solver_class", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_multistep_solvers_end_closer_than_ddim(schedule, solver_class):
    """Down to the clean sample, where the last step is of order 1: at 20 and 100 steps a fraction of DDIM's error."""
    scheduler = VPContinuousScheduler(schedule, clip_sample=False, prediction_type="v_prediction")
    for steps, fraction in ((20, 0.6), (100, 0.2)):
        ddim, multistep = (ode_error(scheduler, c, steps) for c in (DDIMScheduler, solver_class))
        assert multistep < fraction * ddim


@pytest.mark.parametrize("solver_class", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_a_thousand_steps_leave_no_error_but_rounding(solver_class):
    """Neighbouring levels stay apart in float32, or a multistep solver would give NaN; `linear` crowds them most."""
    scheduler = VPContinuousScheduler("linear", clip_sample=False, prediction_type="sample")
    assert ode_error(scheduler, solver_class, 1000) < 5e-3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_level_i_has_the_log_snr_of_time_i_over_1000(schedule):
    """Up to λ ≈ 10, beyond which 1 − ᾱ stays above (i + 1)·2⁻²³ so that float32 can tell the levels apart."""
    scheduler = VPContinuousScheduler(schedule)
    stock = scheduler.as_diffusers(DDPMScheduler)
    alpha_bar = stock.alphas_cumprod.double()
    logsnr = scheduler.logsnr(torch.arange(1000, dtype=torch.float64) / 1000)
    seen = logsnr < 9.5
    assert seen.sum() > 700
    torch.testing.assert_close(
        torch.logit(alpha_bar)[seen & (logsnr > -9)], logsnr[seen & (logsnr > -9)], atol=0.02, rtol=0
    )
    torch.testing.assert_close(alpha_bar.sqrt()[seen], alpha_sigma(logsnr)[0][seen], atol=1e-5, rtol=0)
    assert (stock.alphas_cumprod.diff() < 0).all()


def test_a_finer_grid_of_levels_is_the_same_curve():
    scheduler = VPContinuousScheduler()
    coarse, fine = (torch.tensor(scheduler.trained_betas(n)).double() for n in (500, 1000))
    ends = [torch.log1p(-betas).cumsum(0) for betas in (coarse, fine)]
    torch.testing.assert_close(ends[0][1:], ends[1][2::2], rtol=1e-5, atol=0)


@pytest.mark.parametrize("solver_class", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("clipping", [{"clip_sample": True}, {"thresholding": True, "sample_max_value": 2.0}])
def test_clipping_carries_over(solver_class, clipping):
    """A denoiser that overshoots is held to the range on both sides."""
    scheduler = VPContinuousScheduler(prediction_type="sample", **clipping)
    x = torch.linspace(-3, 3, 64).reshape(1, 1, 1, 8, 8)
    solver = scheduler.as_diffusers(solver_class)
    for steps in (scheduler, solver):
        steps.set_timesteps(1)
    ours = scheduler.step(x, scheduler.timesteps[0], x).pred_original_sample
    theirs = solver.step(x, solver.timesteps[0], x).prev_sample  # ᾱ = 1: the estimate itself
    assert x.abs().max() > 2.9
    assert ours.abs().max() <= 1
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-3)


def test_overrides_win():
    scheduler = VPContinuousScheduler(prediction_type="v_prediction")
    stock = scheduler.as_diffusers(DPMSolverMultistepScheduler, solver_order=3, timestep_spacing="leading", shift=2.0)
    assert (stock.config.solver_order, stock.config.timestep_spacing) == (3, "leading")
    assert stock.config.prediction_type == "v_prediction"
    assert stock.config.trained_betas == VPContinuousScheduler(shift=2.0).trained_betas()


@pytest.mark.parametrize("name", ["solver_ordre", "trained_betas"])
def test_an_override_that_is_no_option_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` is no option of DDIMScheduler"):
        VPContinuousScheduler().as_diffusers(DDIMScheduler, **{name: 3})


def test_a_clip_that_the_solver_cannot_do_is_refused():
    scheduler = VPContinuousScheduler(clip_sample_range=0.5)
    assert scheduler.as_diffusers(DDIMScheduler).config.clip_sample_range == 0.5
    with pytest.raises(ValueError, match=r"clips x̂ to ±1 only, `clip_sample_range` is 0.5"):
        scheduler.as_diffusers(UniPCMultistepScheduler)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler: it cannot clip"):
        VPContinuousScheduler().as_diffusers(EulerDiscreteScheduler)
    assert not VPContinuousScheduler().as_diffusers(EulerDiscreteScheduler, clip_sample=False).config.clip_sample
    with pytest.raises(ValueError, match="HeunDiscreteScheduler: it has no dynamic thresholding"):
        VPContinuousScheduler().as_diffusers(HeunDiscreteScheduler, thresholding=True, sample_max_value=2.0)


def test_a_stock_solver_saved_and_loaded_keeps_the_schedule(tmp_path):
    stock = VPContinuousScheduler("linear").as_diffusers(DDIMScheduler)
    stock.save_pretrained(tmp_path)
    loaded = DDIMScheduler.from_pretrained(tmp_path)
    assert torch.equal(loaded.alphas_cumprod, stock.alphas_cumprod)
    assert math.isclose(loaded.alphas_cumprod[500].item(), 0.5, abs_tol=1e-4)
