"""What FVD says of real Moving MNIST, of shuffled frames and of stills (tests/recorded/measure_fvd.py)."""

import json
import os
import runpy
from pathlib import Path

import pytest

from video_diffusion.metrics import I3D, FVDMetric, WeightsUnavailableError

RECORDED = Path(__file__).parents[1] / "recorded"
RECORD = {entry["num_videos"]: entry for entry in json.loads((RECORDED / "fvd.json").read_text())["fvd"]}
measure = runpy.run_path(str(RECORDED / "measure_fvd.py"))["measure"]
FULL = "VIDEO_DIFFUSION_FULL_TESTS"
pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def metric():
    try:
        return FVDMetric(I3D.from_pretrained())
    except WeightsUnavailableError as error:
        pytest.skip(str(error))


NAMES = ("real", "shuffled", "shuffled_same", "still")


def test_fvd_of_a_few_clips_is_the_recorded_one(metric):
    values = measure(4, metric)
    for name in NAMES:
        assert values[name] == pytest.approx(RECORD[4][name], rel=1e-3), name
    assert values["real"] < values["shuffled"] < values["still"]


def test_the_recorded_fvd_of_256_clips_is_near_22_for_real_clips_and_237_for_stills():
    # How frames are shuffled decides the third value: one random order per clip gives 80, or 74 on the same clips.
    assert RECORD[256]["real"] == pytest.approx(22, abs=2)
    assert RECORD[256]["still"] == pytest.approx(237, abs=10)
    assert 2 * RECORD[256]["real"] < RECORD[256]["shuffled"] < RECORD[256]["still"] / 2


@pytest.mark.skipif(not os.environ.get(FULL), reason=f"1,280 clips through I3D take minutes; set {FULL}=1")
def test_fvd_of_256_clips_is_the_recorded_one(metric):
    values = measure(256, metric)
    for name in NAMES:
        assert values[name] == pytest.approx(RECORD[256][name], rel=1e-3), name
