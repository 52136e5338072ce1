"""
Metrics per frame over videos that arrive in batches: `update`, `compute`, `merge`, `state_dict`, `load_state_dict`.

Memory does not grow with the number of videos. A state dictionary holds tensors only, so safetensors can store it and
a run that was killed goes on where it stopped. Networks load at the first update, after the input was checked. The
Fréchet video distance is in `frechet.py`.
"""

import os
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch

from video_diffusion.metrics.checks import check_pair
from video_diffusion.metrics.functional import (
    PSNR_PAPER_OFFSET,
    mae_sum,
    mse_sum,
    psnr,
    ssim,
)
from video_diffusion.metrics.lpips import LPIPS, check_lpips_frames, check_lpips_options

Path = str | os.PathLike[str]


class VideoMetric(ABC):
    """What every accumulator can do."""

    @abstractmethod
    def update(self, predictions: torch.Tensor, references: torch.Tensor) -> Any:
        """Adds videos `[N, F, C, H, W]` in [0, 1]."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """The figures so far: floats, integers and lists of floats. Raises a ValueError before enough was added."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Adds everything that another accumulator of the same kind has seen."""

    @abstractmethod
    def state_dict(self) -> dict[str, torch.Tensor]:
        """The whole state as tensors."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Goes on from `state_dict()`'s answer."""


