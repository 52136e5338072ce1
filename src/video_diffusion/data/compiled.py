"""
The generator's loops compiled by numba: the same bytes as `trajectories` and `moving_mnist.render`, in one pass.

NumPy does one operation on a whole batch at a time, which costs calls where a batch is small and memory traffic where
it is large. These loops finish a frame while it is in the processor's cache and draw a random number only where a
digit meets a wall. `moving_mnist` imports this module where numba is installed. `fastmath` stays off, so that floating
point does here what it does in NumPy.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles at the first call and keeps the machine code beside this file or in the user's cache folder."""
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither folder can be written to: compiled in each process
        return numba.njit(**OPTIONS)(function)


@kernel
def _mix(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel
def _clip_key(stream: Any, index: Any) -> Any:
    return _mix((stream ^ np.uint64(index)) + np.uint64(0x9E3779B97F4A7C15))


@kernel
def _uniform(key: Any, draw: Any) -> Any:
    word = _mix(key + np.uint64(draw + 1) * np.uint64(0x9E3779B97F4A7C15))
    return np.float64(word >> np.uint64(11)) * 2.0**-53


@kernel
def _integer(u: Any, low: Any, high: Any) -> Any:
    return low + np.int64(u * (high - low + 1))


@kernel
def draws(stream: int, indices: NDArray[np.int64], slots: NDArray[np.int64], number: int) -> NDArray[np.float64]:
    """The first draws behind each slot of each clip, as `trajectories.uniform` gives them: `[B, slots, number]`."""
    u = np.empty((len(indices), len(slots), number))
    for b in range(len(indices)):
        key = _clip_key(stream, indices[b])
        for d in range(len(slots)):
            for k in range(number):
                u[b, d, k] = _uniform(key, slots[d] + k)
    return u


@kernel
def classic_positions(
    start: NDArray[np.float64], velocity: NDArray[np.float64], num_frames: int, span: int
) -> NDArray[np.int64]:
    """`trajectories.classic_positions` of n starts and velocities `[n, 2]`, in its notation: `[n, F, 2]`."""
    positions = np.empty((len(start), num_frames, 2), np.int64)
    for i in range(len(start)):
        for axis in range(2):
            v, begin = velocity[i, axis], start[i, axis]
            rising, step = v > 0, abs(v)
            divisor = max(step, 1e-12)
            first = max(np.ceil((1 - begin if rising else begin) / divisor), 1.0)
            crossing = np.ceil(1 / divisor)
            for k in range(num_frames):
                frame = k + 1.0
                path = begin + v * frame
                if frame >= first:
                    walls = np.floor((frame - first) / crossing)
                    distance = step * (frame - first - walls * crossing)
                    path = 1 - distance if (np.int64(walls) % 2 == 1) != rising else distance
                positions[i, k, axis] = np.int64(span * path)
    return positions


@kernel
def stochastic_positions(
    stream: int,
    indices: NDArray[np.int64],
    slots: NDArray[np.int64],
    start: NDArray[np.int64],
    velocity: NDArray[np.int64],
    num_frames: int,
    span: int,
    fastest: int,
) -> NDArray[np.int64]:
    """
    `trajectories.stochastic_positions` of starts and velocities `[B, D, 2]`, with its redraws: `[B, D, F, 2]`.

    Behind a digit's slot each frame has four draws: for the wall of y and that of x, the speed away from it and the
    velocity along the other axis. They are drawn only where there is a wall.
    """
    B, D, _ = start.shape
    positions = np.empty((B, D, num_frames, 2), np.int64)
    for b in range(B):
        key = _clip_key(stream, indices[b])
        for d in range(D):
            y, x, v_y, v_x = start[b, d, 0], start[b, d, 1], velocity[b, d, 0], velocity[b, d, 1]
            for k in range(num_frames):
                draw = slots[d] + 4 * k
                inside_y, inside_x = min(max(y, 0), span - 1), min(max(x, 0), span - 1)
                if y != inside_y:
                    away = _integer(_uniform(key, draw), 1, fastest)
                    v_y = away if y < 0 else -away
                    v_x = _integer(_uniform(key, draw + 1), -fastest, fastest)
                if x != inside_x:
                    away = _integer(_uniform(key, draw + 2), 1, fastest)
                    v_x = away if x < 0 else -away
                    v_y = _integer(_uniform(key, draw + 3), -fastest, fastest)
                positions[b, d, k, 0], positions[b, d, k, 1] = inside_y, inside_x
                y, x = inside_y + v_y, inside_x + v_x
    return positions


@kernel
def _clear(out: NDArray[np.uint8]) -> None:
    for i in range(out.size):
        out[i] = 0


@kernel
def _copy(out: NDArray[np.uint8], run: NDArray[np.uint8]) -> None:
    for i in range(out.size):
        out[i] = run[i]


@kernel
def _maximum(out: NDArray[np.uint8], run: NDArray[np.uint8]) -> None:
    for i in range(out.size):
        below, above = out[i], run[i]
        out[i] = above if above > below else below


@kernel
def _clipped_sum(out: NDArray[np.uint8], run: NDArray[np.uint8]) -> None:
    for i in range(out.size):
        below = out[i]
        total = np.uint8(below + run[i])
        out[i] = total if total >= below else np.uint8(255)  # smaller: the sum went past 255


@kernel
def render(
    images: NDArray[np.uint8],
    chosen: NDArray[np.int64],
    count: NDArray[np.int64],
    positions: NDArray[np.int64],
    image_size: int,
    add: bool,
) -> NDArray[np.uint8]:
    """
    `moving_mnist.render` of the first `count[b, 0]` digits of each clip, uint8 `[B, F, H, W]`.

    Args:
        images: the source, uint8 `[N, h, h]`.
        chosen: numbers of the digits in it, `[B, D]`.
        count: digits shown, `[B, 1]`.
        positions: y and x of the top-left corners, `[B, D, F, 2]`.
        image_size: H = W.
        add: where digits overlap, the sum clipped to 255; otherwise the maximum.
    """
    B, D, F, _ = positions.shape
    size = images.shape[-1]
    length = (size - 1) * image_size + size
    video = np.empty((B, F, image_size, image_size), np.uint8)
    frames = video.reshape(B, F, image_size * image_size)
    rows = np.zeros((D, size, image_size), np.uint8)  # digits in rows as long as the frame's: one run of bytes each
    runs = rows.reshape(D, size * image_size)
    for b in range(B):
        for d in range(count[b, 0]):
            for r in range(size):
                _copy(rows[d, r, :size], images[chosen[b, d], r])
        for f in range(F):
            frame = frames[b, f]
            _clear(frame)
            for d in range(count[b, 0]):
                place = positions[b, d, f, 0] * image_size + positions[b, d, f, 1]
                out, run = frame[place : place + length], runs[d, :length]
                if d == 0:
                    _copy(out, run)
                elif add:
                    _clipped_sum(out, run)
                else:
                    _maximum(out, run)
    return video
