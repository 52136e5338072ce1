import math

import numpy as np
import pytest
import torch
from diffusers import UNet3DConditionModel
from PIL import Image

from denoisers import tiny_denoiser, tiny_text
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.model.inputs import count_clips, read_frames


def own_unet(**changes):
    return tiny_denoiser(**{"num_frames": 6, "in_channels": 3, "block_out_channels": (16, 16)} | changes)


def make_pipeline(unet, **components):
    return VideoDiffusionPipeline(unet, VPContinuousScheduler(), **components)


def run(pipeline, **options):
    return pipeline(**{"num_inference_steps": 3, "output_type": "pt"} | options).frames


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def clips(batch=2, frames=2, channels=1, size=16):
    return torch.rand(batch, frames, channels, size, size, generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline(own_unet())


@pytest.fixture(scope="module")
def text_pipeline():
    return make_pipeline(own_unet(cross_attention_dim=8), **tiny_text(["one", "two", "left", "right"]))


@pytest.mark.parametrize("as_type", ["pil", "numpy", "uint8", "list"])
def test_every_form_of_given_frames_is_read_as_the_same_clip(as_type):
    video = (clips(2, 2, 3) * 255).byte()
    arrays = video.permute(0, 1, 3, 4, 2).numpy()
    forms = {
        "pil": [[Image.fromarray(frame) for frame in clip] for clip in arrays],
        "numpy": (arrays / 255).astype(np.float64),
        "uint8": arrays,
        "list": list(video),
    }
    torch.testing.assert_close(read_frames(forms[as_type], 3), video / 255, atol=1e-7, rtol=0)
    torch.testing.assert_close(read_frames(forms[as_type][0], 3), video[:1] / 255, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0, expected an integer of at least 1"),
        ({"num_videos_per_prompt": 0}, "`num_videos_per_prompt` is 0"),
        ({"output_type": "gif"}, "`output_type` is 'gif', expected one of"),
        ({"guidance_scale": 0.5}, "`guidance_scale` is 0.5, expected 0 or at least 1"),
        ({"guidance_scale": math.nan}, "`guidance_scale` is nan"),
        ({"guidance_scale": 2.0}, "`guidance_scale` is 2.0, expected 1"),
        ({"reconstruction_guidance_scale": 2.0}, "`reconstruction_guidance_scale` is 2.0, expected None: nothing"),
        ({"window_overlap": 6}, "`window_overlap` is 6, expected less than 6"),
        ({"num_frames": 0}, "`num_frames` is 0"),
        ({"height": 18}, "`height` is 18, expected a multiple of 4"),
        ({"width": 30}, "`width` is 30, expected a multiple of 4"),
        ({"prompt": "two"}, "`prompt` is 'two', expected None: the pipeline has no text encoder"),
        ({"prompt_embeds": torch.zeros(1, 2, 8)}, r"`prompt_embeds` has shape \(1, 2, 8\)"),
        ({"frame_indices": [0]}, r"`frame_indices` is \[0\], expected None without `video`"),
        ({"generator": seeds(0, 1)}, "`generator` has 2 items, expected one for each of 1 clips"),
        ({"latents": torch.zeros(1, 1, 5, 16, 16)}, r"`latents` has shape \(1, 1, 5, 16, 16\)"),
        ({"latents": torch.zeros(1, 1, 6, 16, 16).int()}, "dtype torch.int32"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"`callback_on_step_end_tensor_inputs` has \['noise'\]"),
        ({"video": clips(), "frame_indices": [0, 6]}, r"`frame_indices` is \[0, 6\], expected places in 0..5"),
        ({"video": clips(), "frame_indices": [0.0, 1.5]}, r"`frame_indices` is \[0.0, 1.5\], expected a list of int"),
        ({"video": clips(), "frame_indices": [-1, 0]}, r"`frame_indices` is \[-1, 0\], expected places in 0..5"),
        ({"video": clips(), "frame_indices": [1, 1]}, r"`frame_indices` is \[1, 1\], expected no place twice"),
        ({"video": clips(), "frame_indices": [1]}, "`frame_indices` has 1 places, expected one for each of 2 frames"),
        ({"video": clips(frames=6)}, "`video` gives all 6 frames"),
        ({"video": clips(channels=3)}, "`video` has 3 channels"),
        ({"video": clips(size=8)}, r"`video` has frames of \(8, 8\) pixels, expected \(16, 16\)"),
        ({"video": clips() * 2 - 1}, "`video` runs from -.*expected floats in"),
        ({"video": clips() * math.nan}, "`video` runs from nan to nan"),
        ({"video": clips().long()}, "`video` has dtype torch.int64, expected uint8 or a float type"),
        ({"video": clips()[0, 0]}, r"`video` has shape \(1, 16, 16\)"),
        ({"video": []}, "`video` is empty"),
        ({"video": "clip.gif"}, "`video` is a str"),
        ({"video": [clips()[0], clips(frames=3)[0]]}, "`video` holds clips of shapes"),
        ({"video": [Image.new("L", (16, 16)), Image.new("L", (8, 8))]}, "`video` holds images of sizes"),
        ({"video": [Image.new("L", (16, 16)), None]}, "`video` holds a "),
    ],
)
def test_bad_input_is_refused_by_name_before_the_first_network_call(pipeline, monkeypatch, options, message):
    monkeypatch.setattr(pipeline.unet, "forward", lambda *args, **kwargs: pytest.fail("the network was called"))
    with pytest.raises(ValueError, match=message):
        run(pipeline, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "one", "prompt_embeds": torch.zeros(1, 2, 8)}, "`prompt` and `prompt_embeds` are both given"),
        ({"prompt": ["one", 2]}, "expected a string or a list of strings"),
        ({"prompt": "one " * 20}, "`prompt` has 22 tokens, expected at most 8"),
        ({"prompt": "one", "negative_prompt": "two"}, "`guidance_scale` is 1, expected more"),
        ({"prompt": ["one", "two", "one"], "video": clips()}, "`video` holds 2, `prompt` holds 3"),
        ({"prompt_embeds": torch.zeros(1, 2, 9)}, r"expected \[B, L, 8\]"),
    ],
)
def test_bad_text_is_refused_by_name(text_pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        run(text_pipeline, **options)


def test_models_that_cannot_be_conditioned_say_so():
    blocks = {"down_block_types": ("DownBlock3D",), "up_block_types": ("UpBlock3D",), "block_out_channels": (8,)}
    stock = UNet3DConditionModel(in_channels=3, out_channels=1, norm_num_groups=4, attention_head_dim=4, **blocks)
    with pytest.raises(ValueError, match="no channels for given frames"):
        run(make_pipeline(own_unet(in_channels=1)), video=clips())
    with pytest.raises(ValueError, match="`unet` has in_channels = 2 and out_channels = 1"):
        run(make_pipeline(own_unet(in_channels=2)))
    with pytest.raises(ValueError, match="`num_frames` is None"):
        run(make_pipeline(stock))


def test_one_item_serves_all_clips_and_two_lengths_are_refused():
    assert count_clips({"video": [0], "prompt": ["a"] * 3, "prompt_embeds": None, "negative_prompt": "one"}) == 3
    with pytest.raises(ValueError, match="expected one number of clips"):
        count_clips({"video": [0, 0], "prompt": ["a"] * 3})
