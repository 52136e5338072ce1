"""The KTH actions (Schüldt, Laptev and Caputo 2004) as published: folders by action, and frame ranges."""

import hashlib
import re
from pathlib import Path

from video_diffusion.data.frames import LIMITS, Excerpt, ReadLimits, Video
from video_diffusion.data.reading import open_video

RANGES = "00sequences.txt"
ACTIONS = {  # the folders, and what a caption says
    "boxing": "a person boxing",
    "handclapping": "a person clapping hands",
    "handwaving": "a person waving hands",
    "jogging": "a person jogging",
    "running": "a person running",
    "walking": "a person walking",
}
PERSONS = {"train": range(1, 17), "test": range(17, 26)}  # as in papers on video prediction
LAYOUT = (
    f"the frame ranges {RANGES}, and in a folder by action ({', '.join(ACTIONS)}) videos such as "
    "boxing/person01_boxing_d1_uncomp.avi"
)
_LINE = re.compile(r"person(\d+)_([a-z]+)_d(\d)\s+(?:frames\s+)?(.*)")
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")


def is_kth(folder: Path) -> bool:
    """Whether a folder has the published frame ranges."""
    return (folder / RANGES).is_file()


def read_ranges(file: Path) -> dict[str, list[tuple[int, int]]]:
    """The official frame ranges: for each video, such as "person01_boxing_d1", first and last frames, counted from 1.

    Videos that the file calls missing are left out, as are its notes.

    Raises:
        ValueError: where a line about a video has no ranges, or a range runs backwards.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        match = _LINE.fullmatch(line.strip())
        if match is None or "missing" in match[4]:
            continue
        parts = [_RANGE.fullmatch(part.strip()) for part in match[4].split(",") if part.strip()]
        ranges = [(int(part[1]), int(part[2])) for part in parts if part is not None]
        if not ranges or len(ranges) < len(parts) or not all(1 <= first <= last for first, last in ranges):
            raise ValueError(f"{file} has {line.strip()!r} in line {number}, expected ranges such as 1-95, 96-185.")
        found[line.split()[0]] = ranges
    return found


class KTHVideos:
    """The sub-sequences of KTH of a split, by action, person and condition: a `stored.StoredVideos`.

    A place is a file, and each of its frame ranges is a video. Frames between the ranges show nobody and are left out;
    ranges end where the file does.

    Args:
        folder: with the published layout, `LAYOUT`.
        split: "train", persons 1 to 16, or "test", 17 to 25.
        limits: what is refused.

    Raises:
        ValueError: where there is no such split, or no video of it is listed.
    """

    def __init__(self, folder: Path, split: str = "train", limits: ReadLimits = LIMITS) -> None:
        if split not in PERSONS:
            raise ValueError(f"`split` is {split!r}, expected train (persons 1 to 16) or test (17 to 25) of KTH.")
        self.where, self.root, self.limits = str(folder), folder, limits
        ranges = read_ranges(folder / RANGES)
        keys = [key for action in ACTIONS for key in sorted(ranges) if key.split("_")[1] == action]
        self.keys = [key for key in keys if int(key[6:].split("_")[0]) in PERSONS[split]]
        self.ranges = ranges
        if not self.keys:
            raise ValueError(f"{folder / RANGES} lists no video of the split {split!r}, expected {LAYOUT}.")

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, place: int) -> str:
        """The path, relative to the folder."""
        return f"{self.action(place)}/{self.keys[place]}_uncomp.avi"

    def action(self, place: int) -> str:
        """What is done in a video, a key of `ACTIONS`."""
        return self.keys[place].split("_")[1]

    def identity(self, place: int) -> str:
        """Path, size and time of the file, and its ranges."""
        path = self.root / self.name(place)
        state = path.stat()
        parts = [path.resolve(), state.st_size, state.st_mtime_ns, self.ranges[self.keys[place]]]
        return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()

    def open(self, place: int) -> list[Video]:
        """A video for each range of a file. Raises ValueError or OSError where it cannot be read."""
        name = self.name(place)
        whole = open_video(self.root / name, limits=self.limits, name=name)
        ranges = [(first, last) for first, last in self.ranges[self.keys[place]] if first <= whole.num_frames]
        if not ranges:
            raise ValueError(f"{name} has {whole.num_frames} frames, none in the ranges of {RANGES}.")
        return [Excerpt(whole, first - 1, last, f"{name}, frames {first}-{last}") for first, last in ranges]

    def captions(self, column: str) -> list[str | None]:
        """The action of each video: "caption" in words, "action" as its folder is named. Raises ValueError else."""
        if column not in ("caption", "action"):
            raise ValueError(f"`caption_column` is {column!r}, expected caption or action for KTH.")
        actions = [self.action(place) for place in range(len(self))]
        return [ACTIONS[action] if column == "caption" else action for action in actions]
