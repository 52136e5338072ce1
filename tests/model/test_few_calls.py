"""What a network that was distilled to few calls needs: DDIM's step at any times, and the guidance scale as input."""

import pytest
import torch
from diffusers import DDIMScheduler, LatentConsistencyModelPipeline

from denoisers import tiny_denoiser, tiny_text
from oracle import Gaussian, sampled_moments
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.demo.studio import Studio
from video_diffusion.hub.browser import describe
from video_diffusion.model.guidance import guidance_embedding
from video_diffusion.model.scheduler import alpha_sigma, ddim_coefficients
from video_diffusion.sampling import choose_sampler, sampler_name

SCHEDULES = ("cosine", "linear", "linear_beta")
GAUSSIAN = Gaussian()


def seed(number=0):
    return torch.Generator().manual_seed(number)


def noise(*shape, number=0):
    return torch.randn(shape, generator=seed(number), dtype=torch.float64)


def ddim(**config):
    return VPContinuousScheduler(**{"clip_sample": False, "deterministic": True} | config)


# -------------------------------------------------------------------------------------------------------- DDIM's step
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_step_keeps_the_noise_and_renews_the_signal(schedule):
    """z_s = α_s x̂ + σ_s ε̂ for the ε̂ that belongs to x̂, each sample at times of its own."""
    scheduler, x, z = ddim(schedule=schedule), noise(5, 3), noise(5, 3, number=1)
    t, s = torch.tensor([1000.0, 700, 30, 1000, 500]).double(), torch.tensor([500.0, 699, 0, 0, 250]).double()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (alpha_sigma(scheduler.logsnr(u / 1000)[:, None]) for u in (t, s))
    expected = alpha_s * x + sigma_s * (z - alpha_t * x) / sigma_t
    torch.testing.assert_close(scheduler.ddim_step(x, t, s, z), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_deterministic_sampler_takes_that_step_and_draws_nothing(prediction_type):
    scheduler, z, output = ddim(prediction_type=prediction_type), noise(2, 9), noise(2, 9, number=1)
    scheduler.set_timesteps(4)
    for t, s in zip(scheduler.timesteps, [*scheduler.timesteps[1:], 0.0], strict=True):
        state = torch.random.get_rng_state()
        z_s, x = scheduler.step(output, t, z, return_dict=False)
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.testing.assert_close(x, scheduler.predict_original(output, t, z))
        torch.testing.assert_close(z_s, scheduler.ddim_step(x, t, s, z))


def test_the_steps_together_follow_the_exact_ode_to_first_order():
    """Against the Gaussian's probability-flow ODE: halving the steps halves the error."""
    errors = []
    for steps in (50, 100, 200):
        mean, variance = sampled_moments(ddim(), GAUSSIAN, steps)
        errors.append(abs(mean - GAUSSIAN.mean) + abs(variance**0.5 - GAUSSIAN.std))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)
    assert errors[2] < 0.01


def test_it_is_the_step_of_diffusers_ddim_on_this_schedule():
    own, z = ddim(prediction_type="v_prediction"), noise(1, 1000).float()
    stock = VPContinuousScheduler(prediction_type="v_prediction").as_diffusers(DDIMScheduler, clip_sample=False)
    ends = []
    for scheduler in (own, stock):
        scheduler.set_timesteps(8)
        z_t = z
        for t in scheduler.timesteps:
            logsnr = own.logsnr(torch.as_tensor(t).double() / 1000)
            z_t = scheduler.step(GAUSSIAN.denoise(z_t, logsnr, "v_prediction").float(), t, z_t).prev_sample
        ends.append(z_t)
    torch.testing.assert_close(*ends, rtol=0, atol=2e-3)


def test_the_exact_student_of_two_steps_is_known_on_a_gaussian():
    """Both of the teacher's steps are affine in z_t, so the student's x̂ is: a z_t + b, in closed form."""
    scheduler, z = ddim(), noise(7)
    for t, m, s in [(1.0, 0.75, 0.5), (0.5, 0.25, 0.0), (1.0, 0.5, 0.0)]:
        at = {u: scheduler.logsnr(torch.tensor(u).double()) for u in (t, m, s)}
        affine = {}
        for start, end in ((t, m), (m, s)):
            weight_z, weight_x = ddim_coefficients(at[start], at[end])
            intercept = GAUSSIAN.denoise(torch.zeros(()).double(), at[start])
            slope = GAUSSIAN.denoise(torch.ones(()).double(), at[start]) - intercept
            affine[start] = (weight_z + weight_x * slope, weight_x * intercept)
        a, b = affine[m][0] * affine[t][0], affine[m][0] * affine[t][1] + affine[m][1]
        weight_z, weight_x = ddim_coefficients(at[t], at[s])
        student = scheduler.ddim_original(a * z + b, 1000 * t, 1000 * s, z)
        torch.testing.assert_close(student, ((a - weight_z) * z + b) / weight_x, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(scheduler.ddim_step(student, 1000 * t, 1000 * s, z), a * z + b)


def test_a_step_must_lead_towards_the_clip():
    for method in (ddim().ddim_step, ddim().ddim_original):
        with pytest.raises(ValueError, match="`prev_timestep` is 500, expected less than `timestep`, 500"):
            method(noise(1, 2), 500, 500, noise(1, 2))
        with pytest.raises(ValueError, match=r"has shape \(1, 3\), expected the sample's, \(1, 2\)"):
            method(noise(1, 3), 500, 0, noise(1, 2))


def test_the_config_says_so_and_comes_back(tmp_path):
    ddim().save_config(tmp_path)
    assert VPContinuousScheduler.from_pretrained(tmp_path).config.deterministic is True
    assert VPContinuousScheduler().config.deterministic is False
    stock = DDIMScheduler.from_config(ddim().config)
    assert VPContinuousScheduler.from_config(stock.config).config.deterministic is True


# ------------------------------------------------------------------------------------------------- the guidance scale
@pytest.mark.parametrize("width", [4, 32, 33, 256])
def test_the_scale_is_embedded_as_in_the_latent_consistency_pipelines(width):
    scale = torch.tensor([1.0, 1.5, 4.0, 8.0], dtype=torch.float64)
    expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scale - 1, width, torch.float64)
    torch.testing.assert_close(guidance_embedding(scale, width), expected, rtol=0, atol=2e-4)  # theirs: in float32


