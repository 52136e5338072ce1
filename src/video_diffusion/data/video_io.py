"""Clips in memory, and their way into files: GIF, MP4 and contact sheets.

In memory a clip is uint8 `[F, H, W, C]`, C = 1 (grey) or 3 (RGB).
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from einops import rearrange, repeat
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from video_diffusion.data.modes import as_usual

Clip = NDArray[np.uint8]
PathLike = str | os.PathLike[str]

FRAME_COLOUR = (255, 140, 0)  # the frame around a given frame
SHEET_COLOUR = (24, 24, 27)
TEXT_COLOUR = (212, 212, 216)
FRAME_DURATION = "milliseconds a frame: "  # noted in a GIF


# ------------------------------------------------------------------------------------------------------ pure functions
def check_clip(video: Clip, name: str = "video") -> Clip:
    """Returns the clip where it is uint8 `[F, H, W, C]` with C = 1 or 3 and no empty axis; else raises ValueError."""
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8:
        raise ValueError(f"`{name}` is {getattr(video, 'dtype', type(video).__name__)}, expected an array of uint8.")
    if video.ndim != 4 or video.shape[-1] not in (1, 3) or not video.size:
        raise ValueError(f"`{name}` has shape {video.shape}, expected [F, H, W, C] with C = 1 or 3.")
    return video


def drop_equal_channels(video: Clip) -> Clip:
    """`[F, H, W, 1]` where red, green and blue are equal everywhere, else the clip as it is."""
    grey = (video == video[..., :1]).all()
    return video[..., :1] if grey else video


def to_channels(video: Clip, channels: int) -> Clip:
    """The clip with C = `channels`: grey repeated, or RGB weighted to luma (ITU-R BT.601, as PIL does)."""
    if check_clip(video).shape[-1] == channels:
        return video
    if channels == 3:
        return repeat(video, "f h w 1 -> f h w 3")
    if channels != 1:
        raise ValueError(f"`channels` is {channels}, expected 1 or 3.")
    return np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in video])[..., None]


def resize(video: Clip, height: int, width: int) -> Clip:
    """The clip at another size.

    Where the old height and width are whole multiples of the new ones, the mean of each box, which undoes `upscale`
    exactly; else bilinear, over all pixels that a new one covers.
    """
    if check_clip(video).shape[1:3] == (height, width):
        return video
    whole = video.shape[1] % height == 0 and video.shape[2] % width == 0
    method = Image.Resampling.BOX if whole else Image.Resampling.BILINEAR
    frames = [Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame) for frame in video]
    resized = [np.asarray(frame.resize((width, height), method)) for frame in frames]
    return np.stack(resized).reshape(len(video), height, width, video.shape[-1])


def upscale(video: Clip, factor: int) -> Clip:
    """Each pixel as a block of `factor` × `factor`: `[F, H·k, W·k, C]`, edges stay crisp."""
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise ValueError(f"`scale` is {factor!r}, expected an integer of at least 1.")
    return repeat(check_clip(video), "f h w c -> f (h i) (w j) c", i=factor, j=factor)


# ------------------------------------------------------------------------------------------------------------- writing
@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """A path of the same ending to write to; what was written moves to `path` at the end, if no error came."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        as_usual(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _check_fps(fps: float) -> None:
    if not 0 < fps <= 100:
        raise ValueError(f"`fps` is {fps}, expected a number above 0 and up to 100 frames a second.")


def write_gif(video: Clip, path: PathLike, fps: float = 8, scale: int = 4) -> None:
    """Writes an endless GIF.

    Args:
        video: uint8 `[F, H, W, C]`.
        path: the file; it appears whole or not at all.
        fps: frames a second. A GIF keeps times in hundredths of a second, and equal neighbours as one frame that is
            shown for longer; the duration of one frame is noted in it, so that `read_video` gives back every frame.
        scale: each pixel becomes a block of this many pixels along an edge.
    """
    _check_fps(fps)
    frames = [Image.fromarray(f.squeeze(-1) if f.shape[-1] == 1 else f) for f in upscale(video, scale)]
    duration = 10 * max(1, round(100 / fps))
    options: dict[str, Any] = {"duration": duration, "loop": 0, "comment": f"{FRAME_DURATION}{duration}"}
    if (video == video[:1]).all():  # Pillow would keep the time of the first frame alone
        options["duration"] = duration * len(frames)
        frames = frames[:1]
    with atomic_path(path) as draft:
        frames[0].save(draft, format="GIF", save_all=True, append_images=frames[1:], **options)


