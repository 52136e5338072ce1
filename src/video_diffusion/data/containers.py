"""Videos in containers (MP4, MOV, WebM, Matroska, AVI), decoded by FFmpeg through PyAV frame by frame."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from video_diffusion.data.frames import LIMITS, Frame, ReadLimits, Video, check_background, on_background

OPTIONS = {"protocol_whitelist": "file", "enable_drefs": "0"}  # a file can name other files: they are not read


def demuxer_of(head: bytes) -> str | None:
    """FFmpeg's name for what a file is by its first 16 bytes, or None for what is no container."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return "mov"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    return "avi" if head.startswith(b"RIFF") and head[8:12] == b"AVI " else None


class ContainerVideo(Video):
    """A video in a container. Each stored frame counts once; `times` says when it is shown.

    Frames are turned upright as the file says. The index comes from the packets, without decoding; in files whose
    packets have no times, as in AVI, the video is decoded once to count its frames.

    Args:
        file: the file, or its content.
        name: for messages.
        demuxer: of `demuxer_of`.
        background: black or white, under transparent pixels.
        limits: what is refused.

    Raises:
        ValueError: where it holds no video, is broken or truncated, or is beyond the limits.
    """

    def __init__(
        self, file: Path | bytes, name: str, demuxer: str, background: str = "black", limits: ReadLimits = LIMITS
    ) -> None:
        check_background(background)
        self.file, self.name, self.demuxer, self.background, self.limits = file, name, demuxer, background, limits
        with self._opened() as (container, stream):
            limits.check_frame(name, stream.height, stream.width)
            stamps = self._stamps_of_packets(container, stream)
            self.seekable = stamps is not None
        self.stamps = np.array(self._stamps_of_frames() if stamps is None else stamps, np.int64)
        if not len(self.stamps):
            raise ValueError(f"{name} holds no frames, expected at least one.")
        self.num_frames = len(self.stamps)
        first = next(self.frames([0]))
        self.height, self.width = first.shape[:2]
        self.times = (self.stamps - self.stamps[0]) * self.tick

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The open container and its video stream; errors of FFmpeg become ValueErrors that name the file."""
        source = io.BytesIO(self.file) if isinstance(self.file, bytes) else str(self.file)
        try:
            with av.open(source, format=self.demuxer, options=OPTIONS) as container:
                cover = av.stream.Disposition.attached_pic
                streams = [stream for stream in container.streams.video if not stream.disposition & cover]
                if not streams:
                    raise ValueError(f"{self.name} has no video stream, expected one.")
                streams[0].codec_context.thread_count = 1
                yield container, streams[0]
        except FileNotFoundError:
            raise
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.name} is a broken or truncated video: {error.strerror}") from error

    def _stamps_of_packets(self, container: Any, stream: Any) -> list[int] | None:
        """The times of all frames in the stream's ticks, ascending; None where the packets do not tell."""
        self.tick = float(stream.time_base)
        stamps: list[int | None] = []
        packets = 0
        for packet in container.demux(stream):
            if not packet.size:
                continue
            packets += 1
            if packet.is_corrupt:
                raise ValueError(f"{self.name} is a broken or truncated video: packet {packets} is damaged.")
            if not packet.is_discard:
                stamps.append(packet.pts)
            self.limits.check_count(self.name, len(stamps))
        if self.demuxer == "mov" and packets < stream.frames:
            raise ValueError(
                f"{self.name} is a broken or truncated video: it holds {packets} of {stream.frames} frames."
            )
        known = [stamp for stamp in stamps if stamp is not None]
        return sorted(known) if len(set(known)) == len(stamps) else None

    def _stamps_of_frames(self) -> list[int]:
        """The same by decoding all of the video; frames without a time are numbered."""
        with self._opened() as (container, stream):
            rate = float(stream.average_rate or stream.base_rate or 25)
            stamps: list[int | None] = []
            for frame in container.decode(stream):
                stamps.append(frame.pts)
                self.limits.check_count(self.name, len(stamps))
        known = [stamp for stamp in stamps if stamp is not None]
        if len(known) == len(stamps) and sorted(set(known)) == known:
            return known
        self.tick = 1 / rate
        return list(range(len(stamps)))

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """See `Video.frames`; decoding starts at the key frame before the first and ends with the last."""
        wanted = list(indices)
        if not wanted:
            return
        reformatter: Any = VideoReformatter()  # keeps its tables from frame to frame
        with self._opened() as (container, stream):
            decoded = self._from_key_frame(container, stream, wanted[0])
            number, frame = -1, None
            for index in wanted:
                while number < index:
                    number, raw = next(decoded, (self.num_frames, None))
                    if raw is None or number > index:
                        raise ValueError(f"{self.name} is a broken or truncated video: frame {index} is missing.")
                    if raw.is_corrupt:
                        raise ValueError(f"{self.name} is a broken or truncated video: frame {number} is damaged.")
                    frame = self._pixels(raw, reformatter) if number == index else None
                assert frame is not None
                yield frame

    def _from_key_frame(self, container: Any, stream: Any, first: int) -> Iterator[tuple[int, Any]]:
        """Decoded frames with their numbers, from `first` or before it on."""
        if not self.seekable:
            yield from enumerate(container.decode(stream))
            return
        if first:
            container.seek(int(self.stamps[first]), stream=stream)
        started = False
        for frame in container.decode(stream):
            number = self._number(frame.pts)
            if not started and number > first:  # the file's index points behind the frame: decode from the start
                container.seek(int(self.stamps[0]), stream=stream)
                yield from ((self._number(f.pts), f) for f in container.decode(stream))
                return
            started = True
            if number >= 0:
                yield number, frame

    def _number(self, stamp: int | None) -> int:
        """Which frame has this time; −1 where none has."""
        if stamp is None:
            return -1
        place = int(np.searchsorted(self.stamps, stamp))
        return place if place < len(self.stamps) and self.stamps[place] == stamp else -1

    def _pixels(self, frame: Any, reformatter: Any) -> Frame:
        """Upright pixels `[H, W, 3]`."""
        self.limits.check_frame(self.name, frame.height, frame.width)
        if any(component.is_alpha for component in frame.format.components):
            pixels = on_background(reformatter.reformat(frame, format="rgba", threads=1).to_ndarray(), self.background)
        else:
            pixels = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
