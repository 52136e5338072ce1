"""Videos in numpy files: one clip, or many, with axes that are recognised or asked for."""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from video_diffusion.data.frames import LIMITS, Frame, ReadLimits, Video, on_background
from video_diffusion.data.pictures import scaled

CHANNELS = (1, 3, 4)
MNIST_TEST_SEQ = (20, 10_000, 64, 64)  # the published file of Moving MNIST (Srivastava et al. 2015): frames first
ONE_CLIP = ("FHW", "FHWC", "FCHW")
MANY_CLIPS = ("NFHW", "FNHW", "NFHWC", "NFCHW", "FNHWC", "FNCHW")
MEMBER_PIXELS = 2**31  # of the arrays in an npz, which are unpacked as a whole


class ArrayVideo(Video):
    """A clip in an array.

    Args:
        array: uint8, bool, uint16 or floats in [0, 1].
        name: for messages.
        axes: the letters of its axes: FHW, FHWC or FCHW.
        background: black or white, under transparent pixels where C = 4.
        limits: what is refused.
    """

    def __init__(
        self, array: NDArray[Any], name: str, axes: str, background: str = "black", limits: ReadLimits = LIMITS
    ) -> None:
        self.array, self.name, self.axes, self.background = array, name, axes, background
        self.num_frames = array.shape[0]
        self.height, self.width = (array.shape[axes.index(letter)] for letter in "HW")
        limits.check_frame(name, self.height, self.width)
        limits.check_count(name, self.num_frames)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """See `Video.frames`."""
        for index in indices:
            frame = scaled(np.asarray(self.array[index]), self.name)
            frame = {"FHW": frame[..., None], "FHWC": frame}.get(self.axes, np.moveaxis(frame, 0, -1))
            frame = np.ascontiguousarray(frame)
            yield on_background(frame, self.background) if frame.shape[-1] == 4 else frame


def open_array(path: Path) -> NDArray[Any]:
    """The array of an npy file, mapped and not read; or the one array of an npz file, unpacked.

    Raises:
        ValueError: where it is broken, holds objects, less than it claims, several arrays, or too many numbers.
    """
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return _unpack(path)
        file.seek(0)
        shape, dtype = _read_header(file, str(path))
        rest = path.stat().st_size - file.tell()
    if math.prod(shape) * dtype.itemsize != rest:
        raise ValueError(f"{path} is truncated: {rest} bytes of data for the shape {shape} of {dtype}.")
    if not rest:
        raise ValueError(f"{path} has shape {shape}, expected no empty axis.")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _unpack(path: Path) -> NDArray[Any]:
    """The one array of an npz file; its header is checked before the data are unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if len(members) != 1:
                names = sorted(member.removesuffix(".npy") for member in members)
                raise ValueError(f"{path} holds the arrays {names}, expected one.")
            with archive.open(members[0]) as file:
                shape, dtype = _read_header(file, str(path))
                if math.prod(shape) > MEMBER_PIXELS:
                    raise ValueError(f"{path} has shape {shape}, expected at most {MEMBER_PIXELS} numbers in all.")
                size = math.prod(shape) * dtype.itemsize
                data = bytearray()
                while len(data) < size and (part := file.read(min(2**20, size - len(data)))):
                    data += part
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"{path} is not a readable npz file: {error}") from error
    if len(data) != size or not size:
        raise ValueError(f"{path} is truncated: {len(data)} bytes of data for the shape {shape} of {dtype}.")
    return np.frombuffer(data, dtype).reshape(shape)


def _read_header(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an npy file, which is then read up to its data."""
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
    except Exception as error:  # numpy reads the header with Python's own tokenizer
        raise ValueError(f"{name} is not a readable npy file: {error}") from error
    if dtype.hasobject or dtype.kind not in "buif" or min(shape, default=0) < 0:
        raise ValueError(f"{name} has {dtype} of shape {shape}, expected an array of numbers.")
    if fortran and len(shape) > 1:
        raise ValueError(f"{name} is stored in Fortran order, expected C order: save np.ascontiguousarray of it.")
    return shape, dtype


def axes_of(shape: Sequence[int], name: str, axes: str | None = None, layouts: Sequence[str] = ONE_CLIP) -> str:
    """What the axes of an array mean.

    Args:
        shape: of the array.
        name: for messages.
        axes: the letters, in order; None: recognised, where the shape fits one of the layouts and no other. Of five
            axes the first are taken to be the clips.
        layouts: what there may be. N are clips, F frames, H rows, W columns, C channels: 1, 3 or 4.

    Raises:
        ValueError: where none fits, or several do.
    """
    if axes is not None and axes not in layouts:
        raise ValueError(f"`video_axes` is {axes!r}, expected one of {', '.join(layouts)}.")
    fitting = [layout for layout in ([axes] if axes else layouts) if _fits(layout, shape, asked=axes is not None)]
    if tuple(shape) == MNIST_TEST_SEQ and "FNHW" in fitting:
        return "FNHW"
    if not fitting or 0 in shape:
        wanted = ", ".join(f"[{', '.join(layout)}]" for layout in ([axes] if axes else layouts))
        raise ValueError(f"{name} has shape {tuple(shape)}, expected {wanted}, C = 1, 3 or 4, and no empty axis.")
    if len(fitting) > 1:
        raise ValueError(
            f"{name} has shape {tuple(shape)}, which may be {' or '.join(fitting)}: expected `video_axes` to say."
        )
    return fitting[0]


def _fits(layout: str, shape: Sequence[int], asked: bool) -> bool:
    """Whether a shape can have these axes; unless they were asked for, frames 1, 3 or 4 pixels wide are left out."""
    if len(layout) != len(shape) or ("C" in layout and shape[layout.index("C")] not in CHANNELS):
        return False
    if asked or len(layout) == 3:
        return True
    narrow = layout.endswith("W") and shape[-1] in CHANNELS
    return not narrow and not (len(layout) == 5 and layout.startswith("FN"))
