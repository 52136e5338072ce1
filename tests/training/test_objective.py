"""The training loss: its weights, its randomness, given frames, and joint image + video batches."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch

from oracle import Gaussian
from video_diffusion import VideoDiffusionPipeline
from video_diffusion.model.scheduler import VPContinuousScheduler, alpha_sigma, log_loss_weight, prediction_loss_weight
from video_diffusion.training.objective import (
    TASKS,
    Draw,
    diffusion_loss,
    draw,
    joint_attention_mask,
    logit_normal,
    model_input,
    random_frame_mask,
    stratified_times,
)

WEIGHTINGS = ("clipped_v_prediction", "epsilon", "sample", "v_prediction", "min_snr", "sigmoid", "edm")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SHARES = (0.3, 0.4, 0.15, 0.15)
LOGSNR = torch.linspace(-18, 18, 73, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


class Model:
    """A function in a denoiser's place."""

    def __init__(self, function, in_channels=1):
        self.function, self.config = function, SimpleNamespace(in_channels=in_channels)

    def __call__(self, sample, timestep, **_):
        return SimpleNamespace(sample=self.function(sample, timestep))


# ------------------------------------------------------------------------------------------- weights
@pytest.mark.parametrize(
    ("weighting", "formula"),
    [
        ("epsilon", lambda snr: snr),
        ("sample", lambda snr: 1.0),
        ("v_prediction", lambda snr: snr + 1),
        ("clipped_v_prediction", lambda snr: min(snr + 1, 20.0)),
        ("min_snr", lambda snr: min(snr, 5.0)),
        ("sigmoid", lambda snr: snr / (1 + math.exp(-2) * snr)),
        ("edm", lambda snr: (snr + 4) * math.exp(-((math.log(snr) - 2.4) ** 2) / (2 * 2.4**2))),
    ],
)
def test_weights_are_their_formulas_in_the_signal_to_noise_ratio(weighting, formula):
    expected = torch.tensor([formula(math.exp(v)) for v in LOGSNR.tolist()], dtype=torch.float64)
    torch.testing.assert_close(torch.exp(log_loss_weight(LOGSNR, weighting)), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weighted_errors_are_equal_across_parametrisations(weighting):
    """For one estimate x̂: equation (3) and its like, from ‖ε − ε̂‖, ‖x − x̂‖ and ‖v − v̂‖."""
    alpha, sigma = (c[:, None] for c in alpha_sigma(LOGSNR))
    x, epsilon, estimate = (noise(len(LOGSNR), 9, seed=s, dtype=torch.float64) for s in range(3))
    z_t = alpha * x + sigma * epsilon
    epsilon_hat = epsilon + alpha / sigma * (x - estimate)  # (z_t − α x̂)/σ
    errors = {
        "sample": x - estimate,
        "epsilon": epsilon - epsilon_hat,
        "v_prediction": (alpha * epsilon - sigma * x) - (alpha * z_t - estimate) / sigma,
    }
    losses = [prediction_loss_weight(LOGSNR, weighting, p) * e.square().mean(1) for p, e in errors.items()]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-7, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-5, atol=0)  # σ² v cancels near σ = 1e-4


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_each_parametrisations_own_weighting_is_a_plain_mean_square(prediction_type):
    weight = prediction_loss_weight(LOGSNR, prediction_type, prediction_type)
    torch.testing.assert_close(weight, torch.ones_like(LOGSNR), rtol=1e-12, atol=0)


def test_unknown_weightings_and_parametrisations_are_named():
    with pytest.raises(ValueError, match="`weighting` is 'snr', expected one of"):
        log_loss_weight(LOGSNR, "snr")
    with pytest.raises(ValueError, match="`prediction_type` is 'x', expected one of"):
        prediction_loss_weight(LOGSNR, "epsilon", "x")


# ------------------------------------------------------------------------------------------- randomness
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_times_fall_one_into_each_stratum(batch):
    for seed in range(20):
        t = stratified_times(batch, generator(seed)).double()
        assert sorted(torch.ceil(t * batch - 1e-5).long().tolist()) == list(range(1, batch + 1))
        assert 0 < t.min() <= t.max() <= 1
        torch.testing.assert_close(t.sort().values.diff(), torch.full((batch - 1,), 1 / batch).double())  # one offset