@pytest.fixture(scope="module")
def distilled():
    unet = tiny_denoiser(
        sample_size=8, in_channels=3, block_out_channels=(8, 8), cross_attention_dim=8, time_cond_proj_dim=16
    )
    pipeline = VideoDiffusionPipeline(unet, ddim(prediction_type="sample"), **tiny_text(("left", "right")))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline, prompt="left", **changes):
    return pipeline(prompt, **{"num_inference_steps": 2, "output_type": "pt", "generator": seed()} | changes).frames


def test_a_network_that_reads_the_scale_is_called_once_a_step_and_obeys_it(distilled):
    seen = []
    hook = distilled.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((len(args[0]), kwargs["timestep_cond"])), with_kwargs=True
    )
    four = run(distilled, guidance_scale=4.0)
    hook.remove()
    assert [size for size, _ in seen] == [1, 1]
    assert all(torch.equal(cond, guidance_embedding(torch.tensor([4.0]), 16)) for _, cond in seen)
    assert not torch.equal(four, run(distilled, guidance_scale=2.0))
    assert torch.equal(run(distilled, guidance_scale=0), run(distilled, guidance_scale=1.0))


def test_its_default_scale_is_that_of_the_generation_config_where_there_is_a_prompt(distilled):
    distilled.generation_config = {"guidance_scale": 3.0}
    assert torch.equal(run(distilled), run(distilled, guidance_scale=3.0))
    assert torch.equal(run(distilled, None), run(distilled, None, guidance_scale=1.0))
    distilled.generation_config = {}


def test_prompt_embeds_alone_are_enough_for_it(distilled):
    embeds = distilled.encode_prompt("left", do_classifier_free_guidance=False)[0]
    by_embeds = run(distilled, None, prompt_embeds=embeds, guidance_scale=4.0)
    assert torch.equal(by_embeds, run(distilled, guidance_scale=4.0))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"negative_prompt": "right", "guidance_scale": 4.0}, "`negative_prompt` is given, expected None: `unet` was"),
        ({"prompt": None, "guidance_scale": 4.0}, "`guidance_scale` is 4.0, expected 1 without a prompt"),
        ({"guidance_scale": 0.5}, "`guidance_scale` is 0.5, expected 0 or at least 1"),
    ],
)
def test_what_it_cannot_do_is_refused(distilled, asked, message):
    with pytest.raises(ValueError, match=message):
        run(distilled, **asked)


def test_it_is_saved_and_loaded_with_its_step(distilled, tmp_path):
    distilled.save_pretrained(tmp_path)
    loaded = VideoDiffusionPipeline.from_pretrained(tmp_path)
    assert loaded.scheduler.config.deterministic is True
    assert torch.equal(run(loaded, guidance_scale=4.0), run(distilled, guidance_scale=4.0))


def test_its_sampler_is_called_ddim_and_takes_no_gamma(distilled):
    assert sampler_name(distilled) == "ddim"
    for name in ("ancestral", "ddim"):  # its own step; the stock one has whole timesteps
        assert choose_sampler(distilled.scheduler, name, None) is distilled.scheduler
    with pytest.raises(ValueError, match=r"`gamma` is 0.5, expected None: the model's sampler is deterministic"):
        choose_sampler(distilled.scheduler, "ancestral", 0.5)


def test_the_demo_offers_no_other_sampler(distilled):
    studio = Studio(distilled)
    assert (studio.samplers, studio.gamma) == (("ancestral",), None)


def test_the_page_in_the_browser_begins_with_its_calls(distilled):
    distilled.generation_config = {"num_inference_steps": 3}
    about = describe(distilled, "few")
    assert (about["usual"]["calls"], about["sampler"], about["reads_guidance"]) == (3, "ancestral", True)
    assert "3" in about["steps"]
    distilled.generation_config = {}
