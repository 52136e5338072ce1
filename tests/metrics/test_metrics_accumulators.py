import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from video_diffusion import metrics
from video_diffusion.metrics import (
    I3D,
    LPIPS,
    FVDMetric,
    LPIPSMetric,
    MSEMetric,
    PSNRMetric,
    SSIMMetric,
    frechet_video_distance,
    mae_sum,
    mse_sum,
    psnr,
    psnr_paper,
    ssim,
)

FRAME_METRICS = [MSEMetric, SSIMMetric, PSNRMetric]


class FakeI3D(torch.nn.Module):
    """400 fixed random projections of the mean frame: quick, and a function of each clip alone."""

    def forward(self, video: torch.Tensor, batch_size: int) -> torch.Tensor:
        pixels = video.double().mean(dim=1).flatten(1)
        matrix = torch.randn(pixels.shape[1], 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return (pixels @ matrix).float()


def videos(n: int, frames: int = 9, seed: int = 0, size: int = 16) -> torch.Tensor:
    return torch.rand(n, frames, 1, size, size, generator=torch.Generator().manual_seed(seed))


def fvd_metric() -> FVDMetric:
    return FVDMetric(FakeI3D())


@pytest.fixture
def no_networks(monkeypatch):
    def fail(*_, **__):
        pytest.fail("a network was loaded")

    monkeypatch.setattr(I3D, "from_pretrained", fail)
    monkeypatch.setattr(LPIPS, "from_pretrained", fail)


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        # the square root of a singular covariance turns rounding errors of 1e-16 into 1e-8
        assert value == pytest.approx(second[key], rel=1e-7 if key == "fvd" else 1e-9), key


@pytest.mark.parametrize("make", [*FRAME_METRICS, fvd_metric])
def test_streaming_merging_and_resuming_equal_one_update(make, tmp_path):
    predictions, references = videos(12, seed=1), videos(12, seed=2)
    whole, streamed, left, right, resumed = (make() for _ in range(5))
    whole.update(predictions, references)
    for start, stop in [(0, 1), (1, 8), (8, 12)]:
        streamed.update(predictions[start:stop], references[start:stop])
    left.update(predictions[:5], references[:5])
    save_file(left.state_dict(), tmp_path / "state.safetensors")
    resumed.load_state_dict(load_file(tmp_path / "state.safetensors"))
    right.update(predictions[5:], references[5:])
    resumed.merge(right)
    assert_same(streamed.compute(), whole.compute())
    assert_same(resumed.compute(), whole.compute())


def test_accumulators_equal_the_pure_functions():
    predictions, references = videos(4, seed=1), videos(4, seed=2)
    figures = {}
    for make in FRAME_METRICS:
        metric = make()
        metric.update(predictions, references)
        figures |= metric.compute()
    for name, function in [("mse", mse_sum), ("mae", mae_sum), ("ssim", ssim), ("psnr", psnr)]:
        values = function(predictions, references, "none")
        assert figures[name] == pytest.approx(values.mean().item(), rel=1e-12)
        assert figures[f"{name}_per_frame"] == pytest.approx(values.mean(0).tolist(), rel=1e-12)
    assert figures["psnr_paper"] == pytest.approx(psnr_paper(predictions, references).item(), rel=1e-12)


def test_videos_of_different_lengths_count_by_frame_and_a_prefix_can_be_asked_for():
    metric = MSEMetric()
    long, short = metric.update(videos(2, 6, 1), videos(2, 6, 2)), metric.update(videos(1, 3, 3), videos(1, 3, 4))
    figures = metric.compute()
    assert (figures["num_videos"], figures["num_frames"]) == (3, 15)
    assert figures["mse"] == pytest.approx((long[0].sum() + short[0].sum()).item() / 15)
    assert figures["mse_per_frame"][0] == pytest.approx(torch.cat([long[0, :, 0], short[0, :, 0]]).mean().item())
    assert figures["mse_per_frame"][5] == pytest.approx(long[0, :, 5].mean().item())
    assert metric.compute(2)["mse"] == pytest.approx(torch.cat([long[0, :, :2], short[0, :, :2]]).mean().item())
    with pytest.raises(ValueError, match="between 1 and 6, got 7"):
        metric.compute(7)


def test_a_frame_predicted_exactly_counts_as_100_db_and_is_counted():
    predictions, references = videos(1, 2, 1), videos(1, 2, 2)
    predictions[0, 1] = references[0, 1]
    metric = PSNRMetric()
    metric.update(predictions, references)
    figures = metric.compute()
    assert figures["psnr_per_frame"][1] == 100.0
    assert figures["num_identical"] == 1
    assert "identical" not in figures


def test_fvd_sides_may_differ_in_number_and_come_apart():
    predictions, references = videos(5, seed=1), videos(9, seed=2)
    apart = fvd_metric()
    for clip in references:
        apart.update(references=clip[None])
    apart.add_features(predictions=apart.features(predictions))
    figures = apart.compute()
    assert (figures["num_predictions"], figures["num_references"]) == (5, 9)
    assert figures["fvd"] == pytest.approx(frechet_video_distance(predictions, references, fvd_metric()), rel=1e-9)


def test_fvd_of_a_set_with_itself_is_zero_and_grows_with_the_shift():
    x = videos(8, seed=1) / 2
    same, near, far = (frechet_video_distance(x + shift, x, fvd_metric()) for shift in (0.0, 0.1, 0.4))
    assert same == pytest.approx(0.0, abs=1e-3 * near)
    assert far == pytest.approx(16 * near, rel=1e-3)  # a shift moves the mean only


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (videos(1), videos(1), "at least 2 videos"),
        (videos(2, 8), videos(2, 8), "8 frames.*prepend the context"),
        (videos(2, 9), videos(2, 10), "the same frames"),
        (videos(2) * 2 - 1, videos(2), r"`predictions` must lie in \[0, 1\]"),
        (videos(2), videos(2) * torch.nan, "`references` holds NaN"),
        (videos(2)[0], videos(2)[0], r"\[N, F, C, H, W\]"),
    ],
)
def test_fvd_refuses_bad_input_before_the_network_loads(no_networks, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        frechet_video_distance(predictions, references)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (videos(2), videos(2, 8), "one shape"),
        (videos(2, size=64) + 0.5, videos(2, size=64), r"\[0, 1\]"),
        (videos(2), videos(2), "at least 31 pixels"),
    ],
)
def test_lpips_refuses_bad_input_before_the_network_loads(no_networks, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        LPIPSMetric().update(predictions, references)


@pytest.mark.parametrize("make", [*FRAME_METRICS, fvd_metric, LPIPSMetric])
def test_compute_before_update_is_refused(make):
    with pytest.raises(ValueError, match=r"update|at least 2"):
        make().compute()


def test_accumulators_of_another_kind_are_refused():
    with pytest.raises(TypeError, match="must be a SSIMMetric, got MSEMetric"):
        SSIMMetric().merge(MSEMetric())
    with pytest.raises(ValueError, match="'vgg' at size None, this one 'alex' at 128"):
        LPIPSMetric("alex", 128).merge(LPIPSMetric("vgg"))
    with pytest.raises(ValueError, match="2 values a frame, expected 1"):
        SSIMMetric().load_state_dict(MSEMetric().state_dict())


def test_importing_the_metrics_imports_no_optional_package():
    unwanted = {"evaluate", "datasets", "scipy", "skimage", "jax", "torchvision", "diffusers", "gradio"}
    code = f"import sys, video_diffusion.metrics; print(sorted({unwanted!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_unknown_modules_are_refused():
    with pytest.raises(ValueError, match=r"`name` must be one of 'fvd'.*got 'ssim'"):
        metrics.load("ssim")
