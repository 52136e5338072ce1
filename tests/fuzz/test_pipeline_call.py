"""Seeded fuzz of the pipeline's call: what is of a wrong type or value is refused by its name, before long work."""

import itertools
import math
import os
import random
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler

CASES = int(os.environ.get("FUZZ_CASES", 200))  # CI runs 1,000
SEED = 20
SLOW = 2.0  # seconds: more than the longest right call here by far

JUNK = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    10**30,
    0.5,
    math.nan,
    math.inf,
    1e-300,
    1j,
    "",
    "3",
    "latents",
    "\x00",
    b"bytes",
    [],
    [None],
    ["1"],
    [0.5],
    [True],
    [[]],
    [[0, 1], [2]],
    (),
    {},
    {"a": 1},
    set(),
    range(10**12),
    object(),
    print,
    int,
    itertools.count,
    np.float32(2),
    np.int64(3),
    np.zeros(0),
    np.zeros((2, 16, 16, 1)),
    np.zeros((2, 16, 16, 1), dtype=object),
    np.array(["a"]),
    np.array([[[["x"]]]]),
    np.zeros((2, 16, 16, 1), dtype=complex),
    np.zeros((2, 16, 16, 1), dtype="datetime64[s]"),
    np.full((2, 16, 16, 1), np.nan),
    np.full((2, 16, 16, 1), np.inf),
    torch.zeros(()),
    torch.zeros(0),
    torch.zeros(1, 2, 1, 16, 16),
    torch.full((1, 2, 1, 16, 16), math.nan),
    torch.full((1, 2, 1, 16, 16), -math.inf),
    torch.zeros(1, 2, 1, 16, 16, dtype=torch.complex64),
    torch.zeros(1, 2, 1, 16, 16, dtype=torch.bool),
    torch.zeros(1, 2, 1, 16, 16, device="meta"),
    torch.zeros(1, 2, 1, 16, 16).to_sparse(),
    torch.quantize_per_tensor(torch.zeros(1, 2, 1, 16, 16), 1.0, 0, torch.quint8),
    torch.zeros(1, 1, 4, 16, 16),
    torch.full((1, 1, 4, 16, 16), math.nan),
    torch.zeros(1, 3, 8),
    torch.full((1, 3, 8), math.inf),
    torch.tensor([0, 1]),
    torch.tensor([0.5, 1.5]),
    torch.Generator(),
    [torch.Generator(), None],
    [torch.Generator()] * 3,
    Image.new("L", (16, 16)),
    [Image.new("RGB", (16, 16))] * 2,
    [Image.new("L", (16, 16)), "frame"],
    [Image.new("L", (0, 0))],
    torch.dtype,
    lambda *args: None,
    lambda *args: 1 / 0,
]
NAMES = (
    *("prompt", "video", "frame_indices", "num_frames", "height", "width", "num_inference_steps", "guidance_scale"),
    *("negative_prompt", "reconstruction_guidance_scale", "num_videos_per_prompt", "window_overlap", "generator"),
    *("latents", "prompt_embeds", "negative_prompt_embeds", "output_type", "return_dict", "callback_on_step_end"),
    *("callback_on_step_end_tensor_inputs", "window_scheme", "mask_image", "history_guidance_scale", "clip_skip"),
    *("timesteps", "noise_pyramid"),
)
RIGHT = {
    "video": torch.rand(1, 2, 1, 16, 16),
    "num_inference_steps": 1,
    "num_frames": 4,
    "output_type": "np",
    "generator": torch.Generator(),
}


