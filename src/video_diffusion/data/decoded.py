"""Videos that were decoded once: uint8 arrays in memory, or mapped from files that later runs find again."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from video_diffusion.data.video_io import Clip, atomic_path

FORMAT = 1  # raised when the reader gives other pixels
Store = Callable[[int, Callable[[], Clip]], "Clip | Path"]


class Decoded:
    """Whole videos, `[F, h, w, C]` each.

    Args:
        kept: each as an array or as the npy file that holds it.
    """

    def __init__(self, kept: Sequence[Clip | Path]) -> None:
        self.kept = list(kept)

    def frames(self, video: int, indices: NDArray[np.int64]) -> Clip:
        """Some frames of a video, uint8 `[len(indices), h, w, C]`."""
        kept = self.kept[video]
        array = np.load(kept, mmap_mode="r", allow_pickle=False) if isinstance(kept, Path) else kept
        return np.asarray(array[indices])


def decode_to_memory(total: int) -> Store:
    """A store that keeps arrays.

    Args:
        total: bytes of all videos.

    Raises:
        ValueError: where the memory has less.
    """
    free = free_memory()
    if free is not None and total > free:
        raise ValueError(_too_small("memory", total, free))
    return lambda number, decode: decode()


def decode_to_disk(folder: Path, keys: Sequence[str], total: int) -> Store:
    """A store that writes each video into a file of its own, whole or not at all; files that are there are kept.

    Args:
        folder: is made where there is none.
        keys: the name of each video's file, without ending.
        total: bytes of all videos.

    Raises:
        ValueError: where it cannot be written, or the disk has too little room.
    """
    files = [folder / f"{key}.npy" for key in keys]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"`video_cache_dir` is {folder}, expected a folder to write to: {error}") from error
    missing = total - sum(file.stat().st_size for file in files if file.is_file())
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise ValueError(_too_small(f"disk of {folder}", missing, free))

    def store(number: int, decode: Callable[[], Clip]) -> Path:
        if not files[number].is_file():
            video = decode()
            with atomic_path(files[number]) as draft:
                np.save(draft, video, allow_pickle=False)
        return files[number]

    return store


def disk_key(parts: Sequence[Any]) -> str:
    """A name for what was decoded of what."""
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()[:40]


def free_memory() -> int | None:
    """Bytes of memory that can be had without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def _too_small(where: str, needed: int, free: int) -> str:
    return (
        f"`video_cache` needs {needed / 2**30:.1f} GiB, and the {where} has {free / 2**30:.1f} GiB free: expected a "
        "smaller `image_size`, fewer videos or `video_cache` none."
    )
