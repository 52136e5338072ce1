"""How clips are shown: side by side in frames that say what was given, and frame by frame on a sheet."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from video_diffusion.data.video_io import FRAME_COLOUR, Clip, contact_sheet, tile, to_channels, write_gif

FPS = 8  # of all files
WIDTH = 640  # pixels that a shown picture may have
IN_A_ROW = 3  # clips
BORDER, BORDER_COLOUR = 2, (70, 70, 78)


def framed(clip: Clip, places: Sequence[int]) -> Clip:
    """The clip `[F, H, W, C]` in RGB with a border, `[F, H + 4, W + 4, 3]`, coloured while frames are given."""
    frames, height, width, _ = clip.shape
    wide = np.empty((frames, height + 2 * BORDER, width + 2 * BORDER, 3), np.uint8)
    wide[:] = BORDER_COLOUR
    wide[list(places)] = FRAME_COLOUR
    wide[:, BORDER:-BORDER, BORDER:-BORDER] = to_channels(clip, 3)
    return wide


def write_shown(clips: Mapping[str, Clip], places: Sequence[int], path: Path) -> None:
    """Writes clips `[F, H, W, C]` side by side as a GIF; the given frames have a coloured border."""
    columns = min(IN_A_ROW, len(clips))
    video = tile([framed(clip, places) for clip in clips.values()], columns)
    write_gif(video, path, FPS, max(1, WIDTH // 2 // video.shape[1] if columns == 1 else WIDTH // video.shape[2]))


def write_sheet(clips: Mapping[str, Clip], places: Sequence[int], columns: int, path: Path) -> None:
    """Writes all frames as a PNG: of each `columns` frames a row for each clip, with its name."""
    rows, labels, masks = [], [], []
    length = len(next(iter(clips.values())))
    given = np.isin(np.arange(length), places)
    for first in range(0, length, columns):
        for name, clip in clips.items():
            rows.append(clip[first : first + columns])
            labels.append(f"{name}, from {first}" if length > columns else name)
            part = given[first : first + columns]
            masks.append(np.pad(part, (0, min(columns, length) - len(part))))
    contact_sheet(rows, np.stack(masks), path, labels)
