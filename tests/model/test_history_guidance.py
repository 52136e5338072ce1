"""Classifier-free guidance on the given frames."""

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler

FRAMES = 4


@pytest.fixture
def pipeline(make_denoiser):
    unet = make_denoiser(in_channels=3, num_frames=FRAMES)
    scheduler = VPContinuousScheduler(prediction_type="sample", clip_sample=False)
    made = VideoDiffusionPipeline(unet, scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def clips(batch=2, frames=2):
    return torch.rand(batch, frames, 1, 16, 16, generator=torch.Generator().manual_seed(9))


def run(pipeline, **options):
    defaults = {"video": clips(), "num_inference_steps": 3, "output_type": "latent", "generator": seeds(0, 1)}
    return pipeline(**defaults | options).frames


def spy(pipeline, answer):
    """Puts `answer(x)` in the network's place and keeps what it is called with."""
    calls = []

    def forward(x, t, encoder_hidden_states, return_dict):
        calls.append((x.clone(), t.clone()))
        return (answer(x),)

    pipeline.unet.forward = forward
    return calls


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 3.5])
def test_the_estimate_moves_from_the_free_one_through_the_told_one(pipeline, scale):
    told, free = 0.3, -0.2
    spy(pipeline, lambda x: torch.where(x[:, 2:].amax((1, 2, 3, 4), keepdim=True) > 0, told, free).expand_as(x[:, :1]))
    made = run(pipeline, history_guidance_scale=scale)  # the last step returns x itself
    expected = torch.tensor(free + scale * (told - free)).expand_as(made[:, :, 2:])
    torch.testing.assert_close(made[:, :, 2:], expected)


def test_the_free_side_sees_the_given_frames_noised_and_is_not_told_them(pipeline):
    calls = spy(pipeline, lambda x: x[:, :1] * 0)
    run(pipeline, history_guidance_scale=2.0, num_inference_steps=4)
    x = 2 * clips().transpose(1, 2) - 1
    assert len(calls) == 8
    for (free, t), (bound, s) in zip(calls[::2], calls[1::2], strict=True):
        assert torch.equal(t, s)
        assert not free[:, 1:].any()
        assert torch.equal(bound[:, 2, :2], torch.ones(2, 2, 16, 16))
        assert torch.equal(bound[:, :1, :2], x)
        assert torch.equal(bound[:, 1:2, :2], x)
        assert torch.equal(free[:, :1, 2:], bound[:, :1, 2:])
        alpha = pipeline.scheduler.logsnr(t.double() / 1000).sigmoid().sqrt()
        noise = (free[:, :1, :2] - alpha[:, None, None, None, None] * x) / (1 - alpha**2).sqrt()[
            :, None, None, None, None
        ]
        assert abs(noise.mean().item()) < 0.1
        assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_a_scale_of_one_is_no_guidance_and_others_change_the_clip(pipeline):
    plain = run(pipeline)
    assert torch.equal(run(pipeline, history_guidance_scale=1), plain)
    assert not torch.allclose(run(pipeline, history_guidance_scale=2.0), plain)


def test_a_clip_does_not_depend_on_its_batch_and_given_frames_come_back(pipeline):
    both = run(pipeline, history_guidance_scale=2.0, output_type="pt")
    for i in range(2):
        one = run(pipeline, video=clips()[i : i + 1], generator=seeds(i), history_guidance_scale=2.0, output_type="pt")
        torch.testing.assert_close(one, both[i : i + 1])
    assert torch.equal(both[:, :2], clips())


def test_windows_are_guided_by_the_frames_already_made(pipeline):
    calls = spy(pipeline, lambda x: x[:, :1] * 0.5)
    run(pipeline, video=None, num_frames=7, generator=seeds(0), history_guidance_scale=2.0)
    told = [bool(x[:, 2].any()) for x, _ in calls]
    assert told == [False] * 3 + [False, True] * 3 * 2  # nothing is known in the first of three windows


def test_stock_solvers_are_guided_too(pipeline):
    pipeline.scheduler = pipeline.scheduler.as_diffusers(DPMSolverMultistepScheduler)
    plain, guided = (run(pipeline, history_guidance_scale=scale) for scale in (1.0, 2.0))
    assert torch.isfinite(guided).all()
    assert not torch.allclose(plain, guided)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history_guidance_scale": -1.0}, "is -1.0, expected a number of at least 0"),
        ({"history_guidance_scale": math.nan}, "is nan, expected a number"),
        ({"history_guidance_scale": "2"}, "is '2', expected a number"),
        ({"history_guidance_scale": True}, "is True, expected a number"),
        (
            {"history_guidance_scale": 2.0, "video": None},
            "is 2.0, expected 1: nothing is given and there is one window",
        ),
        (
            {"history_guidance_scale": 2.0, "reconstruction_guidance_scale": 1.0},
            "is 2.0, expected 1 with `reconstruction_guidance_scale` 1.0",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_call(pipeline, options, message):
    calls = spy(pipeline, lambda x: x[:, :1])
    with pytest.raises(ValueError, match=f"`history_guidance_scale` {message}"):
        run(pipeline, **options)
    assert not calls


def test_a_model_without_channels_for_frames_is_not_guided_by_them(make_denoiser):
    made = VideoDiffusionPipeline(make_denoiser(num_frames=FRAMES), VPContinuousScheduler())
    with pytest.raises(ValueError, match=r"is 2\.0, expected 1: the model has no channels for given frames"):
        run(made, history_guidance_scale=2.0, reconstruction_guidance_scale=0)
