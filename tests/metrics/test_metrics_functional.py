import numpy as np
import pytest
import scipy.linalg
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from video_diffusion.data import MovingMNIST
from video_diffusion.metrics import (
    PSNR_PAPER_OFFSET,
    GaussianMoments,
    frechet_distance,
    mae_sum,
    mse_sum,
    psnr,
    psnr_paper,
    ssim,
    ssim_uniform,
)

FRAME_METRICS = [psnr, psnr_paper, ssim, mse_sum, mae_sum]


def random_pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    references = torch.rand(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    return (references + 0.1 * noise).clamp(0, 1).to(dtype), references.to(dtype)


def random_gaussian(dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(dim, generator=generator, dtype=torch.float64), factor @ factor.T / dim


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(11, 11), (64, 64), (23, 40)])
def test_ssim_equals_scikit_image_on_every_frame(channels, size):
    predictions, references = random_pair(2, 3, channels, *size)
    values = ssim(predictions, references, "none")
    for n in range(2):
        for f in range(3):
            expected = structural_similarity(
                references[n, f].double().numpy(),
                predictions[n, f].double().numpy(),
                channel_axis=0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=1,
            )
            assert values[n, f].item() == pytest.approx(expected, abs=1e-9)


def test_ssim_in_float32_equals_float64_where_the_picture_is_flat():
    # E[x²] − E[x]² cancels on flat frames: 1e-7 in float32 would be an error of 1e-4 beside C₂ = 9e-4.
    references = torch.full((1, 1, 1, 32, 32), 0.7)
    predictions = references + 1e-3 * torch.sin(torch.arange(32.0))
    exact = ssim(predictions.double(), references.double())
    assert ssim(predictions, references).item() == pytest.approx(exact.item(), abs=1e-6)


def test_psnr_equals_scikit_image_on_every_frame():
    predictions, references = random_pair(2, 3, 3, 16, 20)
    values = psnr(predictions, references, "none")
    for n in range(2):
        for f in range(3):
            expected = peak_signal_noise_ratio(
                references[n, f].double().numpy(), predictions[n, f].double().numpy(), data_range=1
            )
            assert values[n, f].item() == pytest.approx(expected, abs=1e-9)


def test_psnr_of_identical_frames_is_infinite():
    _, references = random_pair(1, 2, 1, 12, 12)
    assert psnr(references, references).item() == np.inf


def test_psnr_over_a_clip_is_that_of_the_clips_squared_error():
    predictions, references = random_pair(3, 4, 1, 8, 8, dtype=torch.float64)
    expected = -10 * torch.log10(((predictions - references) ** 2).flatten(1).mean(1))
    torch.testing.assert_close(psnr(predictions, references, "none", over="clip"), expected)
    torch.testing.assert_close(psnr(predictions, references, "clip", over="clip"), expected)
    assert psnr(predictions, references, over="clip").item() <= psnr(predictions, references).item()


def test_paper_psnr_is_peak_255_on_minus_one_to_one():
    predictions, references = random_pair(2, 2, 1, 8, 8, dtype=torch.float64)
    error = ((2 * predictions - 1) - (2 * references - 1)) ** 2
    expected = (10 * torch.log10(255**2 / error.flatten(2).mean(2))).mean()
    assert psnr_paper(predictions, references).item() == pytest.approx(expected.item(), abs=1e-9)
    assert pytest.approx(42.11, abs=0.005) == PSNR_PAPER_OFFSET


def test_sums_are_openstls():
    predictions, references = random_pair(3, 4, 1, 8, 9, dtype=torch.float64)
    p, r = predictions.numpy(), references.numpy()
    assert mse_sum(predictions, references).item() == pytest.approx(np.mean((p - r) ** 2, axis=(0, 1)).sum())
    assert mae_sum(predictions, references).item() == pytest.approx(np.mean(np.abs(p - r), axis=(0, 1)).sum())


