"""Replacement and reconstruction guidance against a linear-Gaussian video model, whose posteriors are known."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from denoisers import tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.model.guidance import Conditions, network, reconstruction
from video_diffusion.model.scheduler import alpha_sigma

FRAMES, RHO, STD = 5, 0.9, 0.2
TYPES = ("epsilon", "sample", "v_prediction")
COVARIANCE = STD**2 * RHO ** (torch.arange(FRAMES)[:, None] - torch.arange(FRAMES)).abs().double()  # AR(1) over frames


def make_unet(**changes):
    return tiny_denoiser(**{"num_frames": FRAMES, "block_out_channels": (16, 16)} | changes)


def make_pipeline(unet=None, **scheduler):
    scheduler = {"prediction_type": "v_prediction"} | scheduler
    pipeline = VideoDiffusionPipeline(unet or make_unet(), VPContinuousScheduler(**scheduler))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def run(pipeline, **options):
    return pipeline(**{"num_inference_steps": 3, "output_type": "pt"} | options).frames


def clips(batch=2, frames=2, size=16):
    return torch.rand(batch, frames, 1, size, size, generator=torch.Generator().manual_seed(9))


# ------------------------------------------------------------------------------------------------ a Gaussian of frames
def gain(scheduler, timestep):
    """G in E[x | z_t] = G z_t: α C (α² C + σ²)⁻¹, `[F, F]` float64."""
    alpha, sigma = alpha_sigma(scheduler.logsnr(torch.as_tensor(float(timestep) / 1000, dtype=torch.float64)))
    return alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(FRAMES).double())


def gaussian_pipeline(size=48, **scheduler):
    """The exact denoiser of frames that are AR(1) in time at each pixel."""
    pipeline = make_pipeline(make_unet(sample_size=size), clip_sample=False, **scheduler)

    def denoise(x, t, encoder_hidden_states, return_dict):
        estimate = torch.einsum("fg,bcghw->bcfhw", gain(pipeline.scheduler, t[0]).to(x), x)
        return (pipeline.scheduler.from_original(estimate, t, x),)

    pipeline.unet.forward = denoise
    return pipeline


def conditional(given):
    """The exact law of the other frames given these: its coefficients `[F − k, k]` and its covariance."""
    rest = [i for i in range(FRAMES) if i not in given]
    coefficients = COVARIANCE[rest][:, given] @ torch.linalg.inv(COVARIANCE[given][:, given])
    return rest, coefficients, COVARIANCE[rest][:, rest] - coefficients @ COVARIANCE[given][:, rest]


def draw_given(given, size=48):
    root = torch.linalg.cholesky(COVARIANCE[given][:, given]).float()
    noise = torch.randn(1, len(given), 1, size, size, generator=torch.Generator().manual_seed(0))
    return torch.einsum("fg,bgchw->bfchw", root, noise).clamp(-1, 1)


def sample_conditional(given, scale, steps=50):
    """Regression coefficients of the sampled frames on the given ones, `[F − k, k]`, and all frames `[F, pixels]`."""
    x = draw_given(given)
    options = {"video": (x + 1) / 2, "frame_indices": given, "reconstruction_guidance_scale": scale}
    z = run(gaussian_pipeline(), num_inference_steps=steps, output_type="latent", generator=seeds(1), **options)
    pixels = z[0, 0].flatten(1).double()
    rest = conditional(given)[0]
    known = pixels[given]
    return (pixels[rest] @ known.T) @ torch.linalg.inv(known @ known.T), pixels


@pytest.mark.parametrize("given", [[0], [4], [0, 4]])
def test_replacement_alone_forgets_the_given_frames_and_guidance_comes_closer_to_the_exact_conditional(given):
    exact = conditional(given)[1]
    error = {scale: (sample_conditional(given, scale)[0] - exact).abs().max().item() for scale in (0, 1, 2, 4)}
    # measured: .51, .38, .28, .13 with one frame given; .28, .15, .06, .08 with both ends given
    assert error[0] > 0.2
    assert error[1] < 0.8 * error[0]
    assert error[2] < 0.6 * error[0]
    assert error[4] < 0.3 * error[0]


def test_replacement_tears_the_video_apart_at_the_given_frame_and_guidance_mends_it():
    jumps = {scale: sample_conditional([0], scale)[1].diff(dim=0).square().mean(1) for scale in (0, 2)}
    exact = 2 * STD**2 * (1 - RHO)
    assert ((0.6 * exact < jumps[0][1:]) & (jumps[0][1:] < 1.1 * exact)).all()  # measured: 0.87, 0.73, 0.69 times
    assert jumps[0][0] > 2.5 * exact  # measured: 3.2 times the step between neighbours in the data
    assert jumps[2][0] < 1.5 * exact  # 1.2 times


@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_guided_estimate_is_equation_8_in_every_parametrisation(prediction_type):
    pipeline = gaussian_pipeline(16, prediction_type=prediction_type)
    scheduler, t, given, w = pipeline.scheduler, torch.tensor(400.0), [0, 3], 1.7
    z = torch.randn(2, 1, FRAMES, 16, 16, generator=torch.Generator().manual_seed(4))
    x_a = torch.zeros_like(z)
    x_a[:, :, given] = draw_given(given, 16).transpose(1, 2)
    known = torch.zeros(1, 1, FRAMES, 1, 1, dtype=torch.bool)
    known[:, :, given] = True
    conditions = Conditions(x_a, known, torch.zeros(1, FRAMES, dtype=torch.bool), noisy=z)
    output, _ = reconstruction(network(pipeline.unet, scheduler), scheduler, w)(z, t, conditions)
    guided = scheduler.predict_original(output, t, z)

    G = gain(scheduler, t).float()
    alpha = alpha_sigma(scheduler.logsnr(torch.tensor(0.4)))[0]
    plain = torch.einsum("fg,bcghw->bcfhw", G, z)
    gradient = 2 * torch.einsum("fg,bcfhw->bcghw", G[given], (plain - x_a)[:, :, given])
    gradient[:, :, given] = 0
    torch.testing.assert_close(guided, plain - w * alpha / 2 * gradient, atol=1e-5, rtol=1e-4)
    assert (guided - plain).abs().max() > 0.05


@pytest.mark.parametrize("prediction_type", TYPES)
def test_an_estimate_turned_into_the_networks_output_and_back_is_the_same(prediction_type):
    scheduler = VPContinuousScheduler(prediction_type=prediction_type)
    x, z = torch.randn(2, 3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for timestep in (1.0, 300.0, torch.tensor([20.0, 500.0, 990.0])):
        output = scheduler.from_original(x, timestep, z)
        torch.testing.assert_close(scheduler.predict_original(output, timestep, z), x, atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match=r"`x` has shape \(3, 1, 4, 8\)"):
        scheduler.from_original(x[..., 0], 300.0, z)


def test_replaced_places_hold_new_draws_of_the_forward_process_at_every_step():
    pipeline, seen = make_pipeline(), []
    pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append((args[0][:, 0, :2], args[1][0].item())))
    run(pipeline, video=clips(), reconstruction_guidance_scale=0, num_inference_steps=4, generator=seeds(0, 1))
    residuals = []
    for z_a, timestep in seen:
        alpha, sigma = alpha_sigma(pipeline.scheduler.logsnr(torch.tensor(timestep / 1000, dtype=torch.float64)))
        residuals.append((z_a - alpha * (clips()[:, :, 0] * 2 - 1)) / sigma)
        assert abs(residuals[-1].mean()) < 0.1
        assert abs(residuals[-1].std() - 1) < 0.1
    correlation = torch.corrcoef(torch.stack(residuals).flatten(1))
    assert (correlation - torch.eye(4)).abs().max() < 0.15


# ------------------------------------------------------------------------------------------ what comes back untouched
@pytest.mark.parametrize(("channels", "scale"), [(1, 0.0), (1, 2.0), (3, 0.0), (3, 2.0)])
@pytest.mark.parametrize("indices", [[0, 1], [4, 2]])
def test_given_frames_come_back_bit_for_bit_with_and_without_channels_for_them(channels, scale, indices):
    pipeline = make_pipeline(make_unet(in_channels=channels))
    made = run(pipeline, video=clips(), frame_indices=indices, reconstruction_guidance_scale=scale)
    assert torch.equal(made[:, indices], clips())
    assert made.isfinite().all()


def pixel_mask(frames=FRAMES, size=16):
    mask = torch.rand(frames, size, size, generator=torch.Generator().manual_seed(5)) < 0.4
    mask[0] = True  # a whole frame, a free frame, and frames of which some pixels are known
    mask[-1] = False
    return mask


@pytest.mark.parametrize(("channels", "scale"), [(1, 0.0), (1, 2.0), (3, 0.0), (3, 2.0)])
@pytest.mark.parametrize("kind", ["tensor", "numpy", "picture"])
def test_given_pixels_come_back_bit_for_bit_and_the_others_are_made(channels, scale, kind):
    mask = pixel_mask()[1] if kind == "picture" else pixel_mask()
    given = mask.int().numpy() if kind == "numpy" else mask
    pipeline, video = make_pipeline(make_unet(in_channels=channels)), clips(frames=FRAMES)
    made = run(pipeline, video=video, mask_image=given, reconstruction_guidance_scale=scale)[:, :, 0]
    mask = mask.expand(FRAMES, 16, 16)
    assert torch.equal(made[:, mask], video[:, :, 0][:, mask])
    assert (made[:, ~mask] - video[:, :, 0][:, ~mask]).abs().mean() > 0.1


def test_what_lies_under_the_mask_has_no_influence():
    pipeline, mask, video = make_pipeline(make_unet(in_channels=3)), pixel_mask(), clips(frames=FRAMES)
    other = torch.where(mask[:, None], video, 1 - video)
    options = {"mask_image": mask, "reconstruction_guidance_scale": 2.0}
    one, two = (run(pipeline, video=v, generator=seeds(0, 1), **options) for v in (video, other))
    assert torch.equal(one, two)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_of_whole_frames_is_the_same_as_frame_indices(channels):
    pipeline, video = make_pipeline(make_unet(in_channels=channels)), clips(frames=FRAMES)
    mask = torch.zeros(FRAMES, 16, 16)
    mask[[1, 3]] = 1
    options = {"reconstruction_guidance_scale": 1.5, "generator": None}
    whole = run(pipeline, video=video, mask_image=mask, **options | {"generator": seeds(0, 1)})
    frames = run(pipeline, video=video[:, [1, 3]], frame_indices=[1, 3], **options | {"generator": seeds(0, 1)})
    torch.testing.assert_close(whole, frames, atol=1e-6, rtol=0)


def test_pixels_of_a_long_video_come_back_from_every_window():
    pipeline, video, mask = make_pipeline(make_unet(in_channels=3)), clips(1, 14), pixel_mask(14)
    made = run(pipeline, video=video, mask_image=mask, reconstruction_guidance_scale=1.0)[:, :, 0]
    assert torch.equal(made[:, mask], video[:, :, 0][:, mask])
    assert made.shape[1] == 14


# ------------------------------------------------------------------------------------------------- the models it takes
def test_on_top_of_the_mask_the_gradient_comes_from_a_call_that_is_told_nothing():
    pipeline, masks = make_pipeline(make_unet(in_channels=3)), []
    pipeline.unet.register_forward_pre_hook(
        lambda module, args: masks.append((args[0][0, 2, :, 0, 0].tolist(), args[0].requires_grad))
    )
    run(pipeline, video=clips(), reconstruction_guidance_scale=1.0, num_inference_steps=2)
    assert masks == [([0] * 5, True), ([1, 1, 0, 0, 0], False)] * 2


def test_on_top_of_the_mask_a_scale_near_zero_changes_nothing():
    pipeline = make_pipeline(
        make_unet(in_channels=3), logsnr_min=-2.0
    )  # one step, so that only the first noise counts
    noise = torch.randn(2, 1, FRAMES, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"video": clips(), "latents": noise, "num_inference_steps": 1}
    plain, none, faint, strong = (
        run(pipeline, reconstruction_guidance_scale=scale, **options) for scale in (None, 0.0, 1e-6, 100.0)
    )
    assert torch.equal(plain, none)
    torch.testing.assert_close(faint, plain, atol=1e-5, rtol=0)
    assert (strong - plain).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_runs_in_the_models_dtype_and_stays_close_to_float32(dtype):
    seen = []
    options = {"video": clips(), "reconstruction_guidance_scale": 2.0}
    half = make_pipeline(make_unet().to(dtype))
    half.unet.register_forward_pre_hook(lambda module, args: seen.append((args[0].dtype, args[0].requires_grad)))
    made = run(half, generator=seeds(0, 1), **options)
    assert seen == [(dtype, True)] * 3
    assert (made - run(make_pipeline(), generator=seeds(0, 1), **options)).abs().mean() < 0.02


def run_and_count_saved(pipeline):
    """A guided clip, and the bytes that autograd kept for it."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
        made = run(pipeline, video=clips(), reconstruction_guidance_scale=1.0, generator=seeds(0, 1))
    return made, sum(sizes)