def write_mp4(video: Clip, path: PathLike, fps: float = 8, scale: int = 4) -> None:
    """Writes an MP4 (H.264, plays in browsers); arguments as in `write_gif`.

    An odd height or width gets one more row or column, a copy of the last: the format wants even numbers.
    """
    _check_fps(fps)
    frames = to_channels(upscale(video, scale), 3)
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    options: dict[str, Any] = {"codec": "libx264", "pixelformat": "yuv420p", "macro_block_size": 1, "quality": 8}
    with atomic_path(Path(path).with_suffix(".mp4")) as draft:
        iio.imwrite(draft, frames, plugin="FFMPEG", fps=fps, **options)


def contact_sheet(
    videos: Sequence[Clip],
    given_mask: NDArray[np.bool_],
    path: PathLike,
    labels: Sequence[str] | None = None,
    scale: int | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Writes one PNG of many clips: a row for each, a column for each frame, its number on top.

    Args:
        videos: N clips, uint8 `[F, H, W, C]`, all of one H and W; shorter ones leave the end of their row empty.
        given_mask: bool `[F]` or `[N, F]`: the frames that were given get a coloured frame.
        path: the file; it appears whole or not at all.
        labels: a word for each row, on its left.
        scale: each pixel becomes a block of this many pixels; by default about 64 pixels a frame.
        columns: a word for each column, in place of its number.

    Raises:
        ValueError: where shapes do not agree.
    """
    if not len(videos):
        raise ValueError("`videos` is empty, expected at least one clip.")
    clips = [to_channels(video, 3) for video in videos]
    sizes = sorted({clip.shape[1:3] for clip in clips})
    if len(sizes) > 1:
        raise ValueError(f"`videos` has frames of sizes {sizes}, expected one size for all.")
    length, height = max(map(len, clips)), sizes[0][0]
    mask = np.asarray(given_mask)
    if mask.dtype != np.bool_ or mask.shape not in ((length,), (len(clips), length)):
        raise ValueError(
            f"`given_mask` has shape {mask.shape} and dtype {mask.dtype}, expected bool [{length}] or "
            f"[{len(clips)}, {length}]."
        )
    if labels is not None and len(labels) != len(clips):
        raise ValueError(f"`labels` has {len(labels)} words, expected one for each of {len(clips)} clips.")
    titles = list(map(str, range(length))) if columns is None else list(columns)
    if len(titles) != length:
        raise ValueError(f"`columns` has {len(titles)} words, expected one for each of {length} frames.")
    factor = max(1, 64 // height) if scale is None else scale
    cells = [upscale(clip, factor) for clip in clips]
    sheet = _draw_sheet(cells, np.broadcast_to(mask, (len(clips), length)), labels or [""] * len(clips), titles)
    with atomic_path(path) as draft:
        sheet.save(draft, format="PNG")


def _draw_sheet(
    cells: list[Clip], mask: NDArray[np.bool_], labels: Sequence[str], titles: Sequence[str]
) -> Image.Image:
    """The sheet as an image, from clips at their final size, RGB."""
    height, width = cells[0].shape[1:3]
    gap, font = 6, ImageFont.load_default(size=12)
    left = gap + max(round(font.getlength(label)) for label in labels) + 2 * gap * any(labels)
    top, (rows, columns) = 22, mask.shape
    size = (left + columns * (width + gap), top + rows * (height + gap))
    sheet = Image.new("RGB", size, SHEET_COLOUR)
    draw = ImageDraw.Draw(sheet)
    for column in range(columns):
        x = left + column * (width + gap)
        draw.text((x + width / 2, top / 2), titles[column], fill=TEXT_COLOUR, font=font, anchor="mm")
    for row, (clip, label) in enumerate(zip(cells, labels, strict=True)):
        y = top + row * (height + gap)
        draw.text((gap, y + height / 2), label, fill=TEXT_COLOUR, font=font, anchor="lm")
        for column, frame in enumerate(clip):
            x = left + column * (width + gap)
            sheet.paste(Image.fromarray(frame), (x, y))
            if mask[row, column]:
                draw.rectangle((x - 2, y - 2, x + width + 1, y + height + 1), outline=FRAME_COLOUR, width=2)
    return sheet


def to_uint8(video: NDArray[np.float32]) -> Clip:
    """Rounds frames in [0, 1], `[..., F, H, W, C]`, to uint8 0..255; raises ValueError outside that range."""
    if not (video.min() >= 0 and video.max() <= 1):
        raise ValueError(f"`video` runs from {video.min():g} to {video.max():g}, expected floats in [0, 1].")
    return np.rint(video * 255).astype(np.uint8)


def tile(videos: Sequence[Clip], columns: int) -> Clip:
    """Clips of one shape side by side as one clip, `columns` in a row; empty places are black."""
    missing = -len(videos) % columns
    stack = np.stack([*videos, *[np.zeros_like(videos[0])] * missing])
    return rearrange(stack, "(r c) f h w k -> f (r h) (c w) k", c=columns)
