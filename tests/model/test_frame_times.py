"""A time for each frame: network, scheduler and loss; the sampler on a Gaussian of frames that is known exactly."""

import pytest
import torch
from diffusers import DDIMScheduler

from denoisers import MIDDLES, tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.model.guidance import pyramid_times
from video_diffusion.model.scheduler import alpha_sigma
from video_diffusion.training.objective import diffusion_loss, draw

FRAMES, RHO, STD, SIZE = 5, 0.9, 0.2, 48
COVARIANCE = STD**2 * RHO ** (torch.arange(FRAMES)[:, None] - torch.arange(FRAMES)).abs().double()  # AR(1) over frames


def seed(number=0):
    return torch.Generator().manual_seed(number)


def clips(*shape, number=0):
    return torch.randn(shape, generator=seed(number))


# --------------------------------------------------------------------------------------------------------- the network
@MIDDLES
def test_one_time_for_all_frames_is_the_time_of_the_clip(make_denoiser, middle):
    unet, x = make_denoiser(in_channels=3, **middle), clips(2, 3, 4, 16, 16)
    times = torch.tensor([700.0, 200.0])
    with torch.no_grad():
        by_clip, by_frame = unet(x, times).sample, unet(x, times[:, None].expand(2, 4)).sample
    torch.testing.assert_close(by_clip, by_frame)


@MIDDLES
def test_each_frame_is_told_its_own_time(make_denoiser, middle):
    """Where no frame sees another, a frame's output depends on its own time alone."""
    unet, x = make_denoiser(in_channels=3, **middle), clips(1, 3, 4, 16, 16)
    alone = torch.eye(4, dtype=torch.bool)[None]
    times = torch.tensor([[900.0, 600.0, 300.0, 0.0]])
    with torch.no_grad():
        together = unet(x, times, frame_attention_mask=alone).sample
        for i, t in enumerate(times[0]):
            one = unet(x, t, frame_attention_mask=alone).sample
            torch.testing.assert_close(together[:, :, i], one[:, :, i], atol=1e-5, rtol=1e-4)
            assert (together - one)[:, :, (i + 1) % 4].abs().max() > 1e-3


def test_class_and_guidance_scale_go_with_times_of_frames(make_denoiser):
    unet, x = make_denoiser(in_channels=3, num_class_embeds=3, time_cond_proj_dim=8), clips(2, 3, 4, 16, 16)
    more = {"class_labels": torch.tensor([0, 2]), "timestep_cond": clips(2, 8)}
    with torch.no_grad():
        by_clip = unet(x, torch.tensor([700.0, 200.0]), **more).sample
        by_frame = unet(x, torch.tensor([[700.0] * 4, [200.0] * 4]), **more).sample
    torch.testing.assert_close(by_clip, by_frame)


# ------------------------------------------------------------------------------------------------------- the scheduler
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_noise_and_estimates_take_the_time_of_each_frame(prediction_type):
    scheduler = VPContinuousScheduler(prediction_type=prediction_type)
    x, noise = clips(2, 1, 3, 4, 4).double(), clips(2, 1, 3, 4, 4, number=1).double()
    times = torch.tensor([[100.0, 500.0, 900.0], [300.0, 300.0, 700.0]])
    z, target = scheduler.add_noise(x, noise, times), scheduler.get_target(x, noise, times)
    for b in range(2):
        for f in range(3):
            frame = (slice(b, b + 1), slice(None), slice(f, f + 1))
            assert torch.equal(z[frame], scheduler.add_noise(x[frame], noise[frame], times[b, f]))
    torch.testing.assert_close(scheduler.predict_original(target, times, z), x)
    torch.testing.assert_close(scheduler.from_original(x, times, z), target)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_step_of_each_frame_is_the_step_of_a_clip_and_what_waits_stays(deterministic):
    scheduler = VPContinuousScheduler(prediction_type="sample", deterministic=deterministic)
    scheduler.set_timesteps(4)
    x, z = clips(1, 1, 3, 4, 4).double().clamp(-1, 1), clips(1, 1, 3, 4, 4, number=1).double()
    by_clip = scheduler.step(x, 500.0, z, seed()).prev_sample
    torch.testing.assert_close(scheduler.step_to(x, 500.0, 250.0, z, seed()), by_clip)
    last = scheduler.step(x, 250.0, z, seed()).prev_sample
    now, then = torch.tensor([[500.0, 250.0, 1000.0]]), torch.tensor([[250.0, 0.0, 1000.0]])
    made = scheduler.step_to(x, now, then, z, seed())
    torch.testing.assert_close(made[:, :, 0], by_clip[:, :, 0])
    torch.testing.assert_close(made[:, :, 1], last[:, :, 1])
    assert torch.equal(made[:, :, 2], z[:, :, 2])


