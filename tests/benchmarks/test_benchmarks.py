"""The benchmarks measure what they say: their oracle, their peers, their loops and their table."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from PIL import Image

from denoisers import tiny_denoiser
from oracle import Gaussian, sampled_moments
from video_diffusion import VideoDiffusionPipeline
from video_diffusion.data import classic_positions
from video_diffusion.model.scheduler import VPContinuousScheduler

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import calls, data_generators, measure, peers, report, sampling, spacing  # noqa: E402

DATA = Gaussian(mean=0.3, std=0.5)
ALONE = sampling.Mixture(*(torch.tensor([value], dtype=torch.float64) for value in (1.0, 0.3, 0.5)))
RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"


@pytest.mark.parametrize("logsnr", [-8.0, -1.0, 0.0, 3.0])
def test_a_mixture_of_one_is_the_gaussian_oracle(logsnr):
    z = torch.linspace(-3, 3, 41, dtype=torch.float64)
    logsnr = torch.tensor(logsnr, dtype=torch.float64)
    torch.testing.assert_close(ALONE.velocity(z, logsnr), DATA.denoise(z, logsnr, "v_prediction"))


def test_the_mixtures_estimate_minimises_the_squared_error():
    """E[x | z] of two Gaussians against the mean of the samples that fell near z."""
    mixture = sampling.Mixture(*torch.tensor([[0.7, 0.3], [-0.8, 0.6], [0.1, 0.3]], dtype=torch.float64))
    generator, n = torch.Generator().manual_seed(0), 2_000_000
    second = (torch.rand(n, generator=generator) < 0.3).long()
    x = mixture.mean[second] + mixture.std[second] * torch.randn(n, generator=generator, dtype=torch.float64)
    logsnr = torch.tensor(0.5, dtype=torch.float64)
    alpha, sigma = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
    z = alpha * x + sigma * torch.randn(n, generator=generator, dtype=torch.float64)
    for place in (-1.0, 0.0, 0.5):
        near = (z - place).abs() < 0.02
        point = torch.tensor([place], dtype=torch.float64)
        estimate = alpha * point - sigma * mixture.velocity(point, logsnr)
        assert x[near].mean() == pytest.approx(estimate.item(), abs=0.02)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_the_evenly_spread_ancestral_sampler_has_the_exact_moments(gamma):
    scheduler = VPContinuousScheduler(prediction_type="v_prediction", gamma=gamma, clip_sample=False)
    mean, variance = sampled_moments(scheduler, DATA, 20, exact_start=False)
    made = sampling.ancestral(ALONE, gamma, 20)
    assert made.mean().item() == pytest.approx(mean, abs=2e-3)
    assert made.var().item() == pytest.approx(variance, rel=5e-3)


def test_a_good_solver_with_many_calls_makes_the_data():
    made = sampling.stock(ALONE, UniPCMultistepScheduler, 200).sort().values
    assert (made - ALONE.quantiles(len(made))).abs().mean() < 5e-3


def test_the_order_of_the_noise_is_a_permutation_that_alternates_between_halves():
    order = sampling.bit_reversed(4)
    assert order.sort().values.tolist() == list(range(16))
    assert ((order[:-1] < 8) != (order[1:] < 8)).sum() in (1, 15)
    assert sorted(order[:4].div(4, rounding_mode="floor").tolist()) == [0, 1, 2, 3]


def test_the_classic_loop_follows_the_same_rules_as_ours(monkeypatch):
    for seed in range(30):
        draws = np.random.default_rng(seed).random(3).tolist()
        given = iter(draws)
        monkeypatch.setattr(random, "random", lambda given=given: next(given))
        tops, lefts = data_generators.classic_path(40, 36)
        x, y, turn = draws
        expected = classic_positions(np.array([y, x]), np.array(2 * np.pi * turn), 40, 36)
        assert np.array_equal(np.stack([tops, lefts], -1), expected)


def test_numba_can_be_left_out_and_comes_back():
    before = data_generators.moving_mnist.compiled_kernels
    with data_generators.numpy_only():
        assert data_generators.moving_mnist.compiled_kernels() is None
    assert data_generators.moving_mnist.compiled_kernels is before


@pytest.mark.parametrize("name", peers.NAMES)
def test_the_peers_have_equal_parameters_and_our_call(name):
    if name not in peers.available()[0]:
        pytest.skip(peers.LUCIDRAINS_ADVICE)
    model = peers.make(name)
    assert peers.parameters(model) == pytest.approx(peers.parameters(peers.make("ours")), rel=0.05)
    sample, timestep = peers.clips(2, 3, 32, "cpu")
    assert model(sample, timestep).sample.shape == sample.shape
    assert "torchvision" not in sys.modules or sys.modules["torchvision"].__spec__ is not None


def test_interleaved_times_every_run_once_a_repetition():
    calls, ticks = [], iter(range(1000))
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = measure.interleaved(runs, 3, lambda: float(next(ticks)), calls=2)
    assert calls == list("aabb") * 4  # one repetition warms up
    assert seconds == {"a": [0.5] * 3, "b": [0.5] * 3}


def test_the_exponent_is_that_of_a_power_law():
    assert measure.exponent([5, 10, 20], [7 * n**1.3 for n in (5, 10, 20)]) == pytest.approx(1.3)


def test_a_child_does_not_inherit_the_peak_memory():
    ballast = np.ones(60_000_000)  # 480 MB, touched
    code = "from benchmarks.measure import peak_mb; print(peak_mb())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert float(result.stdout) < 200 < ballast.nbytes / 2**20


def test_a_part_that_fails_or_takes_too_long_is_said_to():
    options = measure.Options(quick=True)
    assert "no_such_part" in command.run_part("no_such_part", options, 100)["error"]
    assert command.run_part("loading", options, 0.01) == {"error": "the time was up"}
    text = report.table({"machine": measure.machine(options), "parts": {"loading": {"error": "the time was up"}}})
    assert "* Loading: left out, the time was up." in text


def test_the_table_shows_medians_ratios_and_goals():
    row = {"kind": "training_step", "batch_size": 2, "num_frames": 10, "image_size": 64}
    row["clips_per_second"] = {"lucidrains": {"median": 0.184}, "ours": {"median": 6.9}, "diffusers": {"median": 0.3}}
    parts = {"denoiser": {"rows": [row], "notes": ["a stub"]}}
    text = report.table({"machine": measure.machine(measure.Options()), "parts": parts})
    whom = "against diffusers / lucidrains"
    line = f"| training step, 2 × 10 × 64×64, clips/s, {whom} | 6.9 | 0.3 / 0.184 | 23× / 37.5× | ≥ 15× / ≥ 30× |"
    assert line in text
    assert text.endswith("* A stub.")


@pytest.mark.skipif(not RESULTS.exists(), reason="no results yet")
def test_the_written_table_is_that_of_the_written_figures():
    text = report.table(json.loads(RESULTS.read_text(encoding="utf-8")))
    assert RESULTS.with_suffix(".md").read_text(encoding="utf-8") == text + "\n"


def test_the_table_of_calls_has_a_row_for_each_number_and_a_dash_for_what_was_not_run():
    runs = [
        {"sampler": "dpm++", "calls": 2, "task": "prediction", "fvd": 13.04, "error": 47.1},
        {"sampler": "dpm++", "calls": 2, "task": "generation", "fvd": 358.2},
        {"sampler": "dpm++", "calls": 8, "task": "prediction", "fvd": 9.4, "error": 60.0},
    ]
    real = {"prediction": 40.0, "generation": 48.0}
    report = {"runs": runs, "real_against_real": real, "num_videos": 4, "frames": 10, "command": "python -m x"}
    report |= {"samplers": ["dpm++"], "model": {"name": "tiny"}}
    text = calls.table(report)
    assert "| dpm++, 2 | 13.0 | 47.1 | 358.2 |" in text
    assert "| dpm++, 8 | 9.4 | 60.0 | – |" in text
    assert "| real clips against other real clips | 40.0 | – | 48.0 |" in text
    assert "log-SNR" not in text
    spacing: dict = {"logsnr_spacing": {"dpm++": [-3.5, 2.5]}}
    spaced = calls.table(report | spacing)
    assert "generation has neither frames nor text. Its steps stand at a log-SNR of -3.5 ± 2.5.\n" in spaced
    both = calls.table(report | spacing | {"samplers": ["dpm++", "ddim"]})
    assert "nor text. Its steps of dpm++ stand at a log-SNR of -3.5 ± 2.5.\n" in both  # ddim's do not


@pytest.mark.parametrize("tasks", [["prediction"], ["generation"], ["prediction", "generation"]])
def test_the_chart_of_calls_has_the_tasks_that_were_run(tmp_path, tasks):
    runs = [{"sampler": "dpm++", "calls": n, "task": task, "fvd": 9.0, "error": 5.0} for n in (1, 2) for task in tasks]
    report = {"samplers": ["dpm++"], "runs": runs, "real_against_real": dict.fromkeys(tasks, 40.0)}
    calls.draw(report, tmp_path / "calls.png")
    width, height = Image.open(tmp_path / "calls.png").size
    panels = sum({"prediction": 2, "generation": 1}[task] for task in tasks)
    assert width / height == pytest.approx(13 * panels / 3 / 4, rel=0.02)


@pytest.mark.parametrize("given", [None, np.full((2, 5, 16, 16, 1), 128, np.uint8)])
def test_the_spacing_benchmark_finds_where_the_answer_changes(given):
    """x̂ goes from −1 to 1 around a log-SNR of −4 as a logistic curve, whose standard deviation is π/√3."""
    scheduler = VPContinuousScheduler(prediction_type="sample")
    unet = tiny_denoiser(in_channels=3, num_frames=10)

    def forward(sample, timestep, **_):
        logsnr = scheduler.logsnr(timestep.double().flatten()[0] / 1000)
        return (torch.full_like(sample[:, :1], 2 * torch.sigmoid(logsnr + 4).item() - 1),)

    unet.forward = forward
    pipeline = VideoDiffusionPipeline(unet, scheduler.as_diffusers(DPMSolverMultistepScheduler))
    pipeline.set_progress_bar_config(disable=True)
    places, logsnr = spacing.levels(pipeline, 41)
    assert logsnr[[0, -1]] == pytest.approx(spacing.ENDS, abs=0.2)
    found = spacing.distances(pipeline, 2, places, given)
    change = np.diff(1 / (1 + np.exp(-logsnr - 4)))
    np.testing.assert_allclose(found, 16 * change, atol=0.02)  # of 16 × 16 pixels, all alike
    assert spacing.moments(logsnr, found) == (pytest.approx(-4, abs=0.1), pytest.approx(np.pi / 3**0.5, abs=0.1))
