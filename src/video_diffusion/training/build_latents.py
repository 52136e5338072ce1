"""`video-diffusion latents build`: encodes the clips of a training once, into shards that it then reads."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from video_diffusion.data import MovingMNIST, VideoClips
from video_diffusion.data.video_io import atomic_path
from video_diffusion.hub.integrity import write_json
from video_diffusion.model.autoencoding import LatentSpace
from video_diffusion.training.arguments import DataArguments, VaeArguments, check_data
from video_diffusion.training.batches import channels_of, open_source, to_model
from video_diffusion.training.fields import argument, group, or_none, text, whole
from video_diffusion.training.flags import flag_parser, resolve
from video_diffusion.training.latents import (
    INDEX,
    ROWS,
    LatentStore,
    check_clips,
    default_folder,
    identity,
    open_vae,
    require_same,
)

SHARD = 2**28  # bytes of latents in one file


@group
class LatentArguments:
    """What is built."""

    out: str | None = argument(
        None, "Folder of the latents; left out: FOLDER-latents beside the videos.", or_none(text()), "applies"
    )
    seed: int = argument(0, "As in the training.", whole(0, 2**32 - 1), "agrees")
    windows: int = argument(
        1, "Windows of each video, those of a training's first epochs; then they come again.", whole(1), "agrees"
    )
    num_clips: int = argument(10000, "Clips of Moving MNIST.", whole(1), "agrees")
    batch_size: int = argument(8, "Clips that are read at once.", whole(1, 4096), "applies")


GROUPS = (VaeArguments, DataArguments, LatentArguments)


def main(argv: Sequence[str]) -> int:
    """Builds latents; returns the exit code: 2 where something was refused, 130 on Ctrl-C."""
    try:
        vae, data, args = resolve(flag_parser("latents build", "Encodes clips once.", GROUPS, False), GROUPS, argv)
        if vae.vae is None:
            raise ValueError("`vae` is None, expected a folder or a Hub id.")
        check_data(data)
        print(build(vae, data, args))
    except (ValueError, OSError, ImportError) as error:
        print(f"latents: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("latents: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    return 0


def build(vae_arguments: VaeArguments, data: DataArguments, args: LatentArguments) -> str:
    """Writes the latents of a training split; shards that are there are kept. Returns what was done, in a sentence.

    Raises:
        ValueError: where the VAE and the clips do not fit each other, or the folder holds something else.
        OSError: where a file is not there or cannot be written.
    """
    if data.streaming:
        raise ValueError("`streaming` is true, expected false: a training encodes a stream in each step.")
    began = time.perf_counter()
    vae = open_vae(vae_arguments)
    source = open_source(data, data.train_split, args.seed)
    data.num_channels = channels_of(source)
    space = LatentSpace(vae.to("cuda" if torch.cuda.is_available() else "cpu"))
    check_clips(space, data)
    for line in source.notes if isinstance(source, VideoClips) else ():
        print(f"latents: {line}", file=sys.stderr)
    clips = args.num_clips if isinstance(source, MovingMNIST) else len(source)
    shape = space.shape(data.num_frames, *data.height_width)
    rows = max(1, SHARD // (4 * int(np.prod(shape))))
    about = identity(vae, data, args.seed, source)
    about |= {"clips": clips, "windows": args.windows, "rows": rows, "shape": list(shape)}
    folder = default_folder(data) if args.out is None else Path(args.out)
    _claim(folder, about)
    total = clips * args.windows
    bar = tqdm(total=total, unit="clip", desc="encoding", disable=None)
    for shard in range(-(-total // rows)):
        inside = np.arange(shard * rows, min((shard + 1) * rows, total))
        file = folder / f"latents-{shard:05d}.safetensors"
        if not file.is_file():
            _write(file, inside, clips, source, space, args.batch_size, bar)
        else:
            bar.update(len(inside))
    bar.close()
    store = LatentStore(folder)
    size = sum(store.file(shard).stat().st_size for shard in store.shards)
    return (
        f"Latents of {clips} clips, {args.windows} windows of each, are in {folder}: "
        f"{' × '.join(map(str, shape))} (channels × frames × height × width), {size / 1e6:.1f} MB in "
        f"{len(store.shards)} files, {time.perf_counter() - began:.1f} s"
    )


def _claim(folder: Path, about: dict) -> None:
    """Makes the folder, or finds it begun by the same command.

    Raises:
        ValueError: where it holds something else.
        OSError: where it cannot be made.
    """
    if (folder / INDEX).is_file():
        stored = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        remedy = "Delete it, or give another `--out`."
        require_same(folder, stored, about, remedy)
        for key in ("clips", "windows"):
            if stored.get(key) != about[key]:
                raise ValueError(f"{folder} holds latents of `{key}` {stored.get(key)}, not {about[key]}. {remedy}")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"`out` is {folder}, expected a new or empty folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / INDEX) as draft:
        write_json(draft, about)


@torch.no_grad()
def _write(
    file: Path, rows: np.ndarray, clips: int, source: object, space: LatentSpace, batch_size: int, bar: tqdm
) -> None:
    """Encodes some rows into one shard, which appears whole or not at all."""
    latents, numbers = [], []
    for start in range(0, len(rows), batch_size):
        epochs, indices = np.divmod(rows[start : start + batch_size], clips)
        if isinstance(source, VideoClips):
            drawn, used = source.draw(indices, epochs)
        else:
            drawn, used = source.batch(indices), indices  # type: ignore[attr-defined]
        x = to_model(torch.from_numpy(drawn if drawn.ndim == 5 else drawn[..., None]), space.vae.device)
        latents.append(space.encode(x, ROWS).cpu())
        numbers.append(torch.from_numpy(np.asarray(used, np.int64)))
        bar.update(len(indices))
    with atomic_path(file) as draft:
        save_file({"latents": torch.cat(latents).contiguous(), "numbers": torch.cat(numbers)}, draft)
