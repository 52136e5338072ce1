"""Folders that are whole or are known not to be: a manifest with the digest of each file, and writes that last."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MANIFEST = "manifest.json"


def write_manifest(folder: Path, step: int) -> None:
    """Writes down what is in a folder; the last file to be written."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: _digest(folder / name) for name in names}
    write_json(folder / MANIFEST, {"step": step, "files": files, "sha256": _seal(files, step)})


def damage(folder: Path, step: int) -> str | None:
    """What is wrong with a folder of that step; None if each file has the bytes that the manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, its_step, seal = manifest["files"], manifest["step"], manifest["sha256"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    if seal != _seal(files, its_step) or its_step != step:
        return f"{MANIFEST} is another's, or was changed"
    for name, digest in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if _digest(file) != digest:
            return f"{name} was changed"
    return None


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
