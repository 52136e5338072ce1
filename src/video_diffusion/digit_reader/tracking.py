"""Reads clips: which digits they show, and where each goes. Findings of single frames are joined over time."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from video_diffusion.data.captions import DIRECTIONS, STILL, Fact, sectors
from video_diffusion.digit_reader.reader import Findings, find_digits

LEAP = 8.0  # pixels that a digit may move from one frame to the next, more than in either variant
GAP = 4  # frames that a digit may be hidden for
LONG_ENOUGH = 0.3  # share of the frames in which a digit must be seen to count
STRAIGHT = 0.8  # pixels by which the places of a straight path are off at most, root mean square
AT_WALL = 1.0  # pixels from a wall that are at it


@dataclass
class Track:
    """One digit over time.

    Args:
        frames: where it was found, ascending, k of them.
        centres: y and x of its middle there, k pairs in pixels.
        classes: log-probabilities of the digits 0 … 9, k of them.
        present: probabilities that it is a digit, k of them.
    """

    frames: list[int] = field(default_factory=list)
    centres: list[NDArray[np.float64]] = field(default_factory=list)
    classes: list[NDArray[np.float64]] = field(default_factory=list)
    present: list[float] = field(default_factory=list)

    def add(self, frame: int, findings: Findings, i: int) -> None:
        """Appends finding i of a frame."""
        self.frames.append(frame)
        self.centres.append(findings.centres[i])
        self.classes.append(findings.classes[i])
        self.present.append(float(findings.present[i]))

    @property
    def digit(self) -> int:
        """The class that its frames vote for, each with its log-probabilities (at least log 0.001)."""
        return int(np.maximum(self.classes, np.log(1e-3)).sum(0).argmax())

    @property
    def weight(self) -> float:
        """How much there is of it: its summed presence."""
        return sum(self.present)

    def direction(self, walls: tuple[float, float]) -> str:
        """Where it goes at the start: one of `DIRECTIONS`, or `STILL`; `walls` as in `start_sector`."""
        return (*DIRECTIONS, STILL)[start_sector(np.array(self.frames), np.array(self.centres), walls)]

    @property
    def speeds(self) -> NDArray[np.float64]:
        """Pixels per frame between neighbouring frames in which it was found, up to k − 1 of them."""
        frames, steps = np.diff(self.frames), np.diff(np.array(self.centres), axis=0)
        return np.hypot(*steps[frames == 1].T)

    def expected(self, frame: int) -> NDArray[np.float64]:
        """Where it is in a later frame, if it goes on."""
        last = self.centres[-1]
        if len(self.frames) < 2:
            return last
        velocity = (last - self.centres[-2]) / (self.frames[-1] - self.frames[-2])
        return last + np.clip(velocity, -LEAP, LEAP) * (frame - self.frames[-1])


def track_digits(findings: Sequence[Findings]) -> list[Track]:
    """
    Joins the findings of a clip's frames, `[F]`, to digits over time, those with most to be seen first.

    In each frame the nearest pairs of track and finding are joined, where "near" is the distance from where the track
    leads or from where it was, and the classes agree or little is sure of them.
    """
    tracks: list[Track] = []
    for frame, found in enumerate(findings):
        alive = [track for track in tracks if frame - track.frames[-1] <= GAP]
        pairs = sorted(
            (cost(track, found, i, frame), t, i) for t, track in enumerate(alive) for i in range(len(found.present))
        )
        used: tuple[set[int], set[int]] = (set(), set())
        for price, t, i in pairs:
            if price < 2 * LEAP and t not in used[0] and i not in used[1]:
                alive[t].add(frame, found, i)
                used[0].add(t)
                used[1].add(i)
        for i in range(len(found.present)):
            if i not in used[1]:
                tracks.append(Track())
                tracks[-1].add(frame, found, i)
    return sorted(tracks, key=lambda track: -track.weight)


def cost(track: Track, found: Findings, i: int, frame: int) -> float:
    """How far a finding is from a track, in pixels; infinite where the digit cannot have moved so far."""
    moved = np.abs(found.centres[i] - track.centres[-1]).max()
    if moved > LEAP * (frame - track.frames[-1]):
        return float("inf")
    off = np.abs(found.centres[i] - track.expected(frame)).max()
    alike = float(np.exp(np.logaddexp.reduce((np.mean(track.classes, 0) + found.classes[i]) / 2)))  # Bhattacharyya
    return min(moved, off) + LEAP * (1 - alike)


def read_clip(findings: Sequence[Findings], num_digits: int) -> list[Track]:
    """The digits of a clip, at most `num_digits`: those seen most, each in enough frames to count."""
    tracks = track_digits(findings)[:num_digits]
    return [track for track in tracks if len(track.frames) >= LONG_ENOUGH * len(findings)]


def start_sector(frames: NDArray[np.int64], centres: NDArray[np.float64], walls: tuple[float, float]) -> int:
    """
    The direction of the longest straight beginning of a path, as an index of `captions.sectors`.

    A line is fitted to the first places: to all before the first wall, or to fewer where they do not lie on a line.
    Two always count. Less than a pixel is still.

    Args:
        frames: `[k]`, ascending.
        centres: y and x of the digit's middle, `[k, 2]`.
        walls: the least and the largest place that a middle can have, along both axes.
    """
    moved = centres - centres[:1]
    arrived = ((centres < walls[0] + AT_WALL) & (moved < -AT_WALL)) | (
        (centres > walls[1] - AT_WALL) & (moved > AT_WALL)
    )
    at_wall = arrived.any(-1)
    last = max(int(at_wall.argmax()), 2) if at_wall.any() else len(frames)
    velocity = np.zeros(2)
    for count in range(2, last + 1):
        time, place = frames[:count] - frames[:count].mean(), centres[:count] - centres[:count].mean(0)
        slope = time @ place / (time @ time)
        off = np.sqrt((np.abs(place - np.outer(time, slope)).max(-1) ** 2).mean())
        if off <= STRAIGHT:
            velocity = slope
        elif off > 2 * STRAIGHT:
            break
    still = np.abs(velocity * (frames[-1] - frames[0])).max() < 1
    return int(sectors(*(velocity * (not still))))


def walls_of(image_size: int, digit_size: int) -> tuple[float, float]:
    """The least and the largest place of a digit's middle."""
    return digit_size / 2, image_size - digit_size / 2


def read_clips(
    clips: NDArray[np.uint8], num_digits: int, digit_size: int = 28, device: str = "cpu"
) -> list[list[Fact]]:
    """
    The facts of clips as `captions.describe_clips` gives them, without walls, from the pixels alone.

    Args:
        clips: uint8 `[N, F, H, W]`.
        num_digits: the most digits that a clip can have.
        digit_size: of a digit as it was drawn in training, which says where the walls are.
        device: where the network runs.
    """
    N, frames = clips.shape[:2]
    walls = walls_of(clips.shape[-1], digit_size)
    findings = find_digits(clips.reshape(-1, *clips.shape[2:]), device)
    tracks = [read_clip(findings[n * frames : (n + 1) * frames], num_digits) for n in range(N)]
    return [[Fact(track.digit, track.direction(walls) if frames > 1 else None) for track in clip] for clip in tracks]