class FrameMetric(VideoMetric):
    """
    The mean of one or more values per frame, over all frames and videos, and for each frame index.

    Videos may differ in length: frame f's mean is over the videos that have a frame f.
    """

    names: tuple[str, ...]

    def __init__(self) -> None:
        self.num_videos = 0
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.sums = torch.zeros(len(self.names), 0, dtype=torch.float64)

    @abstractmethod
    def measure(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """The values of every frame, `[K, N, F]` in the order of `names`, float64 on the CPU; nothing is added."""

    def update(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """
        Adds videos `[N, F, C, H, W]` in [0, 1].

        Returns:
            `measure`'s answer, for those who want more than the mean (the best of several samples, say).

        Raises:
            ValueError: if the shapes differ, a value is NaN or outside [0, 1], or the frames do not suit the metric.
        """
        values = self.measure(predictions, references)
        self.add_values(values)
        return values

    def add_values(self, values: torch.Tensor) -> None:
        """Adds values `[K, N, F]` that `measure` gave."""
        if values.ndim != 3 or values.shape[0] != len(self.names):
            raise ValueError(f"`values` must be [{len(self.names)}, N, F], got {tuple(values.shape)}")
        _, n, f = values.shape
        self._add(n, torch.full((f,), n), values.to("cpu", torch.float64).sum(dim=1))

    def _add(self, num_videos: int, counts: torch.Tensor, sums: torch.Tensor) -> None:
        f = max(len(counts), len(self.counts))

        def pad(x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(x, (0, f - x.shape[-1]))

        self.num_videos += num_videos
        self.counts = pad(self.counts) + pad(counts)
        self.sums = pad(self.sums) + pad(sums)

    def merge(self, other: "FrameMetric") -> None:
        """Adds everything that `other` has seen. Raises a TypeError where it measures something else."""
        if type(other) is not type(self):
            raise TypeError(f"`other` must be a {type(self).__name__}, got {type(other).__name__}")
        self._add(other.num_videos, other.counts, other.sums)

    def compute(self, num_frames: int | None = None) -> dict[str, Any]:
        """
        The figures so far.

        Args:
            num_frames: counts the first so many frames of each video only; all by default.

        Returns:
            For each name the mean, and `<name>_per_frame`, the mean at each frame index; `num_videos`, `num_frames`
            (all frames counted).

        Raises:
            ValueError: if no video was added, or `num_frames` is not between 1 and the longest video's.
        """
        if self.num_videos == 0:
            raise ValueError(f"{type(self).__name__} has seen no video: call `update` before `compute`")
        f = len(self.counts) if num_frames is None else num_frames
        if not 1 <= f <= len(self.counts):
            raise ValueError(f"`num_frames` must be between 1 and {len(self.counts)}, got {num_frames}")
        counts, sums = self.counts[:f], self.sums[:, :f]
        figures: dict[str, Any] = {}
        for name, total in zip(self.names, sums, strict=True):
            figures[name] = (total.sum() / counts.sum()).item()
            figures[f"{name}_per_frame"] = (total / counts).tolist()
        return {**figures, "num_videos": self.num_videos, "num_frames": int(counts.sum())}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """`num_videos` (scalar), `counts` `[F]`, `sums` `[K, F]`."""
        return {
            "num_videos": torch.tensor(self.num_videos),
            "counts": self.counts.clone(),
            "sums": self.sums.clone(),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Goes on from `state_dict()`'s answer. Raises a ValueError where it belongs to another metric."""
        if len(state["sums"]) != len(self.names):
            raise ValueError(f"`state` holds {len(state['sums'])} values a frame, expected {len(self.names)}")
        self.num_videos = int(state["num_videos"])
        self.counts, self.sums = state["counts"].clone(), state["sums"].clone()


class MSEMetric(FrameMetric):
    """`mse` and `mae`, summed over the pixels of a frame (OpenSTL's convention)."""

    names = ("mse", "mae")

    def measure(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """`[2, N, F]`: the squared and the absolute error."""
        sums = [metric(predictions, references, "none") for metric in (mse_sum, mae_sum)]
        return torch.stack(sums).cpu()


class SSIMMetric(FrameMetric):
    """`ssim`: structural similarity, Gaussian window, data range 1."""

    names = ("ssim",)

    def measure(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """`[1, N, F]`."""
        return ssim(predictions, references, "none")[None].cpu()


class PSNRMetric(FrameMetric):
    """
    `psnr` (peak 1) and `psnr_paper` (+42.11 dB), per frame.

    Args:
        identical_db: the value that stands for the infinite one of a frame predicted exactly; `num_identical` says how
            often it did.
    """

    names = ("psnr", "identical")

    def __init__(self, identical_db: float = 100.0) -> None:
        super().__init__()
        self.identical_db = identical_db

    def measure(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """`[2, N, F]`: dB, and 1 where the frames are identical."""
        values = psnr(predictions, references, "none").cpu()
        identical = values.isinf()
        return torch.stack([values.masked_fill(identical, self.identical_db), identical.to(values.dtype)])

    def compute(self, num_frames: int | None = None) -> dict[str, Any]:
        """As `FrameMetric.compute`, with `psnr_paper` and the count `num_identical`."""
        figures = super().compute(num_frames)
        del figures["identical_per_frame"]
        share = figures.pop("identical")
        return {
            **figures,
            "psnr_paper": figures["psnr"] + PSNR_PAPER_OFFSET,
            "num_identical": round(share * figures["num_frames"]),
        }


class LPIPSMetric(FrameMetric):
    """
    `lpips`: the learned perceptual distance per frame, version 0.1.

    Args:
        net: "alex" (what papers report) or "vgg".
        resize: side of the square that frames are resized to first (MCVD: 128); `None` keeps their size.
        path: where the weights are; found or fetched by default.
        device: where the network runs.
        batch_size: frames that go through it at once.
    """

    names = ("lpips",)

    def __init__(
        self,
        net: Literal["alex", "vgg"] = "alex",
        resize: int | None = None,
        *,
        path: Path | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
    ) -> None:
        check_lpips_options(net, resize)
        super().__init__()
        self.net, self.resize, self.path, self.device, self.batch_size = net, resize, path, device, batch_size
        self._network: LPIPS | None = None

    def measure(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """`[1, N, F]`."""
        predictions, references = check_pair(predictions, references)
        check_lpips_frames(predictions, self.net, self.resize)
        if self._network is None:
            self._network = LPIPS.from_pretrained(self.net, self.resize, self.path, self.device)
        return self._network(predictions, references, "none", self.batch_size)[None]

    def merge(self, other: "FrameMetric") -> None:
        """Adds everything that `other` has seen. Raises an error where its network or size is another."""
        if isinstance(other, LPIPSMetric) and (other.net, other.resize) != (self.net, self.resize):
            raise ValueError(
                f"`other` uses {other.net!r} at size {other.resize}, this one {self.net!r} at {self.resize}"
            )
        super().merge(other)
