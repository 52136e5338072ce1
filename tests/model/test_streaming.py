"""`VideoDiffusionPipeline.stream`: the frames of a call one by one, without end if asked, and prompts that change."""

import gc
import weakref
from itertools import count, islice

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from denoisers import tiny_denoiser, tiny_text
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.model.windows import SCHEMES, plan_windows, with_horizon

LENGTH, OVERLAP = 4, 2  # of a window of the tiny network
WORDS = ("left", "right", "up")


def make_pipeline(**parts):
    unet = parts.pop("unet", None) or tiny_denoiser(sample_size=8, in_channels=3, block_out_channels=(8, 8))
    pipeline = VideoDiffusionPipeline(unet, VPContinuousScheduler(), **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


@pytest.fixture(scope="module")
def reader():
    """A pipeline that reads text."""
    unet = tiny_denoiser(sample_size=8, in_channels=3, block_out_channels=(8, 8), cross_attention_dim=8)
    return make_pipeline(unet=unet, **tiny_text(WORDS))


def options(**changes):
    return {"num_inference_steps": 2, "output_type": "pt", "generator": seed(0)} | changes


def seed(number):
    return torch.Generator().manual_seed(number)


def clip(batch=1, frames=2, size=8):
    return torch.rand(batch, frames, 1, size, size, generator=seed(9))


def as_array(frames):
    """Frames of any output type, for comparing."""
    if isinstance(frames, torch.Tensor):
        return frames.numpy()
    return (
        np.stack([[np.asarray(image) for image in images] for images in frames])
        if isinstance(frames, list)
        else frames
    )


# ------------------------------------------------------------------------------------------------ the frames of a call
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize(
    "asked",
    [
        {"num_frames": 4},
        {"num_frames": 11, "num_videos_per_prompt": 2},
        {"num_frames": 11, "video": clip(2), "window_overlap": 1},
        {"num_frames": 11, "video": clip(2, 3), "frame_indices": [7, 3, 10]},
        {"num_frames": 11, "video": clip(1, 1), "frame_indices": [10], "window_scheme": "hierarchy-2"},
    ],
    ids=["one window", "free", "prediction", "between", "backwards"],
)
def test_a_stream_gives_the_frames_of_the_call(pipeline, asked, output_type):
    called = as_array(pipeline(**options(output_type=output_type, **asked)).frames)
    frames = list(pipeline.stream(**options(output_type=output_type, **asked)))
    assert len(frames) == asked["num_frames"]
    if output_type == "pil":
        assert all(isinstance(images, list) and len(images) == len(called) for images in frames)
        frames = [np.stack([np.asarray(image) for image in images]) for images in frames]
    axis = 2 if output_type == "latent" else 1
    assert np.array_equal(np.stack([np.asarray(frame) for frame in frames], axis=axis), called)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_streams_in_the_order_of_time(pipeline, scheme):
    asked = {"num_frames": 13, "window_scheme": scheme}
    frames = torch.stack(list(pipeline.stream(**options(**asked))), dim=1)
    assert torch.equal(frames, pipeline(**options(**asked)).frames)


def test_the_stream_of_given_pixels_and_of_given_noise_is_that_of_the_call():
    pipeline = make_pipeline(unet=tiny_denoiser(sample_size=8, block_out_channels=(8, 8)))
    mask = torch.zeros(7, 8, 8, dtype=torch.bool)
    mask[::2, :4] = True
    asked = {"video": clip(1, 7), "mask_image": mask, "reconstruction_guidance_scale": 1.0}
    asked["latents"] = torch.randn(1, 1, 7, 8, 8, generator=seed(3))
    frames = torch.stack(list(pipeline.stream(**options(**asked))), dim=1)  # as long as the mask, not without end
    assert torch.equal(frames, pipeline(**options(**asked)).frames)
    assert torch.equal(frames[:, mask[:, None]], clip(1, 7)[:, mask[:, None]])


def test_the_stream_of_a_latent_model_is_that_of_its_call():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4),
        latent_channels=1,
        norm_num_groups=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()
    pipeline = make_pipeline(vae=vae)
    asked = {"video": torch.rand(1, 2, 3, 16, 16, generator=seed(1)), "num_frames": 9}
    frames = torch.stack(list(pipeline.stream(**options(**asked))), dim=1)
    assert torch.equal(frames, pipeline(**options(**asked)).frames)
    assert not frames.requires_grad


