"""Folders of videos as people bring them: files in sub-folders, splits, captions beside them or in a table."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from video_diffusion.data.frames import natural_order
from video_diffusion.data.pictures import list_pictures

CONTAINER_ENDINGS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
ARRAY_ENDINGS = (".npy", ".npz")
VIDEO_ENDINGS = (*ARRAY_ENDINGS, ".gif", ".apng", *CONTAINER_ENDINGS)
NO_VIDEOS = (
    f"holds no videos, expected files ({', '.join(VIDEO_ENDINGS)}) or sub-folders with one picture for each frame."
)
TABLES = ("metadata.jsonl", "metadata.csv")
NOTES = ("readme", "license", "licence", "notes", "requirements")  # text files that are no captions
SPLITS = {  # as `datasets` names them
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True)
class FoundVideo:
    """A video of a folder.

    Args:
        path: a file, or a folder with one picture for each frame.
        name: relative to the folder, for messages and as an identity.
        text: the `.txt` beside it, stripped; None without one.
        row: what a metadata table says of it; empty without one.
    """

    path: Path
    name: str
    text: str | None
    row: dict[str, str]


def list_picture_folders(folder: Path) -> list[Path]:
    """The sub-folders that hold pictures and no video files, in natural order."""
    folders = (path for path in _entries(folder) if path.is_dir())
    return [path for path in folders if list_pictures(path) and not _video_files(path)]


def is_video_folder(folder: Path) -> bool:
    """Whether a folder holds videos as files, and not a dataset of `datasets` with files such as parquet."""
    return next(_videos_below(folder, set()), None) is not None


def find_videos(folder: Path, split: str) -> list[FoundVideo]:
    """The videos of a split, in natural order of their paths, with what is said of them.

    Where the folder has sub-folders named train, validation or test (or as `SPLITS` has it), each is a split; else
    all of it is the split "train". A sub-folder that holds pictures is one video. Hidden files are left out.
    Captions stand in a text file beside a video (`a.txt` for `a.mp4` or for the folder of pictures `a`), or in a
    `metadata.jsonl` or `metadata.csv` whose `file_name` is relative to the table (the layout of `datasets`).

    Raises:
        ValueError: where there is no such split or no video in it, a table names files that are not there, or is no
            table.
    """
    root = _split_folder(folder, split)
    rows = _read_tables(root)
    found = []
    for path in _videos_below(root, set()):
        beside = path.with_suffix(".txt") if path.is_file() else path.with_name(f"{path.name}.txt")
        text = beside.read_text(encoding="utf-8").strip() if beside.is_file() else None
        found.append(FoundVideo(path, path.relative_to(folder).as_posix(), text, rows.pop(path.resolve(), {})))
    if not found:
        raise ValueError(f"{root} {NO_VIDEOS}")
    if rows:
        missing = [str(path) for path in rows]
        raise ValueError(
            f"the metadata in {root} names {len(missing)} files that are not there or are no videos, the first of "
            f"them {missing[0]}."
        )
    return found


def orphan_texts(folder: Path, found: Iterable[FoundVideo]) -> list[str]:
    """Text files in the folders of these videos that no video belongs to, without notes such as README.txt."""
    known = {path for video in found for path in (video.path.with_suffix(""), video.path)}
    places = {video.path.parent for video in found}
    texts = (path for place in places for path in _entries(place) if path.suffix.lower() == ".txt" and path.is_file())
    lone = [path for path in texts if path.with_suffix("") not in known and path.stem.lower() not in NOTES]
    return sorted(path.relative_to(folder).as_posix() for path in lone)


def _entries(folder: Path) -> list[Path]:
    shown = (path for path in folder.iterdir() if not path.name.startswith((".", "__")))
    return sorted(shown, key=natural_order)


def _video_files(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.suffix.lower() in VIDEO_ENDINGS and path.is_file()]


def _videos_below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Video files, and folders of pictures; a folder that links lead to twice is read once."""
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    files = set(_video_files(folder))
    if not files and list_pictures(folder):
        yield folder
    for path in _entries(folder):
        if path in files:
            yield path
        elif path.is_dir():
            yield from _videos_below(path, seen)


def _split_folder(folder: Path, split: str) -> Path:
    names = {name: key for key, known in SPLITS.items() for name in known}
    splits = {
        names[path.name.lower()]: path for path in _entries(folder) if path.is_dir() and path.name.lower() in names
    }
    if not splits and split == "train":
        return folder
    if split not in splits:
        there = sorted(splits) or ["train (there are no sub-folders named after splits)"]
        raise ValueError(f"`split` is {split!r}, expected one that {folder} has: {', '.join(there)}.")
    return splits[split]


def _read_tables(root: Path) -> dict[Path, dict[str, str]]:
    """The rows of all metadata tables at or below a folder, by the path of the file that each is about."""
    rows: dict[Path, dict[str, str]] = {}
    for table in sorted(path for name in TABLES for path in root.rglob(name)):
        for number, row in enumerate(_rows_of(table), start=1):
            name = row.get("file_name")
            if not name or not isinstance(name, str):
                raise ValueError(f"{table} has no `file_name` in row {number}, expected one in each row.")
            path = (table.parent / name).resolve()
            if path in rows:
                raise ValueError(f"{table} names {name} in row {number} a second time, expected one row a video.")
            rows[path] = {key: value for key, value in row.items() if key != "file_name"}
    return rows


def _rows_of(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(encoding="utf-8", newline="") as file:
            if table.suffix == ".csv":
                return list(csv.DictReader(file))
            return [_row(json.loads(line)) for line in file if line.strip()]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{table} is not a readable table: {error}") from error


def _row(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"a line holds {type(value).__name__}, expected an object")
    return value
