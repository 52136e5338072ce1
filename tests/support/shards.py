"""WebDataset's tar files of small videos; video k has the brightness 20·k, and frame i of it 20·k + i."""

import io
import json
import tarfile

import numpy as np

from video_diffusion.data.video_io import write_mp4


def one_brightness(number, frames=8):
    return (20 * number + np.arange(frames))[:, None, None, None] + np.zeros((frames, 16, 24, 1))


def make_shards(folder, split="train", sizes=(4, 3)):
    """Tar files with so many videos, each an MP4, a text and JSON with a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    number, clip = 0, folder / "clip.mp4"
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"{split}-{shard:03d}.tar", "w") as tar:
            for k in range(number, number + size):
                write_mp4(one_brightness(k).astype(np.uint8), clip, 8, scale=1)
                members = {"mp4": clip.read_bytes(), "txt": f"text {k}".encode()}
                members["json"] = json.dumps({"caption": f"json {k}", "number": k}).encode()
                for ending, content in members.items():
                    info = tarfile.TarInfo(f"{k:04d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        number += size
    clip.unlink()
    return folder