def test_given_frames_come_before_any_network_call_and_later_ones_window_by_window():
    pipeline, calls = make_pipeline(), []
    pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    stream = pipeline.stream(video=clip(), num_frames=8, **options())
    seen = []
    for _ in stream:
        seen.append(len(calls))
    assert seen == [0, 0, 2, 2, 4, 4, 6, 6]


def test_a_frame_that_is_changed_by_its_reader_does_not_change_the_next_ones(pipeline):
    asked = {"num_frames": 8, "output_type": "latent"}
    expected = pipeline(**options(**asked)).frames
    for i, frame in enumerate(pipeline.stream(**options(**asked))):
        assert torch.equal(frame, expected[:, :, i])
        frame += 100


# ------------------------------------------------------------------------------------------------------------- no end
@pytest.mark.parametrize("given", [None, 2])
def test_a_stream_without_end_begins_as_a_long_call_and_goes_on(pipeline, given):
    asked = {} if given is None else {"video": clip(1, given)}
    windows = 6
    frames = LENGTH + (windows - 1) * (LENGTH - OVERLAP) if given is None else given + windows * (LENGTH - OVERLAP)
    called = pipeline(num_frames=frames, **options(**asked)).frames
    with pipeline.stream(**options(**asked)) as stream:
        streamed = torch.stack(list(islice(stream, frames)), dim=1)
        assert next(stream).shape == (1, 1, 8, 8)
    assert torch.equal(streamed, called)


def test_its_memory_does_not_grow(pipeline, monkeypatch):
    sizes = []
    extend = VideoDiffusionPipeline._extend

    def note(self, canvas, call, stop):
        extend(self, canvas, call, stop)
        sizes.append((canvas.latents.shape[2], canvas.known.shape[2], canvas.video.shape[1], canvas.start))

    monkeypatch.setattr(VideoDiffusionPipeline, "_extend", note)
    far = {"video": clip(1, 2), "frame_indices": [0, 60]}
    for _ in islice(pipeline.stream(num_inference_steps=1, output_type="pt", **far), 100):
        pass
    assert max(size for *three, _ in sizes for size in three) <= 2 * LENGTH
    assert sizes[-1][-1] > 90


def test_a_stream_with_an_end_forgets_what_no_window_reads_any_more(pipeline, monkeypatch):
    sizes = []
    extend = VideoDiffusionPipeline._extend
    monkeypatch.setattr(
        VideoDiffusionPipeline,
        "_extend",
        lambda self, canvas, call, stop: (extend(self, canvas, call, stop), sizes.append(canvas.latents.shape[2]))[0],
    )
    assert len(list(pipeline.stream(num_frames=40, num_inference_steps=1, output_type="pt"))) == 40
    assert max(sizes) <= 2 * LENGTH


