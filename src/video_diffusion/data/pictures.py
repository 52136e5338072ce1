"""Pictures as frames: animated GIF, PNG and WebP, and folders with one picture for each frame."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from video_diffusion.data.frames import (
    LIMITS,
    Frame,
    ReadLimits,
    Video,
    check_background,
    natural_order,
    on_background,
)
from video_diffusion.data.video_io import FRAME_DURATION

FORMATS = ("GIF", "PNG", "WEBP", "JPEG", "TIFF", "BMP", "PPM")  # no others: some start programs
MAGIC = (b"GIF8", b"\x89PNG", b"RIFF", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")
STILL_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm")
UNKNOWN_DURATION = 100  # milliseconds that browsers give a frame without a time


def picture_frame(image: Image.Image, name: str, background: str = "black") -> Frame:
    """A picture of any mode as a frame, upright as its EXIF data say.

    Grey with 16 bits is scaled from its full range, floats from [0, 1]. Transparency is laid over the background.

    Args:
        image: the picture.
        name: of the file, for messages.
        background: black or white.

    Returns:
        uint8 `[H, W, C]`, C = 1 for grey pictures, else 3.

    Raises:
        ValueError: where its values are out of range.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 65535):
            raise ValueError(f"{name} runs from {values.min()} to {values.max()}, expected 16 bits, [0, 65535].")
        return scaled(values.astype(np.uint16), name)[..., None]
    if image.mode == "F":
        return scaled(np.asarray(image), name)[..., None]
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        return on_background(rgba, background)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    return np.atleast_3d(np.asarray(image))


