"""
Continuous-time video diffusion in the shape of diffusers.

The public names load on first use, so that `import video_diffusion` costs nothing. `ModelMixin` and `SchedulerMixin`
are among them because diffusers looks for them in the library that `model_index.json` names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import ModelMixin, SchedulerMixin

    from video_diffusion.model.denoiser import VideoUNet3DConditionModel
    from video_diffusion.model.pipeline import VideoDiffusionPipeline, VideoDiffusionPipelineOutput
    from video_diffusion.model.scheduler import VPContinuousScheduler

_HOMES = {
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
    "VPContinuousScheduler": "video_diffusion.model.scheduler",
    "VideoDiffusionPipeline": "video_diffusion.model.pipeline",
    "VideoDiffusionPipelineOutput": "video_diffusion.model.pipeline",
    "VideoUNet3DConditionModel": "video_diffusion.model.denoiser",
}

__all__ = [
    "ModelMixin",
    "SchedulerMixin",
    "VPContinuousScheduler",
    "VideoDiffusionPipeline",
    "VideoDiffusionPipelineOutput",
    "VideoUNet3DConditionModel",
]


def __getattr__(name: str) -> Any:
    """Loads a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'video_diffusion' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Lists the public names, loaded or not."""
    return sorted({*globals(), *__all__})
