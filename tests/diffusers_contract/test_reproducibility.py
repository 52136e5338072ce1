"""The same seed makes the same bits on a CPU: batches, lists of generators, several clips a prompt, other devices."""

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def given(batch):
    return torch.rand(batch, 2, 1, 16, 16, generator=torch.Generator().manual_seed(9))


@pytest.fixture(params=["own", DDPMScheduler, DPMSolverMultistepScheduler])
def pipeline(request, make_pipeline):
    made = make_pipeline("bert")
    if request.param != "own":
        made.scheduler = made.scheduler.as_diffusers(request.param)
    return made


def test_batch_splits_give_the_same_bits_where_the_network_does(pipeline, sample):
    """Convolutions round by the size of their batch; in their place stands one product for each value."""
    weight = torch.linspace(0.1, 0.9, 4)[:, None, None]
    pipeline.unet.forward = lambda x, t, encoder_hidden_states, return_dict: (x[:, :1] * weight,)
    prompts, video = ["one", "two", "left"], given(3)
    options = {"guidance_scale": 2.0, "num_frames": 6}
    whole = sample(pipeline, prompt=prompts, video=video, generator=seeds(0, 1, 2), **options)
    assert not torch.equal(whole[0], whole[1])
    for split in ([0, 1], [2], [1, 2]):
        texts = [prompts[i] for i in split]
        part = sample(pipeline, prompt=texts, video=video[split], generator=seeds(*split), **options)
        assert torch.equal(part, whole[split])


def test_the_same_call_gives_the_same_bits_again(pipeline, sample):
    options = {"prompt": "one", "guidance_scale": 2.0, "video": given(2), "num_frames": 6}
    one, two = (sample(pipeline, generator=seeds(0, 1), **options) for _ in range(2))
    assert torch.equal(one, two)


def test_several_clips_for_a_prompt_are_the_prompt_several_times(pipeline, sample):
    several = sample(pipeline, prompt=["one", "two"], num_videos_per_prompt=2, generator=seeds(0, 1, 2, 3))
    repeated = sample(pipeline, prompt=["one", "one", "two", "two"], generator=seeds(0, 1, 2, 3))
    assert torch.equal(several, repeated)


def test_a_list_of_one_generator_is_that_generator(pipeline, sample):
    assert torch.equal(sample(pipeline, generator=seeds(4)), sample(pipeline, generator=seeds(4)[0]))


def test_one_prompt_serves_all_given_clips(pipeline, sample):
    one = sample(pipeline, prompt="one", video=given(2), generator=seeds(0, 1))
    two = sample(pipeline, prompt=["one", "one"], video=given(2), generator=seeds(0, 1))
    assert torch.equal(one, two)


def test_noise_that_is_passed_is_the_noise_that_would_be_drawn(make_pipeline, sample):
    pipeline = make_pipeline()
    pipeline.scheduler = pipeline.scheduler.as_diffusers(DPMSolverMultistepScheduler)
    size = (2, 1, 4, 16, 16)
    noise = pipeline.prepare_latents(*size, torch.float32, torch.device("cpu"), seeds(0, 1))
    assert noise.shape == size
    assert torch.equal(
        sample(pipeline, num_videos_per_prompt=2, latents=noise, generator=None),
        sample(pipeline, num_videos_per_prompt=2, generator=seeds(0, 1)),
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_generators_of_the_cpu_serve_a_model_on_an_accelerator(make_pipeline, sample):
    pipeline = make_pipeline()
    at_home = sample(pipeline, generator=seeds(0))
    abroad = sample(pipeline.to("cuda"), generator=seeds(0))
    torch.testing.assert_close(abroad, at_home, atol=1e-3, rtol=0)


def test_a_generator_of_a_device_that_the_model_is_not_on_is_refused_by_diffusers_with_a_reason(make_pipeline, sample):
    if not torch.cuda.is_available():
        pytest.skip("no accelerator")
    with pytest.raises(ValueError, match="Cannot generate a cpu tensor from a generator of type cuda"):
        sample(make_pipeline(), generator=torch.Generator("cuda"))
