"""Metric functions under arguments of wrong types, shapes and values: a named refusal or a finite figure, no third."""

import math
import os

import numpy as np
import pytest
import torch

from video_diffusion import metrics

FUNCTIONS = (metrics.mse_sum, metrics.mae_sum, metrics.psnr, metrics.ssim)
GOOD = (2, 3, 1, 16, 16)
SHAPES = (
    *(GOOD, (2, 3, 3, 16, 16), (1, 1, 1, 16, 16), (2, 1, 20, 16, 16), (2, 20, 16, 16, 1), (2, 20, 16, 16, 3)),
    *((3, 1, 16, 16), (16, 16), (), (0,), (2, 0, 1, 16, 16), (2, 3, 1, 4, 4), (1, 2, 3, 1, 16, 16)),
)
OTHERS = (None, "clip", b"", 3, 1.5, True, [], [[0.5]], {}, object(), float("nan"), range(3))
CASES = int(os.environ.get("FUZZ_CASES", 200))  # CI runs 1,000


def an_argument(rng):
    kind = rng.integers(8)
    if kind == 0:
        return OTHERS[rng.integers(len(OTHERS))]
    shape = SHAPES[rng.integers(len(SHAPES))] if kind < 5 else GOOD
    array = rng.random(shape, dtype=np.float32)
    if kind == 5:
        array = np.array(array * [1, 3, -1, np.nan, np.inf][rng.integers(5)], dtype=np.float32)
    if kind == 6:
        dtypes = (np.uint8, np.int64, np.bool_, np.float16, np.float64, np.complex64)
        return array.astype(dtypes[rng.integers(len(dtypes))])
    return torch.from_numpy(array) if rng.random() < 0.6 else array


def test_any_argument_gives_a_named_refusal_or_a_finite_figure():
    rng, refused, measured = np.random.default_rng(0), 0, 0
    for case in range(CASES):
        function = FUNCTIONS[case % len(FUNCTIONS)]
        predictions = an_argument(rng)
        references = predictions if rng.random() < 0.5 else an_argument(rng)
        reduction = rng.choice(["mean", "clip", "none", "sum"], p=[0.5, 0.2, 0.2, 0.1])
        try:
            value = function(predictions, references, str(reduction))
        except (TypeError, ValueError) as error:
            if "`" not in str(error):
                pytest.fail(f"case {case}: {error} names no argument")
            refused += 1
        else:
            assert reduction != "sum"
            assert predictions.ndim == 5
            assert predictions.shape[2] in (1, 3)
            same = torch.equal(torch.as_tensor(predictions), torch.as_tensor(references))
            assert value.isfinite().all() or (function is metrics.psnr and same), case  # no error: infinite PSNR
            assert value.min() >= (-1 if function is metrics.ssim else 0), case
            measured += 1
    assert refused > CASES / 3
    assert measured > 30
    assert math.isclose(refused + measured, CASES)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("layout", [(2, 1, 20, 16, 16), (2, 20, 16, 16, 1), (2, 20, 16, 16, 3), (2, 3, 20, 16, 16)])
def test_another_order_of_axes_is_refused_with_shape_and_expectation(function, layout):
    video = torch.full(layout, 0.5)
    with pytest.raises(ValueError, match=r"`predictions` must be \[N, F, C, H, W\] with 1 or 3 channels C, got shape"):
        function(video, video)
