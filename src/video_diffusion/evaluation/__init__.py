"""Scores a model, or a folder of videos, by a protocol."""

from video_diffusion.evaluation.protocols import PROTOCOLS, Protocol
from video_diffusion.evaluation.published import PUBLISHED, PublishedProtocol
from video_diffusion.evaluation.run import Run, Workers, evaluate
from video_diffusion.evaluation.scores import Scorer
from video_diffusion.evaluation.sources import FolderSource, PipelineSource, Source, open_source

__all__ = [
    "PROTOCOLS",
    "PUBLISHED",
    "FolderSource",
    "PipelineSource",
    "Protocol",
    "PublishedProtocol",
    "Run",
    "Scorer",
    "Source",
    "Workers",
    "evaluate",
    "open_source",
]