def test_the_plan_without_end_is_that_of_a_long_video_and_keeps_little():
    given = (0, 1, 5, 20, 21)
    endless = plan_windows(None, 10, 4, given=given)
    assert list(islice(endless, 30)) == list(islice(plan_windows(1000, 10, 4, given=given), 30))
    assert len(endless.gi_frame.f_locals["known"]) <= 20
    for window, horizon in islice(with_horizon(plan_windows(None, 10, 4, given=given)), 30):
        assert horizon == window.frames[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_window_sees_a_frame_before_the_horizon_of_an_earlier_one(scheme):
    plan = list(plan_windows(44, 10, 4, scheme, (20, 43)))
    pairs = list(with_horizon(plan))
    assert [window for window, _ in pairs] == plan
    for i, (_, horizon) in enumerate(pairs):
        later = [window.frames[0] for window in plan[i + 1 :]]
        assert horizon == min(later) if later else horizon > 44


# ------------------------------------------------------------------------------------------------- ending and resuming
def test_a_stream_can_be_read_in_parts_but_not_twice(pipeline):
    stream = pipeline.stream(num_frames=6, **options())
    parts = [*islice(stream, 1), *islice(stream, 3), *stream]
    assert torch.equal(torch.stack(parts, dim=1), pipeline(num_frames=6, **options()).frames)
    with pytest.raises(ValueError, match="The stream has ended and cannot be read twice"):
        list(stream)
    assert next(stream, "nothing") == "nothing"


@pytest.mark.parametrize("frames", [0, 1, 5])
def test_closing_frees_what_the_stream_holds(frames):
    pipeline, freed = make_pipeline(), []
    pipeline.maybe_free_model_hooks = lambda: freed.append(1)
    video = clip(1, 2)
    alive = weakref.ref(video)
    stream = pipeline.stream(video=video, **options())
    del video
    list(islice(stream, frames))
    stream.close()
    gc.collect()
    assert alive() is None
    assert len(freed) == (frames > 0)
    with pytest.raises(ValueError, match="call `stream` again"):
        iter(stream)


def test_leaving_the_loop_ends_it(pipeline):
    with pipeline.stream(**options()) as stream:
        for i, _ in enumerate(stream):
            if i == 5:
                break
    assert next(stream, None) is None


def test_a_callback_ends_a_stream_after_its_window(pipeline):
    def stop(pipe, step, t, tensors):
        pipe._interrupt = step == 3  # the last step of the second window
        return {}

    assert len(list(pipeline.stream(callback_on_step_end=stop, **options()))) == LENGTH + OVERLAP
    assert len(list(pipeline.stream(num_frames=6, **options()))) == 6


def test_streams_and_calls_may_take_turns(reader):
    asked = {"num_frames": 8, "num_inference_steps": 3}
    expected = [
        reader("left", **options(guidance_scale=5.0, generator=seed(1), **asked)).frames,
        reader("up", **options(generator=seed(2), **asked)).frames,
    ]
    streams = [
        reader.stream("left", **options(guidance_scale=5.0, generator=seed(1), **asked)),
        reader.stream("up", **options(generator=seed(2), **asked)),
    ]
    pairs = []
    for pair in zip(*streams, strict=True):
        reader(num_inference_steps=1, num_frames=1, output_type="pt")
        pairs.append(pair)
    for frames, called in zip(zip(*pairs, strict=True), expected, strict=True):
        assert torch.equal(torch.stack(frames, dim=1), called)


def test_a_stream_leaves_gradients_as_they_are(pipeline):
    for _ in islice(pipeline.stream(**options()), 5):
        assert torch.is_grad_enabled()


# --------------------------------------------------------------------------------------------------------- the prompts
def changing(reader, prompt, frames=8, **changes):
    return torch.stack(list(reader.stream(prompt, num_frames=frames, **options(guidance_scale=3.0, **changes))), dim=1)


def test_prompts_change_from_window_to_window(reader):
    left, right = (changing(reader, word) for word in ("left", "right"))
    turned = changing(reader, iter(["left", "left", "right"]))
    assert torch.equal(turned[:, :6], left[:, :6])
    assert not torch.equal(turned[:, 6:], left[:, 6:])
    assert not torch.equal(turned[:, 6:], right[:, 6:])
    assert torch.equal(changing(reader, iter(["left"])), left)  # the last one stays
    asked = []
    by_frames = changing(reader, lambda frames: asked.append(frames) or ("left" if frames < 6 else "right"))
    assert torch.equal(by_frames, turned)
    assert asked == [0, 4, 6]


def test_each_clip_may_have_prompts_of_its_own(reader):
    lists = iter([["left", "up"], "right"])
    one = [changing(reader, iter([word, "right"]), generator=seed(i)) for i, word in enumerate(("left", "up"))]
    both = changing(reader, lists, generator=[seed(0), seed(1)])
    torch.testing.assert_close(both, torch.cat(one), rtol=0, atol=1e-5)


def test_a_callbacks_text_stays_until_the_prompt_changes(reader):
    def mute(pipe, step, t, tensors):
        return {"prompt_embeds": torch.zeros_like(tensors["prompt_embeds"])}

    names = ["latents", "prompt_embeds"]
    asked = {"callback_on_step_end": mute, "callback_on_step_end_tensor_inputs": names, "num_frames": 8}
    called = reader("left", **options(guidance_scale=3.0, **asked)).frames
    assert torch.equal(torch.stack(list(reader.stream("left", **options(guidance_scale=3.0, **asked))), dim=1), called)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (iter([]), "`prompt` gave None, expected a string or a list of strings"),
        (lambda frames: frames, "`prompt` gave 0, expected a string"),
        (iter([[]]), r"`prompt` gave \[\], expected a string"),
        (("left", "right"), r"`prompt` is \('left', 'right'\), expected a string or a list of strings"),
        (iter([["left", "up"]]), "`generator` has 1 items, expected one for each of 2 clips"),
    ],
)
def test_prompts_that_are_none_are_refused_at_once(reader, prompt, message):
    with pytest.raises(ValueError, match=message):
        reader.stream(prompt, **options(generator=[seed(0)]))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["left", 3], "`prompt` gave 3, expected a string"),
        (["left", ["left", "up"]], "`prompt` gave 2 texts, expected one, or one for each of 1 clips"),
        (["left", "left " * 20], "`prompt` has 22 tokens, expected at most 8"),
    ],
)
def test_a_prompt_that_goes_wrong_on_the_way_ends_the_stream_with_its_reason(reader, prompts, message):
    stream = reader.stream(iter(prompts), **options())
    assert len(list(islice(stream, LENGTH))) == LENGTH
    with pytest.raises(ValueError, match=message):
        next(stream)
    with pytest.raises(ValueError, match="The stream has ended"):
        iter(stream)


