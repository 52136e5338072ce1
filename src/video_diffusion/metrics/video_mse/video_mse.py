"""Squared and absolute error of video frames, summed over pixels, as an `evaluate` module."""

from video_diffusion.metrics import accumulators, evaluate_base


class VideoMse(evaluate_base.FrameModule):
    """MSE and MAE in OpenSTL's convention: summed over the pixels of a frame, mean over frames and videos."""

    description = (
        "Squared error (mse) and absolute error (mae), SUMMED over the pixels of a [0, 1] frame, mean over frames and "
        "videos, and at each frame index: the convention of the Moving MNIST prediction tables. Lower is better."
    )
    citation = "Tan et al., OpenSTL: A Comprehensive Benchmark of Spatio-Temporal Predictive Learning, 2023"

    def make_metric(self) -> accumulators.FrameMetric:
        """A fresh accumulator."""
        return accumulators.MSEMetric()
