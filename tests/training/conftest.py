"""A few digits, and one training of six steps that the tests of this folder compare with and go on from."""

import numpy as np
import pytest

import tiny_training


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    images = np.random.default_rng(0).integers(0, 256, (32, 28, 28), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(32) % 10)
    return path


@pytest.fixture(scope="session")
def reference(digits, tmp_path_factory):
    """One process, batch 4, six steps, never interrupted; checkpoints of steps 2, 4 and 6. Not to be written to."""
    output = tmp_path_factory.mktemp("reference") / "run"
    flags = ("--max_steps", 6, "--per_device_batch_size", 4, "--checkpointing_steps", 2)
    assert tiny_training.train(digits, output, *flags, "--checkpoints_total_limit", 3) == 0
    return output
