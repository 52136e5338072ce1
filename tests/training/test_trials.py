"""What the ablations try beyond the package."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from video_diffusion.training.objective import Draw, stratified_times


@pytest.fixture
def trials(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "training" / "ablations"))
    import trials

    return trials


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.2])
def test_the_profile_of_an_average_is_as_wide_as_asked(trials, width):
    """An average of the step's number, and of its square, gives mean and deviation of the profile."""
    steps = 4000
    moments = [nn.Parameter(torch.zeros(2, dtype=torch.float64))]
    average = trials.PowerAverage(moments, width)
    for step in range(1, steps + 1):
        place = step / steps
        moments[0].data = torch.tensor([place, place**2], dtype=torch.float64)
        average.step(moments)
    mean, square = average.average[0].tolist()
    assert (square - mean**2) ** 0.5 == pytest.approx(width, rel=2e-2)
    assert mean > 1 - 2 * width  # it ends at the end of the run


def test_adaptive_times_follow_the_loss_and_keep_its_expectation(trials):
    times = trials.AdaptiveTimes()
    loss = lambda t: 1 + 30 * (t > 0.5) * (t - 0.5)  # noqa: E731
    places = (torch.arange(32) + 0.5) / 32
    for _ in range(400):
        times.update(places, loss(places))
    np.testing.assert_allclose(times.mean, loss(places).numpy(), rtol=1e-6)
    uniform = stratified_times(200_000, torch.Generator().manual_seed(0))
    draw, weight = times.warp(Draw(uniform, torch.zeros(1), torch.zeros(1)))
    assert draw.t.min() > 0
    assert draw.t.max() <= 1
    assert weight.mean().item() == pytest.approx(1, rel=5e-3)
    assert (weight * loss(draw.t)).mean().item() == pytest.approx(loss(uniform).mean().item(), rel=5e-3)
    late = (draw.t > 0.5).float().mean().item()
    share = (loss(uniform) * (uniform > 0.5)).sum() / loss(uniform).sum()
    assert late == pytest.approx(0.2 * 0.5 + 0.8 * share.item(), rel=1e-2)  # a fifth stays uniform


def test_a_self_conditioned_denoiser_sees_its_own_estimate(trials):
    seen = []

    class Denoiser(nn.Module):
        def forward(self, sample, timestep):
            seen.append(sample[:, -1].clone())
            return SimpleNamespace(sample=sample[:, :1] * 2)

    model, sample = trials.SelfConditioned(Denoiser(), 1), torch.randn(4, 3, 2, 2, 2)
    model.eval()(sample, torch.ones(4))
    assert not seen[0].any()
    assert torch.equal(seen[1], 2 * sample[:, 0])
    seen.clear()
    model.train()(sample, torch.ones(4))
    assert len(seen[0]) == 2
    assert torch.equal(seen[1], torch.cat([2 * sample[:2, 0], torch.zeros_like(sample[2:, 0])]))


def test_rates_start_at_their_peak_and_end_where_they_should(trials):
    for schedule, end in {"linear": 0, "cosine": 0, "trapezoid": 0, "constant": 1}.items():
        assert trials.rate(schedule, 0.0) == 1
        assert trials.rate(schedule, 1.0) == pytest.approx(end)
    assert trials.rate("trapezoid", 0.79) == 1
    assert trials.rate("trapezoid", 0.9) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="`lr_scheduler` is 'step'"):
        trials.rate("step", 0.5)
