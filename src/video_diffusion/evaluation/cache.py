"""Keeps the scores of true clips and baselines: they are the same for every model, and most of the work."""

import hashlib
import logging
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from video_diffusion.data.video_io import atomic_path

logger = logging.getLogger(__name__)
PACKAGE = Path(__file__).resolve().parents[1]
Scores = dict[str, NDArray[Any]]


def default_folder() -> Path:
    """The folder under the assets folder of huggingface_hub (`HF_HOME`); created if missing. May be deleted."""
    from huggingface_hub import cached_assets_path

    return cached_assets_path(library_name="video_diffusion", namespace="evaluation", subfolder="references")


@cache
def code_digest() -> str:
    """SHA-256 of the code that measures, and of the versions it runs on: another one measures again."""
    places = ("metrics", "evaluation", "data")
    files = sorted(file for place in places for file in PACKAGE.glob(f"{place}/*.py"))
    versions = f"{platform.machine()} {torch.__version__} {np.__version__}"
    return hashlib.sha256(b"\0".join([versions.encode(), *(file.read_bytes() for file in files)])).hexdigest()


def remember(folder: Path, settings: str, clips: list[NDArray[np.uint8]], compute: Callable[[], Scores]) -> Scores:
    """The scores from the folder, or computed and put there.

    Args:
        folder: of the cache.
        settings: what else decides about the scores, as text.
        clips: what is scored; its bytes are part of the key.
        compute: the scores.
    """
    digest = hashlib.sha256(f"{code_digest()} {settings}".encode())
    for video in clips:
        digest.update(f"{video.shape}".encode() + np.ascontiguousarray(video).tobytes())
    file = folder / f"{digest.hexdigest()}.npz"
    try:
        with np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except FileNotFoundError:
        pass
    except Exception as error:  # zipfile, zlib and numpy each have errors of their own for a damaged file
        logger.warning("%s cannot be read (%s): measured again", file, error)
    scores = compute()
    arrays: dict[str, Any] = dict(scores)
    try:
        with atomic_path(file) as draft:
            np.savez(draft, **arrays)
    except OSError as error:
        logger.warning("%s cannot be written (%s): it is measured again next time", file, error)
    return scores
