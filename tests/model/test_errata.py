"""docs/errata.md: each correction to the paper, shown."""

import math

import pytest
import torch

from oracle import Gaussian, observed_order, sampled_moments
from video_diffusion.metrics import psnr, psnr_paper
from video_diffusion.model import scheduler as module
from video_diffusion.model.scheduler import VPContinuousScheduler, alpha_sigma, posterior_coefficients

DATA = Gaussian(mean=0.3, std=0.5)
STEPS = [64, 128]


def as_printed(logsnr_t, logsnr_s):
    """Equation (5) without the factor α_s/α_t."""
    ratio = torch.exp(logsnr_t - logsnr_s)
    return ratio, (1 - ratio) * alpha_sigma(logsnr_s)[0]


def errors(gamma):
    """Of the sampled mean and of the sampled variance, for each number of steps."""
    scheduler = VPContinuousScheduler(gamma=gamma, clip_sample=False, prediction_type="sample")
    means, variances = zip(*(sampled_moments(scheduler, DATA, n) for n in STEPS), strict=True)
    return [abs(v - DATA.mean) for v in means], [abs(v - DATA.std**2) for v in variances]


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_equation_5_needs_its_factor_to_reach_the_datas_mean_and_variance(monkeypatch, gamma):
    """As printed the sampler tends to N(0.249, 0.18) instead of N(0.3, 0.25)."""
    mean, variance = errors(gamma)
    monkeypatch.setattr(module, "posterior_coefficients", as_printed)
    printed_mean, printed_variance = errors(gamma)
    assert max(mean) < 1e-8
    assert observed_order(variance, STEPS) > 0.85
    assert min(printed_mean) > 0.04
    assert min(printed_variance) > 0.05


def test_equation_5_with_its_factor_is_bayes_rule_and_as_printed_is_not():
    """The mean of q(z_s | z_t, x) by multiplying the two Gaussians q(z_s | x) and q(z_t | z_s)."""
    logsnr_t, logsnr_s = torch.tensor([-1.0, 0.5, -6.0]).double(), torch.tensor([0.7, 2.0, -3.0]).double()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
    ratio = alpha_t / alpha_s
    forward = sigma_t**2 - ratio**2 * sigma_s**2  # σ²_{t|s}
    precision = 1 / sigma_s**2 + ratio**2 / forward
    weight_z, weight_x = posterior_coefficients(logsnr_t, logsnr_s)
    torch.testing.assert_close(weight_z, ratio / forward / precision, rtol=1e-10, atol=0)
    torch.testing.assert_close(weight_x, alpha_s / sigma_s**2 / precision, rtol=1e-10, atol=0)
    assert ((as_printed(logsnr_t, logsnr_s)[0] - weight_z).abs() > 0.05 * weight_z).all()


def test_equation_7s_sigma_tilde_t_given_s_is_negative_and_its_forward_variance_is_exact():
    """(6) with t and s exchanged is below zero; with σ²_{t|s} instead, γ = 1 keeps unit data at unit variance."""
    logsnr_t, logsnr_s = torch.tensor(-1.0).double(), torch.tensor(0.7).double()
    assert -torch.expm1(logsnr_s - logsnr_t) * torch.sigmoid(-logsnr_t) < 0
    scheduler = VPContinuousScheduler(gamma=1.0, clip_sample=False, prediction_type="sample")
    _, variance = sampled_moments(scheduler, Gaussian(mean=0.0, std=1.0), [1000.0, 600.0, 100.0, 0.001])
    assert variance == pytest.approx(1, abs=1e-9)


def test_the_papers_psnr_is_peak_255_over_an_error_on_minus_one_to_one():
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(2, 2, 5, 1, 16, 16, generator=generator, dtype=torch.float64)
    error = ((2 * clips[0] - 1) - (2 * clips[1] - 1)).square().mean(dim=(-3, -2, -1))
    by_hand = (10 * torch.log10(255**2 / error)).mean()
    assert psnr_paper(clips[0], clips[1]).item() == pytest.approx(by_hand.item(), abs=1e-4)
    offset = psnr_paper(clips[0], clips[1]) - psnr(clips[0], clips[1])
    assert offset.item() == pytest.approx(20 * math.log10(255 / 2), abs=1e-4)
    assert offset.item() == pytest.approx(42.11, abs=0.005)
