"""Seeded fuzz of the JSON files of a pipeline's folder: refused by file and key, or loaded; no third."""

import copy
import json
import math
import os
import random
import re
import resource
import sys
import time
from typing import get_type_hints

import pytest

from denoisers import SMALLEST, tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.hub.configs import RANGES
from video_diffusion.hub.folder import export_folder
from video_diffusion.hub.integrity import MANIFEST
from video_diffusion.hub.loading import read_folder

CASES, SEED = int(os.environ.get("FUZZ_CASES", 300)), 18  # CI runs 1,000
SLOW = 2.0  # seconds: more than the longest right loading here by far

JUNK = [
    *(None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 10**9, 10**30, -(10**30), 0.5, -0.5, 1e-300, 1e308),
    *(math.nan, math.inf, -math.inf, "", " ", "3", "silu", "cosine", "sample", "\x00", "../x", "é" * 200, "x" * 5000),
    *([], {}, [[]], [None], [0], [1, 2], ["a"], [True], [0.5, 0.5], [8, 10**9], [10**9], [8] * 1000, {"a": 1}),
    *([None, None], ["diffusers", "DDIMScheduler"], ["diffusers", "nothing"], ["os", "system"], ["", ""], [3, 4]),
    *(["video_diffusion", "VPContinuousScheduler"], ["video_diffusion", "VideoUNet3DConditionModel"]),
    *(["transformers", "BertModel"], ["a", "b", "c"], [[8, 8]], [{"a": []}], ["space", 3]),
]
NEW = ("vae", "text_encoder", "unet2", "a b", "", "gamma", "_class_name", "quantization_config", "auto_map", "sampler")
WHOLE = (b"", b"\xff\xfe\x00", b"[]", b"null", b"3", b'"text"', b"{", b"[" * 5000, b'{"a": 1}', b"{}", b"NaN")
FILES = ("model_index.json", "generation_config.json", "unet/config.json", "scheduler/scheduler_config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    unet = tiny_denoiser(**SMALLEST | {"block_out_channels": (8,), "temporal_attention": False})
    pipeline = VideoDiffusionPipeline(unet, VPContinuousScheduler())
    pipeline.generation_config = {"sampler": "ddim", "num_inference_steps": 4, "example_prompts": ["a 3"]}
    pipeline.generation_config |= {"logsnr_spacing": [-3.5, 2.5], "timesteps": [900.0, 500.0, 200.0, 50.0]}
    out = export_folder(pipeline, tmp_path_factory.mktemp("fuzz") / "tiny")
    (out / MANIFEST).unlink()  # it would say of each case that a file was changed
    return out


def places(value, path=()):
    """The paths of all values inside of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutate(rng, content):
    """The bytes of a JSON file in which one to three values are wrong, and their keys; none where all of it is."""
    if rng.random() < 0.06:
        return rng.choice(WHOLE), []
    value, wrong = copy.deepcopy(content), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *outer, key = path = rng.choice([*places(value)])
        parent = value
        for step in outer:
            parent = parent[step]
        kind, junk = rng.choice(("set", "set", "set", "set", "delete", "new", "item")), copy.deepcopy(rng.choice(JUNK))
        if kind == "delete":
            del parent[key]
        elif kind == "new":
            path = (rng.choice(NEW),)
            value[path[0]] = junk
        elif kind == "item" and isinstance(parent[key], list) and parent[key]:
            parent[key][rng.randrange(len(parent[key]))] = junk
        else:
            parent[key] = junk
        wrong.append(path[0])
    return json.dumps(value).encode(), wrong


def test_json_that_was_tampered_with_is_refused_by_file_and_key_or_loads(folder):
    """All checks come before the weights, so most cases need the checks alone: each tenth that passes is loaded."""
    rng, refused, passed = random.Random(SEED), 0, 0
    originals = {name: (folder / name).read_bytes() for name in FILES}
    for case in range(CASES):
        name = rng.choice(FILES)
        data, wrong = mutate(rng, json.loads(originals[name]))
        (folder / name).write_bytes(data)
        start = time.thread_time()
        try:
            read_folder(
                folder, {} if "/" in name else {"unet": None, "scheduler": None}
            )  # what has not changed: no look
            passed += 1
            if passed % 10 == 0:
                VideoDiffusionPipeline.from_pretrained(folder)
        except (ValueError, OSError) as error:
            said = str(error)
            assert name in said, (case, wrong, said)
            # a width or a number of layers may be right for itself and not for the weights, which are then named
            assert not wrong or "weights" in said or any(key in said for key in wrong), (case, name, wrong, said)
            refused += 1
        assert time.thread_time() - start < SLOW, (case, name, wrong)
        (folder / name).write_bytes(originals[name])
    assert refused > CASES / 2
    assert passed > CASES / 10


@pytest.mark.parametrize("component", [VideoUNet3DConditionModel, VPContinuousScheduler])
def test_every_number_of_our_configs_has_a_range(component):
    hints = get_type_hints(component.__init__)
    assert {name for name, hint in hints.items() if re.search(r"\b(int|float)\b", str(hint))} <= set(RANGES)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "block_out_channels",
            [10**9, 10**9],
            "`block_out_channels` = [1000000000, 1000000000], expected 1 to 1048576",
        ),
        (
            "block_out_channels",
            [2**20, 2**20],
            "asks for time_embedding.linear_1.weight of shape (4194304, 1048576), but the weights",
        ),
        ("block_out_channels", [8] * 1000, "`block_out_channels` with 1000 items, expected at most 256"),
        ("layers_per_block", 10**9, "`layers_per_block` = 1000000000, expected 0 to 1000"),
        ("sample_size", 10**9, "`sample_size` = 1000000000, expected 1 to 65536"),
        ("num_class_embeds", 10**8, "asks for class_embedding.weight, which the weights beside it lack"),
        ("norm_eps", math.nan, "`norm_eps` = nan, expected 0 to 1"),
        ("act_fn", "relux", "`act_fn` is 'relux', expected the name of an activation"),
        ("sample_size", "64", "`sample_size` = '64', expected int | tuple[int, int]"),
    ],
)
def test_a_value_that_would_fill_the_memory_is_refused_before_that(folder, key, value, said):
    file = folder / "unet" / "config.json"
    original = file.read_text()
    file.write_text(json.dumps(json.loads(original) | {key: value}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with pytest.raises(ValueError, match=re.escape(said)) as caught:
            VideoDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    finally:
        file.write_text(original)
    assert str(file) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB: 256 MiB


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (["os", "system"], "has unet = ['os', 'system'], expected a class with `from_pretrained`"),
        (
            ["antigravity", "geohash"],
            "expected a class with `from_pretrained` of diffusers, transformers or of a library",
        ),
        ("VideoUNet3DConditionModel", "has unet = 'VideoUNet3DConditionModel', expected a library and a class"),
        ([None, None], "has unet = [None, None], expected a library and a class"),
    ],
)
def test_an_index_names_classes_and_nothing_is_imported_that_was_not(folder, entry, said):
    file = folder / "model_index.json"
    original = file.read_text()
    file.write_text(json.dumps(json.loads(original) | {"unet": entry}))
    try:
        with pytest.raises(ValueError, match=re.escape(said)):
            VideoDiffusionPipeline.from_pretrained(folder)
    finally:
        file.write_text(original)
    assert "antigravity" not in sys.modules
