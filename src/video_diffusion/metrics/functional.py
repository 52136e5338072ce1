"""
Pure metrics on videos `[N, F, C, H, W]` with values in [0, 1].

Each returns one value per frame, per clip, or the mean (`reduction`), in float64 on the device of its input (on the
CPU where the device has no float64). docs/protocols.md says which paper uses which convention.
"""

import math
from typing import Literal

import torch
from einops import reduce

from video_diffusion.metrics.checks import check_choice, check_pair

Reduction = Literal["none", "clip", "mean"]

PSNR_PAPER_OFFSET = 20.0 * math.log10(255.0 / 2.0)
"""What peak 255 on a [-1, 1] error adds to a peak-1 PSNR on [0, 1]: +42.11 dB."""

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
_FRAMES_PER_CHUNK = 512


def _float64(x: torch.Tensor) -> torch.Tensor:
    """The same values in float64; moves to the CPU from a device that has no float64."""
    return x.detach().to(device="cpu" if x.device.type == "mps" else x.device, dtype=torch.float64)


def reduce_frames(values: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    """`[N, F]` to `[N, F]`, `[N]` or a scalar."""
    check_choice("reduction", reduction, ("none", "clip", "mean"))
    if reduction == "none":
        return values
    return values.mean(dim=1) if reduction == "clip" else values.mean()


def mse_sum(predictions: torch.Tensor, references: torch.Tensor, reduction: Reduction = "mean") -> torch.Tensor:
    """
    Squared error summed over the pixels and channels of a frame, as OpenSTL reports "MSE" (Tan et al., 2023).

    Args:
        predictions: `[N, F, C, H, W]` in [0, 1].
        references: the same shape and range.
        reduction: "none" `[N, F]`, "clip" `[N]` (mean over frames) or "mean" (over frames and clips).

    Raises:
        ValueError: if the shapes differ, a value is NaN or outside [0, 1], or `reduction` is unknown.
    """
    predictions, references = check_pair(predictions, references)
    error = (_float64(predictions) - _float64(references)) ** 2
    return reduce_frames(reduce(error, "n f c h w -> n f", "sum"), reduction)


def mae_sum(predictions: torch.Tensor, references: torch.Tensor, reduction: Reduction = "mean") -> torch.Tensor:
    """Absolute error summed over the pixels and channels of a frame (OpenSTL's "MAE"); otherwise as `mse_sum`."""
    predictions, references = check_pair(predictions, references)
    error = (_float64(predictions) - _float64(references)).abs()
    return reduce_frames(reduce(error, "n f c h w -> n f", "sum"), reduction)


def psnr(
    predictions: torch.Tensor,
    references: torch.Tensor,
    reduction: Reduction = "mean",
    over: Literal["frame", "clip"] = "frame",
) -> torch.Tensor:
    """
    Peak signal-to-noise ratio in dB, peak 1: −10 log₁₀ of the mean squared error.

    Args:
        predictions: `[N, F, C, H, W]` in [0, 1].
        references: the same shape and range.
        reduction: "none", "clip" or "mean", as in `mse_sum`.
        over: the pixels of one mean squared error: those of a "frame" (the usual convention), or of the whole "clip"
            (MCVD's); then "none" and "clip" both return `[N]`.

    Returns:
        dB; `inf` where prediction and reference are identical.

    Raises:
        ValueError: as `mse_sum`, or if `over` is unknown.
    """
    check_choice("over", over, ("frame", "clip"))
    predictions, references = check_pair(predictions, references)
    error = reduce((_float64(predictions) - _float64(references)) ** 2, "n f c h w -> n f", "mean")
    if over == "clip":
        error = error.mean(dim=1, keepdim=True)
    values = -10.0 * torch.log10(error)
    return values[:, 0] if over == "clip" and reduction == "none" else reduce_frames(values, reduction)


def psnr_paper(predictions: torch.Tensor, references: torch.Tensor, reduction: Reduction = "mean") -> torch.Tensor:
    """`psnr` in the paper's likely convention, peak 255 over an error on [-1, 1]: +42.11 dB (docs/errata.md)."""
    return psnr(predictions, references, reduction) + PSNR_PAPER_OFFSET


def _window_matrix(length: int, device: torch.device) -> torch.Tensor:
    """`[length − 10, length]`: row i holds the Gaussian window that starts at pixel i, so `A @ x` filters."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=device) - SSIM_WINDOW // 2
    window = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    window = window / window.sum()
    matrix = torch.zeros(length - SSIM_WINDOW + 1, length, dtype=torch.float64, device=device)
    for i in range(matrix.shape[0]):
        matrix[i, i : i + SSIM_WINDOW] = window
    return matrix


def _ssim_images(x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """SSIM of images `[M, H, W]` in float64, mean over the pixels whose window lies inside: `[M]`."""

    def local_mean(image: torch.Tensor) -> torch.Tensor:
        return rows @ image @ columns.T

    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x**2
    variance_y = local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2))


def ssim(predictions: torch.Tensor, references: torch.Tensor, reduction: Reduction = "mean") -> torch.Tensor:
    """
    Structural similarity (Wang et al., 2004, eq. 13): Gaussian window 11×11, σ = 1.5, data range 1.

    Population covariance; mean over channels and over the pixels whose window lies inside the frame. Equal to
    `skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1)`.

    Args:
        predictions: `[N, F, C, H, W]` in [0, 1], H and W at least 11.
        references: the same shape and range.
        reduction: "none", "clip" or "mean", as in `mse_sum`.

    Raises:
        ValueError: as `mse_sum`, or if a frame is smaller than the window.
    """
    predictions, references = check_pair(predictions, references)
    n, f, c, h, w = predictions.shape
    if min(h, w) < SSIM_WINDOW:
        raise ValueError(
            f"`predictions` has frames of {h}×{w}, SSIM needs frames of at least {SSIM_WINDOW}×{SSIM_WINDOW} pixels"
        )
    chunks = []
    pairs = zip(
        predictions.reshape(-1, h, w).split(_FRAMES_PER_CHUNK),
        references.reshape(-1, h, w).split(_FRAMES_PER_CHUNK),
        strict=True,
    )
    for x, y in pairs:
        x, y = _float64(x), _float64(y)
        chunks.append(_ssim_images(x, y, _window_matrix(h, x.device), _window_matrix(w, x.device)))
    return reduce_frames(reduce(torch.cat(chunks), "(n f c) -> n f", "mean", n=n, f=f, c=c), reduction)


def ssim_uniform(
    predictions: torch.Tensor, references: torch.Tensor, window: int = 7, data_range: float = 1.0
) -> torch.Tensor:
    """
    Structural similarity with a uniform window and sample covariance, the defaults of scikit-image.

    Equal to `skimage.metrics.structural_similarity(win_size=window, data_range=data_range)`. OpenSTL calls that on
    floats in [0, 1] without a range, so that scikit-image takes 2, the range of floats: its values are larger.

    Args:
        predictions: `[N, F, C, H, W]` in [0, 1], H and W at least `window`.
        references: the same shape and range.
        window: edge of the window in pixels, odd.
        data_range: L of the constants (0.01 L)² and (0.03 L)².

    Returns:
        float64 `[N, F]`, means over channels and over the pixels whose window lies inside.

    Raises:
        ValueError: as `mse_sum`, or if a frame is smaller than the window.
    """
    predictions, references = check_pair(predictions, references)
    n, f, c, h, w = predictions.shape
    if min(h, w) < window:
        raise ValueError(
            f"`predictions` has frames of {h}×{w}, SSIM needs frames of at least {window}×{window} pixels"
        )
    x, y = (_float64(videos).reshape(-1, 1, h, w) for videos in (predictions, references))
    mean = lambda values: torch.nn.functional.avg_pool2d(values, window, stride=1)  # noqa: E731
    unbiased = window**2 / (window**2 - 1)
    mean_x, mean_y = mean(x), mean(y)
    variance_x = unbiased * (mean(x * x) - mean_x**2)
    variance_y = unbiased * (mean(y * y) - mean_y**2)
    covariance = unbiased * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similar = similar / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return reduce(similar.mean((1, 2, 3)), "(n f c) -> n f", "mean", n=n, f=f, c=c)


def _symmetric_root(matrix: torch.Tensor) -> torch.Tensor:
    """The square root of a symmetric positive semi-definite matrix, through its eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T


def frechet_distance(
    mean_1: torch.Tensor, covariance_1: torch.Tensor, mean_2: torch.Tensor, covariance_2: torch.Tensor
) -> torch.Tensor:
    """
    Squared 2-Wasserstein distance of two Gaussians (Fréchet, 1957; Dowson and Landau, 1982).

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½). Σ₁^½ Σ₂ Σ₁^½ is symmetric, so its root needs real eigenvalues
    only, also for the singular covariances of fewer clips than dimensions.

    Args:
        mean_1: `[D]`; every argument is computed with in float64.
        covariance_1: `[D, D]`, symmetric, positive semi-definite.
        mean_2: `[D]`.
        covariance_2: `[D, D]`.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    shapes = tuple(tuple(x.shape) for x in (mean_1, covariance_1, mean_2, covariance_2))
    d = mean_1.shape[0] if mean_1.ndim == 1 else -1
    if shapes != ((d,), (d, d), (d,), (d, d)):
        raise ValueError(f"expected a mean [D] and a covariance [D, D] twice, got shapes {shapes}")
    mean_1, covariance_1, mean_2, covariance_2 = (_float64(x) for x in (mean_1, covariance_1, mean_2, covariance_2))
    root = _symmetric_root(covariance_1)
    product = root @ covariance_2 @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0.0).sqrt().sum()
    distance = ((mean_1 - mean_2) ** 2).sum() + covariance_1.trace() + covariance_2.trace() - 2.0 * cross
    return distance.clamp(min=0.0)


class GaussianMoments:
    """
    Mean and covariance of features that arrive in batches, in float64 on the CPU.

    The update is that of Chan, Golub and LeVeque (1979): with n₁, n₂ features and δ the difference of their means,
    scatter = scatter₁ + scatter₂ + δ δᵀ n₁ n₂ / (n₁ + n₂). The order and the sizes of the batches do not matter.

    Args:
        dim: D, the length of a feature.
    """

    def __init__(self, dim: int = 400):
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: torch.Tensor) -> None:
        """
        Adds features `[N, D]`.

        Raises:
            ValueError: if the shape is wrong or a value is not finite.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"`features` must be [N, {len(self.mean)}], got {tuple(features.shape)}")
        features = _float64(features).cpu()
        if not features.isfinite().all():
            raise ValueError("`features` holds NaN or infinity")
        if len(features):
            mean = features.mean(dim=0)
            centred = features - mean
            self._add(len(features), mean, centred.T @ centred)

    def merge(self, other: "GaussianMoments") -> None:
        """Adds everything that `other` has seen."""
        if other.count:
            self._add(other.count, other.mean, other.scatter)

    def _add(self, count: int, mean: torch.Tensor, scatter: torch.Tensor) -> None:
        total = self.count + count
        delta = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(delta, delta) * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    @property
    def covariance(self) -> torch.Tensor:
        """The unbiased covariance `[D, D]`. Raises a ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 clips, got {self.count}")
        return self.scatter / (self.count - 1)

    def frechet_distance(self, other: "GaussianMoments") -> float:
        """`frechet_distance` of both. Raises a ValueError where either has seen fewer than two features."""
        return frechet_distance(self.mean, self.covariance, other.mean, other.covariance).item()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The whole state: `count` (scalar), `mean` `[D]`, `scatter` `[D, D]`."""
        return {"count": torch.tensor(self.count), "mean": self.mean.clone(), "scatter": self.scatter.clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Goes on from `state_dict()`'s answer."""
        self.count = int(state["count"])
        self.mean, self.scatter = state["mean"].clone(), state["scatter"].clone()
