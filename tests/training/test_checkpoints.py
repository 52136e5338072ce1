"""Checkpoints: damage is seen, a full disk and a read-only folder leave what was there, arguments apply or agree."""

import json
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_training import flags_of, train, weights
from video_diffusion import VideoDiffusionPipeline
from video_diffusion.hub.integrity import MANIFEST
from video_diffusion.training import checkpoints
from video_diffusion.training.arguments import GROUPS
from video_diffusion.training.fields import declared
from video_diffusion.training.run import Run
from video_diffusion.training.train_arguments import parse_arguments

BATCH = ("--per_device_batch_size", 4)


@pytest.fixture
def copy(reference, tmp_path):
    """A folder with the reference's checkpoints alone."""
    for checkpoint in reference.glob("checkpoint-*"):
        shutil.copytree(checkpoint, tmp_path / "run" / checkpoint.name)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def module_run(digits, tmp_path_factory):
    """A run with the reference's arguments, of which the tests change the folder."""
    flags = flags_of(digits, tmp_path_factory.mktemp("none"), *BATCH, "--max_steps", 6, "--tracker", "none")
    return Run(parse_arguments(flags))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def flip(file, other):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file, other):
    file.write_bytes(file.read_bytes()[: -file.stat().st_size // 3])


def delete(file, other):
    file.unlink()


def swap(file, other):
    mine, its = file.read_bytes(), other.read_bytes()
    file.write_bytes(its)
    other.write_bytes(mine)


@pytest.mark.parametrize("harm", [flip, truncate, delete, swap], ids=lambda harm: harm.__name__)
def test_each_file_damaged_in_each_way_is_seen_and_the_newest_whole_checkpoint_serves(
    harm, reference, module_run, tmp_path, capsys
):
    """Of steps 2, 4 and 6, a file of 6 is damaged; `swap` exchanges it with the one of 4 and so damages both."""
    files = names(reference / "checkpoint-6")
    assert {"model.safetensors", "optimizer.bin", "run.json", MANIFEST} <= set(files)
    for name in files:
        run, output = module_run, tmp_path / name / "run"
        for checkpoint in reference.glob("checkpoint-*"):
            shutil.copytree(checkpoint, output / checkpoint.name)
        file, other = output / "checkpoint-6" / name, output / "checkpoint-4" / name
        same = harm is swap and file.read_bytes() == other.read_bytes()
        harm(file, other)
        run.output, run.history = output, []
        checkpoints.resume(run)
        step = 6 if same else 2 if harm is swap else 4
        assert run.progress.step == step, name
        saved = load_file(reference / f"checkpoint-{step}" / "model.safetensors")
        got = run.accelerator.unwrap_model(run.model).state_dict()
        assert all(torch.equal(value, got[key]) for key, value in saved.items())
        said = capsys.readouterr().err
        assert f"goes on from {output / f'checkpoint-{step}'}" in said
        if not same:
            assert f"{output / 'checkpoint-6'} is not used ({name} " in said
            assert "damaged-checkpoint-6" in names(output)


def test_where_no_checkpoint_is_whole_the_run_does_not_start(digits, copy, capsys):
    for checkpoint in copy.glob("checkpoint-*"):
        delete(checkpoint / "optimizer.bin", None)
    assert train(digits, copy, *BATCH, "--max_steps", 6) == 2
    said = capsys.readouterr().err
    assert "No checkpoint" in said
    assert "checkpoint-4: optimizer.bin is missing" in said
    assert names(copy) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert train(digits, copy, *BATCH, "--max_steps", 1, "--resume", "false") == 0  # and the old ones stay
    assert {"checkpoint-1", "old-checkpoint-6", "old-checkpoint-2"} <= set(names(copy))


def test_a_checkpoint_under_another_name_is_damage(reference, tmp_path):
    shutil.copytree(reference / "checkpoint-2", tmp_path / "checkpoint-8")
    assert "is another's" in checkpoints.damage(tmp_path / "checkpoint-8", 8)
    assert checkpoints.damage(reference / "checkpoint-2", 2) is None


def test_what_only_looks_like_a_checkpoint_is_none(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-x", "damaged-checkpoint-11", "checkpoint-12.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-13").write_text("a file")
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_resumed_in_this_process_is_bit_equal_to_uninterrupted(digits, reference, copy):
    for step in (4, 6):
        shutil.rmtree(copy / f"checkpoint-{step}")
    assert train(digits, copy, *BATCH, "--max_steps", 6, "--checkpointing_steps", 2) == 0
    expected, got = weights(reference), weights(copy)
    assert all(torch.equal(expected[key], got[key]) for key in expected)


@contextmanager
def files_no_larger_than(size):
    """Writing more fails, as it does where the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_the_run_with_a_sentence_and_leaves_what_was_there(digits, reference, tmp_path, capfd):
    output = tmp_path / "run"
    shutil.copytree(reference, output)
    flags = (*BATCH, "--max_steps", 7, "--tracker", "none")
    with files_no_larger_than(200_000):  # weights are larger
        assert train(digits, output, *flags) == 1
    said = capfd.readouterr().err
    assert "The checkpoint of step 7 could not be written (" in said
    assert f"Safe on the disk is {output / 'checkpoint-6'}: the same command goes on from there." in said
    assert "Traceback" not in said
    assert not list(output.glob(".checkpoint*"))
    VideoDiffusionPipeline.from_pretrained(output)  # the one of step 6
    expected, got = weights(reference), weights(output)
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert train(digits, output, *flags) == 0


def test_a_pipeline_is_replaced_only_by_a_whole_one(reference, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    pipe = VideoDiffusionPipeline.from_pretrained(reference)
    with files_no_larger_than(200_000), pytest.raises(OSError, match="The pipeline could not be written"):
        checkpoints.save_pipeline(pipe, tmp_path / "run")
    VideoDiffusionPipeline.from_pretrained(tmp_path / "run")
    assert not (tmp_path / "run" / ".pipeline.tmp").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(digits, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert train(digits, tmp_path / "file" / "run") == 2
    said = capsys.readouterr().err
    assert f"`output_dir` is {tmp_path / 'file' / 'run'}, expected a folder that can be written to" in said


def test_everything_is_on_the_disk_before_a_checkpoint_gets_its_name(digits, tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(checkpoints, "to_disk", lambda path, inside=True: events.append(("synced", path.name)))
    replace = os.replace

    def named(source, target):
        events.append(("named", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "replace", named)
    assert train(digits, tmp_path / "run", "--max_steps", 1, "--per_device_batch_size", 1) == 0
    saved = events.index(("named", "checkpoint-1"))
    assert events[saved - 1] == ("synced", ".checkpoint.tmp")
    assert events[saved + 1] == ("synced", "run")
    assert events.index(("synced", ".pipeline.tmp")) < events.index(("named", "model_index.json"))


@pytest.mark.parametrize(
    "key", [key for key, field in declared(GROUPS).items() if field.metadata["on_resume"] == "agrees"]
)
def test_an_argument_that_must_agree_is_refused_by_name(key, module_run, reference):
    saved = json.loads((reference / "checkpoint-6" / "run.json").read_text())
    checkpoints._require_agreement(saved, checkpoints.record(module_run), reference)
    with pytest.raises(ValueError, match=f"`{key}` is .*, expected 'another', what .* was trained with"):
        checkpoints._require_agreement(saved | {key: "another"}, checkpoints.record(module_run), reference)


def test_the_clips_of_a_step_must_agree_however_they_are_shared(digits, copy, capsys):
    assert train(digits, copy, "--per_device_batch_size", 2, "--max_steps", 6) == 2
    assert "make 2 clips a step on these devices, expected 4" in capsys.readouterr().err
    halves = ("--per_device_batch_size", 2, "--gradient_accumulation_steps", 2)
    assert train(digits, copy, *halves, "--max_steps", 7) == 0


def test_an_argument_that_applies_is_in_force_after_resuming_and_the_record_says_since_when(digits, copy):
    flags = (*BATCH, "--max_steps", 9, "--tracker", "none", "--lr_scheduler", "linear", "--warmup_steps", 10)
    changed = ("--learning_rate", 0.5, "--weight_decay", 0.25, "--adam_beta2", 0.5, "--ema_decay", 0.75)
    run = Run(parse_arguments(flags_of(digits, copy, *flags, *changed, "--text_encoder_lr_scale", 0.5)))
    checkpoints.resume(run)
    assert run.progress.step == 6
    for group, rate in zip(run.optimizer.param_groups, (0.5, 0.25), strict=True):
        assert group["lr"] == pytest.approx(rate * 6 / 10)  # in the warm-up of the new schedule
        assert (group["weight_decay"], tuple(group["betas"])) == (0.25, (0.9, 0.5))
        assert len(run.optimizer.state[group["params"][0]]) > 0  # what the optimiser had gathered is there
    assert run.ema.decay == 0.75
    run.optimizer.step()
    run.lr_scheduler.step()
    assert run.lr_scheduler.get_last_lr() == pytest.approx([0.5 * 7 / 10, 0.25 * 7 / 10])
    now = checkpoints.record(run)
    assert now["learning_rate"] == 0.5
    (before,) = now["history"]
    assert (before["until_step"], before["learning_rate"], before["ema_decay"]) == (6, 8e-4, 0.999)
    assert "seed" not in before


def test_a_resumed_run_with_the_same_arguments_has_no_history(digits, copy):
    assert (
        train(digits, copy, *BATCH, "--max_steps", 6, "--checkpointing_steps", 2, "--checkpoints_total_limit", 3) == 0
    )
    (before,) = json.loads((copy / "run.json").read_text())["history"]
    assert set(before) == {"until_step", "output_dir"}


def test_only_the_newest_checkpoints_are_kept(digits, tmp_path):
    flags = ("--max_steps", 5, "--checkpointing_steps", 1, "--checkpoints_total_limit", 2)
    assert train(digits, tmp_path, *flags, "--per_device_batch_size", 1) == 0
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-5"]
