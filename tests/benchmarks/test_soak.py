"""The soak: a small one against a server in this process, and what is counted."""

import os

import pytest

from benchmarks.soak import CHEAP, DEAR, Answer, memory_mib, report, visit
from demo_server import serving
from denoisers import SMALLEST, tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.demo.limits import Limits
from video_diffusion.demo.studio import Studio

pytest.importorskip("gradio")


def test_visitors_of_a_small_server_are_served_refused_and_counted():
    unet = tiny_denoiser(**SMALLEST | {"sample_size": 32, "num_frames": 10, "patch_size": 4})
    limits = Limits(work=40 * 10 * 32 * 32)
    with serving(Studio(VideoDiffusionPipeline(unet, VPContinuousScheduler()), limits)) as url:
        found = report(visit(url, 6, 0, steps=2))
        assert (found["tries"], found["done"], found["told"], found["refused"]) == (6, 6, 6, {})
        assert set(found["wait_seconds"]) == {CHEAP, DEAR}
        found = report(visit(url, 2, 0, steps=20))  # 60 calls
    assert found["done"] == 1
    (message,) = found["refused"]
    assert message.startswith("This takes 60 network calls")


def test_waits_are_those_of_the_served_and_memory_is_this_processs():
    answers = [Answer(CHEAP, seconds, None, 1) for seconds in (1, 2, 9)] + [Answer(DEAR, 500, "no", 0)]
    found = report(answers)
    assert found["wait_seconds"] == {CHEAP: {"median": 2, "longest": 9}}
    assert (found["done"], found["refused"], found["told"]) == (3, {"no": 1}, 3)
    assert 10 < memory_mib(os.getpid()) < 100_000
