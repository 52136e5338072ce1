"""Scores a model, or a folder of videos, by a protocol."""

from video_diffusion.evaluation.protocols import PROTOCOLS, Protocol
from video_diffusion.evaluation.run import Run, Workers, evaluate
from video_diffusion.evaluation.scores import Scorer
from video_diffusion.evaluation.sources import FolderSource, PipelineSource, Source, open_source

__all__ = [
    "PROTOCOLS",
    "FolderSource",
    "PipelineSource",
    "Protocol",
    "Run",
    "Scorer",
    "Source",
    "Workers",
    "evaluate",
    "open_source",
]
