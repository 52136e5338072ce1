"""
What the `evaluate` modules share; imports `evaluate` and `datasets`, so only the modules import it.

A video is reduced when it is added: to its values per frame, or to its I3D logits. So videos are never stored, their
number of frames may vary, memory stays flat, and with `num_process` each process runs the network on its own share.
"""

from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from video_diffusion.metrics.accumulators import FrameMetric
from video_diffusion.metrics.checks import check_pair
from video_diffusion.metrics.frechet import FVDMetric, check_fvd_counts

HOMEPAGE = "docs/protocols.md of the video-diffusion package"

INPUTS = """
Args:
    predictions: videos, an array or tensor `[N, F, C, H, W]` of floats in [0, 1], or a list of `[F, C, H, W]` whose F
        may differ.
    references: as many videos, of the same shapes.
"""


def _clips(name: str, videos: Any) -> list[torch.Tensor]:
    """Each video as a tensor `[F, C, H, W]`."""
    if videos is None:
        raise ValueError(f"`{name}` is missing")
    clips = []
    for clip in videos:
        tensor = clip if isinstance(clip, torch.Tensor) else torch.from_numpy(np.array(clip))
        if tensor.ndim != 4:
            raise ValueError(f"each video in `{name}` must be [F, C, H, W], got shape {tuple(tensor.shape)}")
        clips.append(tensor)
    return clips


def one_video(name: str, video: Any, under_plural: Any) -> list[Any] | None:
    """A batch of one video, given under one of its two names, or None.

    Raises:
        ValueError: where both are given.
    """
    if video is not None and under_plural is not None:
        raise ValueError(f"`{name}` and `{name}s` are both given, expected one of them")
    video = under_plural if video is None else video
    return None if video is None else [video]


def group_by_shape(predictions: Any, references: Any) -> list[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """
    Groups pairs of videos that can be stacked.

    Returns:
        For each shape: the places of its videos, and both sides as `[n, F, C, H, W]`, checked.

    Raises:
        ValueError: if the numbers or shapes of the videos differ, or a value is NaN or outside [0, 1].
    """
    left, right = _clips("predictions", predictions), _clips("references", references)
    if len(left) != len(right):
        raise ValueError(
            f"as many predictions as references are needed, got {len(left)} predictions and {len(right)} references"
        )
    places: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for i, (x, y) in enumerate(zip(left, right, strict=True)):
        places.setdefault((tuple(x.shape), tuple(y.shape)), []).append(i)
    return [
        (group, *check_pair(torch.stack([left[i] for i in group]), torch.stack([right[i] for i in group])))
        for group in places.values()
    ]


def _info(description: str, citation: str, features: datasets.Features) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=INPUTS,
        features=features,
        homepage=HOMEPAGE,
    )


class FrameModule(evaluate.Metric):
    """A metric per frame. Stores, for each video, its values per frame and its number of frames."""

    description = ""
    citation = ""

    def make_metric(self) -> FrameMetric:
        """A fresh accumulator."""
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        self._meter = self.make_metric()
        values = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
        features = datasets.Features({"predictions": values, "references": datasets.Value("int64")})
        return _info(self.description, self.citation, features)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Measures videos and keeps their values per frame."""
        rows: dict[int, np.ndarray] = {}
        for group, x, y in group_by_shape(predictions, references):
            values = self._meter.measure(x, y).numpy()
            rows |= {i: values[:, n] for n, i in enumerate(group)}
        ordered = [rows[i] for i in range(len(rows))]
        counts = [row.shape[1] for row in ordered]
        evaluate.Metric.add_batch(self, predictions=[row.tolist() for row in ordered], references=counts, **kwargs)

    def add(
        self,
        *,
        prediction: Any = None,
        reference: Any = None,
        predictions: Any = None,
        references: Any = None,
        **kwargs: Any,
    ) -> None:
        """Measures one video `[F, C, H, W]`; `evaluate.combine` passes it under the names of many."""
        self.add_batch(
            predictions=one_video("prediction", prediction, predictions),
            references=one_video("reference", reference, references),
            **kwargs,
        )

    def _compute(self, *, predictions: Any, references: Any, num_frames: int | None = None) -> dict[str, Any]:
        metric = self.make_metric()
        for values in predictions:
            metric.add_values(torch.as_tensor(np.array(values, dtype=np.float64))[:, None])
        return metric.compute(num_frames)


class FeatureModule(evaluate.Metric):
    """The Fréchet video distance. Stores the I3D logits of each video."""

    description = ""
    citation = ""

    def __init__(self, *args: Any, device: str = "cpu", batch_size: int = 4, **kwargs: Any) -> None:
        self._meter = FVDMetric(device=device, batch_size=batch_size)
        super().__init__(*args, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        logits = datasets.Sequence(datasets.Value("float32"))
        features = datasets.Features({"predictions": logits, "references": logits})
        return _info(self.description, self.citation, features)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Runs I3D on videos and keeps their logits."""
        rows: dict[int, tuple[list[float], list[float]]] = {}
        for group, x, y in group_by_shape(predictions, references):
            pairs = zip(self._meter.features(x).tolist(), self._meter.features(y).tolist(), strict=True)
            rows |= dict(zip(group, pairs, strict=True))
        left, right = ([rows[i][side] for i in range(len(rows))] for side in (0, 1))
        evaluate.Metric.add_batch(self, predictions=left, references=right, **kwargs)

    def add(
        self,
        *,
        prediction: Any = None,
        reference: Any = None,
        predictions: Any = None,
        references: Any = None,
        **kwargs: Any,
    ) -> None:
        """Runs I3D on one video `[F, C, H, W]` of each side; `evaluate.combine` passes it under the names of many."""
        self.add_batch(
            predictions=one_video("prediction", prediction, predictions),
            references=one_video("reference", reference, references),
            **kwargs,
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """The distance between all videos added; refuses a single one before the network loads."""
        if predictions is not None and references is not None and self.num_process == 1 and len(self) == 0:
            check_fvd_counts(len(predictions), len(references))
        return evaluate.Metric.compute(self, predictions=predictions, references=references, **kwargs)

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, Any]:
        metric = FVDMetric()
        sides = {"predictions": predictions, "references": references}
        metric.add_features(**{name: torch.tensor(np.array(side)) for name, side in sides.items()})
        return metric.compute()
