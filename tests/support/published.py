"""Miniature copies of published data sets, frame i of a video has the brightness 2·i + its number."""

import struct
from pathlib import Path

import av
import numpy as np
from PIL import Image

from video_diffusion.data.tfrecords import masked_crc32c

RANGES = """
This database contains sequences of six classes of actions performed by
25 subjects in four different conditions d1-d4 (see below).

d1 - Static homogenous background
d2 - -"-                          + Scale variations

Training:   person11, 12, 13, 14, 15, 16, 17, 18
Test:       person22, 02, 03, 05, 06, 07, 08, 09, 10

person01_boxing_d1		frames	1-55, 56-110
person02_walking_d3      frames  1-52
person13_handclapping_d3    *missing*
person17_running_d1		frames	1-40, 61-115
person17_boxing_d4		frames	1-51, 52-200
person25_walking_d2		frames	3-60,
"""
FRAMES = 115


def plain(frames, height, width, number=0):
    """`[F, H, W, 3]`, frame i of the brightness 2·i + number."""
    values = 2 * np.arange(frames) + number
    return np.broadcast_to(values[:, None, None, None], (frames, height, width, 3)).astype(np.uint8)


def brightness(clip):
    return np.rint(clip.mean((1, 2, 3))).astype(int).tolist()


def write_avi(path, clip):
    """As KTH's: MPEG-4 in AVI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25, options={"g": "1"})
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        stream.bit_rate = 8_000_000
        for frame in clip:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        file.mux(stream.encode())


def make_kth(folder: Path) -> Path:
    """Two videos of persons who are trained on, three of others with sub-sequences of 40 to 64 frames."""
    folder.mkdir(parents=True)
    (folder / "00sequences.txt").write_text(RANGES)
    for number, line in enumerate(line for line in RANGES.splitlines() if "frames" in line):
        key = line.split()[0]
        write_avi(folder / key.split("_")[1] / f"{key}_uncomp.avi", plain(FRAMES, 120, 160, number))
    return folder


# ------------------------------------------------------------------------------------------------- records, as BAIR's
def part(number, content):
    """A field of a protocol buffer that has a length."""
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(value):
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def example(frames):
    """An Example with both cameras and the actions; the other camera is black."""
    features = b""
    for i, frame in enumerate(frames):
        numbers = part(2, part(1, struct.pack("<4f", 1, 2, 3, 4)))  # a list of floats
        pairs = {"image_aux1/encoded": frame.tobytes(), "image_main/encoded": bytes(frame.nbytes)}
        for name, value in pairs.items():
            features += part(1, part(1, f"{i}/{name}".encode()) + part(2, part(1, part(1, value))))
        features += part(1, part(1, f"{i}/action".encode()) + part(2, numbers))
    return part(1, features)


def write_records(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for record in records:
            head = struct.pack("<Q", len(record))
            file.write(head + struct.pack("<I", masked_crc32c(head)) + record + struct.pack("<I", 0))


def make_bair(folder: Path, kind: str, frames: int = 18) -> Path:
    """Two videos to train on and three to test, as record files or pictures; their numbers are 0 to 40."""
    for split, numbers in (("train", (0, 1)), ("test", (2, 3, 4))):
        videos = [plain(frames, 64, 64, 10 * number) for number in numbers]
        if kind == "records":
            place = folder / "softmotion30_44k" / split / "traj_0_to_255.tfrecords"
            write_records(place, [example(video) for video in videos])
            continue
        for k, video in enumerate(videos, start=1):
            place = folder / "processed_data" / split / "traj_0_to_255" / str(k)
            place.mkdir(parents=True)
            for i, frame in enumerate(video):
                Image.fromarray(frame).save(place / f"{i}.png")
    return folder
