"""Uploaded videos: told by their content, and measured before they are unpacked, so that a small file stays small."""

import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from video_diffusion.data.video_io import Clip, drop_equal_channels, read_video, resize, to_channels
from video_diffusion.demo.limits import Limits

KINDS = "a GIF, an MP4, an npy array or PNG frames"
NUMPY = b"\x93NUMPY"
MAGIC = {b"GIF87a": "gif", b"GIF89a": "gif", b"\x89PNG\r\n\x1a\n": "png", NUMPY: "npy"}
BRANDS = (b"isom", b"iso", b"mp4", b"avc1", b"M4V", b"qt  ", b"dash")  # how the content of an MP4 says what it is


def read_upload(files: str | Sequence[str] | None, limits: Limits) -> Clip:
    """Reads an upload: one video, or several images in the order of their names, one frame each.

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
    for path in sorted(paths, key=lambda path: path.name):
        clip = read_one(path, limits, alone=len(paths) == 1)
        clips.append(clip)
        _check_size(path.name, sum(map(len, clips)), clip.shape[1], clip.shape[2], limits)
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
        if kind == "mp4":
            return _read_mp4(path, limits)
        (_measure_npy if kind == "npy" else _measure_image)(path, limits)
        return read_video(path)
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


def _check_size(name: str, frames: int, height: int, width: int, limits: Limits) -> None:
    """Refuses a video of too many frames or pixels. Raises ValueError."""
    if frames > limits.upload_frames:
        raise ValueError(f"{name} has more than {limits.upload_frames} frames, expected at most as many.")
    if max(height, width) > limits.upload_edge:
        raise ValueError(f"{name} has {width}×{height} pixels, expected at most {limits.upload_edge} along an edge.")
    if frames * height * width > limits.upload_pixels:
        raise ValueError(
            f"{name} has {frames} frames of {width}×{height} pixels, expected at most {limits.upload_pixels} pixels "
            "in all."
        )


def _measure_image(path: Path, limits: Limits) -> None:
    """Refuses a GIF or PNG beyond the limits, frame by frame, with as many repeats as its times ask for."""
    durations: list[float] = []
    try:
        with Image.open(path, formats=("GIF", "PNG")) as image:
            _check_size(path.name, 1, image.height, image.width, limits)
            for frame in ImageSequence.Iterator(image):
                durations.append(frame.info.get("duration") or 100)
                shown = round(sum(durations) / min(durations))
                _check_size(path.name, max(shown, len(durations)), frame.height, frame.width, limits)
    except (UnidentifiedImageError, OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} is a broken or truncated image.") from error


def _measure_npy(path: Path, limits: Limits) -> None:
    """Refuses an array of objects, of more than the file holds, or beyond the limits. Raises ValueError."""
    with path.open("rb") as file:
        try:
            shape, dtype = _read_header(file)
        except Exception as error:  # numpy reads the header with Python's own tokenizer
            raise ValueError(f"{path.name} is not a readable npy file.") from error
        if dtype.hasobject or dtype.kind not in "uf" or len(shape) not in (3, 4):
            raise ValueError(
                f"{path.name} has {dtype} of shape {shape}, expected uint8 or floats, [F, H, W] or [F, H, W, C]."
            )
        rest = path.stat().st_size - file.tell()
    if math.prod(shape) * dtype.itemsize != rest:
        raise ValueError(f"{path.name} is truncated: {rest} bytes of data for the shape {shape} of {dtype}.")
    _check_size(path.name, shape[0], shape[1], shape[2], limits)


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an npy file, which is then read up to its data."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _read_mp4(path: Path, limits: Limits) -> Clip:
    """Reads an MP4 frame by frame and stops at the limits; ffmpeg may read this file only, and as an MP4 only."""
    from imageio_ffmpeg import read_frames

    only = ["-protocol_whitelist", "file", "-f", "mov"]
    stop = ["-frames:v", str(limits.upload_frames + 1)]
    frames: list[Clip] = []
    try:
        with closing(read_frames(path, input_params=only, output_params=stop)) as video:
            width, height = next(video)["size"]
            _check_size(path.name, 1, height, width, limits)
            for data in video:
                frames.append(np.frombuffer(data, np.uint8).reshape(height, width, 3))
                _check_size(path.name, len(frames), height, width, limits)
    except (OSError, RuntimeError, KeyError, StopIteration) as error:
        raise ValueError(f"{path.name} is a broken or truncated video.") from error
    if not frames:
        raise ValueError(f"{path.name} holds no frames.")
    return drop_equal_channels(np.stack(frames))


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