def test_times_that_do_not_fit_are_refused():
    scheduler, x = VPContinuousScheduler(), clips(2, 1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"`timesteps` has shape \(2, 4\), expected .* each frame of clips, \[2, 3\]"):
        scheduler.add_noise(x, x, torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"`prev_timestep` is 600.0, expected at most `timestep`, 500.0"):
        scheduler.step_to(x, 500.0, 600.0, x)


# --------------------------------------------------------------------------------------------------------- the pyramid
def test_the_pyramid_is_even_and_ends_with_the_last_step():
    given = torch.tensor([True, False, False, False, False])
    times = pyramid_times(given, 8, 1.0)
    assert times.shape == (9, 5)
    assert not times[:, 0].any()
    assert torch.equal(times[0, 1:], torch.ones(4).double())
    assert torch.equal(times[-1], torch.zeros(5).double())
    assert (times.diff(dim=0) <= 0).all()
    torch.testing.assert_close(
        times[4].float(), torch.tensor([0, 0, 1 / 3, 2 / 3, 1])
    )  # the first is done, the last begins
    assert torch.equal(pyramid_times(given, 8, 0.0)[:, 1], torch.linspace(1, 0, 9).double())
    assert torch.equal(pyramid_times(torch.tensor([True, False]), 4, 1.0)[:2, 1], torch.tensor([1.0, 0.5]).double())


def gaussian(size=SIZE, **scheduler):
    """A pipeline around the exact denoiser of frames that are AR(1) in time, each at its own noise level."""
    unet = tiny_denoiser(
        num_frames=FRAMES, block_out_channels=(16, 16), sample_size=size, in_channels=1, frame_timesteps=True
    )
    scheduler = {"prediction_type": "v_prediction", "clip_sample": False} | scheduler
    pipeline = VideoDiffusionPipeline(unet, VPContinuousScheduler(**scheduler))
    pipeline.set_progress_bar_config(disable=True)
    seen = []

    def denoise(z, t, encoder_hidden_states, return_dict):
        seen.append(t.clone())
        estimate = torch.zeros_like(z)
        for b, times in enumerate(t):
            alpha, sigma = alpha_sigma(pipeline.scheduler.logsnr(times.double() / 1000))
            noisy = alpha[:, None] * COVARIANCE * alpha + torch.diag(sigma**2)
            gain = COVARIANCE * alpha @ torch.linalg.inv(noisy)
            estimate[b] = torch.einsum("fg,cghw->cfhw", gain.to(z), z[b])
        return (pipeline.scheduler.from_original(estimate, t, z),)

    pipeline.unet.forward = denoise
    return pipeline, seen


@pytest.mark.parametrize("lag", [0.0, 1.0])
@pytest.mark.parametrize("given", [[0, 1], [0, 4], []], ids=["prediction", "interpolation", "generation"])
def test_given_frames_at_time_zero_give_the_exact_law_of_the_others(given, lag):
    pipeline, seen = gaussian()
    x = torch.linalg.cholesky(COVARIANCE[given][:, given]).float()
    x = torch.einsum("fg,bgchw->bfchw", x, clips(1, len(given), 1, SIZE, SIZE)).clamp(-1, 1)
    told = {"video": (x + 1) / 2, "frame_indices": given} if given else {}
    options = {"num_inference_steps": 400, "output_type": "latent", "noise_pyramid": lag, "generator": seed(1)}
    z = pipeline(**told, **options).frames[0, 0].flatten(1).double()
    assert len(seen) == 400
    assert all(not t[:, given].any() for t in seen)
    rest = [i for i in range(FRAMES) if i not in given]
    coefficients = COVARIANCE[rest][:, given] @ torch.linalg.pinv(COVARIANCE[given][:, given])
    covariance = COVARIANCE[rest][:, rest] - coefficients @ COVARIANCE[given][:, rest]
    residual = z[rest] - coefficients @ z[given]
    found = residual @ residual.mT / residual.shape[1]
    torch.testing.assert_close(found, covariance, atol=0.0035, rtol=0)


