"""The Fréchet video distance over videos that arrive in batches."""

import os
from typing import Any

import torch

from video_diffusion.metrics.accumulators import VideoMetric
from video_diffusion.metrics.functional import GaussianMoments
from video_diffusion.metrics.i3d import I3D, NUM_LOGITS, check_i3d_video


class FVDMetric(VideoMetric):
    """
    The Fréchet video distance (Unterthiner et al., 2018): that between the I3D logits of two sets of videos.

    The sets may differ in size, and either side may be updated alone. Its bias falls with the number of videos:
    compare at one N only, beside the value of real against real.

    Args:
        network: an `I3D` to share between metrics; loaded at the first update by default.
        path: where the weights are; found or fetched by default.
        device: where the network runs.
        batch_size: videos that go through it at once.
    """

    def __init__(
        self,
        network: I3D | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 4,
    ) -> None:
        self._network, self.path, self.device, self.batch_size = network, path, device, batch_size
        self.predictions = GaussianMoments(NUM_LOGITS)
        self.references = GaussianMoments(NUM_LOGITS)

    def features(self, videos: torch.Tensor) -> torch.Tensor:
        """
        The I3D logits `[N, 400]` of videos `[N, F, C, H, W]` in [0, 1], on the CPU; nothing is added.

        Raises:
            ValueError: if the range or the shape is wrong, or F < 9.
        """
        videos = check_i3d_video("videos", videos)
        if self._network is None:
            self._network = I3D.from_pretrained(self.path, self.device)
        return self._network(videos, self.batch_size).cpu()

    def update(self, predictions: torch.Tensor | None = None, references: torch.Tensor | None = None) -> None:
        """
        Adds videos `[N, F, C, H, W]` in [0, 1] to one side or both.

        Raises:
            ValueError: if the range or the shape is wrong, F < 9, or the sides have different frames.
        """
        if predictions is not None and references is not None and predictions.shape[1:] != references.shape[1:]:
            raise ValueError(
                "`predictions` and `references` must have the same frames, "
                f"got {tuple(predictions.shape[1:])} and {tuple(references.shape[1:])}"
            )
        sides = {"predictions": predictions, "references": references}
        videos = {name: check_i3d_video(name, side) for name, side in sides.items() if side is not None}
        self.add_features(**{name: self.features(side) for name, side in videos.items()})

    def add_features(self, predictions: torch.Tensor | None = None, references: torch.Tensor | None = None) -> None:
        """Adds logits `[N, 400]` that `features` gave, so that one pass over the references serves many."""
        if predictions is not None:
            self.predictions.update(predictions)
        if references is not None:
            self.references.update(references)

    def compute(self) -> dict[str, Any]:
        """
        The distance so far: `fvd`, `num_predictions`, `num_references`.

        Raises:
            ValueError: if either side has seen fewer than two videos.
        """
        check_fvd_counts(self.predictions.count, self.references.count)
        return {
            "fvd": self.predictions.frechet_distance(self.references),
            "num_predictions": self.predictions.count,
            "num_references": self.references.count,
        }

    def merge(self, other: "FVDMetric") -> None:
        """Adds everything that `other` has seen."""
        self.predictions.merge(other.predictions)
        self.references.merge(other.references)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The moments of both sides."""
        sides = {"predictions": self.predictions, "references": self.references}
        return {f"{name}.{key}": value for name, side in sides.items() for key, value in side.state_dict().items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Goes on from `state_dict()`'s answer."""
        for name in ("predictions", "references"):
            prefix = f"{name}."
            moments = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            getattr(self, name).load_state_dict(moments)


def check_fvd_counts(num_predictions: int, num_references: int) -> None:
    """Raises a ValueError unless both sides have the two videos that a covariance needs."""
    if min(num_predictions, num_references) < 2:
        raise ValueError(
            "FVD compares covariances: both sides need at least 2 videos (256 or more for a figure that means "
            f"anything), got {num_predictions} predictions and {num_references} references"
        )


def frechet_video_distance(
    predictions: torch.Tensor, references: torch.Tensor, metric: FVDMetric | None = None
) -> float:
    """
    The Fréchet video distance of two sets of videos at once.

    Args:
        predictions: `[N, F, C, H, W]` in [0, 1], N at least 2, F at least 9.
        references: `[M, F, C, H, W]`, the same frames.
        metric: a fresh `FVDMetric` with the wanted network or device.

    Raises:
        ValueError: if a set is refused; before the network loads.
    """
    check_fvd_counts(len(predictions), len(references))
    metric = metric or FVDMetric()
    metric.update(predictions, references)
    return metric.compute()["fvd"]