# --------------------------------------------------------------------------------------------------- what it refuses
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"window_scheme": "interpolate"}, "`window_scheme` is 'interpolate', expected 'autoregressive' for a video"),
        ({"video": clip(), "frame_indices": [4, 2]}, r"`given` is \[2, 4\], expected 0 among them"),
        ({"latents": torch.zeros(1, 1, 4, 8, 8)}, "`latents` is given, expected None without `num_frames`"),
        ({"num_frames": 0}, "`num_frames` is 0, expected an integer of at least 1"),
        ({"output_type": "gif"}, "`output_type` is 'gif'"),
        ({"window_overlap": 4}, "`window_overlap` is 4, expected less than 4"),
    ],
)
def test_arguments_are_refused_when_the_stream_is_made(pipeline, asked, message):
    with pytest.raises(ValueError, match=message):
        pipeline.stream(**options(**asked))


def test_arguments_that_the_call_does_not_have_are_refused(pipeline):
    for name in ("return_dict", "frames"):
        with pytest.raises(TypeError, match=f"`{name}` is no argument of a stream, expected those of the call"):
            pipeline.stream(**{name: True})


def test_a_model_without_channels_for_given_frames_needs_guidance_to_go_on():
    pipeline = make_pipeline(unet=tiny_denoiser(sample_size=8, block_out_channels=(8, 8)))
    with pytest.raises(ValueError, match="`num_frames` needs endless windows and the model has no channels"):
        pipeline.stream(**options())
    frames = list(islice(pipeline.stream(reconstruction_guidance_scale=0.5, **options()), 7))
    expected = pipeline(num_frames=8, reconstruction_guidance_scale=0.5, **options()).frames
    assert torch.equal(torch.stack(frames, dim=1), expected[:, :7])


def test_a_network_that_gives_nan_ends_the_stream(pipeline):
    broken = make_pipeline()
    counter = count()
    broken.unet.register_forward_hook(lambda *args: (args[2][0] * (torch.nan if next(counter) > 2 else 1),))
    stream = broken.stream(**options())
    assert len(list(islice(stream, LENGTH))) == LENGTH
    with pytest.raises(ValueError, match="gave NaN or infinite values"):
        next(stream)