def test_gradient_checkpointing_gives_the_same_clip_for_less_memory():
    pipeline = make_pipeline()
    plain, all_bytes = run_and_count_saved(pipeline)
    pipeline.unet.enable_gradient_checkpointing()
    checkpointed, fewer_bytes = run_and_count_saved(pipeline)
    torch.testing.assert_close(checkpointed, plain, atol=1e-5, rtol=0)
    assert fewer_bytes < 0.5 * all_bytes


def test_guidance_leaves_no_gradients_on_the_weights():
    pipeline = make_pipeline()
    made = run(pipeline, video=clips(), reconstruction_guidance_scale=1.0)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in pipeline.unet.parameters())
    assert not made.requires_grad


@pytest.mark.parametrize("solver", [DDIMScheduler, EulerDiscreteScheduler])
def test_replacement_works_under_stock_schedulers_and_guidance_says_what_it_needs(solver):
    pipeline = make_pipeline()
    pipeline.scheduler = pipeline.scheduler.as_diffusers(solver, clip_sample=False)
    made = run(pipeline, video=clips(), reconstruction_guidance_scale=0)
    assert torch.equal(made[:, :2], clips())
    assert made.isfinite().all()
    with pytest.raises(ValueError, match=f"the scheduler, {solver.__name__}, has no predict_original"):
        run(pipeline, video=clips(), reconstruction_guidance_scale=1.0)


