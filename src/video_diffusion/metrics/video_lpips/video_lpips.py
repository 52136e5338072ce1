"""LPIPS of video frames as an `evaluate` module."""

from typing import Any

from video_diffusion.metrics import accumulators, evaluate_base


class VideoLpips(evaluate_base.FrameModule):
    """
    LPIPS v0.1 per frame.

    Options of `evaluate.load`: `net` ("alex" or "vgg"), `resize` (a side in pixels, or `None`), `device`.
    """

    description = (
        "Learned perceptual image patch similarity, version 0.1 (AlexNet by default, or VGG16), per frame, mean over "
        "frames and videos, and at each frame index. Grey is repeated to three channels. Lower is better."
    )
    citation = (
        "Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018 (arXiv:1801.03924)"
    )

    def __init__(
        self,
        config_name: str | None = None,
        net: Any = "alex",
        resize: int | None = None,
        device: str = "cpu",
        **kwargs: Any,
    ) -> None:
        self.options = {"net": net, "resize": resize, "device": device}
        super().__init__(config_name or f"{net}-{resize or 'native'}", **kwargs)

    def make_metric(self) -> accumulators.FrameMetric:
        """A fresh accumulator."""
        return accumulators.LPIPSMetric(**self.options)
