import math
from itertools import pairwise

import pytest
import torch

from denoisers import tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.model.windows import SCHEMES, plan_windows

SIZES = [(10, 5), (10, 1), (10, 9), (6, 2), (5, 3), (2, 1)]
GIVEN = [(), (0,), (0, 1, 2), (42, 43), (0, 43), (20,), (3, 20, 21, 31)]


# ------------------------------------------------------------------------------------------------------------ the plan
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("length", "overlap"), SIZES)
@pytest.mark.parametrize("given", GIVEN)
def test_every_frame_is_made_once_from_frames_already_there_in_windows_the_model_can_take(
    scheme, length, overlap, given
):
    known, made = set(given), []
    for window in plan_windows(44, length, overlap, scheme, given):
        assert set(window.given) <= known
        assert 0 < len(window.made) <= len(window.frames) <= length
        assert window.frames == sorted(set(window.frames))
        known |= set(window.made)
        made += window.made
    assert sorted(made) == [i for i in range(44) if i not in given]


@pytest.mark.parametrize(("length", "overlap"), SIZES)
def test_a_free_autoregressive_video_takes_the_expected_windows_each_seeing_the_overlap(length, overlap):
    for frames in (length, length + 1, 44, 100):
        windows = list(plan_windows(frames, length, overlap))
        assert len(windows) == 1 + math.ceil((frames - length) / (length - overlap))
        assert all(window.frames == list(range(window.frames[0], window.frames[-1] + 1)) for window in windows)
        assert all(len(window.given) == overlap for window in windows[1:-1])
        assert all(len(window.given) >= overlap for window in windows[1:])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_number_of_windows_is_linear_in_the_length_of_the_video(scheme):
    counts = [len(list(plan_windows(frames, 10, 4, scheme))) for frames in (100, 200, 400, 800)]
    assert [later - earlier for earlier, later in pairwise(counts)] == pytest.approx(
        [counts[0], 2 * counts[0], 4 * counts[0]], rel=0.1
    )


def test_the_default_overlap_is_half_the_window():
    assert list(plan_windows(44, 10)) == list(plan_windows(44, 10, 5))
    assert list(plan_windows(44, 5)) == list(plan_windows(44, 5, 2))


def test_a_prediction_backwards_mirrors_the_one_forwards():
    forwards = list(plan_windows(44, 10, 4, given=(0, 1, 2)))
    backwards = list(plan_windows(44, 10, 4, given=(41, 42, 43)))
    assert [[43 - i for i in window.made][::-1] for window in backwards] == [list(window.made) for window in forwards]
    assert [[43 - i for i in window.given][::-1] for window in backwards] == [list(w.given) for w in forwards]


def test_hierarchy_2_makes_sparse_frames_first_and_then_ends_each_window_at_one_of_them():
    windows = list(plan_windows(37, 10, 4, "hierarchy-2"))
    assert windows[0].made == tuple(range(0, 37, 6))
    for window, key in zip(windows[1:], range(6, 37, 6), strict=True):
        assert window.made == tuple(range(key - 5, key))
        assert window.frames[-1] == key
        assert len(window.given) == (2 if key == 6 else 5)


def test_interpolate_halves_the_spacing_and_makes_only_frames_between_known_ones():
    windows = list(plan_windows(33, 9, 4, "interpolate"))
    assert windows[0].made == tuple(range(0, 33, 4))
    spacings = []
    for window in windows[1:]:
        spacings.append(window.frames[1] - window.frames[0])
        assert all({place - spacings[-1], place + spacings[-1]} <= set(window.given) for place in window.made)
    assert spacings == sorted(spacings, reverse=True)
    assert set(spacings) == {2, 1}


def test_a_gap_that_fits_a_window_is_made_with_known_frames_on_both_sides():
    for window in plan_windows(30, 10, 5, given=(0, 13, 14, 29)):
        sides = {window.made[0] - 1, window.made[-1] + 1} & set(range(30))
        if window.made[-1] in (12, 28):
            assert sides <= set(window.given)


