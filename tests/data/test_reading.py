"""Files that people bring, made here by other programs than the reader: each frame comes back as a viewer sees it."""

import io
import os
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from fractions import Fraction

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from video_diffusion.data.frames import ReadLimits
from video_diffusion.data.pictures import repeats
from video_diffusion.data.reading import open_video, read_video
from video_diffusion.data.video_io import upscale, write_gif, write_mp4


def numbered(frames=20, height=24, width=32):
    """Grey frames, each of one brightness: frame i is 10·i."""
    return np.broadcast_to(10 * np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, height, width, 1))


def numbers_in(clip):
    """Which frames of `numbered` these are."""
    return np.rint(clip.mean((1, 2, 3)) / 10).astype(int).tolist()


def ffmpeg(*words):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, words)], check=True)


def textured(height=48, width=64):
    """Smooth colours that differ in each corner."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], -1).astype(np.uint8)


# ----------------------------------------------------------------------------------------------------- picture folders
def save_frames(folder, name, frames):
    folder.mkdir(exist_ok=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame.squeeze()).save(folder / name.format(i), format="PNG")


@pytest.mark.parametrize("name", ["{}.png", "frame{}.PNG", "v1-{:05d}.png", "{}-left.png"])
def test_pictures_are_read_in_the_order_of_their_numbers(tmp_path, name):
    save_frames(tmp_path / "clip", name, numbered())
    assert np.array_equal(read_video(tmp_path / "clip"), numbered())


def test_hidden_files_and_other_files_beside_the_pictures_are_left_out(tmp_path):
    save_frames(tmp_path / "clip", "{}.png", numbered(3))
    (tmp_path / "clip" / "._0.png").write_bytes(b"\0\5\x16\7 what macOS leaves")
    (tmp_path / "clip" / ".DS_Store").write_bytes(b"")
    (tmp_path / "clip" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "clip" / "notes.txt").write_text("three frames")
    assert np.array_equal(read_video(tmp_path / "clip"), numbered(3))


def test_folders_that_are_no_clip_are_refused(tmp_path):
    save_frames(tmp_path / "sizes", "{}.png", [numbered(1)[0], numbered(1, 8, 8)[0]])
    with pytest.raises(ValueError, match=r"sizes has frames of sizes \[\(8, 8\), \(24, 32\)\], expected one size"):
        read_video(tmp_path / "sizes")
    save_frames(tmp_path / "kinds", "{}.png", numbered(2))
    Image.fromarray(numbered(1)[0].squeeze()).save(tmp_path / "kinds" / "2.bmp")
    with pytest.raises(ValueError, match=r"kinds holds .bmp and .png files, expected pictures of one kind"):
        read_video(tmp_path / "kinds")


# --------------------------------------------------------------------------------------------------- kinds of pictures
def read_picture(tmp_path, image, ending="png", background="black", **options):
    image.save(tmp_path / f"picture.{ending}", **options)
    return read_video(tmp_path / f"picture.{ending}", background=background)[0]


def test_transparent_pixels_show_the_background_and_ink_is_kept(tmp_path):
    ink = np.zeros((8, 8), np.uint8)
    ink[2:5, 3] = 255
    for value, background in ((255, "black"), (0, "white")):
        paper = {"black": 0, "white": 255}[background]
        expected = np.where(ink > 0, value, paper)
        rgba = np.dstack([np.full((8, 8, 3), value, np.uint8), ink])
        grey = np.dstack([np.full((8, 8), value, np.uint8), ink])
        for image in (Image.fromarray(rgba), Image.fromarray(grey)):
            assert np.array_equal(read_picture(tmp_path, image, background=background)[..., 0], expected)
        palette = Image.fromarray((ink > 0).astype(np.uint8), "P")
        palette.putpalette([90, 90, 90, value, value, value])
        frame = read_picture(tmp_path, palette, background=background, transparency=0)
        assert np.array_equal(frame[..., 0], expected)
    half = Image.fromarray(np.full((4, 4, 4), 128, np.uint8), "RGBA")
    assert np.unique(read_picture(tmp_path, half, background="black")).tolist() == [64]
    with pytest.raises(ValueError, match="`background` is 'grey', expected one of black, white"):
        read_video(tmp_path / "picture.png", background="grey")


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled_from_their_full_range(tmp_path, ending):
    grey = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    assert read_picture(tmp_path, Image.fromarray(grey), ending)[..., 0].tolist() == [[0, 100], [200, 255]]


def test_floats_are_read_from_zero_to_one(tmp_path):
    grey = np.array([[0.0, 0.2], [0.5, 1.0]], np.float32)
    assert read_picture(tmp_path, Image.fromarray(grey), "tiff")[..., 0].tolist() == [[0, 51], [128, 255]]
    with pytest.raises(ValueError, match=r"picture.tiff runs from 0 to 2, expected floats in \[0, 1\]"):
        read_picture(tmp_path, Image.fromarray(2 * grey), "tiff")


def test_palette_black_and_white_and_cmyk_pictures_have_their_colours(tmp_path):
    colours = textured()
    palette = Image.fromarray(colours).quantize(256)
    assert np.array_equal(read_picture(tmp_path, palette), np.asarray(palette.convert("RGB")))
    bits = np.indices((6, 7)).sum(0) % 2 > 0
    assert np.array_equal(read_picture(tmp_path, Image.fromarray(bits))[..., 0], bits * 255)
    cmyk = Image.fromarray(colours).convert("CMYK")
    assert np.abs(read_picture(tmp_path, cmyk, "tiff").astype(int) - colours).max() <= 1
    assert np.abs(read_picture(tmp_path, cmyk, "jpg", quality=95).astype(int) - colours).mean() < 3


def test_an_interlaced_png_is_read(tmp_path):
    """Adam7, written here by hand: Pillow writes none."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(b"\0" + row.tobytes() for y, x, dy, dx in passes for row in grey[y::dy, x::dx])

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "adam7.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert np.array_equal(read_video(tmp_path / "adam7.png")[0, ..., 0], grey)


