"""The pipeline in the latents of a VAE: given frames, long videos, streams, saving, refusals."""

import pytest
import torch

from denoisers import tiny_denoiser, tiny_text
from vaes import tiny_vae
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler

STEPS = {"num_inference_steps": 2, "output_type": "pt"}


def latent_pipeline(vae="AutoencoderKLWan", channels=2, reads=True, parts=None, changes=None, **config):
    """A pipeline whose denoiser works on 3 latent frames of 8×8: 9 frames of 32×32 pixels with the tiny Wan."""
    shape = {"sample_size": 8, "num_frames": 3, "out_channels": channels}
    shape["in_channels"] = 2 * channels + 1 if reads else channels
    unet, scheduler = tiny_denoiser(**shape | config), VPContinuousScheduler(prediction_type="v_prediction")
    pipeline = VideoDiffusionPipeline(unet, scheduler, vae=tiny_vae(vae, **changes or {}), **parts or {})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seed(number=0):
    return torch.Generator().manual_seed(number)


def video(frames, channels=3, edge=32):
    return torch.rand(1, frames, channels, edge, edge, generator=seed(9))


def inputs_of(pipeline):
    """What the denoiser sees, call by call."""
    seen = []
    pipeline.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return seen


def test_frames_and_sizes_are_of_the_video_and_latents_can_be_had():
    pipeline = latent_pipeline()
    clip = pipeline(generator=seed(), **STEPS).frames
    assert clip.shape == (1, 9, 3, 32, 32)
    latents = pipeline(generator=seed(), **STEPS | {"output_type": "latent"}).frames
    assert latents.shape == (1, 2, 3, 8, 8)
    torch.testing.assert_close(pipeline.decode(latents), clip)
    other = pipeline(num_frames=5, height=16, width=48, generator=seed(), **STEPS).frames
    assert other.shape == (1, 5, 3, 16, 48)
    noise = torch.randn(1, 2, 2, 8, 8, generator=seed())
    again = pipeline(num_frames=5, latents=noise, generator=seed(1), **STEPS).frames
    assert again.shape == (1, 5, 3, 32, 32)


@torch.no_grad()
def test_given_frames_are_read_as_their_latents_and_come_back_untouched():
    pipeline, given = latent_pipeline(), video(5)
    seen = inputs_of(pipeline)
    clip = pipeline(video=given, generator=seed(), **STEPS).frames
    assert torch.equal(clip[:, :5], given)
    expected = pipeline.latent_space.encode(given.transpose(1, 2) * 2 - 1)
    torch.testing.assert_close(seen[0][:, 2:4, :2], expected)
    assert seen[0][0, 4, :, 0, 0].tolist() == [1, 1, 0]


def test_whole_latent_frames_in_the_middle_and_at_the_end_can_be_given():
    pipeline, given = latent_pipeline(), video(5)
    seen = inputs_of(pipeline)
    clip = pipeline(video=given, frame_indices=[0, 5, 6, 7, 8], generator=seed(), **STEPS).frames
    assert torch.equal(clip[:, [0, 5, 6, 7, 8]], given)
    assert seen[0][0, 4, :, 0, 0].tolist() == [1, 0, 1]
    assert seen[0][0, 2:4, 2].abs().max() > 0


def test_a_model_without_channels_for_given_frames_is_guided_in_latents():
    pipeline, given = latent_pipeline(reads=False), video(5)
    clip = pipeline(video=given, reconstruction_guidance_scale=1.0, generator=seed(), **STEPS).frames
    assert torch.equal(clip[:, :5], given)
    assert clip.isfinite().all()


def test_text_guides_in_latents():
    text = tiny_text(["one", "two"])
    pipeline = latent_pipeline(parts=text, cross_attention_dim=8)
    one, two = (pipeline(word, guidance_scale=2.0, generator=seed(), **STEPS).frames for word in ("one", "two"))
    assert not torch.equal(one, two)


@torch.no_grad()
def test_a_window_of_a_long_video_begins_as_a_clip_does():
    """Its first latent frame stands for one frame: the last known one of the latent frame in its place."""
    pipeline, given = latent_pipeline(), video(9)
    seen = inputs_of(pipeline)
    clip = pipeline(video=given, num_frames=17, window_overlap=5, generator=seed(), **STEPS).frames
    assert clip.shape == (1, 17, 3, 32, 32)
    assert torch.equal(clip[:, :9], given)
    known = pipeline.latent_space.encode(given[:, 4:].transpose(1, 2) * 2 - 1)  # frames 4 to 8: two latent frames
    torch.testing.assert_close(seen[0][:, 2:4, :2], known)
    made = pipeline.latent_space.encode(clip[:, 8:13].transpose(1, 2) * 2 - 1)
    torch.testing.assert_close(seen[-1][:, 2:4, :2], made)
    assert len(seen) == 2 * 2


