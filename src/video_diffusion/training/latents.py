"""Latents of a run: its VAE, and the clips that `video-diffusion latents build` has encoded once.

A folder of latents holds `latents.json` and shards of safetensors. The JSON says of which VAE (a hash of class, config
and weights) and of what in the videos (the transform) they are; a run takes them only where both are its own.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoModel
from huggingface_hub import cached_assets_path
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from video_diffusion.data import VideoClips
from video_diffusion.data.streams import VideoStream
from video_diffusion.hub.configs import read_json
from video_diffusion.hub.loading import check_weights
from video_diffusion.model.autoencoding import LatentSpace, check_vae, save_memory
from video_diffusion.training.arguments import DataArguments, VaeArguments, check_multiple
from video_diffusion.training.fields import declared

INDEX = "latents.json"
FORMAT = 1
AUTO = "auto"
ROWS = 8  # clips, or frames for a VAE of images, in one call of the VAE
NOT_OF_TRANSFORM = ("videos", "dataset_name", "num_images", "caption_column")  # nor do the paths matter
NOT_OF_VIDEOS = ("variant", "num_digits", "digits")
ONLY_OF_VIDEOS = ("frame_stride", "fps", "crop", "random_flip", "video_column", "video_background")


# ------------------------------------------------------------------------------------------------------------- the VAE
def open_vae(args: VaeArguments) -> Any:
    """The VAE that `vae` names, in float32, frozen.

    Raises:
        ValueError: if it is none, or of a class that does not serve.
        OSError: if there is no such folder or model.
    """
    name = str(args.vae)
    place, options = Path(name), {"use_safetensors": True, "torch_dtype": torch.float32}
    if place.is_dir():
        inside = [folder for folder in (place, place / "vae") if (folder / "config.json").is_file()]
        if not inside:
            raise ValueError(f"`vae` is the folder {name!r}, expected one with the config.json of a VAE of diffusers.")
        check_weights(inside[0])
        name = str(inside[0])
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"`vae` is {name!r}, expected a folder that exists, or a Hub id 'owner/name'.")
    try:
        vae = AutoModel.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        if place.is_dir():
            raise ValueError(f"`vae` is {args.vae!r}, which was not loaded: {' '.join(str(error).split())}") from error
        vae = AutoModel.from_pretrained(name, subfolder="vae", **options)  # the VAE of a whole pipeline
    check_vae(vae)
    save_memory(vae, args.vae_slicing, args.vae_tiling)
    return vae.eval().requires_grad_(False)


def vae_digest(vae: Any) -> str:
    """The SHA-256 of a VAE's class, config and weights."""
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps([type(vae).__name__, config], sort_keys=True, default=str).encode())
    for name, value in sorted(vae.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_clips(space: LatentSpace, data: DataArguments, denoiser: int = 1, of: str = "") -> None:
    """Refuses clips that the VAE, or the denoiser in its latents, cannot take.

    Args:
        space: of the VAE.
        data: the run's; its channels are known.
        denoiser: what must divide the latents' height and width.
        of: says where that comes from.

    Raises:
        ValueError: saying which sizes and numbers of frames can be had.
    """
    space.grid.length(data.num_frames)
    factor = space.spatial * denoiser
    check_multiple(data, factor, f"{space.spatial} of `vae`{of}")
    if data.channels not in (1, space.pixel_channels):
        raise ValueError(f"`num_channels` is {data.channels}, expected {space.pixel_channels}, those of `vae`.")


# ----------------------------------------------------------------------------------------------------------- the store
def identity(vae: Any, data: DataArguments, seed: int, source: Any) -> dict[str, Any]:
    """What latents depend on: the VAE, and the transform that makes clips of videos, by the arguments' names."""
    skipped = {*NOT_OF_TRANSFORM, *(ONLY_OF_VIDEOS if data.source is None else NOT_OF_VIDEOS)}
    fields = {name: field for name, field in declared([DataArguments]).items() if name not in skipped}
    transform = {name: getattr(data, name) for name, f in fields.items() if f.metadata["on_resume"] == "agrees"}
    transform["seed"] = seed
    if isinstance(source, VideoClips):
        transform["found"] = source.description
    return {"format": FORMAT, "vae": vae_digest(vae), "vae_class": type(vae).__name__, "transform": transform}


def require_same(folder: Path, stored: Mapping[str, Any], asked: Mapping[str, Any], remedy: str) -> None:
    """Refuses latents that are of another VAE or transform.

    Raises:
        ValueError: naming what differs.
    """
    if stored.get("format") != asked["format"]:
        raise ValueError(
            f"{folder} holds latents of format {stored.get('format')}, expected {asked['format']}. {remedy}"
        )
    if stored.get("vae") != asked["vae"]:
        raise ValueError(
            f"{folder} holds latents of another VAE, a {stored.get('vae_class')} with hash "
            f"{str(stored.get('vae'))[:12]}, expected a {asked['vae_class']} with {asked['vae'][:12]}. {remedy}"
        )
    theirs, ours = stored.get("transform", {}), asked["transform"]
    differ = [key for key in ours if theirs.get(key) != ours[key]]
    if differ:
        said = ", ".join(f"`{key}` {theirs.get(key)!r}, expected {ours[key]!r}" for key in differ)
        raise ValueError(f"{folder} holds latents of another transform: {said}. {remedy}")


def default_folder(data: DataArguments) -> Path:
    """Where latents are kept: beside local videos; those of other data among the assets of huggingface_hub."""
    if data.source is not None and Path(data.source).exists():
        path = Path(data.source).resolve()
        return path.with_name(f"{path.name}-latents")
    name = (data.source or "moving-mnist").replace("/", "--")
    return cached_assets_path(library_name="video_diffusion", namespace="latents", subfolder=name)


class LatentStore:
    """Latents in a folder: the clips of one epoch after the other.

    Args:
        folder: which `latents build` wrote.

    Attributes:
        index: what `latents.json` says.

    Raises:
        ValueError: where it is none, or not complete, or a shard is broken.
        OSError: where there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / INDEX).is_file():
            raise OSError(f"`latents` is {str(folder)!r}, expected a folder of `video-diffusion latents build`.")
        self.index = read_json(folder / INDEX)
        try:
            self.clips, self.windows, self.rows = (int(self.index[key]) for key in ("clips", "windows", "rows"))
            self.shape = tuple(self.index["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / INDEX} is none of `video-diffusion latents build`: no {error}.") from error
        self._open: dict[int, Any] = {}
        self.check()

    def file(self, shard: int) -> Path:
        """Where a shard is."""
        return self.folder / f"latents-{shard:05d}.safetensors"

    @property
    def shards(self) -> range:
        """The numbers of the shards."""
        return range(-(-self.clips * self.windows // self.rows))

    def check(self) -> None:
        """Opens each shard; raises ValueError where one is missing or broken."""
        for shard in self.shards:
            if not self.file(shard).is_file():
                raise ValueError(
                    f"{self.folder} lacks {self.file(shard).name}, expected {len(self.shards)} shards: give the same "
                    "`video-diffusion latents build` again, it goes on."
                )
            try:
                with safe_open(str(self.file(shard)), framework="pt") as file:
                    shape = tuple(file.get_slice("latents").get_shape())
            except SafetensorError as error:
                raise ValueError(f"{self.file(shard)} is broken: {error}. Delete it and build again.") from error
            expected = min(self.rows, self.clips * self.windows - shard * self.rows), *self.shape
            if shape != expected:
                raise ValueError(f"{self.file(shard)} holds latents of {shape}, expected {expected}. Build again.")

    def read(self, rows: ArrayLike) -> tuple[Tensor, NDArray[np.int64]]:
        """Latents `[B, c, f, h, w]` of some rows, and the numbers of the clips that they are of."""
        latents, numbers = [], []
        for row in np.asarray(rows, np.int64).tolist():
            shard, place = divmod(row, self.rows)
            if shard not in self._open:
                self._open[shard] = safe_open(str(self.file(shard)), framework="pt")
            latents.append(self._open[shard].get_slice("latents")[place : place + 1])
            numbers.append(int(self._open[shard].get_slice("numbers")[place : place + 1].item()))
        return torch.cat(latents), np.array(numbers, np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # worker processes open files of their own


class LatentClips:
    """The clips of a store, in the place of the source that they were made of.

    Args:
        store: where they are.
        compressed: whether a frame of the latents stands for more than one of the clip.
    """

    def __init__(self, store: LatentStore, compressed: bool) -> None:
        self.store, self.compressed = store, compressed

    def __len__(self) -> int:
        return self.store.clips

    def draw(self, indices: ArrayLike, epochs: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Latents float32 `[B, f, h, w, c]`, and of which clips of the source; epochs beyond the last begin anew."""
        rows = np.asarray(epochs, np.int64) % self.store.windows * self.store.clips + np.asarray(indices, np.int64)
        latents, numbers = self.store.read(rows)
        return latents.permute(0, 2, 3, 4, 1).contiguous().numpy(), numbers


def open_latents(
    asked: str | None, vae: Any, data: DataArguments, seed: int, source: Any
) -> tuple[LatentClips | None, str]:
    """The latents that a run reads in the place of its clips, and what is said of it; None: it encodes on the fly.

    Args:
        asked: a folder, "auto" (where `latents build` puts them, if there are any), or None.
        vae: of the run.
        data: of the run.
        seed: of the run.
        source: its clips.

    Raises:
        ValueError: where they are of another VAE or transform, not complete or broken.
        OSError: where a folder is named that is none.
    """
    if asked is not None and isinstance(source, VideoStream):
        if asked != AUTO:
            raise ValueError(f"`latents` is {asked!r}, expected none: a stream is encoded in each step.")
        asked = None
    folder = default_folder(data) if asked == AUTO else Path(asked or "")
    if asked is None or (asked == AUTO and not (folder / INDEX).is_file()):
        hint = "" if asked is None else "; `video-diffusion latents build` with the same flags does it once"
        return None, f"clips are encoded in each step{hint}."
    store = LatentStore(folder)
    remedy = "Build them again in another folder, or give `--latents none` to encode in each step."
    require_same(folder, store.index, identity(vae, data, seed, source), remedy)
    said = f"latents of {store.clips} clips, {store.windows} windows of each, are read from {folder}."
    return LatentClips(store, LatentSpace(vae).temporal > 1), said