def test_a_photograph_stands_as_its_exif_data_say(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it upright
    frame = read_picture(tmp_path, Image.fromarray(textured()), "jpg", exif=exif, quality=95)
    assert frame.shape == (64, 48, 3)
    assert np.abs(frame.astype(int) - np.rot90(textured(), -1)).mean() < 3


# ---------------------------------------------------------------------------------------------------------- animations
def test_a_gif_of_ours_gives_back_each_frame_equal_or_not(tmp_path):
    for order in ([0, 0, 1, 2, 2, 2, 3, 3], [5] * 20, [1, 1, 1, 2, 2]):
        for fps in (7, 8, 24, 100):
            write_gif(numbered()[order], tmp_path / "clip.gif", fps=fps, scale=1)
            assert numbers_in(read_video(tmp_path / "clip.gif")) == order


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_equal_neighbours_that_a_writer_merged_count_as_often_as_they_are_shown(tmp_path, ending):
    frames = [Image.fromarray(frame.squeeze()) for frame in numbered()[[0, 1, 2]]]
    options = {"lossless": True} if ending == "webp" else {}
    frames[0].save(
        tmp_path / f"clip.{ending}", save_all=True, append_images=frames[1:], duration=[200, 300, 100], **options
    )
    video = open_video(tmp_path / f"clip.{ending}")
    assert numbers_in(video.read()) == [0, 0, 1, 1, 1, 2]
    np.testing.assert_allclose(video.times, np.arange(6) / 10)
    assert numbers_in(video.read([1, 2, 2, 5])) == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("durations", "unit", "counts"),
    [
        ([70, 70, 60, 70, 70, 60], 60, [1] * 6),  # 15 frames a second, rounded to hundredths
        ([40, 30, 30], 30, [1, 1, 1]),
        ([200, 300], 100, [2, 3]),
        ([80, 40, 400], 40, [2, 1, 10]),
        ([100], 100, [1]),
        ([10, 10, 500], 10, [1, 1, 50]),
    ],
)
def test_the_rate_of_an_animation_is_found_in_its_durations(durations, unit, counts):
    assert repeats(durations) == (unit, counts)


def test_a_gif_that_draws_only_what_changes_is_put_together(tmp_path):
    video = np.zeros((4, 16, 16, 3), np.uint8)
    for i in range(4):
        video[i, :, : 4 * i + 4] = (200, 40 * i, 10)
    save_frames(tmp_path / "frames", "{}.png", video)
    ffmpeg("-framerate", 10, "-i", tmp_path / "frames" / "%d.png", tmp_path / "clip.gif")
    ffmpeg("-i", tmp_path / "clip.gif", tmp_path / "shown-%d.png")  # what FFmpeg shows of its own GIF
    shown = [np.asarray(Image.open(tmp_path / f"shown-{i}.png").convert("RGB")) for i in (1, 2, 3, 4)]
    assert np.array_equal(read_video(tmp_path / "clip.gif"), shown)


# ---------------------------------------------------------------------------------------------------------- containers
CODECS = {
    "mp4": ["-c:v", "libx264", "-bf", "2", "-g", "6", "-pix_fmt", "yuv420p"],
    "mov": ["-c:v", "prores"],
    "mkv": ["-c:v", "libx264", "-g", "6", "-pix_fmt", "yuv420p"],
    "webm": ["-c:v", "libvpx-vp9", "-g", "6", "-pix_fmt", "yuv420p"],
    "avi": ["-c:v", "mpeg4", "-bf", "2", "-q:v", "2", "-g", "6"],
}


