"""`VPContinuousScheduler` against the Gaussian oracle, diffusers' schedulers and its own invariances."""

import inspect

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from oracle import Gaussian, affine_step, observed_order, sampled_moments
from video_diffusion.model.scheduler import VPContinuousScheduler, posterior_coefficients

SCHEDULES = ("cosine", "linear", "linear_beta")
GAMMAS = (0.0, 0.3, 1.0)
DATA = Gaussian(mean=0.3, std=0.5)
EXACT = {"clip_sample": False, "prediction_type": "sample"}


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ------------------------------------------------------------------------------------------- the Gaussian oracle
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sampled_mean_is_exact_for_any_number_of_steps(schedule, gamma, prediction_type):
    scheduler = VPContinuousScheduler(schedule, gamma=gamma, clip_sample=False, prediction_type=prediction_type)
    for steps in (1, 2, 7, 30):
        mean, _ = sampled_moments(scheduler, DATA, steps)
        assert mean == pytest.approx(DATA.mean, abs=1e-7)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sampled_variance_converges_with_order_one(schedule, gamma):
    """Measured slopes: 0.95–0.98 (cosine), 0.95–1.02 (linear), 0.88–0.94 (linear_beta, still rising to 1)."""
    scheduler = VPContinuousScheduler(schedule, gamma=gamma, **EXACT)
    steps = [150, 300, 600]
    errors = [sampled_moments(scheduler, DATA, n)[1] - DATA.std**2 for n in steps]
    assert 0.85 < observed_order(errors, steps) < 1.1
    assert abs(errors[-1]) < 0.06 * DATA.std**2
    assert all(e > 0 for e in errors) if gamma == 1 else all(e < 0 for e in errors)  # which side each γ errs on


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_variance_rises_with_gamma(schedule):
    variances = [sampled_moments(VPContinuousScheduler(schedule, gamma=g, **EXACT), DATA, 50)[1] for g in GAMMAS]
    assert variances[0] < variances[1] < variances[2]


