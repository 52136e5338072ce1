"""Checks of single values that come into the pipeline: each is refused by its name, with what was expected.

This file travels to the Hub beside `pipeline.py`.
"""

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

LIMITS = {  # beyond these a number is a slip; without them the call would run out of memory or never end
    "num_inference_steps": 10_000,
    "num_videos_per_prompt": 10_000,
    "num_frames": 100_000,
    "height": 16_384,
    "width": 16_384,
}


def check_integers(**values: Any) -> None:
    """Refuses what is not an integer of at least 1 and at most its limit, by its name."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"`{name}` is {shown(value)}, expected an integer of at least 1.")
        if value > LIMITS.get(name, math.inf):
            raise ValueError(f"`{name}` is {value}, expected at most {LIMITS[name]}.")


def check_number(name: str, value: Any) -> None:
    """Refuses what is not a finite number of at least 0, by its name."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ValueError(f"`{name}` is {shown(value)}, expected a number of at least 0.")


def check_guidance_number(value: Any) -> None:
    """Refuses what is no scale of classifier-free guidance."""
    if isinstance(value, bool) or not isinstance(value, Real) or not (value == 0 or 1 <= float(value) < math.inf):
        raise ValueError(f"`guidance_scale` is {shown(value)}, expected 0 or at least 1 (0 and 1: no guidance).")


def check_dense(name: str, value: Tensor) -> None:
    """Refuses a tensor that holds no plain numbers (sparse, quantised, on the meta device), by its name."""
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise ValueError(
            f"`{name}` is a tensor of {value.layout} on {value.device}, expected a dense one with values."
        )


def check_tensor(name: str, value: Any, expected: str) -> None:
    """Refuses what is not a dense float tensor of finite numbers, by its name."""
    if not isinstance(value, Tensor):
        raise ValueError(f"`{name}` is a {type(value).__name__}, expected a tensor {expected}.")
    check_dense(name, value)
    if not value.is_floating_point():
        raise ValueError(f"`{name}` has dtype {value.dtype}, expected a float type {expected}.")
    if not value.isfinite().all():
        raise ValueError(f"`{name}` holds NaN or infinite values, expected finite ones.")


def check_finite(name: str, part: Any, finite: Tensor) -> None:
    """Refuses NaN and infinite values that a component gave, told by `finite`: they would be shown as a black video.

    Raises:
        ValueError: naming the component, with what can be wrong with it.
    """
    if not finite:
        raise ValueError(
            f"`{name}` ({part.dtype}) gave NaN or infinite values, expected finite ones: its weights are "
            "broken, or the dtype overflows (float16 does; bfloat16 and float32 reach further)."
        )


def shown(value: Any) -> str:
    """How an error shows what came: its repr, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