@pytest.mark.parametrize("metric", FRAME_METRICS)
def test_reductions_are_means_of_the_frames(metric):
    predictions, references = random_pair(3, 4, 1, 16, 16)
    values = metric(predictions, references, "none")
    assert values.shape == (3, 4)
    torch.testing.assert_close(metric(predictions, references, "clip"), values.mean(1))
    torch.testing.assert_close(metric(predictions, references), values.mean())


@pytest.mark.parametrize("metric", FRAME_METRICS)
def test_values_do_not_depend_on_the_batch(metric):
    predictions, references = random_pair(6, 100, 1, 12, 12)
    whole = metric(predictions, references, "none")
    parts = [metric(predictions[i : i + 1], references[i : i + 1], "none") for i in range(6)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-12, atol=1e-12)


def test_black_frames_on_classic_moving_mnist_score_psnr_13_9_and_ssim_0_72():
    # 1,000 clips: 13.89 dB and .726 (test digits), 13.98 dB and .726 (train digits). Two digits hold about 2 × 89 of a
    # frame's 4096 pixels in squared brightness: 13.6 dB before overlaps, and the mean of the dB lies above that.
    clips = MovingMNIST(split="test", num_frames=10, seed=0).batch(range(200))
    references = torch.from_numpy(clips)[:, :, None] / 255.0
    black = torch.zeros_like(references)
    assert psnr(black, references).item() == pytest.approx(13.89, abs=0.15)
    assert ssim(black, references).item() == pytest.approx(0.726, abs=0.01)


@pytest.mark.parametrize("metric", FRAME_METRICS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x * 2 - 1, ValueError, r"\[0, 1\], got \[-"),
        (lambda x: x * 255, ValueError, r"\[0, 1\]"),
        (lambda x: x / 0 * 0, ValueError, "NaN"),
        (lambda x: x[0], ValueError, "one shape"),
        (lambda x: x[:, :1], ValueError, "one shape"),
        (lambda x: (x * 255).byte(), TypeError, "divide 8-bit pixels by 255"),
    ],
)
def test_bad_videos_are_refused_with_the_reason(metric, change, error, message):
    predictions, references = random_pair(2, 2, 1, 16, 16)
    with pytest.raises(error, match=message):
        metric(change(predictions), references)


def test_bad_options_are_refused():
    predictions, references = random_pair(1, 2, 1, 16, 16)
    with pytest.raises(ValueError, match=r"`reduction` must be one of 'none', 'clip', 'mean', got 'sum'"):
        psnr(predictions, references, "sum")
    with pytest.raises(ValueError, match="`over`"):
        psnr(predictions, references, over="video")
    with pytest.raises(ValueError, match="11×11"):
        ssim(predictions[..., :10], references[..., :10])
    with pytest.raises(ValueError, match=r"\[N, F, C, H, W\]"):
        psnr(predictions[0], references[0])
    with pytest.raises(ValueError, match="empty axis"):
        psnr(predictions[:0], references[:0])


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    # Shared eigenvectors: ‖μ₁ − μ₂‖² + Σ (√a − √b)².
    generator = torch.Generator().manual_seed(1)
    rotation, _ = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64))
    a, b = (torch.rand(30, generator=generator, dtype=torch.float64) for _ in range(2))
    mean = torch.randn(30, generator=generator, dtype=torch.float64)
    value = frechet_distance(mean, rotation * a @ rotation.T, torch.zeros(30), rotation * b @ rotation.T)
    assert value.item() == pytest.approx((mean @ mean + (a.sqrt() - b.sqrt()).square().sum()).item(), rel=1e-10)


def test_frechet_distance_equals_scipys_matrix_root():
    mean_1, covariance_1 = random_gaussian(40, 2)
    mean_2, covariance_2 = random_gaussian(40, 3)
    root = scipy.linalg.sqrtm((covariance_1 @ covariance_2).numpy()).real
    expected = ((mean_1 - mean_2) ** 2).sum() + (covariance_1 + covariance_2).trace() - 2 * np.trace(root)
    value = frechet_distance(mean_1, covariance_1, mean_2, covariance_2)
    assert value.item() == pytest.approx(float(expected), rel=1e-9)