@pytest.mark.parametrize(("gamma", "std"), [(0.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gamma_0_is_exact_for_one_point_and_gamma_1_for_unit_variance(schedule, gamma, std):
    """The two ends of γ bracket the reverse variance; each is it for one kind of data, at any step size."""
    scheduler = VPContinuousScheduler(schedule, gamma=gamma, **EXACT)
    data = Gaussian(mean=0.3, std=std)
    scheduler.set_timesteps(5)
    t = torch.linspace(1, 0, 6, dtype=torch.float64)
    mean, variance = (v.item() for v in data.marginal(scheduler.logsnr(t[0])))
    for timestep, s in zip(scheduler.timesteps[:-1], t[1:-1], strict=True):
        a, b, c = affine_step(scheduler, data, timestep)
        mean, variance = a * mean + b, a**2 * variance + c**2
        expected = data.marginal(scheduler.logsnr(s))
        assert (mean, variance) == pytest.approx((expected[0].item(), expected[1].item()), rel=1e-6)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_monte_carlo_agrees_with_the_closed_recursion(gamma):
    """From N(0, 1), in float32, with the generator's own noise."""
    scheduler = VPContinuousScheduler(gamma=gamma, clip_sample=False, prediction_type="epsilon")
    mean, variance = sampled_moments(scheduler, DATA, 20, exact_start=False)
    z, generator = noise(4, 1, 5, 100, 100), torch.Generator().manual_seed(1)
    for timestep in scheduler.timesteps:
        logsnr = scheduler.logsnr(timestep.double() / 1000)
        output = DATA.denoise(z.double(), logsnr, "epsilon").float()
        z = scheduler.step(output, timestep, z, generator=generator).prev_sample
    assert z.mean().item() == pytest.approx(mean, abs=4 * (variance / z.numel()) ** 0.5)
    assert z.var().item() == pytest.approx(variance, rel=4 * (2 / z.numel()) ** 0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 10])
def test_last_step_returns_the_mean(schedule, steps):
    """No noise, whatever the seed; and the mean is that of q(z_0 | z_t, x̂)."""
    scheduler = VPContinuousScheduler(schedule, gamma=1.0, **EXACT)
    scheduler.set_timesteps(steps)
    z, x, last = noise(2, 3), noise(2, 3, seed=1), scheduler.timesteps[-1]
    ends = [scheduler.step(x, last, z, generator=torch.Generator().manual_seed(s)).prev_sample for s in (0, 1)]
    assert torch.equal(*ends)
    times = torch.tensor([1 / steps, 0.0], dtype=torch.float64)
    weight_z, weight_x = posterior_coefficients(*scheduler.logsnr(times))
    torch.testing.assert_close(ends[0], (weight_z * z.double() + weight_x * x.double()).float())


# ------------------------------------------------------------------------------------------- against diffusers
@pytest.mark.parametrize("timestep", [979, 499, 39])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_one_step_is_ddpms_learned_range_step(gamma, timestep):
    ours = VPContinuousScheduler(gamma=gamma, clip_sample=False)
    ddpm = ours.as_diffusers(DDPMScheduler, variance_type="learned_range")
    ddpm.set_timesteps(50)
    ours.set_timesteps(timesteps=ddpm.timesteps)
    z, epsilon = noise(2, 1, 3, 8, 8), noise(2, 1, 3, 8, 8, seed=1)
    a = ours.step(epsilon, timestep, z, generator=torch.Generator().manual_seed(2))
    constant = torch.full_like(z, 2 * gamma - 1)
    both = torch.cat([epsilon, constant], dim=1)
    b = ddpm.step(both, torch.tensor(timestep), z, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(a.prev_sample, b.prev_sample, rtol=0, atol=3e-5)
    # x̂ = (z − σ ε)/α divides by α, small near t = 1: relative to it the two agree as well
    torch.testing.assert_close(a.pred_original_sample, b.pred_original_sample, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("timestep", [979, 499, 39])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_gamma_0_is_ddim_with_eta_1(prediction_type, timestep):
    ours = VPContinuousScheduler(gamma=0.0, clip_sample=False, prediction_type=prediction_type)
    ddim = ours.as_diffusers(DDIMScheduler)
    ddim.set_timesteps(50)
    ours.set_timesteps(timesteps=ddim.timesteps)
    z, output = noise(2, 1, 3, 8, 8), noise(2, 1, 3, 8, 8, seed=1)
    a = ours.step(output, timestep, z, generator=torch.Generator().manual_seed(2)).prev_sample
    b = ddim.step(output, timestep, z, eta=1.0, variance_noise=noise(2, 1, 3, 8, 8, seed=2)).prev_sample
    torch.testing.assert_close(a, b, rtol=0, atol=5e-5)


@pytest.mark.parametrize(("ratio", "bound"), [(0.995, 1.0), (0.9, 1.5), (0.8, 10.0), (1.0, 100.0)])
def test_thresholding_is_diffusers(ratio, bound):
    ours = VPContinuousScheduler(
        thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=bound, prediction_type="sample"
    )
    theirs = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=bound)
    x = noise(3, 1, 4, 8, 8) * torch.tensor([0.2, 1.0, 3.0]).reshape(3, 1, 1, 1, 1)
    ours.set_timesteps(2)
    got = ours.step(x, ours.timesteps[0], x).pred_original_sample
    torch.testing.assert_close(got, theirs._threshold_sample(x), rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------- invariances
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_three_parametrisations_take_the_same_step(schedule):
    z = noise(2, 1, 3, 4, 4, dtype=torch.float64)
    results = []
    for prediction_type in ("sample", "epsilon", "v_prediction"):
        scheduler = VPContinuousScheduler(schedule, clip_sample=False, prediction_type=prediction_type)
        scheduler.set_timesteps(10)
        for timestep in scheduler.timesteps[[0, 5, 9]]:
            output = DATA.denoise(z, scheduler.logsnr(timestep.double() / 1000), prediction_type)
            step = scheduler.step(output, timestep, z, generator=torch.Generator().manual_seed(0))
            results.append(torch.cat([step.prev_sample, step.pred_original_sample]))
    for other in (results[3:6], results[6:]):
        torch.testing.assert_close(torch.stack(results[:3]), torch.stack(other), rtol=0, atol=1e-9)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_predict_original_inverts_the_target(prediction_type):
    scheduler = VPContinuousScheduler(prediction_type=prediction_type)
    x, epsilon = noise(4, 1, 2, 3, 3, dtype=torch.float64), noise(4, 1, 2, 3, 3, seed=1, dtype=torch.float64)
    timesteps = torch.tensor([1.0, 300.0, 700.0, 999.0], dtype=torch.float64)
    z_t = scheduler.add_noise(x, epsilon, timesteps)
    target = scheduler.get_target(x, epsilon, timesteps)
    torch.testing.assert_close(scheduler.predict_original(target, timesteps, z_t), x, rtol=0, atol=1e-9)


def test_add_noise_is_equation_1():
    scheduler = VPContinuousScheduler(logsnr_min=-40.0, logsnr_max=40.0)  # α = cos(πt/2) to 1e-8
    x, epsilon = noise(2, 3, dtype=torch.float64), noise(2, 3, seed=1, dtype=torch.float64)
    expected = (3**0.5 * x + epsilon) / 2  # t = 1/3: 30°
    torch.testing.assert_close(scheduler.add_noise(x, epsilon, 1000 / 3), expected, rtol=0, atol=1e-7)
    velocity = (3**0.5 * epsilon - x) / 2
    torch.testing.assert_close(scheduler.get_velocity(x, epsilon, 1000 / 3), velocity, rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_timesteps_of_each_sample_equal_a_loop(method):
    scheduler = VPContinuousScheduler()
    x, epsilon, timesteps = noise(5, 1, 2, 3, 3), noise(5, 1, 2, 3, 3, seed=1), torch.linspace(10, 1000, 5)
    apply = getattr(scheduler, method)
    loop = torch.cat([apply(x[i : i + 1], epsilon[i : i + 1], timesteps[i]) for i in range(5)])
    assert torch.equal(apply(x, epsilon, timesteps), loop)


def test_a_generator_for_each_clip_makes_it_independent_of_its_neighbours():
    scheduler = VPContinuousScheduler(prediction_type="sample")
    scheduler.set_timesteps(4)
    z, x, timestep = noise(3, 1, 2, 4, 4), noise(3, 1, 2, 4, 4, seed=1), scheduler.timesteps[1]
    seeds = lambda *numbers: [torch.Generator().manual_seed(n) for n in numbers]  # noqa: E731
    batch = scheduler.step(x, timestep, z, generator=seeds(5, 6, 7)).prev_sample
    alone = [
        scheduler.step(x[i : i + 1], timestep, z[i : i + 1], generator=seeds(5 + i)).prev_sample for i in range(3)
    ]
    torch.testing.assert_close(batch, torch.cat(alone), rtol=0, atol=1e-7)
    assert not torch.equal(batch, scheduler.step(x, timestep, z, generator=seeds(5, 6, 8)).prev_sample)


def test_any_split_of_an_interval_has_the_posterior_mean_of_the_whole():
    """μ̃ towards a fixed x composes: t → u → s gives the weights of t → s."""
    logsnr = torch.tensor([-5.0, 0.5, 6.0], dtype=torch.float64)
    (z_tu, x_tu), (z_us, x_us) = posterior_coefficients(*logsnr[:2]), posterior_coefficients(*logsnr[1:])
    weight_z, weight_x = posterior_coefficients(logsnr[0], logsnr[2])
    torch.testing.assert_close(z_tu * z_us, weight_z)
    torch.testing.assert_close(x_tu * z_us + x_us, weight_x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_step_keeps_the_dtype_and_clips_to_the_range(dtype):
    scheduler = VPContinuousScheduler(prediction_type="sample", clip_sample_range=0.5)
    scheduler.set_timesteps(1)
    z, x = noise(2, 3).to(dtype), 3 * noise(2, 3, seed=1).to(dtype)
    step = scheduler.step(x, scheduler.timesteps[0], z)
    assert step.prev_sample.dtype == step.pred_original_sample.dtype == dtype
    assert torch.equal(step.pred_original_sample, x.clamp(-0.5, 0.5))


def test_a_tuple_holds_what_the_output_object_holds():
    scheduler = VPContinuousScheduler()
    scheduler.set_timesteps(3)
    z, generator = noise(2, 3), torch.Generator()
    named = scheduler.step(z, scheduler.timesteps[0], z, generator=generator.manual_seed(0))
    plain = scheduler.step(z, scheduler.timesteps[0], z, generator=generator.manual_seed(0), return_dict=False)
    assert torch.equal(plain[0], named.prev_sample)
    assert torch.equal(plain[1], named.pred_original_sample)


def test_own_timesteps_equal_the_same_default_ones():
    default, own = VPContinuousScheduler(), VPContinuousScheduler()
    default.set_timesteps(4)
    own.set_timesteps(timesteps=[1000, 750, 500, 250])
    z = noise(2, 3)
    for timestep in default.timesteps:
        steps = [s.step(z, timestep, z, generator=torch.Generator().manual_seed(0)) for s in (default, own)]
        assert torch.equal(steps[0].prev_sample, steps[1].prev_sample)
    assert default.scale_model_input(z, 3.0) is z
    assert (default.order, default.init_noise_sigma, len(default)) == (1, 1.0, 1000)


# ------------------------------------------------------------------------------------------- config
CHANGES = {
    "schedule": "linear",
    "logsnr_min": -10.0,
    "logsnr_max": 10.0,
    "shift": 2.0,
    "prediction_type": "v_prediction",
    "gamma": 0.9,
    "clip_sample": False,
    "clip_sample_range": 0.5,
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.5,
    "sample_max_value": 4.0,
    "num_train_timesteps": 500,
    "deterministic": True,
}
NEEDS = {
    "thresholding": {"sample_max_value": 4.0},
    "dynamic_thresholding_ratio": {"thresholding": True, "sample_max_value": 4.0},
    "sample_max_value": {"thresholding": True},
}


def fingerprint(scheduler):
    """A noisy sample, three steps of sampling and the timesteps."""
    scheduler.set_timesteps(3)
    z, generator = 2 * noise(2, 1, 2, 4, 4), torch.Generator().manual_seed(1)
    noisy = scheduler.add_noise(z, z.flip(-1), scheduler.timesteps[1])
    for timestep in scheduler.timesteps:
        z = scheduler.step(noise(2, 1, 2, 4, 4, seed=2), timestep, z, generator=generator).prev_sample
    return torch.cat([noisy.flatten(), z.flatten(), scheduler.timesteps])


def test_the_list_of_changes_below_is_the_config():
    assert set(CHANGES) == set(inspect.signature(VPContinuousScheduler.__init__).parameters) - {"self"}
    derived = {"trained_betas", "timestep_spacing", "snr_shift_scale", "skip_prk_steps"}
    assert set(CHANGES) | derived == {key for key in VPContinuousScheduler().config if not key.startswith("_")}


@pytest.mark.parametrize("field", CHANGES)
def test_every_config_field_changes_something(field):
    base = NEEDS.get(field, {})
    changed = fingerprint(VPContinuousScheduler(**base | {field: CHANGES[field]}))
    assert not torch.allclose(fingerprint(VPContinuousScheduler(**base)), changed, rtol=0, atol=1e-3)


def test_saved_and_loaded_config_samples_the_same(tmp_path):
    scheduler = VPContinuousScheduler(**CHANGES)
    scheduler.save_pretrained(tmp_path)
    loaded = VPContinuousScheduler.from_pretrained(tmp_path)
    assert torch.equal(fingerprint(loaded), fingerprint(scheduler))
    again = VPContinuousScheduler.from_config(scheduler.config)
    assert torch.equal(fingerprint(again), fingerprint(scheduler))


# ------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schedule", "sigmoid"),
        ("prediction_type", "flow"),
        ("logsnr_min", 20.0),
        ("gamma", 1.1),
        ("gamma", float("nan")),
        ("shift", 0.0),
        ("clip_sample_range", -1.0),
        ("num_train_timesteps", 0),
        ("dynamic_thresholding_ratio", 0.0),
        ("sample_max_value", 0.5),
    ],
)
def test_a_bad_config_value_is_named(field, value):
    with pytest.raises(ValueError, match=f"`{field}` is {value!r}"):
        VPContinuousScheduler(**{field: value})


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "3"])
def test_a_bad_number_of_steps_is_named(steps):
    with pytest.raises(ValueError, match="`num_inference_steps` is"):
        VPContinuousScheduler().set_timesteps(steps)


@pytest.mark.parametrize(
    "timesteps",
    [[], [0.0], [1000.5], [500, 500], [1, 2], [[3.0, 2.0]], [900, float("nan"), 100], [float("nan")], [5, -1]],
)
def test_bad_timesteps_are_named(timesteps):
    with pytest.raises(ValueError, match="`timesteps` is"):
        VPContinuousScheduler().set_timesteps(timesteps=timesteps)


def test_steps_and_timesteps_exclude_each_other():
    with pytest.raises(ValueError, match="exactly one of `num_inference_steps` and `timesteps`"):
        VPContinuousScheduler().set_timesteps()
    with pytest.raises(ValueError, match="exactly one of `num_inference_steps` and `timesteps`"):
        VPContinuousScheduler().set_timesteps(3, timesteps=[1.0])


def test_a_step_off_the_chosen_times_or_of_another_shape_is_refused():
    scheduler = VPContinuousScheduler()
    scheduler.set_timesteps(4)
    z = noise(2, 3)
    with pytest.raises(ValueError, match="`timestep` is 600"):
        scheduler.step(z, 600, z)
    with pytest.raises(ValueError, match=r"`model_output` has shape \(1, 3\), expected the sample's, \(2, 3\)"):
        scheduler.step(z[:1], 1000, z)


@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_noise_or_timesteps_that_do_not_fit_the_samples_are_refused(method):
    apply = getattr(VPContinuousScheduler(), method)
    with pytest.raises(
        ValueError, match=r"`timesteps` has shape \(3,\), expected one number or one for each of the 2"
    ):
        apply(noise(2, 3), noise(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"`noise` has shape \(1, 3\), expected the sample's, \(2, 3\)"):
        apply(noise(2, 3), noise(1, 3), 10.0)
