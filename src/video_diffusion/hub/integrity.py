"""Folders that are whole or are known not to be: a manifest with the digest of each file, and writes that last."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError

from video_diffusion.hub.configs import GENERATION_CONFIG, INDEX, read_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
WEIGHTS = ".safetensors"
CODE = ".py"  # read by those without the package; with it never


# -------------------------------------------------------------------------------------------------------- the manifest
def write_manifest(folder: Path, step: int | None = None, names: Iterable[str] | None = None) -> None:
    """Writes down what is in a folder; the last file to be written.

    Args:
        folder: of a checkpoint or a pipeline.
        step: of the checkpoint.
        names: of the files, below the folder; None: all.
    """
    if names is None:
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: _digest(folder / name) for name in sorted(names)}
    of_step = {} if step is None else {"step": step}
    write_json(folder / MANIFEST, {**of_step, "files": files, "sha256": _seal(files, step)})


def read_manifest(folder: Path, step: int | None = None) -> dict[str, str]:
    """The digests of a folder's files, by name; raises ValueError where the manifest is missing or is not of them."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, its_step, seal = manifest["files"], manifest.get("step"), manifest["sha256"]
        outside = any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in files)
    except FileNotFoundError as error:
        raise ValueError(f"{MANIFEST} is missing") from error
    except (AttributeError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} cannot be read") from error
    if outside or seal != _seal(files, its_step) or its_step != step:
        raise ValueError(f"{MANIFEST} is another's, or was changed")
    return files


def changes(folder: Path, files: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The files that are not as their digests say, each with "is missing" or "was changed"."""
    for name, digest in files.items():
        file = folder / name
        if not file.is_file():
            yield name, "is missing"
        elif _digest(file) != digest:
            yield name, "was changed"


def damage(folder: Path, step: int) -> str | None:
    """What is wrong with a folder of that step; None if each file has the bytes that the manifest says."""
    try:
        files = read_manifest(folder, step)
    except ValueError as error:
        return str(error)
    return next((f"{name} {how}" for name, how in changes(folder, files)), None)


# ----------------------------------------------------------------------------------------------------------- pipelines
def seal_pipeline(folder: Path) -> None:
    """Writes the manifest of a pipeline's folder: of all that loading reads, so not of the card, results and code."""
    parts = [name for name, entry in read_json(folder / INDEX).items() if isinstance(entry, list) and name[:1] != "_"]
    files = [path for name in parts for path in (folder / name).rglob("*") if path.is_file() and path.suffix != CODE]
    files += [path for name in (INDEX, GENERATION_CONFIG) if (path := folder / name).is_file()]
    write_manifest(folder, names=[path.relative_to(folder).as_posix() for path in files])


def verify_pipeline(folder: Path, skipped: Container[str] = ()) -> None:
    """Compares a pipeline's folder with its manifest; one without, as of another origin, is not looked at.

    Changed weights are refused: nobody changes them by hand. Another file that was changed or is missing is said in a
    warning, since people edit JSON.

    Args:
        folder: of the pipeline.
        skipped: names of components that are not read.

    Raises:
        ValueError: where weights were changed, with what to do.
    """
    if not (folder / MANIFEST).is_file():
        return
    way_out = f"If it was changed on purpose, remove {folder / MANIFEST} or save the pipeline again."
    try:
        files = read_manifest(folder)
    except ValueError as error:
        logger.warning("%s: %s, so that damage to its files would not be seen. %s", folder, error, way_out)
        return
    read = {name: digest for name, digest in files.items() if name.split("/")[0] not in skipped}
    for name, how in changes(folder, read):
        if name.endswith(WEIGHTS) and how == "was changed":
            raise ValueError(
                f"{folder / name} was changed since the pipeline was saved (its SHA-256 is another): the file is "
                f"damaged, or another one. Fetch or make it again. {way_out}"
            )
        if not name.endswith(WEIGHTS):  # weights that are missing may be of a variant that is not read
            logger.warning("%s %s since the pipeline was saved. %s", folder / name, how, way_out)


# -------------------------------------------------------------------------------------------------------------- writes
@contextmanager
def writing(what: str, draft: Path) -> Iterator[None]:
    """Turns what the libraries raise where the disk is full into OSError, and removes what is half written."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        free = shutil.disk_usage(draft.parent).free / 2**20
        reason = " ".join(str(error).split())
        raise OSError(f"{what} could not be written ({free:,.0f} MiB are free there): {reason}.") from error


def to_disk(path: Path, inside: bool = True) -> None:
    """Waits until a file, or a folder with what is inside, is on the disk."""
    for part in [*(path.rglob("*") if inside else ()), path]:
        handle = os.open(part, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(file: Path, value: Any) -> None:
    """Writes JSON to be read by people too."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _seal(files: Any, step: Any) -> str:
    return hashlib.sha256(json.dumps([files, step], sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
