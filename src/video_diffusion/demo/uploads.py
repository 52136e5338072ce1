"""Uploaded videos: told by their content, and measured before they are unpacked, so that a small file stays small."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from video_diffusion.data.frames import ReadLimits, natural_order
from video_diffusion.data.reading import read_video
from video_diffusion.data.video_io import Clip, resize, to_channels
from video_diffusion.demo.limits import Limits

KINDS = "a GIF, an MP4, an npy array or PNG frames"
MAGIC = {b"GIF87a": "gif", b"GIF89a": "gif", b"\x89PNG\r\n\x1a\n": "png", b"\x93NUMPY": "npy"}
BRANDS = (b"isom", b"iso", b"mp4", b"avc1", b"M4V", b"qt  ", b"dash")  # how the content of an MP4 says what it is


def read_upload(files: str | Sequence[str] | None, limits: Limits) -> Clip:
    """Reads an upload: one video, or several images in natural order of their names, one frame each.

    Args:
        files: where the server put them.
        limits: what is refused.

    Returns:
        uint8 `[F, H, W, C]`, C = 1 or 3.

    Raises:
        ValueError: where there is nothing, the content is of another kind, it is broken or beyond a limit. The message
            names the file, not where it lies.
    """
    paths = [Path(file) for file in ([files] if isinstance(files, str) else files or ())]
    if not paths:
        raise ValueError(f"There is no upload yet, expected {KINDS}.")
    if len(paths) > limits.upload_files:
        raise ValueError(f"The upload has {len(paths)} files, expected at most {limits.upload_files}.")
    size = sum(path.stat().st_size for path in paths)
    if size > limits.upload_bytes:
        raise ValueError(f"The upload has {size / 2**20:.1f} MiB, expected at most {limits.upload_bytes / 2**20:g}.")
    clips = []
    for path in sorted(paths, key=natural_order):
        clip = read_one(path, limits, alone=len(paths) == 1)
        clips.append(clip)
        read_limits(limits).check_count(path.name, sum(map(len, clips)))
        read_limits(limits).check_clip(path.name, sum(map(len, clips)), *clip.shape[1:3])
    shapes = sorted({clip.shape[1:3] for clip in clips})
    if len(shapes) > 1:
        raise ValueError(f"The upload has frames of sizes {shapes}, expected one size for all.")
    channels = max(clip.shape[-1] for clip in clips)
    return np.concatenate([to_channels(clip, channels) for clip in clips])


def read_one(path: Path, limits: Limits, alone: bool) -> Clip:
    """Reads a file of an upload; raises ValueError as `read_upload` does.

    Args:
        path: the file.
        limits: what is refused.
        alone: whether it is the only one; else it is an image.
    """
    try:
        kind = kind_of(path)
        if not alone and kind != "png":
            raise ValueError(f"{path.name} is no PNG: expected one video, or several PNG images.")
        return read_video(path, limits=read_limits(limits))
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from error
    except Exception as error:  # what decoders raise for files made to break them is no closed list
        raise ValueError(f"{path.name} is broken: {type(error).__name__}.") from error


def kind_of(path: Path) -> str:
    """What a file is by its first bytes: "gif", "png", "npy" or "mp4"; raises ValueError where it is none of these."""
    with path.open("rb") as file:
        head = file.read(16)
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp" and head[8:12].startswith(BRANDS):
        return "mp4"
    raise ValueError(f"{path.name} is not a video that the demo takes: expected {KINDS}.")


def read_limits(limits: Limits) -> ReadLimits:
    """What the reader refuses of an upload."""
    return ReadLimits(limits.upload_frames, limits.upload_edge, limits.upload_pixels, limits.upload_pixels)


# ------------------------------------------------------------------------------------------------------------- drawing
def read_drawing(sketch: object, height: int, width: int, limits: Limits) -> Clip:
    """One frame `[1, height, width, 1]` from a sketch pad: white where there is ink, black elsewhere.

    Args:
        sketch: its value: a dict with the RGBA `layers`, uint8 `[H, W, 4]` each.
        height: of the model, in pixels.
        width: likewise.
        limits: what is refused.

    Raises:
        ValueError: where nothing was drawn, or it is no drawing.
    """
    layers = sketch.get("layers") if isinstance(sketch, dict) else None
    arrays = [layer for layer in layers or () if isinstance(layer, np.ndarray)]
    inks = [layer[..., 3] for layer in arrays if layer.ndim == 3 and layer.shape[-1] == 4]
    if not inks or not any(ink.any() for ink in inks):
        raise ValueError("The drawing is empty: draw a frame first.")
    if len({ink.shape for ink in inks}) > 1 or max(inks[0].shape) > limits.upload_edge or len(inks) > 10:
        raise ValueError(f"The drawing is too large, expected at most {limits.upload_edge} pixels along an edge.")
    return resize(np.max(inks, axis=0)[None, ..., None], height, width)


def moved(frame: Clip, right: int, down: int) -> Clip:
    """The frames `[F, H, W, C]` moved by so many pixels; what leaves is lost, what enters is black."""
    result = np.zeros_like(frame)
    height, width = frame.shape[1:3]
    if abs(right) >= width or abs(down) >= height:
        return result
    there = slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0))
    here = slice(max(-down, 0), height + min(-down, 0)), slice(max(-right, 0), width + min(-right, 0))
    result[:, there[0], there[1]] = frame[:, here[0], here[1]]
    return result
