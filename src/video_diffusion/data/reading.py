"""The one reader of videos that people bring: for commands, evaluation, the demo and training."""

from collections.abc import Sequence
from pathlib import Path

from video_diffusion.data.arrays import ArrayVideo, axes_of, open_array
from video_diffusion.data.containers import ContainerVideo, demuxer_of
from video_diffusion.data.frames import LIMITS, ReadLimits, Video
from video_diffusion.data.pictures import AnimatedPicture, PictureFolder
from video_diffusion.data.video_io import Clip, PathLike

ARRAYS = (b"\x93NUMPY", b"PK\x03\x04")  # npy, npz


def open_video(
    file: PathLike | bytes,
    *,
    background: str = "black",
    video_axes: str | None = None,
    limits: ReadLimits = LIMITS,
    name: str | None = None,
) -> Video:
    """Opens a video; what it is shows its content, not its name. Frames are read later, when they are asked for.

    Args:
        file: an MP4, MOV, WebM, Matroska or AVI; a GIF, animated PNG or WebP, or another picture, each frame as often
            as it is shown; an npy or npz array; or a folder with one picture for each frame, in natural order. An
            encoded video or picture may also come as bytes.
        background: black or white, under transparent pixels. White ink on nothing needs black, black ink needs white.
        video_axes: of an array, FHW, FHWC or FCHW; None: recognised.
        limits: what is refused.
        name: for messages; None: the path.

    Raises:
        OSError: where there is no such file.
        ValueError: where it holds no video, is broken, or is beyond the limits, naming the file.
    """
    if isinstance(file, bytes):
        return _open_encoded(file, file[:16], name or "the video", background, limits)
    path = Path(file)
    name = name or str(path)
    if path.is_dir():
        return PictureFolder(path, background, limits)
    with path.open("rb") as stream:
        head = stream.read(16)
    if head.startswith(ARRAYS):
        array = open_array(path)
        return ArrayVideo(array, name, axes_of(array.shape, name, video_axes), background, limits)
    return _open_encoded(path, head, name, background, limits)


def _open_encoded(file: Path | bytes, head: bytes, name: str, background: str, limits: ReadLimits) -> Video:
    demuxer = demuxer_of(head)
    if demuxer is None:
        return AnimatedPicture(file, name, background, limits)
    return ContainerVideo(file, name, demuxer, background, limits)


def read_video(
    file: PathLike,
    *,
    frames: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
    background: str = "black",
    video_axes: str | None = None,
    limits: ReadLimits = LIMITS,
) -> Clip:
    """Reads a clip, or some frames of it.

    Args:
        file: see `open_video`, as for `background`, `video_axes` and `limits`.
        frames: numbers of the frames, ascending; None: all. Nothing behind the last one is decoded.
        size: height and width to which each frame is resized as it is read; None: as it is.
        background: see there.
        video_axes: see there.
        limits: see there.

    Returns:
        uint8 `[F, H, W, C]`; C = 1 where the clip is grey.

    Raises:
        OSError: where there is no such file.
        ValueError: where it holds no video, naming the file.
    """
    return open_video(file, background=background, video_axes=video_axes, limits=limits).read(frames, size, limits)
