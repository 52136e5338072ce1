"""Peak signal-to-noise ratio of video frames as an `evaluate` module."""

from video_diffusion.metrics import accumulators, evaluate_base


class VideoPsnr(evaluate_base.FrameModule):
    """PSNR per frame with peak 1, and beside it in the convention of peak 255 on [-1, 1] (+42.11 dB)."""

    description = (
        "Peak signal-to-noise ratio per frame in dB, peak 1 on [0, 1], mean over frames and videos, and at each frame "
        "index. Higher is better. A frame predicted exactly counts as 100 dB and is counted in num_identical."
    )
    citation = "Huynh-Thu and Ghanbari, Scope of Validity of PSNR in Image/Video Quality Assessment, 2008"

    def make_metric(self) -> accumulators.FrameMetric:
        """A fresh accumulator."""
        return accumulators.PSNRMetric()