def test_frechet_distance_is_exact_for_fewer_samples_than_dimensions():
    # tr (Σ₁^½ Σ₂ Σ₁^½)^½ is the nuclear norm of X Yᵀ / (n − 1) for centred data matrices.
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(20, 400, generator=generator, dtype=torch.float64) * 3
    y = torch.randn(20, 400, generator=generator, dtype=torch.float64) + 1
    moments = [GaussianMoments(), GaussianMoments()]
    for moment, data in zip(moments, (x, y), strict=True):
        moment.update(data)
    x_centred, y_centred = x - x.mean(0), y - y.mean(0)
    cross = torch.linalg.matrix_norm(x_centred @ y_centred.T, "nuc") / 19
    traces = (x_centred.square().sum() + y_centred.square().sum()) / 19
    expected = (x.mean(0) - y.mean(0)).square().sum() + traces - 2 * cross
    assert moments[0].frechet_distance(moments[1]) == pytest.approx(expected.item(), rel=1e-7)
    assert moments[0].frechet_distance(moments[0]) == pytest.approx(0.0, abs=1e-3)


def test_frechet_distance_is_symmetric_and_translation_adds_its_square():
    mean_1, covariance_1 = random_gaussian(20, 5)
    mean_2, covariance_2 = random_gaussian(20, 6)
    value = frechet_distance(mean_1, covariance_1, mean_2, covariance_2)
    torch.testing.assert_close(value, frechet_distance(mean_2, covariance_2, mean_1, covariance_1))
    moved = frechet_distance(mean_1 + 2.0, covariance_1, mean_1, covariance_1)
    assert moved.item() == pytest.approx(20 * 4.0, rel=1e-9)


def test_frechet_distance_refuses_shapes_that_do_not_belong_together():
    mean, covariance = random_gaussian(4, 0)
    with pytest.raises(ValueError, match="expected a mean"):
        frechet_distance(mean, covariance, mean[:3], covariance)


def test_streamed_moments_equal_numpys_even_far_from_zero():
    # Means of 1e6 over a spread of 1 lose six digits in a sum of squares; the update by differences does not.
    data = torch.randn(57, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64) + 1e6
    streamed = GaussianMoments(8)
    for part in data.split([1, 20, 3, 33]):
        streamed.update(part)
    np.testing.assert_allclose(streamed.mean.numpy(), data.mean(0).numpy(), rtol=1e-14)
    np.testing.assert_allclose(streamed.covariance.numpy(), np.cov(data.numpy().T), atol=1e-8)


def test_merged_and_restored_moments_equal_those_of_one_pass():
    data = torch.randn(30, 5, generator=torch.Generator().manual_seed(8))
    whole, left, right, restored = (GaussianMoments(5) for _ in range(4))
    whole.update(data)
    left.update(data[:11])
    restored.load_state_dict(left.state_dict())
    right.update(data[11:])
    restored.merge(right)
    restored.merge(GaussianMoments(5))
    assert restored.count == 30
    torch.testing.assert_close(restored.covariance, whole.covariance, rtol=1e-12, atol=1e-14)
    assert left.count == 11


def test_moments_refuse_what_they_cannot_use():
    moments = GaussianMoments(5)
    with pytest.raises(ValueError, match=r"\[N, 5\]"):
        moments.update(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="NaN"):
        moments.update(torch.full((3, 5), torch.nan))
    moments.update(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="at least 2"):
        moments.covariance  # noqa: B018


def test_ssim_of_a_uniform_window_is_scikit_images_as_openstl_calls_it():
    """OpenSTL gives scikit-image float frames and no range: it takes the range of floats, 2, and a 7×7 window."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(2, 3, 1, 16, 20, generator=generator) for _ in range(2))
    got = ssim_uniform(one, other, 7, 2.0)
    assert got.shape == (2, 3)
    for n in range(2):
        for f in range(3):
            frames = (video[n, f, 0].double().numpy() for video in (one, other))
            assert got[n, f].item() == pytest.approx(structural_similarity(*frames, data_range=2.0), abs=1e-9)
    with pytest.raises(ValueError, match="at least 7×7 pixels"):
        ssim_uniform(one[..., :5], other[..., :5])