def test_a_stream_gives_the_frames_of_the_call():
    pipeline = latent_pipeline()
    asked = {"video": video(1), "num_frames": 17, **STEPS}
    frames = torch.stack(list(pipeline.stream(generator=seed(), **asked)), dim=1)
    assert torch.equal(frames, pipeline(generator=seed(), **asked).frames)
    endless = pipeline.stream(generator=seed(), **STEPS)
    assert len([next(endless) for _ in range(20)]) == 20


@pytest.mark.parametrize(("vae", "channels"), [("AutoencoderKLTemporalDecoder", 2), ("AutoencoderKLLTXVideo", 4)])
def test_other_classes_of_vae_decode_windows(vae, channels):
    pipeline = latent_pipeline(vae, channels)
    factor, frames = pipeline.vae_scale_factor, pipeline.frame_grid.start(5)
    clip = pipeline(num_frames=frames, generator=seed(), **STEPS).frames
    assert clip.shape == (1, frames, 3, 8 * factor, 8 * factor)


def test_a_saved_pipeline_comes_back_with_its_vae(tmp_path):
    pipeline = latent_pipeline("AutoencoderKL", changes={"scaling_factor": 0.5}, parts={"num_channels": 1})
    clip = pipeline(generator=seed(), **STEPS).frames
    pipeline.save_pretrained(tmp_path)
    loaded = VideoDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.vae).__name__ == "AutoencoderKL"
    assert loaded.vae.config.scaling_factor == 0.5
    assert loaded.pixel_channels == VideoDiffusionPipeline.from_pipe(loaded).pixel_channels == 1
    assert torch.equal(loaded(generator=seed(), **STEPS).frames, clip)


def test_a_model_of_grey_clips_may_use_a_vae_of_colours():
    pipeline, given = latent_pipeline("AutoencoderKL", parts={"num_channels": 1}), video(1, channels=1, edge=16)
    clip = pipeline(video=given, num_frames=3, generator=seed(), **STEPS).frames
    assert clip.shape == (1, 3, 1, 16, 16)
    assert torch.equal(clip[:, :1], given)
    images = pipeline(num_frames=3, num_inference_steps=1).frames[0]
    assert {image.mode for image in images} == {"L"}
    with pytest.raises(ValueError, match="`num_channels` is 2, expected None, or 1 with a `vae`"):
        latent_pipeline("AutoencoderKL", parts={"num_channels": 2})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_frames": 8}, "`num_frames` is 8, expected 1 and a multiple of 4, such as 5 or 9"),
        ({"height": 24}, "`height` is 24, expected a multiple of 16: 4 of the VAE times 4 of the denoiser"),
        (
            {"video": video(3)},
            r"`video` gives 3 frames without \[3, 4\], expected these too: the VAE makes one latent",
        ),
        ({"video": video(4), "frame_indices": [5, 6, 7, 8], "num_frames": 17}, "leave frame 0 out, expected it"),
        ({"num_frames": 17, "window_scheme": "interpolate"}, "`window_scheme` is 'interpolate', expected 'autoreg"),
        ({"num_frames": 17, "window_overlap": 4}, "`window_overlap` is 4, expected 1 and a multiple of 4"),
        ({"num_frames": 17, "window_overlap": 9}, "`window_overlap` is 9, expected less than 9, the length"),
        ({"latents": torch.zeros(1, 2, 9, 8, 8)}, r"`latents` has shape \(1, 2, 9, 8, 8\)"),
    ],
)
def test_what_the_vae_cannot_do_is_refused_before_any_work(asked, message):
    pipeline = latent_pipeline()
    seen = inputs_of(pipeline)
    with pytest.raises(ValueError, match=message):
        pipeline(**asked, **STEPS)
    assert not seen


def test_a_denoiser_of_other_latents_is_refused():
    pipeline = latent_pipeline(channels=3)
    with pytest.raises(ValueError, match="`unet` has out_channels = 3, expected 2, the latent channels of `vae`"):
        pipeline(**STEPS)
