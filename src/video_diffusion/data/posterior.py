"""The exact posterior of a classic trajectory: where a digit can be, given its whole-pixel places in the first frames.

Start and direction of a digit are uniform, and its places are truncated to whole pixels; so the posterior of start
and direction is uniform on the set that gives the places that were seen. Points of it are found by rejection from
boxes: from the places of the first frame to those of all k, each box is put around the points that explain so many.
"""

import numpy as np
from numpy.typing import NDArray

from video_diffusion.data.trajectories import classic_positions

PROPOSALS, ROUNDS = 20_000, 40
FIRST_PROPOSALS = 60_000
MARGIN = 0.2  # of a box, on either side, beyond the points that were found
ENOUGH = 200  # points, before a box is put around them


def posterior_paths(
    seen: NDArray[np.int64], num_frames: int, count: int, span: int, rng: np.random.Generator, speed: float = 0.1
) -> NDArray[np.int64]:
    """
    Draws whole paths of one digit from their posterior.

    Args:
        seen: y and x of the corner in the first k frames, 0 … `span`, `[k, 2]`.
        num_frames: F ≥ k.
        count: n, how many paths; drawn again where fewer were found.
        span: largest position in pixels.
        rng: the source of randomness.
        speed: step per frame as a fraction of the range.

    Returns:
        int64 `[n, F, 2]`; the first k places are those that were seen.

    Raises:
        ValueError: where no path was found: the places are no trajectory's, or one that hardly ever happens.
    """
    k = len(seen)
    low, high = np.array([*(seen[0] / span), 0.0]), np.array([*((seen[0] + 1) / span), 2 * np.pi])
    low[:2], high[:2] = np.clip(low[:2] - speed, 0, 1), np.clip(high[:2] + speed, 0, 1)
    for explained in range(min(2, k), k + 1):
        points = _draw(seen[:explained], low, high, ENOUGH if explained < k else count, span, rng, speed)
        if not len(points):
            raise ValueError(f"`seen` is {seen.tolist()}, expected the places of a trajectory: no path was found.")
        low, high = _box(points)
    chosen = points[rng.integers(0, len(points), count)]
    return classic_positions(chosen[:, :2], chosen[:, 2], num_frames, span, speed)


def _draw(
    seen: NDArray[np.int64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    wanted: int,
    span: int,
    rng: np.random.Generator,
    speed: float,
) -> NDArray[np.float64]:
    """Start and direction `[n, 3]`, uniform in the box, of trajectories that pass through all places seen."""
    found: list[NDArray[np.float64]] = []
    for _ in range(ROUNDS):
        points = low + (high - low) * rng.random((FIRST_PROPOSALS if len(seen) <= 2 else PROPOSALS, 3))
        points = points[((points[:, :2] >= 0) & (points[:, :2] <= 1)).all(1)]
        for frame in {1, len(seen)}:  # the first frame alone refuses most of them
            place = classic_positions(points[:, :2], points[:, 2], frame, span, speed)
            points = points[(place == seen[:frame]).all((1, 2))]
        found.append(points)
        if sum(map(len, found)) >= wanted:
            break
    return np.concatenate(found)


def _box(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest start and direction of the points, with a margin; directions around their mean."""
    middle = np.angle(np.exp(1j * points[:, 2]).mean())
    turned = np.column_stack([points[:, :2], middle + np.angle(np.exp(1j * (points[:, 2] - middle)))])
    low, high = turned.min(0), turned.max(0)
    return low - MARGIN * (high - low) - 1e-6, high + MARGIN * (high - low) + 1e-6
