"""The protocols: which clips, what is given, what is compared, and the numbers of others (docs/protocols.md)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from video_diffusion.data import MovingMNIST
from video_diffusion.evaluation.limit import best_possible

DATA_SEED = 0  # the test clips of every protocol; "real against real" are the clips of the next seed
IMAGE_SIZE = 64
BASELINES = ("black_frame", "last_frame", "real_against_real")
LIMITS = ("best_sample", "best_mean")  # of systems that see the given frames; see `limit.best_possible`

PAPER = "the paper"
MCVD = "MCVD (Voleti et al. 2022, arXiv 2205.09853); from memory, unconfirmed"
OPENSTL = "as OpenSTL's tables are quoted, not measured here; 2,000 epochs of 10,000 clips"


@dataclass(frozen=True)
class Known:
    """A number of others, as it is printed beside ours.

    Args:
        row: the row of the table that it belongs to, as "ssim/2" (see `reports.rows`).
        value: as printed by its authors.
        source: whose it is, and whether it is unconfirmed.
    """

    row: str
    value: str
    source: str


@dataclass(frozen=True)
class Protocol:
    """What is measured and how.

    Args:
        name: "paper", "mcvd", "openstl" or "unconditional"; of `published`, "kth" or "bair".
        text: one sentence for the report.
        variant: of `MovingMNIST`, or the data set of a `published.PublishedProtocol`.
        num_given: k, the frames that the model sees.
        lengths: whole clips F (k given and F − k predicted); several only where nothing is given.
        num_videos: N, clips.
        num_samples: S, predictions of each clip.
        metrics: the metrics of single frames, keys of `scores.METRICS`.
        fvd: whether the Fréchet distance of the whole clips is measured.
        headline: what stands for the model in the table where S > 1: "mean_of_samples", "best_of_samples" (by clip and
            metric) or "average_prediction" (the mean of the S clips, then the metric).
        horizons: figures over the first so many predicted frames.
        fvd_counts: numbers of clips at which the Fréchet distance is taken, beside N.
        digit_range: which digits of the test split; all by default.
        known: numbers of others.
    """

    name: str
    text: str
    variant: str
    num_given: int
    lengths: tuple[int, ...]
    num_videos: int
    num_samples: int = 1
    metrics: tuple[str, ...] = ()
    fvd: bool = True
    headline: str = "mean_of_samples"
    horizons: tuple[int, ...] = ()
    fvd_counts: tuple[int, ...] = ()
    digit_range: tuple[int, int] | None = None
    known: tuple[Known, ...] = ()

    @property
    def available(self) -> int | None:
        """How many clips there are; None: as many as asked for."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """What further decides about the clips, for the report; JSON."""
        return {}

    def dataset(self, image_size: int, seed: int) -> MovingMNIST:
        """The test clips, of the longest length; clip i depends on the seed and i only."""
        return MovingMNIST(
            split="test",
            variant=self.variant,
            num_frames=max(self.lengths),
            image_size=image_size,
            seed=seed,
            digit_range=self.digit_range,
        )

    def truth(self, indices: Sequence[int], image_size: int) -> NDArray[np.uint8]:
        """The clips that are compared with, uint8 `[n, F, H, W, 1]`."""
        return self.dataset(image_size, DATA_SEED).batch(np.asarray(indices))[..., None]

    def real(self, indices: Sequence[int], image_size: int) -> NDArray[np.uint8]:
        """As many other real clips, uint8 `[n, F, H, W, 1]`."""
        return self.dataset(image_size, DATA_SEED + 1).batch(np.asarray(indices))[..., None]

    def limits(self, indices: Sequence[int], image_size: int) -> dict[str, NDArray[np.uint8]]:
        """The best possible clips, as `limit.best_possible`; nothing where that is not known."""
        if self.variant != "classic" or self.num_given == 0:
            return {}
        return best_possible(self.dataset(image_size, DATA_SEED), indices, self.num_given)

    def departures(self, num_videos: int, num_samples: int, image_size: int, lengths: Sequence[int]) -> list[str]:
        """In which ways a run is not this protocol, one sentence each; empty where it is."""
        facts: list[tuple[str, Any, Any]] = [
            ("clips", num_videos, self.num_videos),
            ("predictions of each clip", num_samples, self.num_samples),
            ("pixels along an edge", image_size, IMAGE_SIZE),
            ("frames of a clip", " and ".join(map(str, lengths)), " and ".join(map(str, self.lengths))),
        ]
        return [f"{ours} {what}; the protocol has {theirs}" for what, ours, theirs in facts if ours != theirs]


def baseline_clips(truth: NDArray[np.uint8], real: NDArray[np.uint8], num_given: int) -> dict[str, NDArray[np.uint8]]:
    """The baselines as whole clips, given frames in front.

    Args:
        truth: `[n, F, H, W, C]`.
        real: other real clips of the same shape.
        num_given: k. Where it is 0, "last_frame" is a still of the clip's first frame.

    Returns:
        clips of the same shape by the names in `BASELINES`.
    """
    black, still = truth.copy(), truth.copy()
    black[:, num_given:] = 0
    last = max(num_given - 1, 0)
    still[:, num_given:] = truth[:, last : last + 1]
    return {"black_frame": black, "last_frame": still, "real_against_real": real}


def known_of(source: str, **values: str) -> tuple[Known, ...]:
    """Numbers of one source; `ssim__2` means the row "ssim/2"."""
    return tuple(Known(row.replace("__", "/"), value, source) for row, value in values.items())


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="paper",
            text="Classic Moving MNIST, test digits, 5 given frames; PSNR, SSIM and LPIPS over the first 2, 4 and 5 "
            "predicted frames; FVD of 5 given and 5 predicted frames.",
            variant="classic",
            num_given=5,
            lengths=(10,),
            num_videos=256,
            metrics=("psnr", "ssim", "lpips", "mse"),
            horizons=(2, 4, 5),
            known=known_of(
                PAPER,
                fvd__10="161.85 (of 5 frames)",
                ssim__2=".6720",
                ssim__4=".6717",
                ssim__5=".6719",
                psnr_paper__2="56.16",
                psnr_paper__4="56.15",
                psnr_paper__5="56.16",
                lpips__2=".2013",
                lpips__4=".2023",
                lpips__5=".2020",
            ),
        ),
        Protocol(
            name="mcvd",
            text="Stochastic Moving MNIST, the first 256 test digits, 5 given and 10 predicted frames, 10 predictions "
            "of each clip; SSIM of binarised frames and PSNR of the clip's squared error, best of 10; LPIPS at 128 "
            "pixels, best of 10; FVD of 5 + 10 frames, mean of 10 values.",
            variant="stochastic",
            num_given=5,
            lengths=(15,),
            num_videos=256,
            num_samples=10,
            metrics=("psnr_of_clip", "ssim_binarised", "lpips_128", "psnr", "ssim"),
            headline="best_of_samples",
            digit_range=(0, 256),
            known=known_of(
                MCVD, fvd__15="23.9–25.6", ssim_binarised=".78", psnr_of_clip="17", network_calls__15="202"
            ),
        ),
        Protocol(
            name="openstl",
            text="Classic Moving MNIST, test digits, 10 given and 10 predicted frames; MSE and MAE summed over a "
            "frame's pixels, SSIM, PSNR and LPIPS, of one prediction and of the mean of several.",
            variant="classic",
            num_given=10,
            lengths=(20,),
            num_videos=10_000,
            num_samples=5,
            metrics=("mse", "ssim", "ssim_openstl", "psnr", "lpips"),
            fvd=False,
            headline="average_prediction",
            known=(
                *known_of(f"PredRNN++; {OPENSTL}", mse="14.07", ssim_openstl=".9698", psnr="26.37"),
                *known_of(f"SimVPv2; {OPENSTL}", mse="15.05"),
                *known_of(f"TAU; {OPENSTL}", mse="15.69"),
                *known_of(
                    "TAU; as OpenSTL's tables are quoted, not measured here; 200 epochs of 10,000 clips", mse="24.60"
                ),
                *known_of(f"PredFormer; {OPENSTL}", mse="12.4"),
            ),
        ),
        Protocol(
            name="unconditional",
            text="Classic Moving MNIST, nothing given; FVD of 10 and of 20 frames, at 256 and at 2048 clips, and its "
            "ratio to real against real.",
            variant="classic",
            num_given=0,
            lengths=(10, 20),
            num_videos=2048,
            fvd_counts=(256,),
        ),
    )
}