def test_guidance_masks_the_given_frames_by_pure_noise():
    pipeline, seen = gaussian()
    x = clips(1, 2, 1, SIZE, SIZE).mul(STD).clamp(-1, 1)
    options = {"video": (x + 1) / 2, "num_inference_steps": 3, "output_type": "latent", "generator": seed(1)}
    plain = pipeline(**options).frames
    seen.clear()
    guided = pipeline(**options, history_guidance_scale=2.0).frames
    free, bound = seen[::2], seen[1::2]
    assert all(torch.equal(t[:, :2], torch.full((1, 2), 1000.0)) for t in free)
    assert all(not t[:, :2].any() for t in bound)
    assert all(torch.equal(f[:, 2:], b[:, 2:]) for f, b in zip(free, bound, strict=True))
    assert (guided[:, :, 2].abs().mean() - plain[:, :, 2].abs().mean()) > 0.02  # further from the free mean, 0


def test_a_long_video_is_rolled_out_with_it():
    pipeline, _ = gaussian(32)
    made = pipeline(
        num_frames=10, num_inference_steps=300, noise_pyramid=1.0, output_type="latent", generator=seed()
    ).frames
    frames = made[0, 0].flatten(1).double()
    correlation = (frames[1:] * frames[:-1]).mean(1) / STD**2
    torch.testing.assert_close(correlation, torch.full((9,), RHO).double(), atol=0.12, rtol=0)


def test_a_pyramid_is_refused_where_there_is_one_time(make_denoiser):
    pipeline = VideoDiffusionPipeline(make_denoiser(in_channels=3), VPContinuousScheduler())
    with pytest.raises(ValueError, match=r"`noise_pyramid` is 1.0, expected 0: the model was not trained with a time"):
        pipeline(noise_pyramid=1.0)
    pipeline = VideoDiffusionPipeline(
        make_denoiser(in_channels=1, frame_timesteps=True), VPContinuousScheduler().as_diffusers(DDIMScheduler)
    )
    with pytest.raises(ValueError, match=r"`noise_pyramid` is 1.0, expected 0: the scheduler, DDIMScheduler, has one"):
        pipeline(noise_pyramid=1.0)
    with pytest.raises(ValueError, match=r"`noise_pyramid` is -1, expected a number of at least 0"):
        pipeline(noise_pyramid=-1)


# ------------------------------------------------------------------------------------------------------------ the loss
def test_times_of_frames_are_drawn_beside_what_was_drawn_before():
    options = ((64, 1, 6, 4, 4), (0.25, 0.25, 0.25, 0.25), 3, 7)
    plain, shared, own = draw(*options), draw(*options, frame_noise=0.0), draw(*options, frame_noise=1.0)
    assert torch.equal(shared.t, plain.t[:, None].expand(64, 6))
    assert all(torch.equal(plain.noise, other.noise) for other in (shared, own))
    assert all(torch.equal(plain.frame_mask, other.frame_mask) for other in (shared, own))
    assert own.t.std(1).min() > 0.02
    assert (own.t > 0).all()
    assert (own.t <= 1).all()
    assert own.t.mean().item() == pytest.approx(0.5, abs=0.05)
    half = draw(*options, frame_noise=0.5).t.std(1) > 1e-6
    assert 16 < half.sum() < 48


def test_the_loss_weighs_each_frame_by_its_own_level_and_shows_given_frames_at_time_zero():
    scheduler = VPContinuousScheduler(prediction_type="sample")
    x, noise = clips(2, 1, 4, 8, 8).clamp(-1, 1), draw((2, 1, 4, 8, 8), (0, 1, 0, 0), 0, 1, frame_noise=1.0)
    seen = []

    class Model(torch.nn.Module):
        config = type("Config", (), {"in_channels": 1})

        def forward(self, z, t):
            seen.append((z, t))
            return type("Output", (), {"sample": x + 0.1})

    loss, error = diffusion_loss(Model(), scheduler, x, noise, "v_prediction")
    ((z, t),) = seen
    mask = noise.frame_mask
    assert mask.any(1).all()
    assert torch.equal(t, torch.where(mask, 0.0, noise.t * 1000))
    assert torch.equal(z.transpose(1, 2)[mask], x.transpose(1, 2)[mask])
    weight = 1 + scheduler.logsnr(noise.t.double()).exp()
    expected = [0.01 * weight[b][~mask[b]].mean() for b in range(2)]
    torch.testing.assert_close(loss.double(), torch.stack(expected), rtol=1e-3, atol=0)
    assert (error <= 0.0101).all()
