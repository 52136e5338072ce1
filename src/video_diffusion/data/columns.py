"""Which columns of a data set hold the videos and what is said of them: as asked, or as WebDataset names them."""

from collections.abc import Mapping
from typing import Any

from video_diffusion.data.folders import CONTAINER_ENDINGS

DEFAULT_VIDEO, DEFAULT_CAPTION = "video", "caption"
ENDINGS = tuple(ending.lstrip(".") for ending in (*CONTAINER_ENDINGS, ".gif"))  # columns of WebDataset, by ending


def video_column(features: Mapping[str, Any], asked: str) -> str:
    """The column with videos: the one asked for or, by default, the only one named after an ending such as mp4.

    Raises:
        ValueError: where there is none.
    """
    named = [name for name in features if name.lower() in ENDINGS]
    if asked in features:
        return asked
    if asked == DEFAULT_VIDEO and len(named) == 1:
        return named[0]
    raise ValueError(f"the data set has the columns {list(features)}, expected one named {asked!r}.")


def caption_column(features: Mapping[str, Any], asked: str) -> tuple[str, str | None]:
    """The column with captions, and the key where they stand in objects.

    It is the one asked for, that key of a column json or, by default, a column txt.

    Raises:
        ValueError: where there is none.
    """
    if asked in features:
        return asked, None
    if isinstance(features.get("json"), Mapping) and asked in features["json"]:
        return "json", asked
    if asked == DEFAULT_CAPTION and "txt" in features:
        return "txt", None
    raise ValueError(f"`caption_column` is {asked!r}, expected one of {list(features)} for text conditioning.")


def caption_text(value: Any, key: str | None) -> str | None:
    """A caption of any type as text; None where there is none."""
    value = (value or {}).get(key) if key is not None else value
    return None if value is None else str(value)
