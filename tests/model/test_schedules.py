"""λ(t) against published closed forms, its inverse, its ends and its accuracy."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from oracle import observed_order
from video_diffusion.model.scheduler import CURVES, VPContinuousScheduler, alpha_sigma

SCHEDULES = ("cosine", "linear", "linear_beta")
TIMES = torch.cat([torch.logspace(-12, -3, 10), torch.linspace(0.01, 1, 100)]).double()
# Both ends in turn: TIMES resolves t = 0, its mirror t = 1.
ENDS = torch.cat([torch.zeros(1).double(), TIMES, 1 - TIMES]).unique()


@pytest.mark.parametrize("shift", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_is_the_inverse_of_logsnr(schedule, shift):
    scheduler = VPContinuousScheduler(schedule=schedule, shift=shift)
    torch.testing.assert_close(scheduler.time(scheduler.logsnr(ENDS)), ENDS, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_logsnr_is_the_inverse_of_time(schedule):
    scheduler = VPContinuousScheduler(schedule=schedule, logsnr_min=-12.0, logsnr_max=15.0)
    logsnr = torch.linspace(15, -12, 300, dtype=torch.float64)
    torch.testing.assert_close(scheduler.logsnr(scheduler.time(logsnr)), logsnr, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shift", [1.0, 2.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ends_are_logsnr_max_and_min_less_the_shift(schedule, shift):
    scheduler = VPContinuousScheduler(schedule=schedule, logsnr_min=-13.0, logsnr_max=17.0, shift=shift)
    ends = scheduler.logsnr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    expected = torch.tensor([17.0, -13.0], dtype=torch.float64) - 2 * math.log(shift)
    torch.testing.assert_close(ends, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_logsnr_falls_strictly(schedule):
    assert (VPContinuousScheduler(schedule=schedule).logsnr(ENDS).diff() < 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_shift_divides_the_ratio_of_signal_to_noise(schedule):
    plain = alpha_sigma(VPContinuousScheduler(schedule=schedule).logsnr(ENDS))
    shifted = alpha_sigma(VPContinuousScheduler(schedule=schedule, shift=3.0).logsnr(ENDS))
    torch.testing.assert_close(shifted[0] / shifted[1], plain[0] / plain[1] / 3, rtol=1e-10, atol=0)


def test_cosine_is_a_squared_cosine():
    """Between λ = ±40 the curve's own axis is t itself to 1e-9."""
    scheduler = VPContinuousScheduler(schedule="cosine", logsnr_min=-40.0, logsnr_max=40.0)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha, sigma = alpha_sigma(scheduler.logsnr(t))
    torch.testing.assert_close(alpha**2, torch.cos(math.pi / 2 * t) ** 2, rtol=0, atol=1e-8)
    torch.testing.assert_close(sigma**2, torch.sin(math.pi / 2 * t) ** 2, rtol=0, atol=1e-8)


def test_linear_is_a_straight_line():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    logsnr = VPContinuousScheduler(schedule="linear", logsnr_min=-10.0, logsnr_max=5.0).logsnr(t)
    torch.testing.assert_close(logsnr, 5 - 15 * t, rtol=0, atol=1e-12)


def test_linear_beta_is_the_limit_of_ddpms_product_of_betas():
    """DDPM's β from 1e-4 to 0.02 in 1000 levels, refined to N levels at β·1000/N: log ᾱ converges with order 1."""
    levels, errors = [1000, 4000, 16000], []
    for number in levels:
        betas = torch.linspace(0.1, 20, number, dtype=torch.float64) / number
        log_alpha_bar = torch.log1p(-betas).cumsum(0)
        u = torch.arange(1, number + 1, dtype=torch.float64) / number
        continuous = 2 * torch.log(alpha_sigma(CURVES["linear_beta"].logsnr(u))[0])
        errors.append((log_alpha_bar - continuous).abs().max().item())
    assert observed_order(errors, levels) == pytest.approx(1, abs=0.02)
    assert errors[-1] < 0.02  # log ᾱ itself goes down to −10

    published = DDPMScheduler(beta_start=1e-4, beta_end=0.02).alphas_cumprod.double()
    u = torch.arange(1, 1001, dtype=torch.float64) / 1000
    ours = alpha_sigma(CURVES["linear_beta"].logsnr(u))[0] ** 2
    torch.testing.assert_close(ours, published, rtol=0, atol=2e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float32_times_lose_nothing_but_the_rounding_of_the_result(schedule):
    scheduler = VPContinuousScheduler(schedule=schedule)
    t = ENDS.float()
    exact = scheduler.logsnr(t.double())
    torch.testing.assert_close(scheduler.logsnr(t).double(), exact, rtol=1e-7, atol=1e-7)


def test_float32_alpha_and_sigma_keep_their_relative_accuracy_at_both_ends():
    logsnr = torch.tensor([-40.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 40.0])
    alpha, sigma = alpha_sigma(logsnr)
    exact = [(1 / math.sqrt(1 + math.exp(-v)), 1 / math.sqrt(1 + math.exp(v))) for v in logsnr.tolist()]
    expected = torch.tensor(exact, dtype=torch.float64)
    torch.testing.assert_close(alpha.double(), expected[:, 0], rtol=2e-6, atol=0)
    torch.testing.assert_close(sigma.double(), expected[:, 1], rtol=2e-6, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_variance_is_preserved(schedule):
    alpha, sigma = alpha_sigma(VPContinuousScheduler(schedule=schedule).logsnr(ENDS))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(ENDS), rtol=0, atol=1e-14)


def test_alpha_and_sigma_of_the_first_and_last_time_are_nearly_one():
    """What a sampler starts from (N(0, 1)) and what it returns (x) are within 5e-5 of the process itself."""
    alpha, sigma = alpha_sigma(VPContinuousScheduler().logsnr(torch.tensor([0.0, 1.0], dtype=torch.float64)))
    torch.testing.assert_close(alpha, torch.tensor([1.0, 0.0]).double(), rtol=0, atol=5e-5)
    torch.testing.assert_close(sigma, torch.tensor([0.0, 1.0]).double(), rtol=0, atol=5e-5)