@pytest.mark.parametrize("given", [(), (0, 5), (5,)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_video_within_the_models_length_is_one_window(given, scheme):
    for length in (10, 12, None):
        (window,) = plan_windows(10, length, scheme=scheme, given=given)
        assert window.given == given
        assert window.frames == list(range(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((20, 10, 10), "`window_overlap` is 10, expected less than 10"),
        ((20, 10, 0), "`window_overlap` is 0, expected an integer of at least 1"),
        ((20, 10, 2.5), "`window_overlap` is 2.5, expected an integer"),
        ((0, 10, 2), "`num_frames` is 0"),
        ((2, 1), "`num_frames` is 2, expected 1: the model was trained on single frames"),
        ((20, 10, 2, "hierarchy-3"), "`window_scheme` is 'hierarchy-3', expected one of"),
        ((20, 10, 2, "autoregressive", (20,)), r"`given` is \[20\], expected places in 0..19"),
    ],
)
def test_impossible_plans_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_windows(*arguments)


# -------------------------------------------------------------------------------------------- windows in the pipeline
LENGTH = 6


class Motion:
    """In place of a network: x̂ continues the linear motion of the frames it is told.

    Pictures wrap around. The velocity comes from the correlation of the first two told frames; with one told frame x̂
    repeats it.
    """

    calls = 0

    def __call__(self, x, t, encoder_hidden_states, return_dict):
        self.calls += 1
        return (torch.stack([self.extend(clip[1], clip[2, :, 0, 0].nonzero()[:, 0].tolist()) for clip in x])[:, None],)

    def extend(self, given, told):
        anchor, velocity = (told or [0])[0], (0, 0)
        if len(told) > 1:
            one, two = (torch.fft.fft2(given[i]) for i in told[:2])
            size, gap = given.shape[-1], told[1] - told[0]
            peak = torch.fft.ifft2(two * one.conj()).real.argmax().item()
            velocity = [((shift + size // 2) % size - size // 2) // gap for shift in divmod(peak, size)]
        steps = [i - anchor for i in range(len(given))]
        return torch.stack([given[anchor].roll([velocity[0] * n, velocity[1] * n], (0, 1)) for n in steps])


def make_unet(**changes):
    return tiny_denoiser(**{"num_frames": LENGTH, "in_channels": 3, "block_out_channels": (16, 16)} | changes)


def make_pipeline(unet, **scheduler):
    pipeline = VideoDiffusionPipeline(unet, VPContinuousScheduler(**{"prediction_type": "v_prediction"} | scheduler))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def motion_pipeline():
    pipeline = make_pipeline(make_unet(), prediction_type="sample")
    pipeline.unet.forward = Motion()
    return pipeline


def moving_pictures(frames, velocities=((1, 2), (-3, 1))):
    generator = torch.Generator().manual_seed(2)
    pictures = torch.rand(len(velocities), 16, 16, generator=generator)
    clips = [
        torch.stack([picture.roll([dy * i, dx * i], (0, 1)) for i in range(frames)])
        for picture, (dy, dx) in zip(pictures, velocities, strict=True)
    ]
    return torch.stack(clips)[:, :, None]


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def run(pipeline, **options):
    return pipeline(**{"num_inference_steps": 2, "output_type": "pt"} | options).frames


def test_an_oracle_of_linear_motion_continues_it_exactly_over_ten_windows():
    truth, pipeline = moving_pictures(42), motion_pipeline()
    made = run(pipeline, video=truth[:, :2], num_frames=42, window_overlap=2)
    assert pipeline.unet.forward.calls == 10 * 2
    torch.testing.assert_close(made, truth, atol=1e-5, rtol=0)
    assert torch.equal(made[:, :2], truth[:, :2])


@pytest.mark.parametrize(
    ("indices", "scheme"),
    [
        ([40, 41], "autoregressive"),  # backwards
        ([20, 21], "autoregressive"),  # both ways
        ([0, 1, 24, 25], "autoregressive"),
        ([41, 20, 0, 1], "autoregressive"),
        ([0, 3], "hierarchy-2"),  # on the sparse level
        ([8, 12], "interpolate"),
    ],
)
def test_an_oracle_of_linear_motion_agrees_with_frames_given_anywhere(indices, scheme):
    truth = moving_pictures(42, ((1, 1), (-1, 0)))[:, : 24 if scheme == "interpolate" else 42]
    options = {"video": truth[:, indices], "frame_indices": indices, "num_frames": truth.shape[1]}
    made = run(motion_pipeline(), window_scheme=scheme, **options)
    torch.testing.assert_close(made, truth, atol=1e-5, rtol=0)
    assert torch.equal(made[:, indices], truth[:, indices])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_window_is_told_the_frames_already_made_bit_for_bit(scheme):
    pipeline, inputs = make_pipeline(make_unet()), []
    pipeline.unet.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    options = {"num_inference_steps": 1, "num_frames": 20, "window_overlap": 2, "window_scheme": scheme}
    made = run(pipeline, generator=seeds(0), output_type="latent", **options)
    plan = list(plan_windows(20, LENGTH, 2, scheme))
    for seen, window in zip(inputs, plan, strict=True):
        mask = seen[0, 2, :, 0, 0].bool()
        assert [place for place, told in zip(window.frames, mask.tolist(), strict=True) if told] == list(window.given)
        assert torch.equal(seen[:, 1, mask], made[:, 0, list(window.given)])


@pytest.mark.parametrize(("channels", "scale"), [(3, None), (1, 1.0), (3, 1.0)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_long_clip_with_its_own_generator_does_not_depend_on_its_batch(channels, scale, scheme):
    pipeline = make_pipeline(make_unet(in_channels=channels), gamma=1.0)
    options = {"num_frames": 15, "reconstruction_guidance_scale": scale, "window_scheme": scheme}
    video = torch.rand(3, 2, 1, 16, 16, generator=torch.Generator().manual_seed(9))
    whole = run(pipeline, video=video, generator=seeds(0, 1, 2), **options)
    alone = run(pipeline, video=video[2:], generator=seeds(2), **options)
    torch.testing.assert_close(alone[0], whole[2], atol=1e-4, rtol=0)
    assert (whole[0, 2:] - whole[1, 2:]).abs().max() > 0.01


def test_one_window_of_a_long_call_is_the_short_call():
    pipeline = make_pipeline(make_unet())
    short = run(pipeline, generator=seeds(0), num_frames=LENGTH)
    long = run(pipeline, generator=seeds(0), num_frames=LENGTH + 3)
    assert torch.equal(long[:, :LENGTH], short)


def test_latents_of_a_long_video_are_the_noise_of_its_windows():
    pipeline, starts = make_pipeline(make_unet(in_channels=3)), []
    pipeline.unet.register_forward_pre_hook(lambda module, args: starts.append(args[0][:, :1]))
    noise = torch.randn(1, 1, 10, 16, 16, generator=torch.Generator().manual_seed(3))
    run(pipeline, latents=noise, num_frames=10, num_inference_steps=1, window_overlap=2)
    for start, window in zip(starts, plan_windows(10, LENGTH, 2), strict=True):
        fresh = [window.frames.index(place) for place in window.made]
        assert torch.equal(start[:, :, fresh], noise[:, :, list(window.made)])


def test_one_bar_counts_steps_over_all_windows_and_names_the_window(capsys):
    pipeline, steps = make_pipeline(make_unet()), []
    pipeline.set_progress_bar_config(disable=False, desc="clip 7", mininterval=0)

    def callback(pipe, step, timestep, tensors):
        steps.append((step, pipe.num_timesteps))
        return {}

    run(pipeline, num_frames=14, window_overlap=2, callback_on_step_end=callback)
    assert steps == [(i, 6) for i in range(6)]
    bar = capsys.readouterr().err
    assert "clip 7, window 1 of 3: " in bar
    assert "clip 7, window 3 of 3: 100%" in bar
    assert "6/6" in bar


def test_what_a_callback_makes_of_the_text_holds_in_later_windows():
    pipeline, seen = make_pipeline(make_unet(cross_attention_dim=8)), []
    pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"].mean().item()), with_kwargs=True
    )

    def callback(pipe, step, timestep, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"] + 1} if step == 2 else {}

    options = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"], "num_frames": 14, "window_overlap": 2}
    run(pipeline, prompt_embeds=torch.zeros(1, 3, 8), callback_on_step_end=callback, **options)
    assert seen == [0, 0, 0, 1, 1, 1]


def test_an_interrupt_leaves_the_windows_to_come_black():
    pipeline = make_pipeline(make_unet())

    def callback(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1  # the last step of the first window
        return {}

    made = run(pipeline, num_frames=14, window_overlap=2, callback_on_step_end=callback)
    assert made[:, :LENGTH].std() > 0.01
    assert torch.equal(made[:, LENGTH:], torch.zeros_like(made[:, LENGTH:]))


# -------------------------------------------------------------------------------------------------------------- memory
def tensor_peak(pipeline, frames):
    """Bytes of the largest set of tensors that a call keeps at once, the video itself left out."""
    video_bytes = frames * 16 * 16 * 4
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run(pipeline, num_frames=frames, num_inference_steps=1, output_type="latent", generator=seeds(0))
    events = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak - video_bytes


@pytest.mark.parametrize(("channels", "scale"), [(3, None), (1, 1.0)])
def test_memory_does_not_grow_with_the_length_of_the_video(channels, scale):
    pipeline = make_pipeline(make_unet(in_channels=channels))
    call = {"reconstruction_guidance_scale": scale}
    measured = [tensor_peak(lambda **options: pipeline(**options, **call), frames) for frames in (20, 60)]
    assert measured[0] > 100_000
    assert measured[1] < 1.02 * measured[0]
