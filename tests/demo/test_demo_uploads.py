"""What the demo reads of an upload: told by content, measured before it is unpacked, named without its folder."""

import io
import struct
import subprocess
import zlib

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from video_diffusion.data.video_io import write_gif, write_mp4
from video_diffusion.demo.limits import Limits
from video_diffusion.demo.uploads import kind_of, moved, read_drawing, read_upload

LIMITS = Limits(upload_bytes=200_000, upload_files=4, upload_frames=20, upload_edge=64, upload_pixels=30_000)


@pytest.fixture
def clip():
    grey = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
    return grey


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, format="PNG")
    return out.getvalue()


def refuse(files, message, limits=LIMITS):
    with pytest.raises(ValueError, match=message) as caught:
        read_upload(files if isinstance(files, list) else [str(files)], limits)
    assert "/" not in str(caught.value)  # no folder of the server


# ------------------------------------------------------------------------------------------------------- what is read
@pytest.mark.parametrize("name", ["clip.gif", "clip.npy", "clip", "clip.exe"])
def test_a_video_is_read_whatever_it_is_called(clip, tmp_path, name):
    if name == "clip.npy":
        np.save(tmp_path / name, clip)
    else:
        write_gif(clip, tmp_path / "made.gif", scale=1)
        (tmp_path / "made.gif").rename(tmp_path / name)
    assert np.array_equal(read_upload([str(tmp_path / name)], LIMITS), clip)


def test_an_mp4_is_read_with_all_its_frames(clip, tmp_path):
    write_mp4(clip // 255 * 255, tmp_path / "clip.mp4", scale=2)
    read = read_upload(str(tmp_path / "clip.mp4"), LIMITS)
    assert read.shape == (5, 64, 64, 1)
    assert kind_of(tmp_path / "clip.mp4") == "mp4"


def test_png_frames_are_put_together_in_the_order_of_their_names(clip, tmp_path):
    files = []
    for i in (2, 0, 1):
        (tmp_path / f"f{i}.png").write_bytes(png(clip[i, ..., 0]))
        files.append(str(tmp_path / f"f{i}.png"))
    assert np.array_equal(read_upload(files, LIMITS), clip[:3])
    (tmp_path / "f3.png").write_bytes(png(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)))
    assert read_upload([*files, str(tmp_path / "f3.png")], LIMITS).shape == (4, 32, 32, 3)
    (tmp_path / "f3.png").write_bytes(png(clip[0, :16, :16, 0]))
    refuse([*files, str(tmp_path / "f3.png")], r"frames of sizes \[\(16, 16\), \(32, 32\)\], expected one size")


# ---------------------------------------------------------------------------------------------------- what is refused
def test_no_upload_is_refused():
    for nothing in (None, []):
        with pytest.raises(ValueError, match="There is no upload yet"):
            read_upload(nothing, LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF",
        b"<svg onload=alert(1)>",
        b"#EXTM3U\n#EXTINF:1\nfile:///etc/hosts",
        b"\xff\xd8\xff\xe0JPEG",
        b"II*\x00TIFF",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"PK\x03\x04 npz",
        b"\x80\x04\x95pickle",
        b"\x1aE\xdf\xa3webm",
        b"\x00\x00\x00\x18ftypheic",
        b"#!/bin/sh\n",
    ],
)
@pytest.mark.parametrize("name", ["clip.gif", "clip.mp4", "clip.npy", "clip.png"])
def test_other_content_is_refused_under_any_name(tmp_path, data, name):
    (tmp_path / name).write_bytes(data)
    refuse(tmp_path / name, rf"^{name} is not a video that the demo takes: expected a GIF, an MP4")