def scaled(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Numbers as bytes: bool, 8 bits, 16 bits from their full range, floats from [0, 1].

    Raises:
        ValueError: where they are of another kind or out of range.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        return np.rint(values / 257).astype(np.uint8)
    if values.dtype.kind != "f":
        raise ValueError(f"{name} is {values.dtype}, expected an array of uint8, bool, uint16, or floats in [0, 1].")
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{name} runs from {low:g} to {high:g}, expected floats in [0, 1].")
    return np.rint(values * 255).astype(np.uint8)


@contextmanager
def opened(file: Path | bytes, name: str, limits: ReadLimits) -> Iterator[Image.Image]:
    """An open picture, its size checked before it is unpacked. Raises ValueError where it is none or broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits are stricter
            image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
        with image:
            limits.check_frame(name, image.height, image.width)
            yield image
    except UnidentifiedImageError as error:
        if _head(file).startswith(MAGIC):
            raise ValueError(f"{name} is a broken or truncated image.") from error
        raise ValueError(
            f"{name} is not a video: expected a GIF, an MP4, WebM, MOV or AVI, an npy array or a folder of pictures."
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}") from error
    except (OSError, SyntaxError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{name} is a broken or truncated image: {error}") from error


def _head(file: Path | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[:8]
    with file.open("rb") as stream:
        return stream.read(8)


class AnimatedPicture(Video):
    """A GIF, PNG or WebP, or another picture as a video of one frame.

    Writers of these formats merge equal frames into one that is shown for longer. It counts as often as a viewer
    would see it: see `repeats`.

    Args:
        file: the file, or its content.
        name: for messages.
        background: black or white, under transparent pixels.
        limits: what is refused.

    Raises:
        ValueError: where it is no picture, broken, or beyond the limits.
    """

    def __init__(self, file: Path | bytes, name: str, background: str = "black", limits: ReadLimits = LIMITS) -> None:
        check_background(background)
        self.file, self.name, self.background, self.limits = file, name, background, limits
        durations: list[float] = []
        with opened(file, name, limits) as image:
            first = picture_frame(image, name, background)
            self.height, self.width = first.shape[:2]
            noted = _noted_duration(image)
            while True:
                image.load()
                durations.append(image.info.get("duration") or UNKNOWN_DURATION)
                limits.check_count(name, round(sum(durations) / (noted or min(durations))))
                try:
                    image.seek(image.tell() + 1)
                except EOFError:
                    break
        unit, counts = repeats(durations, noted)
        limits.check_count(name, sum(counts))
        self.shown = np.repeat(np.arange(len(counts)), counts)
        self.num_frames = len(self.shown)
        if self.num_frames > 1:
            self.times = np.arange(self.num_frames) * unit / 1000

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """See `Video.frames`."""
        with opened(self.file, self.name, self.limits) as image:
            last, frame = -1, None
            for stored in self.shown[list(indices)].tolist():
                if stored != last:
                    image.seek(stored)
                    last, frame = stored, picture_frame(image, self.name, self.background)
                assert frame is not None
                yield frame


def repeats(durations: Sequence[float], noted: float | None = None) -> tuple[float, list[int]]:
    """How often each stored frame of an animation is shown, at a constant rate.

    Args:
        durations: of the stored frames, milliseconds.
        noted: the duration of one frame where the file says it, as those of `write_gif` do.

    Returns:
        The duration of one shown frame, milliseconds, and the number of times each stored frame is shown. Without a
        note it is the largest duration, the shortest stored one or a part of it, of which all are multiples within
        the 10 ms to which a GIF rounds.
    """
    shortest = min(durations)
    units = [noted] if noted else [shortest / part for part in range(1, 7) if shortest / part >= 20] or [shortest]
    for unit in units:
        counts = [max(1, round(duration / unit)) for duration in durations]
        if all(abs(duration - count * unit) <= 10 for duration, count in zip(durations, counts, strict=True)):
            return unit, counts
    return shortest, [max(1, round(duration / shortest)) for duration in durations]


def _noted_duration(image: Image.Image) -> float | None:
    comment = image.info.get("comment", b"")
    text = comment.decode("latin-1") if isinstance(comment, bytes) else str(comment)
    number = text.removeprefix(FRAME_DURATION)
    if number == text or not number.isascii() or not number.isdigit():
        return None
    return float(number) if 10 <= int(number) <= 655_350 else None


class PictureFolder(Video):
    """A folder with one picture for each frame, in natural order of their names: 2.png stands before 10.png.

    Hidden files, and files that are no pictures, are left out; the case of endings does not matter.

    Args:
        folder: where they are.
        background: black or white, under transparent pixels.
        limits: what is refused.

    Raises:
        ValueError: where there is no picture, or there are pictures of several kinds.
    """

    def __init__(self, folder: Path, background: str = "black", limits: ReadLimits = LIMITS) -> None:
        self._open(str(folder), list_pictures(folder), background, limits)

    @classmethod
    def of_files(
        cls, name: str, files: Sequence[Path], background: str = "black", limits: ReadLimits = LIMITS
    ) -> "PictureFolder":
        """The same from pictures in a given order, which may lie anywhere."""
        video = cls.__new__(cls)
        video._open(name, list(files), background, limits)
        return video

    def _open(self, name: str, files: list[Path], background: str, limits: ReadLimits) -> None:
        check_background(background)
        self.name, self.files, self.background, self.limits = name, files, background, limits
        if not files:
            raise ValueError(f"{name} holds no pictures, expected one for each frame ({', '.join(STILL_ENDINGS)}).")
        kinds = sorted({file.suffix.lower().replace("jpeg", "jpg") for file in files})
        if len(kinds) > 1:
            raise ValueError(f"{name} holds {' and '.join(kinds)} files, expected pictures of one kind.")
        limits.check_count(name, len(files))
        self.num_frames = len(files)
        self.height, self.width = self._frame(files[0]).shape[:2]

    def _frame(self, file: Path) -> Frame:
        return single_picture(file, str(file), self.background, self.limits)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """See `Video.frames`."""
        last, frame = -1, None
        for index in indices:
            if index != last:
                last, frame = index, self._frame(self.files[index])
            assert frame is not None
            yield frame


def single_picture(file: Path | bytes, name: str, background: str, limits: ReadLimits) -> Frame:
    """A picture that is one frame of a video; see `picture_frame`. Raises ValueError where it is none or animated."""
    with opened(file, name, limits) as image:
        count = getattr(image, "n_frames", 1)
        if count > 1:
            raise ValueError(f"{name} holds {count} frames, expected a picture for each frame.")
        return picture_frame(image, name, background)


def list_pictures(folder: Path) -> list[Path]:
    """The pictures that lie in a folder, in natural order, without hidden files."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in STILL_ENDINGS)
    return sorted((file for file in files if not file.name.startswith(".") and file.is_file()), key=natural_order)
