"""The ports of I3D and LPIPS against values recorded from the JAX originals (tests/recorded/record_networks.py)."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from video_diffusion.metrics import I3D, LPIPS, WeightsUnavailableError
from video_diffusion.metrics.weights import load

RECORDED = Path(__file__).parents[1] / "recorded"
RECORD = json.loads((RECORDED / "networks.json").read_text())
fixed_video = runpy.run_path(str(RECORDED / "record_networks.py"))["fixed_video"]
pytestmark = pytest.mark.network


def video(case: dict, phase: float) -> torch.Tensor:
    return torch.from_numpy(fixed_video(case["frames"], case["channels"], case["size"], phase))[None]


@pytest.fixture(scope="module")
def i3d():
    try:
        return I3D.from_pretrained()
    except WeightsUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["alex", "vgg"])
def lpips(request):
    try:
        return LPIPS.from_pretrained(request.param)
    except WeightsUnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("case", RECORD["i3d"], ids=lambda case: f"{case['frames']}x{case['channels']}")
def test_i3d_gives_the_logits_of_the_original(i3d, case):
    logits = i3d(video(case, case["phase"]))[0]
    torch.testing.assert_close(logits, torch.tensor(case["logits"]), rtol=1e-4, atol=1e-4)


def test_i3d_reads_grey_as_three_equal_channels_and_forgets_the_batch(i3d):
    clips = torch.cat([video({"frames": 9, "channels": 1, "size": [32, 32]}, phase) for phase in (0.0, 1.0, 2.0)])
    seen = []
    handle = i3d.conv3d_2b.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    logits = i3d(clips, batch_size=2)
    handle.remove()
    assert seen == [2, 1]  # no more than batch_size clips at once: memory stays flat
    coloured = i3d(clips.expand(-1, -1, 3, -1, -1), batch_size=3)
    torch.testing.assert_close(logits, coloured, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("index", range(3))
def test_lpips_gives_the_distances_of_the_original(lpips, index):
    case = RECORD["lpips"][lpips.net][index]
    network = LPIPS(lpips.net, resize=case["resize"])
    network.load_state_dict(lpips.state_dict())
    values = network(*(video(case, phase) for phase in case["phases"]), "none", batch_size=1)[0]
    torch.testing.assert_close(values, torch.tensor(case["distance"], dtype=torch.float64), rtol=1e-4, atol=1e-6)


def test_lpips_is_symmetric_and_zero_on_itself(lpips):
    case = {"frames": 2, "channels": 1, "size": [64, 64]}
    x, y = video(case, 0.0), video(case, 1.0)
    torch.testing.assert_close(lpips(x, y), lpips(y, x), rtol=1e-5, atol=1e-7)
    assert lpips(x, x).abs().max().item() == 0.0
    torch.testing.assert_close(lpips(x, y, "mean"), lpips(x, y).mean())


def test_lpips_heads_are_not_negative():
    # The published heads were trained under that constraint; a wrong layout would not keep it.
    try:
        tensors = load("lpips-alex")
    except WeightsUnavailableError as error:
        pytest.skip(str(error))
    assert all((tensors[f"heads.{i}"] >= 0).all() for i in range(5))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 8, 1, 32, 32), "8 frames.*prepend the context"),
        ((1, 9, 2, 32, 32), "1 or 3 channels"),
        ((9, 1, 32, 32), r"\[N, F, C, H, W\]"),
    ],
)
def test_i3d_refuses_videos_it_cannot_read(shape, message):
    with pytest.raises(ValueError, match=message):
        I3D()(torch.zeros(shape))


def test_lpips_refuses_frames_that_are_too_small_and_unknown_networks():
    small = torch.zeros(1, 2, 1, 30, 64)
    with pytest.raises(ValueError, match=r"at least 31 pixels.*pass `resize`"):
        LPIPS("alex")(small, small)
    with pytest.raises(ValueError, match="`net` must be one of 'alex', 'vgg', got 'squeeze'"):
        LPIPS("squeeze")
    with pytest.raises(ValueError, match="`resize`"):
        LPIPS("alex", resize=16)