def contained(tmp_path, ending, clip=None, rate=10, more=()):
    clip = numbered() if clip is None else clip
    save_frames(tmp_path / "frames", "{}.png", clip)
    path = tmp_path / f"clip.{ending}"
    ffmpeg("-framerate", rate, "-i", tmp_path / "frames" / "%d.png", *CODECS[ending], *more, path)
    return path


@pytest.mark.parametrize("ending", sorted(CODECS))
def test_every_frame_of_a_container_is_found_by_its_number(tmp_path, ending):
    path = contained(tmp_path, ending)
    video = open_video(path)
    assert (video.num_frames, video.height, video.width) == (20, 24, 32)
    assert numbers_in(video.read()) == list(range(20))
    for wanted in ([0], [19], [7, 7, 8, 13], [5, 6, 7, 18]):
        assert numbers_in(video.read(wanted)) == wanted
    np.testing.assert_allclose(video.times, np.arange(20) / 10, atol=1e-3)
    path.rename(tmp_path / "named-wrongly.gif")
    assert numbers_in(read_video(tmp_path / "named-wrongly.gif", frames=[3])) == [3]
    assert numbers_in(open_video((tmp_path / "named-wrongly.gif").read_bytes()).read([4])) == [4]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_video_stands_as_its_container_says(tmp_path, degrees):
    flat = contained(tmp_path, "mp4", np.stack([textured()] * 3))
    ffmpeg("-display_rotation", degrees, "-i", flat, "-c", "copy", tmp_path / "turned.mp4")
    ffmpeg("-i", tmp_path / "turned.mp4", "-frames:v", 1, tmp_path / "upright.png")  # FFmpeg's own player turns it
    expected = np.asarray(Image.open(tmp_path / "upright.png").convert("RGB")).astype(int)
    frame = read_video(tmp_path / "turned.mp4")[0]
    assert frame.shape == ((64, 48, 3) if degrees != 180 else (48, 64, 3))
    assert np.abs(frame - expected).mean() < 2


def test_a_variable_frame_rate_has_each_frame_once_at_its_time(tmp_path):
    stamps = [0, 1, 2, 10, 11, 30]
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for stamp, frame in zip(stamps, numbered(6), strict=True):
            picture = av.VideoFrame.from_ndarray(np.repeat(frame, 3, -1), format="rgb24")
            picture.pts, picture.time_base = stamp, Fraction(1, 10)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    video = open_video(tmp_path / "clip.mp4")
    assert numbers_in(video.read()) == list(range(6))
    np.testing.assert_allclose(video.times, np.array(stamps) / 10, atol=1e-3)


def test_odd_sizes_and_transparent_videos_are_read(tmp_path):
    odd = contained(tmp_path, "webm", numbered(4, 23, 31))
    assert read_video(odd).shape == (4, 23, 31, 1)
    rgba = np.zeros((2, 16, 16, 4), np.uint8)
    rgba[:, 4:8, 4:8] = 255
    rgba[..., :3] = 255
    save_frames(tmp_path / "ink", "{}.png", rgba)
    ffmpeg("-i", tmp_path / "ink" / "%d.png", "-c:v", "qtrle", "-pix_fmt", "argb", tmp_path / "ink.mov")
    clip = read_video(tmp_path / "ink.mov")
    assert np.array_equal(clip[..., 0], rgba[..., 3])
    assert (read_video(tmp_path / "ink.mov", background="white") == 255).all()


