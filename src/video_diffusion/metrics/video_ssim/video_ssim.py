"""Structural similarity of video frames as an `evaluate` module."""

from video_diffusion.metrics import accumulators, evaluate_base


class VideoSsim(evaluate_base.FrameModule):
    """SSIM per frame: Gaussian window 11×11, σ = 1.5, data range 1, population covariance."""

    description = (
        "Structural similarity per frame (Gaussian window 11x11, sigma 1.5, data range 1, population covariance: "
        "scikit-image's values), mean over frames and videos, and at each frame index. Higher is better, 1 at most."
    )
    citation = "Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004"

    def make_metric(self) -> accumulators.FrameMetric:
        """A fresh accumulator."""
        return accumulators.SSIMMetric()
