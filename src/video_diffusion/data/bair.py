"""BAIR robot pushing (Ebert, Finn, Lee and Levine 2017) as published, or as SVG's converter writes it."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from video_diffusion.data.frames import Frame, Video, natural_order
from video_diffusion.data.stored import StoredVideos, VideoFiles
from video_diffusion.data.tfrecords import bytes_of, find_records, read_record

RECORDS, PICTURES = "softmotion30_44k", "processed_data"
SPLITS = ("train", "test")
SIZE = 64
CAMERA = "image_aux1/encoded"  # the one of the two that papers take: raw RGB
LAYOUT = (
    f"{RECORDS}/train and {RECORDS}/test with record files such as traj_0_to_255.tfrecords, or "
    f"{PICTURES}/train and {PICTURES}/test with pictures such as traj_0_to_255/1/0.png"
)


def bair_root(folder: Path) -> Path | None:
    """The folder of the splits in one of the published layouts, which may be named itself; None: it is another one."""
    for name in (PICTURES, RECORDS):
        root = folder if folder.resolve().name == name else folder / name
        if any((root / split).is_dir() for split in SPLITS):
            return root
    return None


def open_bair(folder: Path, split: str = "train") -> StoredVideos:
    """The videos of a split, RGB 64×64, each of 30 frames in the published data.

    Args:
        folder: with a layout of `LAYOUT`; where there are both, the pictures are read.
        split: "train" or "test".

    Raises:
        ValueError: where there is no such layout or split, or no video.
    """
    root = bair_root(folder)
    if root is None:
        raise ValueError(f"{folder} does not hold BAIR, expected {LAYOUT}.")
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}, expected train or test of BAIR.")
    if root.resolve().name == PICTURES:
        return VideoFiles(root, split)
    return RecordVideos(root / split)


class RecordVideos:
    """The videos of record files: a `stored.StoredVideos` with a place for each file.

    Args:
        folder: with the files of a split.

    Raises:
        ValueError: where there are none.
    """

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self.files = sorted(folder.glob("*.tfrecord*"), key=natural_order) if folder.is_dir() else []
        if not self.files:
            raise ValueError(f"{folder} holds no record files, expected {LAYOUT}.")

    def __len__(self) -> int:
        return len(self.files)

    def name(self, place: int) -> str:
        """The name of the file."""
        return self.files[place].name

    def identity(self, place: int) -> str:
        """Path, size and time of the file."""
        file = self.files[place]
        state = file.stat()
        return hashlib.sha256(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()

    def open(self, place: int) -> list[Video]:
        """A video for each record. Raises ValueError where the file is broken, or holds other data."""
        file = self.files[place]
        records = find_records(file)
        if not records:
            raise ValueError(f"{file.name} holds no records, expected videos.")
        count = len(_frames_of(file, records[0]))
        return [RecordVideo(file, record, i, count) for i, record in enumerate(records)]

    def captions(self, column: str) -> list[str | None]:
        """Raises ValueError: there are none."""
        raise ValueError(f"`caption_column` is {column!r}, and BAIR has no captions.")


class RecordVideo(Video):
    """The video of one record, read as a whole whenever frames of it are asked for.

    Args:
        file: the record file.
        record: where in it the record is.
        number: of the record.
        num_frames: of the file's first record; another number is found when the frames are read.
    """

    def __init__(self, file: Path, record: tuple[int, int], number: int, num_frames: int) -> None:
        self.file, self.record, self.name = file, record, f"{file.name}, record {number}"
        self.num_frames, self.height, self.width = num_frames, SIZE, SIZE

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """See `Video.frames`."""
        frames = _frames_of(self.file, self.record)
        if len(frames) != self.num_frames:
            raise ValueError(f"{self.name} has {len(frames)} frames, expected {self.num_frames} as in the first one.")
        for index in indices:
            yield np.frombuffer(frames[index], np.uint8).reshape(SIZE, SIZE, 3)


@lru_cache(maxsize=2)
def _frames_of(file: Path, record: tuple[int, int]) -> list[memoryview]:
    """The frames of a record in order, raw RGB. Raises ValueError where there are none, or of another size."""
    try:
        found = bytes_of(read_record(file, record))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    names = [name for name in found if re.fullmatch(rf"\d+/{CAMERA}", name)]
    frames = [found[f"{i}/{CAMERA}"] for i in range(len(names)) if f"{i}/{CAMERA}" in found]
    if not frames or len(frames) < len(names):
        raise ValueError(f"{file} holds a record with {len(frames)} of {len(names)} frames, expected 0/{CAMERA} on.")
    sizes = sorted({len(frame) for frame in frames})
    if sizes != [SIZE * SIZE * 3]:
        raise ValueError(f"{file} has frames of {sizes} bytes, expected {SIZE * SIZE * 3}: {SIZE}×{SIZE} RGB, raw.")
    return frames
