"""How a run ends before its time: signals, a kill, the clock, gradients that are not finite, too little memory."""

import os
import re
import shutil
import signal
import subprocess
import time
from itertools import pairwise

import pytest
import torch

from tiny_training import ENVIRONMENT, command_line, scalars, train, weights
from video_diffusion import VideoDiffusionPipeline
from video_diffusion.training import loop
from video_diffusion.training.checkpoints import checkpoints
from video_diffusion.training.run import Run

ONE = ("--per_device_batch_size", 1, "--tracker", "none")


@pytest.fixture
def at_pass(monkeypatch):
    """`at_pass(act)`: `act(index, loss)` gives the loss of each pass its place."""
    true_loss = Run.loss

    def change(act):
        def loss(run, batch, index):
            value, error = true_loss(run, batch, index)
            return act(index, value), error

        monkeypatch.setattr(Run, "loss", loss)

    return change


def nan_in(passes):
    return lambda index, loss: loss * float("nan") if index in passes else loss


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 3), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on_to_the_same_weights(
    number, code, digits, reference, tmp_path, at_pass, capsys
):
    flags = ("--max_steps", 6, "--per_device_batch_size", 4)
    handler = signal.getsignal(number)
    at_pass(lambda index, loss: (os.kill(os.getpid(), number), loss)[1] if index == 1 else loss)
    assert train(digits, tmp_path, *flags) == code
    said = capsys.readouterr().err
    assert f"stopped at step 2 ({number.name}). Safe on the disk is {tmp_path / 'checkpoint-2'}" in said
    assert signal.getsignal(number) == handler
    assert not (tmp_path / "model_index.json").exists()
    assert train(digits, tmp_path, *flags) == 0
    expected, got = weights(reference), weights(tmp_path)
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_a_second_ctrl_c_ends_the_run_at_once(digits, tmp_path, at_pass, capsys):
    def twice(index, loss):
        if index == 2:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        return loss

    at_pass(twice)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert train(digits, tmp_path, *ONE, "--max_steps", 9, "--checkpointing_steps", 1) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert f"interrupted in step 2. Safe on the disk is {tmp_path / 'checkpoint-2'}" in said


def test_killed_and_resumed_is_bit_equal_to_uninterrupted(digits, reference, tmp_path):
    flags = ("--max_steps", 6, "--per_device_batch_size", 4, "--checkpointing_steps", 2)
    words = command_line(digits, tmp_path, *flags)
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint-2").exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "model_index.json").exists()  # a killed run leaves nothing that loads
    (tmp_path / ".checkpoint.tmp").mkdir(exist_ok=True)  # as a kill in the middle of a save leaves it
    assert train(digits, tmp_path, *flags) == 0
    expected, got = weights(reference), weights(tmp_path)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_a_run_by_the_clock_ends_with_its_rate_at_zero(digits, tmp_path):
    flags = ("--max_steps", 1_000_000, "--max_minutes", 0.03, "--per_device_batch_size", 1)
    assert train(digits, tmp_path, *flags) == 0
    rates = scalars(tmp_path, "lr")
    assert rates[0] == pytest.approx(max(rates))
    assert rates[-1] < 0.3 * rates[0]  # the last of many steps in two seconds, the rate falling in the last fifth
    assert sorted(rates, reverse=True) == rates
    VideoDiffusionPipeline.from_pretrained(tmp_path)


def test_a_step_whose_gradient_is_not_finite_is_skipped(digits, tmp_path, at_pass, monkeypatch):
    at_pass(nan_in({1, 2}))
    history, true_update = [], loop.update

    def update(run):
        norm = true_update(run)
        history.append([p.detach().clone() for p in run.learner.parameters()])
        return norm

    monkeypatch.setattr(loop, "update", update)
    assert train(digits, tmp_path, *ONE, "--max_steps", 4, "--checkpointing_steps", 0) == 0
    same = [all(map(torch.equal, a, b)) for a, b in pairwise(history)]
    assert same == [True, True, False]
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())


def test_too_many_such_steps_in_a_row_end_the_run_and_leave_the_last_good_checkpoint(
    digits, tmp_path, at_pass, capsys
):
    at_pass(nan_in(range(2, 99)))
    flags = ("--max_steps", 99, "--checkpointing_steps", 2, "--max_bad_steps", 2)
    assert train(digits, tmp_path, *ONE, *flags) == 1
    said = capsys.readouterr().err
    assert "The gradient was not finite in 2 steps in a row, the last of them step 3." in said
    assert f"Safe on the disk is {tmp_path / 'checkpoint-2'}" in said
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]


def test_a_run_that_learned_nothing_says_so_and_keeps_the_pipeline_that_is_there(
    digits, reference, tmp_path, at_pass, capsys
):
    shutil.copytree(reference, tmp_path / "run")
    at_pass(nan_in(range(99)))
    flags = (*ONE, "--max_steps", 3, "--resume", "false")
    for _ in range(2):  # and says so again when its last checkpoint is resumed
        assert train(digits, tmp_path / "run", *flags) == 1
        assert re.search("The gradient was finite in none of the 3 steps", capsys.readouterr().err)
        flags = flags[:-2]
    expected, got = weights(reference), weights(tmp_path / "run")
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    VideoDiffusionPipeline.from_pretrained(tmp_path / "run")


def test_weights_that_are_not_finite_are_not_saved(digits, reference, tmp_path, monkeypatch, capsys):
    shutil.copytree(reference, tmp_path / "run")
    true_update = loop.update

    def update(run):
        norm = true_update(run)
        with torch.no_grad():
            next(iter(run.learner.parameters())).fill_(float("inf"))
        return norm

    monkeypatch.setattr(loop, "update", update)
    assert train(digits, tmp_path / "run", "--per_device_batch_size", 4, "--max_steps", 7) == 1
    said = capsys.readouterr().err
    assert "Weights are not finite at step 7: they are not saved." in said
    assert f"Safe on the disk is {tmp_path / 'run' / 'checkpoint-6'}" in said
    expected, got = weights(reference), weights(tmp_path / "run")
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_too_little_memory_is_said_and_other_errors_are_not_hidden(digits, tmp_path, at_pass, capsys):
    def full(index, loss):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 MiB.")

    at_pass(full)
    assert train(digits, tmp_path, *ONE, "--max_steps", 1) == 1
    said = capsys.readouterr().err
    assert "The memory was too small: Tried to allocate 20.00 MiB. Try a smaller `per_device_batch_size`" in said
    assert f"No checkpoint is in {tmp_path} yet" in said

    def wrong(index, loss):
        raise RuntimeError("a mistake of ours")

    at_pass(wrong)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        train(digits, tmp_path, *ONE, "--max_steps", 1)
