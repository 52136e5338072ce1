"""Scores a model, or a folder of videos, by a protocol: clips, baselines, figures; resumable, in several processes.

Clips are made and measured in parts. Each part is one file, written whole or not at all, that holds the clips as 8-bit
frames and what was measured of them. A run that was killed makes the parts that are missing; several processes share
them out; the figures come from all parts together (`scores.Totals`). Frames are rounded to 8 bits before
they are scored, so that a folder of the same clips gets the same figures.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from video_diffusion.data.video_io import atomic_path
from video_diffusion.evaluation.protocols import DATA_SEED, Protocol
from video_diffusion.evaluation.scores import Scorer, fold
from video_diffusion.evaluation.sources import Source

CLIPS = "clips"  # the one column of the protocols of frames
LIBRARIES = ("video-diffusion", "torch", "diffusers", "numpy")


@dataclass(frozen=True)
class Workers:
    """The processes that share a run.

    Args:
        rank: number of this one.
        count: how many there are.
        wait: returns once all of them have called it.
    """

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class Run:
    """One evaluation.

    Args:
        protocol: what is measured.
        num_videos: N; None: the protocol's, or what a folder of videos has of them.
        num_samples: S, likewise.
        lengths: frames of the whole clips; None: the protocol's.
        batch_size: clips at once.

    Raises:
        ValueError: where a number is too small, or a length is none of the protocol's.
    """

    protocol: Protocol
    num_videos: int
    num_samples: int
    lengths: tuple[int, ...]
    batch_size: int = 16

    @classmethod
    def of(
        cls,
        source: Source,
        protocol: Protocol,
        num_videos: int | None = None,
        num_samples: int | None = None,
        lengths: Sequence[int] | None = None,
        batch_size: int = 16,
    ) -> "Run":
        """Fills in what was not said and checks it all, before anything is computed. Raises a ValueError."""
        for name, value in (("num-videos", num_videos), ("num-samples", num_samples), ("batch-size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"`--{name}` is {value}, expected at least 1.")
        chosen = tuple(sorted(set(protocol.lengths if lengths is None else lengths)))
        if not chosen or not set(chosen) <= set(protocol.lengths):
            raise ValueError(f"`--num-frames` is {list(chosen)}, expected some of {list(protocol.lengths)}.")
        if num_videos is None:
            counts = [protocol.num_videos, getattr(source, "num_videos", None), protocol.available]
            num_videos = min(count for count in counts if count is not None)
        if num_samples is None:
            num_samples = min(protocol.num_samples, getattr(source, "num_samples", protocol.num_samples))
        if protocol.fvd and num_videos < 2:
            raise ValueError(f"`--num-videos` is {num_videos}, expected at least 2: FVD compares covariances.")
        if protocol.available is not None and num_videos > protocol.available:
            there = f"the {protocol.available} that the data in the folder give"
            raise ValueError(f"`--num-videos` is {num_videos}, expected at most {there}.")
        source.check(protocol, num_videos, num_samples, chosen)
        return cls(protocol, num_videos, num_samples, chosen, batch_size)

    def settings(self, source: Source, scorer: Scorer) -> dict[str, Any]:
        """All that decides about the clips and their scores, as JSON: parts of other settings are not mixed."""
        return {
            "protocol": self.protocol.name,
            "model": {key: value for key, value in source.identity.items() if key != "name"},
            "sampling": source.settings,
            "num_videos": self.num_videos,
            "num_samples": self.num_samples,
            "lengths": list(self.lengths),
            "image_size": source.image_size,
            "data_seed": DATA_SEED,
            **self.protocol.settings,
            "networks": scorer.networks,
        }


# ----------------------------------------------------------------------------------------------------------- the parts
def open_parts(folder: Path, settings: dict[str, Any]) -> None:
    """Makes the folder of the parts, or finds one of the same settings. Raises a ValueError where they differ."""
    file = folder / "settings.json"
    if not file.exists():
        with atomic_path(file) as draft:
            draft.write_text(json.dumps(settings, indent=2) + "\n")
    there = json.loads(file.read_text())
    different = [key for key in {**there, **settings} if there.get(key) != settings.get(key)]
    if different:
        raise ValueError(
            f"`--out` holds the parts of another run in {folder}: "
            + "; ".join(f"{key} was {there.get(key)}, now {settings.get(key)}" for key in different)
            + ". Expected the same settings, or another folder."
        )
    for draft in folder.glob(".part-*.npz"):  # of a process that was killed while it wrote
        draft.unlink()


def read_parts(folder: Path, column: str = CLIPS) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]]:
    """The numbers of the clips and the arrays of each part of a column, without whole clips of several lengths.

    A part that cannot be read (a disk that was full) is deleted, so that the run makes it again.
    """
    for file in sorted(folder.glob(f"part-{column}-*.npz")):
        try:
            with np.load(file, allow_pickle=False) as part:
                arrays = {key: part[key] for key in part.files if not key.startswith("clips.")}
                indices = arrays.pop("indices")
        except Exception:  # zipfile, zlib and numpy each have errors of their own for a damaged file
            file.unlink(missing_ok=True)
            continue
        yield indices, arrays


def read_clips(folder: Path, count: int, length: int) -> NDArray[np.uint8]:
    """The clips 0 … `count` − 1 of the parts, uint8 `[count, S, F, H, W, 1]`."""
    found: dict[int, NDArray[np.uint8]] = {}
    for file in sorted(folder.glob("part-*.npz")):
        with np.load(file, allow_pickle=False) as part:
            found |= dict(zip(part["indices"].tolist(), part[f"clips.{length}"], strict=True))
        if len(found) >= count:
            break
    return np.stack([found[i] for i in range(count)])


def missing_batches(folder: Path, num_videos: int, size: int, column: str = CLIPS) -> list[list[int]]:
    """The clips of a column that no part has yet, in batches."""
    done = {int(i) for indices, _ in read_parts(folder, column) for i in indices}
    left = [i for i in range(num_videos) if i not in done]
    return [left[first : first + size] for first in range(0, len(left), size)]


def make_parts(
    folder: Path,
    settings: Mapping[str, Any],
    columns: Mapping[str, Callable[[list[int]], Mapping[str, NDArray[Any]]]],
    num_videos: int,
    batch_size: int,
    workers: Workers,
    progress: bool = True,
) -> None:
    """Makes all parts that are missing: the engine of every protocol.

    Args:
        folder: for the parts; all processes must see it.
        settings: all that decides about the parts, as JSON.
        columns: what is made of the clips of some numbers, by the name of the column: arrays.
        num_videos: N clips of each column.
        batch_size: clips of a part.
        workers: the processes that share the work.
        progress: whether a bar counts the clips of this process.

    Raises:
        ValueError: where the folder belongs to other settings.
    """
    if workers.rank == 0:
        open_parts(folder, dict(settings))
    workers.wait()
    jobs = [
        (column, indices) for column in columns for indices in missing_batches(folder, num_videos, batch_size, column)
    ]
    workers.wait()  # nobody writes before everybody has looked
    mine = jobs[workers.rank :: workers.count]
    done = num_videos * len(columns) - sum(len(indices) for _, indices in jobs)
    title = folder.name.removesuffix("-parts") + (f", process {workers.rank}" if workers.count > 1 else "")
    total = done + sum(len(indices) for _, indices in mine)
    with tqdm(total=total, initial=done, unit="clip", desc=title, disable=not progress) as bar:
        for column, indices in mine:
            arrays: dict[str, Any] = dict(columns[column](indices))
            with atomic_path(folder / f"part-{column}-{indices[0]:07d}.npz") as draft:
                np.savez_compressed(draft, indices=np.array(indices), **arrays)
            bar.update(len(indices))
    workers.wait()


def make_and_score(indices: list[int], run: Run, source: Source, scorer: Scorer) -> dict[str, NDArray[Any]]:
    """Clips of a source, what was measured of them, and the seconds of both."""
    protocol, size = run.protocol, source.image_size
    longest = max(run.lengths)
    truth, real = protocol.truth(indices, size)[:, :longest], protocol.real(indices, size)[:, :longest]
    start = time.perf_counter()
    clips = source.clips(indices, truth[:, : protocol.num_given], run.num_samples, run.lengths)
    middle = time.perf_counter()
    scores = scorer.score(indices, truth, real, clips)
    seconds = np.array([middle - start, time.perf_counter() - middle])
    return {**scores, **{f"clips.{length}": video for length, video in clips.items()}, "seconds": seconds}


# ------------------------------------------------------------------------------------------------------------- the run
def evaluate(
    source: Source,
    run: Run,
    out: str | os.PathLike[str],
    scorer: Scorer | None = None,
    *,
    workers: Workers | None = None,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Runs a protocol to its end, from where an earlier call with the same folder stopped.

    Args:
        source: what is scored.
        run: how.
        out: the folder for the parts, `<protocol>-parts`; all processes must see it.
        scorer: measures; by default on the CPU with the published networks.
        workers: the processes that share the work.
        progress: whether a bar counts the clips of this process.

    Returns:
        the report as JSON (`figures`, `settings`, `seconds`, …) in the first process, None in the others.

    Raises:
        ValueError: where the folder belongs to other settings, or a source has other clips than the protocol's.
        OSError: where not all parts are in the folder at the end.
    """
    scorer = scorer or Scorer(run.protocol, run.lengths)
    workers = workers or Workers()
    parts = Path(out) / f"{run.protocol.name}-parts"
    settings = run.settings(source, scorer)
    make = partial(make_and_score, run=run, source=source, scorer=scorer)
    size = max(run.batch_size // run.num_samples, 1)
    make_parts(parts, settings, {CLIPS: make}, run.num_videos, size, workers, progress)
    return summarise(parts, run, source, settings) if workers.rank == 0 else None


def summarise(parts: Path, run: Run, source: Source, settings: dict[str, Any]) -> dict[str, Any]:
    """The report of a run whose parts are complete. Raises an OSError where they are not.

    `seconds` is summed over all parts and processes, without what came from the cache of the baselines.
    """
    seconds = np.zeros(2)
    count = 0

    def scores() -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]]:
        nonlocal seconds, count
        for indices, arrays in read_parts(parts):
            seconds, count = seconds + arrays.pop("seconds"), count + len(indices)
            yield indices, arrays

    figures = fold(run.protocol, run.num_videos, scores())
    if count != run.num_videos:
        raise OSError(
            f"{parts} holds {count} clips, expected {run.num_videos}: run the command again; with several processes "
            "`--out` must be a folder that all of them see."
        )
    protocol = run.protocol
    cost = source.cost(protocol.num_given, run.lengths)
    calls = cost.get("network_calls_per_clip", {})
    return {
        "protocol": protocol.name,
        "text": protocol.text,
        "departures": protocol.departures(run.num_videos, run.num_samples, source.image_size, run.lengths),
        "model": source.identity,
        **{key: value for key, value in settings.items() if key not in ("protocol", "model")},
        "num_given": protocol.num_given,
        "headline": protocol.headline if run.num_samples > 1 else "one_sample",
        "figures": figures,
        "known": [vars(known) for known in protocol.known],
        **cost,
        "network_calls": sum(calls.values()) * run.num_videos * run.num_samples if calls else None,
        "seconds": {"clips": seconds[0].item(), "scores": seconds[1].item()},
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    """Of Python and of the libraries that decide about figures."""
    return {"python": platform.python_version(), **{name: library_version(name) for name in LIBRARIES}}


def library_version(library: str) -> str | None:
    """The installed version; None where it runs from a source tree."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None
