"""
FVD, SSIM, PSNR, LPIPS and MSE of videos `[N, F, C, H, W]` in [0, 1].

Pure functions, accumulators over batches, the two networks with their published weights, and the same metrics as
`evaluate` modules (`load`). docs/protocols.md says which convention each paper uses.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_diffusion.metrics.accumulators import (
    FrameMetric,
    LPIPSMetric,
    MSEMetric,
    PSNRMetric,
    SSIMMetric,
    VideoMetric,
)
from video_diffusion.metrics.checks import check_choice
from video_diffusion.metrics.frechet import FVDMetric, frechet_video_distance
from video_diffusion.metrics.functional import (
    PSNR_PAPER_OFFSET,
    GaussianMoments,
    frechet_distance,
    mae_sum,
    mse_sum,
    psnr,
    psnr_paper,
    ssim,
    ssim_uniform,
)
from video_diffusion.metrics.i3d import I3D
from video_diffusion.metrics.lpips import LPIPS
from video_diffusion.metrics.weights import WeightsError, WeightsUnavailableError

if TYPE_CHECKING:
    from evaluate import EvaluationModule

MODULES = ("fvd", "video_ssim", "video_psnr", "video_lpips", "video_mse")

__all__ = [
    "I3D",
    "LPIPS",
    "MODULES",
    "PSNR_PAPER_OFFSET",
    "FVDMetric",
    "FrameMetric",
    "GaussianMoments",
    "LPIPSMetric",
    "MSEMetric",
    "PSNRMetric",
    "SSIMMetric",
    "VideoMetric",
    "WeightsError",
    "WeightsUnavailableError",
    "frechet_distance",
    "frechet_video_distance",
    "load",
    "mae_sum",
    "module_folder",
    "mse_sum",
    "psnr",
    "psnr_paper",
    "ssim",
    "ssim_uniform",
]


def module_folder(name: str) -> Path:
    """The folder of an `evaluate` module, ready for `evaluate.load` or to be published as a metric Space."""
    check_choice("name", name, MODULES)
    return Path(__file__).parent / name


def load(name: str, **kwargs: Any) -> "EvaluationModule":
    """
    Loads one of our metrics as an `evaluate` module.

    Args:
        name: "fvd", "video_ssim", "video_psnr", "video_lpips" or "video_mse".
        kwargs: what `evaluate.load` takes (`num_process`, `process_id`, `experiment_id`, `cache_dir`, …) and the
            module's own options (`net`, `resize`, `device`).

    Raises:
        ValueError: if the name is unknown.
        ImportError: if `evaluate` is not installed.
    """
    folder = module_folder(name)
    try:
        import evaluate
    except ImportError as error:
        raise ImportError("metrics.load needs evaluate: pip install 'video-diffusion[metrics]'") from error
    return evaluate.load(str(folder), **kwargs)