def test_each_row_of_times_is_uniform():
    """Whatever a row's neighbours: 2000 steps, Kolmogorov distance below its 0.1 % quantile 1.95/√n."""
    t = torch.stack([stratified_times(4, generator(seed)) for seed in range(2000)])[:, 1].sort().values
    distance = (t - torch.arange(1, 2001) / 2000).abs().max().item()
    assert distance < 1.95 / math.sqrt(2000)


def test_logit_normal_times_have_that_distribution_and_keep_their_strata():
    u = torch.tensor([1e-7, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    expected = [scipy.stats.norm(0.9, 0.8).ppf(value) for value in u.tolist()]
    t = logit_normal(u, 0.9, 0.8)
    np.testing.assert_allclose(t.logit()[:4], expected[:4], rtol=1e-9)
    assert t[-1] == 1
    assert logit_normal(torch.tensor([1e-38]), -20.0, 20.0).item() > 0
    plain, moved = (draw((64, 1, 3, 8, 8), SHARES, 0, 5, logit=logit) for logit in (None, (0.9, 0.8)))
    assert torch.equal(moved.t, logit_normal(plain.t, 0.9, 0.8))
    assert torch.equal(moved.t.argsort(), plain.t.argsort())
    assert torch.equal(moved.noise, plain.noise)
    by_frame = draw((64, 1, 3, 8, 8), SHARES, 0, 5, frame_noise=1.0, logit=(0.9, 0.8)).t
    assert by_frame.shape == (64, 3)
    assert abs(by_frame.logit().mean() - 0.9) < 4 * 0.8 / math.sqrt(192)


def masks_of(task, frames=6, batch=4000):
    return random_frame_mask(batch, frames, [float(task == name) for name in TASKS], generator())


def test_generation_gives_no_frame():
    assert not masks_of("generation").any()


def test_prediction_gives_a_prefix_of_every_length_alike():
    mask = masks_of("prediction")
    assert (mask[:, 1:] <= mask[:, :-1]).all()
    lengths = mask.sum(1).bincount(minlength=7)
    assert lengths[0] == lengths[6] == 0
    assert (lengths[1:6] - 800).abs().max() < 4 * math.sqrt(4000 * 0.2 * 0.8)


def test_interpolation_leaves_one_run_after_a_prefix():
    mask = masks_of("interpolation")
    assert mask[:, 0].all()
    starts = (~mask[:, 1:] & mask[:, :-1]).sum(1)
    assert (starts == 1).all()
    assert 0.3 < mask[:, -1].float().mean() < 0.8  # both with and without frames after the run


def test_inpainting_gives_any_subset():
    mask = masks_of("inpainting", frames=4)
    codes = (mask.long() * torch.tensor([1, 2, 4, 8])).sum(1)
    assert sorted(codes.unique().tolist()) == list(range(15))  # all but "every frame given"
    assert mask.float().mean().item() == pytest.approx(0.5 * 3 / 4, abs=0.02)  # a half, less the frame that is kept


@pytest.mark.parametrize("frames", [1, 2, 3, 10])
@pytest.mark.parametrize("shares", [SHARES, (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)])
def test_a_frame_is_always_left(frames, shares):
    assert (~random_frame_mask(5000, frames, shares, generator())).any(dim=1).all()


def test_tasks_get_their_shares():
    """Counted by what is seen: nothing given, or a prefix; in-painting and interpolation give these now and then."""
    frames = 10
    mask = random_frame_mask(40_000, frames, SHARES, generator())
    none = (~mask.any(dim=1)).float().mean().item()
    prefix = (mask[:, 0] & (mask[:, 1:] <= mask[:, :-1]).all(dim=1)).float().mean().item()
    # ∫ p^k (1 − p)^(F−1−k) dp: k of the F − 1 frames that in-painting may give, those in front of the kept one
    in_painting = [math.factorial(k) * math.factorial(frames - 1 - k) / math.factorial(frames) for k in range(frames)]
    in_painted_prefix = sum(share * (frames - k) / frames for k, share in enumerate(in_painting) if k)
    no_suffix = sum(1 / (frames - k) for k in range(1, frames)) / (frames - 1)
    assert none == pytest.approx(SHARES[0] + SHARES[3] * in_painting[0], abs=0.01)
    assert prefix == pytest.approx(SHARES[1] + SHARES[2] * no_suffix + SHARES[3] * in_painted_prefix, abs=0.01)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.5, 0.5, 0.5, -0.5), (0.1, 0.1, 0.1, 0.1)])