def test_broken_containers_are_refused_by_name(tmp_path):
    whole = contained(tmp_path, "mp4", np.random.default_rng(0).integers(0, 256, (20, 24, 32, 3), np.uint8))
    ffmpeg("-i", whole, "-c", "copy", "-movflags", "+faststart", tmp_path / "fast.mp4")
    data = (tmp_path / "fast.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: 2 * len(data) // 3])
    with pytest.raises(ValueError, match=r"cut.mp4 is a broken or truncated video: packet \d+ is damaged"):
        open_video(tmp_path / "cut.mp4")
    ffmpeg("-f", "lavfi", "-i", "anullsrc", "-t", 1, tmp_path / "sound.m4a")
    with pytest.raises(ValueError, match=r"sound.m4a has no video stream, expected one"):
        open_video(tmp_path / "sound.m4a")


def test_a_video_never_makes_the_reader_open_another_file(tmp_path):
    write_mp4(numbered(2), tmp_path / "secret.mp4")
    for content in (
        f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n",
        f"#EXTM3U\n#EXTINF:1\n{tmp_path}/secret.mp4\n",
    ):
        (tmp_path / "list.mp4").write_text(content)
        with pytest.raises(ValueError, match=r"list.mp4 is not a video"):
            open_video(tmp_path / "list.mp4")


# -------------------------------------------------------------------------------------------------------------- arrays
def test_the_axes_of_an_array_are_recognised_asked_for_or_given(tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), np.uint8)
    layouts = {"a": clip, "b": np.moveaxis(clip, -1, 1)}
    for name, array in layouts.items():
        np.save(tmp_path / f"{name}.npy", array)
        np.savez_compressed(tmp_path / f"{name}.npz", video=array)
        assert np.array_equal(read_video(tmp_path / f"{name}.npy"), clip)
        assert np.array_equal(read_video(tmp_path / f"{name}.npz"), clip)
    np.save(tmp_path / "c.npy", np.concatenate([clip, np.full((5, 8, 9, 1), 255, np.uint8)], -1))
    assert np.array_equal(read_video(tmp_path / "c.npy"), clip)
    np.save(tmp_path / "d.npy", clip[:, :3, :, :])  # 5 frames of 3 × 9 pixels, or of 9 × 3 with the channels first
    assert np.array_equal(read_video(tmp_path / "d.npy", video_axes="FHWC"), clip[:, :3])
    assert np.array_equal(read_video(tmp_path / "d.npy", video_axes="FCHW"), np.moveaxis(clip[:, :3], 1, -1))
    with pytest.raises(ValueError, match=r"`video_axes` is 'WHF', expected one of FHW, FHWC, FCHW"):
        read_video(tmp_path / "d.npy", video_axes="WHF")


def test_bool_and_sixteen_bit_arrays_are_scaled(tmp_path):
    np.save(tmp_path / "bool.npy", numbered(2)[..., 0] > 0)
    assert np.unique(read_video(tmp_path / "bool.npy")).tolist() == [0, 255]
    np.save(tmp_path / "deep.npy", numbered()[..., 0].astype(np.uint16) * 257)
    assert np.array_equal(read_video(tmp_path / "deep.npy"), numbered())


# --------------------------------------------------------------------------------------------- memory, and small bombs
def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 1000)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("video.npy", header.getvalue() + bytes(10**6))
    with pytest.raises(ValueError, match=r"bomb.npz has shape \(1000000, 1000, 1000\), expected at most"):
        read_video(tmp_path / "bomb.npz")
    with zipfile.ZipFile(tmp_path / "short.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        np.lib.format.write_array_header_1_0(header := io.BytesIO(), shape | {"shape": (10, 10, 10)})
        archive.writestr("video.npy", header.getvalue() + bytes(999))
    with pytest.raises(ValueError, match=r"short.npz is truncated: 999 bytes of data"):
        read_video(tmp_path / "short.npz")


def test_limits_bound_what_is_held_at_once_at_the_size_asked_for(tmp_path):
    path = contained(tmp_path, "mp4")
    limits = ReadLimits(pixels=20 * 12 * 16)
    with pytest.raises(ValueError, match=r"clip.mp4 has 20 frames of 32×24 pixels, expected at most 3840 pixels"):
        read_video(path, limits=limits)
    assert read_video(path, size=(12, 16), limits=limits).shape == (20, 12, 16, 1)
    assert read_video(path, frames=range(5), limits=limits).shape == (5, 24, 32, 1)
    for tight, words in (
        (ReadLimits(frames=19), "more than 19 frames"),
        (ReadLimits(edge=31), "at most 31 along"),
        (ReadLimits(frame_pixels=700), "at most 700 in a frame"),
    ):
        with pytest.raises(ValueError, match=words):
            open_video(path, limits=tight)


MEASURE = """
    import resource, sys
    from video_diffusion.data.reading import read_video
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clip = read_video(sys.argv[1], frames=range(5), size=(72, 128))
    print(clip.shape, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_long_video_takes_the_memory_of_the_frames_that_are_asked_for(tmp_path):
    """20 s of 1280×720 once took 4.8 GB to give 5 frames."""
    source = ["-f", "lavfi", "-i", "color=orange:size=1280x720:rate=25:duration=20"]
    ffmpeg(*source, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", tmp_path / "long.mp4")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path / "long.mp4")]
    shape, mebibytes = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=True
    ).stdout.rsplit(" ", 1)
    assert shape == "(5, 72, 128, 3)"
    assert int(mebibytes) < 150


def test_frames_are_resized_as_they_are_read(tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    np.save(tmp_path / "clip.npy", upscale(clip, 4))
    assert np.array_equal(read_video(tmp_path / "clip.npy", size=(8, 8)), clip)