# -------------------------------------------------------------------------------------------------------------- errors
WHOLE = {"video": clips(frames=FRAMES), "reconstruction_guidance_scale": 1.0}


@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        (1, {"video": clips()}, "`reconstruction_guidance_scale` is None, expected a number: `video` is given"),
        (1, {"num_frames": 9}, "is None, expected a number: `num_frames` needs 3 windows"),
        (
            1,
            {"video": clips(), "reconstruction_guidance_scale": -1},
            "`reconstruction_guidance_scale` is -1, expected",
        ),
        (1, {"video": clips(), "reconstruction_guidance_scale": math.nan}, "is nan, expected a number of at least 0"),
        (1, {"video": clips(), "reconstruction_guidance_scale": math.inf}, "is inf, expected"),
        (1, {"video": clips(), "reconstruction_guidance_scale": "2"}, "is '2', expected"),
        (3, {"reconstruction_guidance_scale": 1.0}, "is 1.0, expected None: nothing is given"),
        (3, {"num_frames": 9, "window_overlap": 5}, "`window_overlap` is 5, expected less than 5"),
        (3, {"num_frames": 9, "window_overlap": 0}, "`window_overlap` is 0, expected an integer of at least 1"),
        (3, {"window_scheme": "spiral"}, "`window_scheme` is 'spiral', expected one of"),
        (3, {"mask_image": pixel_mask()}, "`mask_image` is given, expected None without `video`"),
        (3, {"video": clips(frames=FRAMES), "mask_image": pixel_mask()}, "expected a number with `mask_image`"),
        (3, {**WHOLE, "mask_image": pixel_mask(4)}, r"`mask_image` has shape \(4, 16, 16\), expected \(5, 16, 16\)"),
        (3, {**WHOLE, "mask_image": pixel_mask()[None]}, r"`mask_image` has shape \(1, 5, 16, 16\)"),
        (3, {**WHOLE, "mask_image": np.full((16, 16), np.nan)}, "`mask_image` has values other than 0 and 1"),
        (3, {**WHOLE, "mask_image": np.full((16, 16), 255)}, "`mask_image` has values other than 0 and 1"),
        (3, {**WHOLE, "mask_image": np.ones((16, 16))}, "`mask_image` gives every pixel"),
        (3, {**WHOLE, "mask_image": np.zeros((16, 16))}, "`mask_image` gives no pixel"),
        (3, {**WHOLE, "mask_image": [[1]]}, "`mask_image` is a list"),
        (
            3,
            {**WHOLE, "mask_image": pixel_mask(), "frame_indices": [0]},
            r"`frame_indices` is \[0\], expected None with",
        ),
        (3, {**WHOLE, "mask_image": pixel_mask(9), "num_frames": 9}, "`video` has 5 frames, expected all 9 with"),
        (3, {**WHOLE, "video": clips(frames=FRAMES) * math.nan, "mask_image": pixel_mask()}, "`video` runs from nan"),
    ],
)
def test_bad_input_is_refused_by_name_before_the_first_network_call(monkeypatch, channels, options, message):
    pipeline = make_pipeline(make_unet(in_channels=channels))
    monkeypatch.setattr(pipeline.unet, "forward", lambda *args, **kwargs: pytest.fail("the network was called"))
    with pytest.raises(ValueError, match=message):
        run(pipeline, **options)


def test_guidance_in_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(ValueError, match="expected None in inference mode"):
        run(make_pipeline(), video=clips(), reconstruction_guidance_scale=1.0)