def test_shares_that_are_no_distribution_are_refused(shares):
    with pytest.raises(ValueError, match="`probabilities` is"):
        random_frame_mask(2, 4, shares, generator())


def test_a_draw_is_a_function_of_seed_and_step_alone():
    shape = (6, 1, 5, 4, 4)
    first = draw(shape, SHARES, seed=3, step=7)
    torch.manual_seed(99)
    torch.rand(5)
    again = draw(shape, SHARES, seed=3, step=7)
    for name in ("t", "noise", "frame_mask"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    for other in (draw(shape, SHARES, seed=4, step=7), draw(shape, SHARES, seed=3, step=8)):
        assert not torch.equal(first.t, other.t)
        assert not torch.equal(first.noise, other.noise)


def test_hiding_captions_changes_nothing_else_that_is_random():
    shown, hidden = (draw((100_000, 1, 2, 1, 1), SHARES, 0, 3, caption_dropout=p) for p in (0.0, 0.1))
    assert torch.equal(shown.noise, hidden.noise)
    assert torch.equal(shown.t, hidden.t)
    assert torch.equal(shown.frame_mask, hidden.frame_mask)
    assert shown.captioned.all()
    assert abs(1 - hidden.captioned.float().mean().item() - 0.1) < 0.003  # three standard deviations
    assert torch.equal(hidden.rows(5, 9).captioned, hidden.captioned[5:9])


def test_rows_of_the_processes_put_together_are_the_global_batch():
    whole = draw((6, 1, 5, 4, 4), SHARES, seed=3, step=7)
    parts = [whole.rows(0, 2), whole.rows(2, 6)]
    for name in ("t", "noise", "frame_mask"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    strata = torch.ceil(whole.t.double() * 6 - 1e-5).long()
    assert sorted(strata.tolist()) == [1, 2, 3, 4, 5, 6]


def test_independent_images_are_never_given():
    mask = draw((500, 1, 6, 2, 2), (0, 0.5, 0, 0.5), seed=0, step=0, num_images=2).frame_mask
    assert not mask[:, 4:].any()
    assert mask[:, :4].any(dim=0).all()
    with pytest.raises(ValueError, match="`num_images` is 7, expected 0 to the number of frames, 6"):
        draw((2, 1, 6, 2, 2), SHARES, seed=0, step=0, num_images=7)


# ------------------------------------------------------------------------------------------- the loss
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_loss_of_the_exact_denoiser_is_the_weighted_posterior_variance(weighting, prediction_type):
    """E‖x − E[x | z_t]‖² = s² σ² / (α² s² + σ²) for Gaussian pixels; 64,000 of them, so ±3 %."""
    data = Gaussian(mean=0.1, std=0.15)
    scheduler = VPContinuousScheduler(prediction_type=prediction_type)
    t = torch.tensor([0.1, 0.4, 0.7, 0.95])
    x = (data.mean + data.std * noise(4, 1, 4, 128, 128)).clamp(-1, 1)
    logsnr = scheduler.logsnr(t.double()).reshape(4, 1, 1, 1, 1)

    def exact(sample, timestep):
        torch.testing.assert_close(timestep, 1000 * t)
        return data.denoise(sample.double(), logsnr, prediction_type).float()

    step = Draw(t, noise(*x.shape, seed=1), torch.zeros(4, 4, dtype=torch.bool))
    loss, error = diffusion_loss(Model(exact), scheduler, x, step, weighting)
    alpha, sigma = alpha_sigma(logsnr.flatten())
    variance = data.std**2 * sigma**2 / (alpha**2 * data.std**2 + sigma**2)
    torch.testing.assert_close(error.double(), variance, rtol=0.03, atol=0)
    weight = torch.exp(log_loss_weight(logsnr.flatten(), weighting))
    torch.testing.assert_close(loss.double(), weight * variance, rtol=0.03, atol=0)


def half_given(x):
    mask = torch.zeros(len(x), x.shape[2], dtype=torch.bool)
    mask[:, [0, 2]] = True
    return Draw(torch.tensor([0.3, 0.8]), noise(*x.shape, seed=1), mask)


def test_given_frames_carry_no_noise_and_generated_frames_no_picture():
    x, z_t = noise(2, 1, 4, 8, 8), noise(2, 1, 4, 8, 8, seed=1)
    mask = half_given(x).frame_mask
    seen, given, plane = model_input(z_t, x, mask, 3).chunk(3, dim=1)
    assert torch.equal(seen[:, :, [0, 2]], x[:, :, [0, 2]])
    assert torch.equal(seen[:, :, [1, 3]], z_t[:, :, [1, 3]])
    assert torch.equal(given[:, :, [0, 2]], x[:, :, [0, 2]])
    assert not given[:, :, [1, 3]].any()
    assert torch.equal(plane, mask[:, None, :, None, None].float().expand_as(x))
    assert model_input(z_t, x, mask, 1) is z_t
    with pytest.raises(ValueError, match="`in_channels` is 4, expected C or 2·C \\+ 1 for C = 1"):
        model_input(z_t, x, mask, 4)


def test_given_frames_carry_no_loss():
    """An output that is wrong in given frames only costs nothing; and what is averaged is the rest."""
    x = noise(2, 1, 4, 8, 8)
    step, scheduler = half_given(x), VPContinuousScheduler(prediction_type="epsilon")

    def off_by(given, generated):
        offset = torch.where(step.frame_mask, given, generated)[:, None, :, None, None]
        model = Model(lambda *_: step.noise + offset, in_channels=3)
        return diffusion_loss(model, scheduler, x.clamp(-1, 1), step, "epsilon")

    assert torch.equal(off_by(5.0, 0.0)[0], torch.zeros(2))
    torch.testing.assert_close(off_by(5.0, 0.5)[0], torch.full((2,), 0.25))
    assert torch.equal(off_by(5.0, 0.5)[1], off_by(-1.0, 0.5)[1])


def test_a_model_without_mask_channels_learns_every_frame():
    x = noise(2, 1, 4, 8, 8)
    step = half_given(x)
    offset = torch.where(step.frame_mask, 1.0, 0.0)[:, None, :, None, None]
    model = Model(lambda *_: step.noise + offset)
    loss, _ = diffusion_loss(model, VPContinuousScheduler(), x, step, "epsilon")
    torch.testing.assert_close(loss, torch.full((2,), 0.5))


# ------------------------------------------------------------------------------------------- images and video
def test_joint_attention_mask_joins_the_video_and_isolates_the_images():
    expected = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
    assert torch.equal(joint_attention_mask(2, 5, 2), expected.bool().expand(2, 5, 5))
    assert torch.equal(joint_attention_mask(1, 3, 3)[0], torch.eye(3, dtype=torch.bool))


def test_a_joint_batch_costs_what_its_video_and_its_images_cost_apart(make_denoiser):
    """Random weights everywhere: an image that saw another frame would show."""
    model, scheduler = make_denoiser(in_channels=3), VPContinuousScheduler(prediction_type="v_prediction")
    videos, frames = 3, 5
    x = noise(2, 1, frames, 16, 16).tanh()
    step = draw(x.shape, (0, 1, 0, 0), seed=0, step=0, num_images=frames - videos)

    @torch.no_grad()
    def cost(places, **arguments):
        """Loss summed over the generated frames at these places."""
        part = Draw(step.t, step.noise[:, :, places], step.frame_mask[:, places])
        loss, _ = diffusion_loss(model, scheduler, x[:, :, places], part, "v_prediction", **arguments)
        return loss * (~part.frame_mask).sum(1)

    joint = cost(slice(0, frames), num_images=frames - videos)
    apart = cost(slice(0, videos)) + sum(cost(slice(i, i + 1)) for i in range(videos, frames))
    torch.testing.assert_close(joint, apart, rtol=1e-5, atol=1e-5)
    assert (cost(slice(0, frames)) - apart).abs().min() > 1e-3  # without the mask they do see each other


def test_training_and_sampling_show_the_denoiser_the_same_input(make_denoiser):
    model = make_denoiser(in_channels=3)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    pipe = VideoDiffusionPipeline(model, VPContinuousScheduler(prediction_type="v_prediction"))
    pipe.set_progress_bar_config(disable=True)
    x = torch.rand(1, 1, 4, 16, 16)
    z = torch.randn_like(x)
    mask = torch.tensor([[True, False, False, True]])
    given = x[:, :, mask[0]].permute(0, 2, 1, 3, 4)
    pipe(video=given, frame_indices=[0, 3], latents=z, num_inference_steps=1, output_type="pt")
    torch.testing.assert_close(seen[0], model_input(z, 2 * x - 1, mask, 3), rtol=0, atol=1e-6)