@pytest.fixture(scope="module")
def pipelines():
    from diffusers import DDIMScheduler

    from video_diffusion import VideoUNet3DConditionModel

    config = {"sample_size": 16, "num_frames": 4, "in_channels": 3, "out_channels": 1, "patch_size": 4}
    config |= {"block_out_channels": (8,), "norm_num_groups": 4, "attention_head_dim": 8, "layers_per_block": 1}
    made = []
    for changes in ({"cross_attention_dim": 8}, {"in_channels": 1}):
        unet = VideoUNet3DConditionModel(**config | changes).eval()
        own = VPContinuousScheduler(prediction_type="v_prediction")
        for scheduler in (own, own.as_diffusers(DDIMScheduler)):
            made.append(VideoDiffusionPipeline(unet, scheduler))
            made[-1].set_progress_bar_config(disable=True)
    return made


def draw(rng):
    """Some arguments, of which one to three are junk."""
    options = {name: RIGHT[name] for name in RIGHT if rng.random() < 0.9}
    options["num_inference_steps"] = 1
    return alone(options | {rng.choice(NAMES): rng.choice(JUNK) for _ in range(rng.choice((1, 1, 1, 2, 3)))})


def alone(options):
    """Without the number of steps where there are timesteps: both at once would be refused before they are read."""
    given = options.get("timesteps") is not None
    return {name: value for name, value in options.items() if not (given and name == "num_inference_steps")}


def call(pipeline, options):
    """The clips or None, and what was refused or None; any other error fails the test."""
    try:
        return pipeline(**options)[0], None
    except (ValueError, TypeError) as error:
        return None, error
    except Exception as error:
        shown = {name: f"{value!r:.60}" for name, value in options.items()}
        raise AssertionError(f"{shown}: {type(error).__name__}: {error}") from error


def test_junk_is_refused_by_the_name_of_an_argument_or_makes_a_clip_and_never_hangs(pipelines):
    rng, refused, made = random.Random(SEED), 0, 0
    for case in range(CASES):
        options, pipeline = draw(rng), rng.choice(pipelines)
        if callable(options.get("callback_on_step_end")):
            options.pop("callback_on_step_end")  # the user's own code may raise what it likes
        start = time.thread_time()
        frames, error = call(pipeline, options)
        assert time.thread_time() - start < SLOW, (case, options)
        if error is None:
            made += frames is not None
            continue
        named = re.findall(r"`(\w+)`", str(error))
        assert any(name in NAMES or name == "unet" for name in named), (case, options, str(error))
        refused += 1
    assert refused > CASES / 2
    assert made > 2


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_refused_by_its_own_name_where_it_alone_is_wrong(pipelines, name):
    """Each piece of junk, alone among right arguments: an error names this argument, or it was no junk for it."""
    pipeline, fine = pipelines[0], 0
    beside = {"height": "video", "width": "video", "num_frames": "video", "negative_prompt_embeds": "guidance_scale"}
    for value in JUNK:
        if name == "callback_on_step_end" and callable(value):
            continue
        error = call(pipeline, alone(RIGHT | {name: value}))[1]
        fine += error is None
        words = (f"`{name}`", f"`{beside.get(name, name)}`")
        assert error is None or any(word in str(error) for word in words), (repr(value)[:60], str(error))
    assert fine < len(JUNK) / 2


def test_callbacks_errors_are_the_users_own(pipelines):
    with pytest.raises(ZeroDivisionError):
        pipelines[0](**RIGHT, callback_on_step_end=lambda *args: 1 / 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 10**9}, "`num_inference_steps` is 1000000000, expected at most 10000"),
        ({"num_frames": 10**9}, "`num_frames` is 1000000000, expected at most 100000"),
        ({"num_videos_per_prompt": 10**9}, "`num_videos_per_prompt` is 1000000000, expected at most"),
        ({"height": 2**20}, "`height` is 1048576, expected at most"),
        ({"num_frames": 10**5, "height": 2**10, "width": 2**10}, "`num_frames`, `height` and `width` ask for latents"),
    ],
)
def test_numbers_that_would_fill_the_memory_or_never_end_are_refused_at_once(pipelines, options, message):
    start = time.thread_time()
    with pytest.raises(ValueError, match=message):
        pipelines[0](**options)
    assert time.thread_time() - start < SLOW
