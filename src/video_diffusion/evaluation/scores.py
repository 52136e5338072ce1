"""From clips to figures: what is measured of each clip, and how the values of all clips become the report's figures.

The values of single clips are what a run keeps on disk. So a resumed run, another batch size or more processes fold
the same values into the same figures.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from video_diffusion.evaluation.cache import remember
from video_diffusion.evaluation.protocols import Protocol, baseline_clips
from video_diffusion.metrics import (
    FVDMetric,
    GaussianMoments,
    LPIPSMetric,
    MSEMetric,
    PSNRMetric,
    SSIMMetric,
    psnr,
    ssim_uniform,
)
from video_diffusion.metrics.accumulators import FrameMetric

Clips = NDArray[np.uint8]
Values = NDArray[np.float64]
Scores = Mapping[str, NDArray[Any]]
Features = Callable[[torch.Tensor], torch.Tensor]

LARGER_IS_BETTER = {"psnr": True, "ssim": True, "mse": False, "mae": False, "lpips": False}


# -------------------------------------------------------------------------------------------- conventions of their own
class ClipPSNRMetric(PSNRMetric):
    """PSNR of a clip's mean squared error (MCVD's convention): one value a clip in the place of its frames."""

    def measure(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """`[2, N, 1]`: dB, and 1 where the clips are identical."""
        values = psnr(predictions, references, "none", over="clip")[:, None].cpu()
        identical = values.isinf()
        return torch.stack([values.masked_fill(identical, self.identical_db), identical.to(values.dtype)])


class BinarySSIMMetric(SSIMMetric):
    """SSIM of frames that are rounded to 0 and 1 first (MCVD's convention for Moving MNIST)."""

    def measure(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """`[1, N, F]`."""
        return super().measure(predictions.round(), references.round())


class OpenSTLSSIMMetric(SSIMMetric):
    """SSIM as OpenSTL takes it: 7×7 uniform window, data range 2 on floats in [0, 1], sample covariance."""

    def measure(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """`[1, N, F]`."""
        return ssim_uniform(predictions, references, 7, 2.0)[None].cpu()


METRICS: dict[str, Callable[[], FrameMetric]] = {
    "psnr": PSNRMetric,
    "psnr_of_clip": ClipPSNRMetric,
    "ssim": SSIMMetric,
    "ssim_binarised": BinarySSIMMetric,
    "ssim_openstl": OpenSTLSSIMMetric,
    "mse": MSEMetric,
    "lpips": LPIPSMetric,
    "lpips_128": lambda: LPIPSMetric(resize=128),
}


def to_tensor(clips: Clips, device: torch.device | str) -> torch.Tensor:
    """Clips uint8 `[n, F, H, W, C]` as the metrics read them: `[n, F, C, H, W]` in [0, 1]."""
    return rearrange(torch.from_numpy(np.ascontiguousarray(clips)).to(device).float() / 255, "n f h w c -> n f c h w")


# ---------------------------------------------------------------------------------------------------- scoring of clips
class Scorer:
    """Measures the clips of one protocol and those of its baselines.

    Args:
        protocol: says what is measured.
        lengths: frames of the whole clips.
        device: where the networks run.
        features: videos `[n, F, C, H, W]` in [0, 1] to the features `[n, 400]` of the Fréchet distance; the I3D
            network with its published weights by default. A function of your own gives a distance of its own, not FVD.
        lpips: the metric in the place of LPIPS, one value a frame; that network with its published weights by
            default.
        cache: a folder that keeps the scores of the truth and the baselines for the next model
            (`cache.default_folder`); not used where a network was replaced.
    """

    def __init__(
        self,
        protocol: Protocol,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        features: Features | None = None,
        lpips: FrameMetric | None = None,
        cache: Path | None = None,
    ) -> None:
        self.protocol, self.lengths, self.device, self.cache = protocol, tuple(lengths), device, cache
        self.metrics = make_metrics(protocol, device, lpips)
        self.features = features or FVDMetric(device=device).features
        self.networks = {}
        if protocol.fvd:
            self.networks["fvd"] = "I3D Kinetics-400, logits" if features is None else "replaced by the caller"
        if any(isinstance(METRICS[name](), LPIPSMetric) for name in protocol.metrics):
            self.networks["lpips"] = "AlexNet, version 0.1" if lpips is None else "replaced by the caller"

    def score(
        self, indices: Sequence[int], truth: Clips, real: Clips, clips: Mapping[int, Clips]
    ) -> dict[str, NDArray[Any]]:
        """Everything the figures need of n clips.

        Args:
            indices: numbers of the clips, `[n]`.
            truth: uint8 `[n, F, H, W, 1]`, F the longest length.
            real: other real clips of that shape.
            clips: for each length the model's, uint8 `[n, S, F, H, W, 1]`, given frames in front.

        Returns:
            `values.<metric>.<system>`, float64 `[S, K, n, F − k]` (K values a frame), and
            `features.<length>.<system>`, float32 `[S, n, 400]`. S is 1 for the baselines and for the truth.
        """
        scores: dict[str, NDArray[Any]] = {}
        k = self.protocol.num_given
        for length in self.lengths:
            scores |= self._systems(truth, {"model": clips[length]}, length)
            if self.protocol.headline == "average_prediction":
                reference = truth[:, k:length]
                for metric in self.metrics:
                    scores[f"values.{metric}.average"] = self._average(metric, clips[length][:, :, k:], reference)
        return scores | self.references(indices, truth, real)

    def references(self, indices: Sequence[int], truth: Clips, real: Clips) -> dict[str, NDArray[Any]]:
        """What of `score` is the same for every model, baselines and truth; from the cache where there is one."""
        if self.cache is None or "replaced by the caller" in self.networks.values():
            return self._references(indices, truth, real)
        settings = f"{self.protocol} {self.lengths} {torch.device(self.device).type} {list(indices)}"
        return remember(self.cache, settings, [truth, real], lambda: self._references(indices, truth, real))

    def _references(self, indices: Sequence[int], truth: Clips, real: Clips) -> dict[str, NDArray[Any]]:
        scores: dict[str, NDArray[Any]] = {}
        limits = self.protocol.limits(indices, truth.shape[2])
        for length in self.lengths:
            baselines = baseline_clips(truth[:, :length], real[:, :length], self.protocol.num_given)
            baselines |= {name: video[:, :length] for name, video in limits.items()}
            systems = {name: video[:, None] for name, video in baselines.items()}
            scores |= self._systems(truth, systems, length)
            if self.protocol.fvd:
                scores[f"features.{length}.truth"] = self._features(truth[:, None, :length])
        return scores

    def _systems(self, truth: Clips, systems: Mapping[str, Clips], length: int) -> dict[str, NDArray[Any]]:
        """Features and values of whole clips `[n, S, F, H, W, 1]` of one length, by system."""
        scores: dict[str, NDArray[Any]] = {}
        k = self.protocol.num_given
        for name, video in systems.items():
            if self.protocol.fvd:
                scores[f"features.{length}.{name}"] = self._features(video)
            for metric in self.metrics:
                scores[f"values.{metric}.{name}"] = self._values(metric, video[:, :, k:], truth[:, k:length])
        return scores

    def _features(self, video: Clips) -> NDArray[np.float32]:
        """`[n, S, F, H, W, C]` to `[S, n, 400]`; one sample of each at a time, so that memory does not grow with S."""
        samples = [self.features(to_tensor(video[:, s], self.device)).float().cpu() for s in range(video.shape[1])]
        return torch.stack(samples).numpy()

    def _values(self, metric: str, video: Clips, reference: Clips) -> Values:
        """`[n, S, F, H, W, C]` against `[n, F, H, W, C]`: `[S, K, n, F]`."""
        target, measure = to_tensor(reference, self.device), self.metrics[metric].measure
        samples = [measure(to_tensor(video[:, s], self.device), target) for s in range(video.shape[1])]
        return torch.stack(samples).double().cpu().numpy()

    def _average(self, metric: str, video: Clips, reference: Clips) -> Values:
        """The values of the mean of the S samples: `[1, K, n, F]`."""
        mean = torch.stack([to_tensor(video[:, s], self.device) for s in range(video.shape[1])]).mean(dim=0)
        values = self.metrics[metric].measure(mean.clamp(0, 1), to_tensor(reference, self.device))
        return values[None].double().cpu().numpy()


def make_metrics(
    protocol: Protocol, device: torch.device | str = "cpu", lpips: FrameMetric | None = None
) -> dict[str, FrameMetric]:
    """The metrics of a protocol, empty, by name; arguments as in `Scorer`."""
    metrics = {name: METRICS[name]() for name in protocol.metrics}
    for name, metric in metrics.items():
        if isinstance(metric, LPIPSMetric):
            metric.device = device
            metrics[name] = lpips or metric
    return metrics


# ------------------------------------------------------------------------------------------------------------- figures
def best_sample(values: Values, names: Sequence[str]) -> Values:
    """The best of S samples, chosen for each clip and each metric by the mean over the clip's frames.

    Args:
        values: `[S, K, n, F]`.
        names: of the K values; "identical" goes with the PSNR before it.

    Returns:
        `[K, n, F]`: the largest of what is better large (PSNR, SSIM), the smallest of the errors.
    """
    means = values.mean(axis=-1)
    rows = []
    for row, name in enumerate(names):
        lead = row - 1 if name == "identical" else row
        signed = means[:, lead] if LARGER_IS_BETTER[names[lead]] else -means[:, lead]
        rows.append(values[signed.argmax(axis=0), row, np.arange(values.shape[2])])
    return np.stack(rows)


def columns_of(values: Mapping[str, Values], names: Sequence[str]) -> dict[str, Values]:
    """The columns of the report from the systems' values.

    Args:
        values: `[S, K, n, F]` by system.
        names: of the K values.

    Returns:
        `[K, n, F]` by column: "one_sample"; with S > 1 also "mean_of_samples", "best_of_samples" and, where it was
        measured, "average_prediction"; then the baselines.
    """
    model = values["model"]
    columns = {"one_sample": model[0]}
    if len(model) > 1:
        columns["mean_of_samples"] = model.mean(axis=0)
        columns["best_of_samples"] = best_sample(model, names)
        if "average" in values:
            columns["average_prediction"] = values["average"][0]
    return columns | {name: array[0] for name, array in values.items() if name not in ("model", "average")}


class Totals:
    """Folds the scores of clips into figures.

    Args:
        protocol: as in `Scorer`.
        num_videos: N.
    """

    def __init__(self, protocol: Protocol, num_videos: int) -> None:
        self.protocol = protocol
        self.counts = sorted({count for count in (*protocol.fvd_counts, num_videos) if count <= num_videos})
        self.metrics: dict[tuple[str, str], FrameMetric] = {}
        self.moments: dict[tuple[str, int, str, int], GaussianMoments] = {}

    def add(self, indices: NDArray[np.int64], scores: Scores) -> None:
        """Adds what `Scorer.score` gave for the clips of these numbers, `[n]`."""
        by_metric: dict[str, dict[str, Values]] = {}
        for key, array in scores.items():
            kind, what, system = key.split(".")
            if kind == "values":
                by_metric.setdefault(what, {})[system] = array
                continue
            for count in self.counts:
                for sample, features in enumerate(array):
                    moments = self.moments.setdefault((what, count, system, sample), GaussianMoments(array.shape[-1]))
                    moments.update(torch.from_numpy(features[indices < count]))
        for name, systems in by_metric.items():
            for column, values in columns_of(systems, METRICS[name]().names).items():
                self.metrics.setdefault((name, column), METRICS[name]()).add_values(torch.from_numpy(values))

    def figures(self) -> dict[str, Any]:
        """The figures: `fvd` by length, N and column, and each metric by column (see `columns_of`)."""
        figures: dict[str, Any] = {}
        for length, count in dict.fromkeys((length, count) for length, count, *_ in self.moments):
            figures.setdefault("fvd", {}).setdefault(length, {})[str(count)] = self._distances(length, count)
        for (name, column), metric in self.metrics.items():
            whole = metric.compute()
            longest = len(metric.counts)
            horizons = [h for h in self.protocol.horizons if h <= longest]
            if horizons:
                whole["first_frames"] = {str(h): metric.compute(num_frames=h) for h in horizons}
            figures.setdefault(name, {})[column] = whole
        return figures

    def _distances(self, length: str, count: int) -> dict[str, Any]:
        """The Fréchet distances to the truth, for one length and one number of clips."""
        found: dict[str, list[float]] = {}
        truth = self.moments[length, count, "truth", 0]
        for (other_length, other_count, system, _), moments in self.moments.items():
            if (other_length, other_count) == (length, count) and system != "truth":
                found.setdefault(system, []).append(moments.frechet_distance(truth))
        samples = found.pop("model")
        figures: dict[str, Any] = {"one_sample": samples[0]}
        if len(samples) > 1:
            figures |= {"mean_of_samples": sum(samples) / len(samples), "samples": samples}
        figures |= {name: values[0] for name, values in found.items()}
        ours, real = figures.get("mean_of_samples", samples[0]), figures["real_against_real"]
        return figures | {"ratio_to_real": ours / real if real > 0 else None, "num_videos": count}


def fold(protocol: Protocol, num_videos: int, parts: Iterable[tuple[NDArray[np.int64], Scores]]) -> dict[str, Any]:
    """The figures of a run from the numbers and the scores of its clips, in any order and any parts."""
    totals = Totals(protocol, num_videos)
    for indices, scores in parts:
        totals.add(indices, scores)
    return totals.figures()
