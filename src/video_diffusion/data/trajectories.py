"""Where the digits of Moving MNIST are in each frame: pure functions of random draws, over any number of digits.

Both variants keep a digit's top-left corner inside a square of whole pixels. `span` is image size less digit size.
Random numbers come from a counter: draw number k of clip i is a hash of (seed, stream, i, k), so no draw depends on
another clip, on the batch or on the process.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea & Flood 2014), a bijection of 64-bit words, elementwise."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream_key(seed: int, stream: int) -> NDArray[np.uint64]:
    """
    A hash of (seed, stream).

    Args:
        seed: 0 to 2⁶⁴ − 1.
        stream: a number ≥ 0 for each independent use of one seed (the splits).

    Returns:
        uint64 `[1]`.
    """
    return mix((mix(np.array([seed], np.uint64) + _GOLDEN) ^ np.uint64(stream)) + _GOLDEN)


def clip_keys(stream: NDArray[np.uint64], indices: ArrayLike) -> NDArray[np.uint64]:
    """
    The key of each clip: a hash of its stream and its number, so that different numbers have different keys.

    Args:
        stream: uint64 `[1]` of `stream_key`.
        indices: the clips' numbers, integers ≥ 0, `[B]`.

    Returns:
        uint64 `[B]`.
    """
    return mix((stream ^ np.asarray(indices).astype(np.uint64)) + _GOLDEN)


def uniform(keys: NDArray[np.uint64], draws: ArrayLike) -> NDArray[np.float64]:
    """
    Uniform numbers in [0, 1): draw k of a clip is word k of the SplitMix64 stream that starts at the clip's key.

    Args:
        keys: uint64 `[B]` of `clip_keys`.
        draws: which draws, integers ≥ 0, of any shape.

    Returns:
        float64 `[B, *draws.shape]`, multiples of 2⁻⁵³.
    """
    counters = (np.asarray(draws).astype(np.uint64) + np.uint64(1)) * _GOLDEN
    words = mix(keys.reshape(keys.shape + (1,) * counters.ndim) + counters)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(u: NDArray[np.float64], low: int, high: int) -> NDArray[np.int64]:
    """Maps uniform numbers in [0, 1) to the integers `low` … `high`, both included, each equally often."""
    return low + (u * (high - low + 1)).astype(np.int64)


def classic_velocity(angle: NDArray[np.float64], speed: float) -> NDArray[np.float64]:
    """`speed` · (sin, cos) of the angles `[...]` in radians: steps along y and x, `[..., 2]`."""
    return speed * np.stack([np.sin(angle), np.cos(angle)], -1)


def classic_positions(
    start: NDArray[np.float64], angle: NDArray[np.float64], num_frames: int, span: int, speed: float = 0.1
) -> NDArray[np.int64]:
    """
    Trajectories of Srivastava et al. (2015), as OpenSTL draws them.

    Each frame takes a step, clamps it to [0, 1], turns the component that reached a wall and is then drawn. Clamping
    makes the path after the first wall periodic: ⌈1/|v|⌉ steps from wall to wall. So frame k has a closed form.

    Args:
        start: y and x before the first step, in [0, 1], `[..., 2]`.
        angle: direction in radians, `[...]`; velocity is `speed` · (sin, cos).
        num_frames: F ≥ 1.
        span: largest position in pixels, ≥ 0; positions are truncated to whole pixels.
        speed: step per frame as a fraction of the range, in [0, 1].

    Returns:
        int64 `[..., F, 2]`: y and x of the top-left corner, 0 … `span`.
    """
    velocity = classic_velocity(angle, speed)
    frame = np.arange(1.0, num_frames + 1).reshape(-1, *(1,) * velocity.ndim)  # frames lead: [F, ..., 2] below
    rising = velocity > 0
    step = np.abs(velocity)
    divisor = np.maximum(step, 1e-12)  # a slower digit never reaches a wall: this only avoids a division by zero
    first = np.maximum(np.ceil(np.where(rising, 1 - start, start) / divisor), 1)  # the frame at the first wall
    crossing = np.ceil(1 / divisor)  # steps from wall to wall
    since = np.maximum(frame - first, 0)
    walls = np.floor(since / crossing)  # walls reached after the first one
    distance = step * (since - walls * crossing)  # from the wall left last
    high = (walls.astype(np.int64) & 1).astype(bool) ^ rising  # which wall that is
    bounced = np.where(high, 1 - distance, distance)
    path = np.where(frame < first, start + velocity * frame, bounced)
    return np.moveaxis((span * path).astype(np.int64), 0, -2)


def stochastic_positions(
    start: NDArray[np.int64], velocity: NDArray[np.int64], redraws: NDArray[np.int64], span: int
) -> NDArray[np.int64]:
    """
    Trajectories of SVG's stochastic Moving MNIST (Denton & Fergus 2018), which MCVD uses too.

    Before a frame is drawn, a digit beyond a wall is put back to the last position inside, leaves the wall with a new
    speed and gets a new velocity along the other axis: first y, then x. After it is drawn it moves by its velocity.

    Args:
        start: y and x in the first frame, 0 … `span` − 1, `[..., 2]`.
        velocity: pixels per frame along y and x, `[..., 2]`.
        redraws: the velocities to use if a wall is met, `[..., F, 2, 2]`: for each frame and axis of the wall, the
            speed away from it (1, 2, …) and the velocity along the other axis. Its size gives F.
        span: image size less digit size, ≥ 1. Positions end at `span` − 1, as in the published code.

    Returns:
        int64 `[..., F, 2]`: y and x of the top-left corner, 0 … `span` − 1.
    """
    num_frames = redraws.shape[-3]
    p, v = start.reshape(-1, 2).T, velocity.reshape(-1, 2).T.copy()  # [2, n]
    away, other = np.ascontiguousarray(redraws.reshape(-1, num_frames, 2, 2).transpose(3, 1, 2, 0))  # [F, 2, n] each
    positions = np.empty((num_frames, *p.shape), np.int64)
    for k in range(num_frames):
        inside = np.minimum(np.maximum(p, 0), span - 1)
        back = inside - p  # positive at the low wall, negative at the high one
        hit = back != 0
        if hit.any():  # these three lines are "y, then x": where a corner is met, x has the last word
            np.copyto(v[1], other[k, 0], where=hit[0])
            np.copyto(v, np.sign(back) * away[k], where=hit)
            np.copyto(v[0], other[k, 1], where=hit[1])
        positions[k] = inside
        p = inside + v
    return np.moveaxis(positions.transpose(0, 2, 1).reshape(num_frames, *start.shape), 0, -2)