@pytest.mark.parametrize("kind", ["gif", "png", "npy", "mp4"])
def test_a_broken_or_truncated_file_is_refused(clip, tmp_path, kind):
    whole = tmp_path / f"whole.{kind}"
    if kind == "png":
        whole.write_bytes(png(clip[0, ..., 0]))
    else:
        {"gif": write_gif, "mp4": write_mp4, "npy": lambda c, p: np.save(p, c)}[kind](clip[:, :16, :16], whole)
    data = whole.read_bytes()
    for length in (16, len(data) // 2):
        (tmp_path / f"part.{kind}").write_bytes(data[:length])
        refuse(tmp_path / f"part.{kind}", rf"part.{kind} is (a broken or truncated|truncated|not a readable)")
    (tmp_path / f"junk.{kind}").write_bytes(data[:16] + b"\xff" * 500)
    refuse(tmp_path / f"junk.{kind}", rf"junk.{kind} (is|has|holds)")


def test_too_many_bytes_files_or_kinds_are_refused_before_they_are_opened(clip, tmp_path):
    (tmp_path / "big.gif").write_bytes(b"GIF89a" + bytes(LIMITS.upload_bytes))
    refuse(tmp_path / "big.gif", r"The upload has 0.2 MiB, expected at most 0.19")
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(png(clip[0, ..., 0]))
    refuse([str(tmp_path / f"{i}.png") for i in range(5)], "The upload has 5 files, expected at most 4")
    write_gif(clip, tmp_path / "clip.gif", scale=1)
    refuse([str(tmp_path / "0.png"), str(tmp_path / "clip.gif")], "clip.gif is no PNG: expected one video, or several")


def test_too_many_frames_or_pixels_are_refused(clip, tmp_path):
    write_gif(np.repeat(clip[:, :8, :8], 5, axis=0) ^ np.arange(25, dtype=np.uint8)[:, None, None, None],
              tmp_path / "long.gif", scale=1)  # fmt: skip
    refuse(tmp_path / "long.gif", "long.gif has more than 20 frames")
    write_mp4(np.zeros((25, 16, 16, 1), np.uint8), tmp_path / "long.mp4", scale=1)
    refuse(tmp_path / "long.mp4", "long.mp4 has more than 20 frames")
    write_gif(clip, tmp_path / "wide.gif", scale=4)
    refuse(tmp_path / "wide.gif", "wide.gif has 128×128 pixels, expected at most 64 along an edge")
    write_mp4(clip, tmp_path / "wide.mp4", scale=4)
    refuse(tmp_path / "wide.mp4", "wide.mp4 has 128×128 pixels")
    np.save(tmp_path / "many.npy", np.zeros((15, 60, 60), np.uint8))
    refuse(tmp_path / "many.npy", "many.npy has 15 frames of 60×60 pixels, expected at most 30000 pixels in all")


# ----------------------------------------------------------------------------------------- small files, large claims
def test_a_gif_whose_times_ask_for_many_repeats_is_refused(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 255)]
    frames[0].save(tmp_path / "slow.gif", save_all=True, append_images=frames[1:], duration=[10, 600_000])
    assert (tmp_path / "slow.gif").stat().st_size < 2000
    refuse(tmp_path / "slow.gif", "slow.gif has more than 20 frames")


def test_a_png_that_claims_a_huge_size_is_refused_unpacked(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000)))
    (tmp_path / "bomb.png").write_bytes(data + chunk(b"IEND", b""))
    refuse(tmp_path / "bomb.png", "bomb.png is too large")


@pytest.mark.parametrize("shape", [(10**6, 10**6, 10**6), (20, 60, 61), (-5, -32, 32)])
def test_an_array_whose_header_claims_more_than_the_file_holds_is_refused(tmp_path, shape):
    with (tmp_path / "claim.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(5 * 32 * 32))
    refuse(tmp_path / "claim.npy", "claim.npy (is truncated|has uint8 of shape)")


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return marker.touch, ()

    np.save(tmp_path / "objects.npy", np.array([[[Bomb()]]], dtype=object), allow_pickle=True)
    refuse(tmp_path / "objects.npy", "objects.npy has object of shape")
    assert not marker.exists()


def test_ffmpeg_reads_an_mp4_as_nothing_else(clip, tmp_path):
    write_mp4(clip, tmp_path / "clip.mp4", scale=1)
    made = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(tmp_path / "clip.mp4"), "-c", "copy"]
    subprocess.run([*made, str(tmp_path / "clip.mkv")], check=True)
    disguised = b"\x00\x00\x00\x18ftypisom" + (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "disguised.mp4").write_bytes(disguised)
    refuse(tmp_path / "disguised.mp4", "disguised.mp4 is a broken or truncated video")


# ------------------------------------------------------------------------------------------------------------ drawings
def test_a_drawing_is_white_ink_on_black_at_the_models_size():
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[:32, :32] = (0, 0, 0, 255)
    frame = read_drawing({"layers": [layer], "composite": None}, 32, 32, LIMITS)
    assert frame.shape == (1, 32, 32, 1)
    assert (frame[0, :16, :16] == 255).all()
    assert frame.sum() == 16 * 16 * 255


@pytest.mark.parametrize(
    "sketch", [None, {}, {"layers": []}, {"layers": [np.zeros((8, 8, 4), np.uint8)]}, {"layers": [np.ones((8, 8, 3))]}]
)
def test_an_empty_drawing_is_refused(sketch):
    with pytest.raises(ValueError, match="The drawing is empty"):
        read_drawing(sketch, 32, 32, LIMITS)


def test_a_drawing_beyond_the_limits_is_refused():
    with pytest.raises(ValueError, match="The drawing is too large, expected at most 64 pixels"):
        read_drawing({"layers": [np.full((65, 8, 4), 255, np.uint8)]}, 32, 32, LIMITS)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (3, 1), (-2, 5), (0, -31), (31, 0)])
def test_moving_shifts_and_fills_with_black(clip, right, down):
    inside = np.zeros((5, 96, 96, 1), np.uint8)
    inside[:, 32 + down : 64 + down, 32 + right : 64 + right] = clip
    assert np.array_equal(moved(clip, right, down), inside[:, 32:64, 32:64])
    assert not moved(clip, 32, 0).any()
