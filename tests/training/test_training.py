"""The training script as people run it: in processes of its own, tiny."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from video_diffusion import VideoDiffusionPipeline
from video_diffusion.data import MovingMNIST
from video_diffusion.data.builders import write_parquet
from video_diffusion.training import arguments, build, loop, text

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "training" / "train.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
TINY = [
    *("--block_out_channels", "32", "32", "--patch_size", "8", "--num_frames", "3", "--image_size", "32"),
    *("--num_images", "1", "--num_digits", "1", "--digits", "DIGITS"),
    *("--text_encoder", "small-bert", "--max_text_length", "16", "--caption_dropout", "0.5"),
    *("--lr_scheduler", "constant", "--warmup_steps", "0", "--log_steps", "1", "--validation_steps", "0"),
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    images = np.random.default_rng(0).integers(0, 256, (32, 28, 28), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(32) % 10)
    return path


def command(digits, output, *flags, launcher=()):
    tiny = [str(digits) if word == "DIGITS" else word for word in TINY]
    return [*(launcher or [sys.executable]), SCRIPT, *tiny, "--output_dir", str(output), *flags]


def run(words, **kwargs):
    return subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, **kwargs)


def weights(output):
    unet = load_file(output / "unet" / "diffusion_pytorch_model.safetensors")
    return unet | load_file(output / "text_encoder" / "model.safetensors")


def loss_curve(output):
    events = EventAccumulator(str(output / "logs" / "training"))
    events.Reload()
    return [event.value for event in events.Scalars("loss")]


@pytest.fixture(scope="module")
def reference(digits, tmp_path_factory):
    """One process, batch 4, six steps, never interrupted."""
    output = tmp_path_factory.mktemp("reference") / "run"
    result = run(command(digits, output, "--max_steps", "6", "--per_device_batch_size", "4"))
    assert result.returncode == 0, result.stderr
    return output


def test_the_output_folder_is_a_pipeline(reference):
    pipe = VideoDiffusionPipeline.from_pretrained(reference)
    clip = pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").frames
    assert clip.shape == (1, 3, 1, 32, 32)
    assert torch.isfinite(clip).all()


def test_the_text_encoder_has_learned_and_the_pipeline_reads_prompts(digits, reference, tmp_path):
    result = run(command(digits, tmp_path, "--max_steps", "1", "--learning_rate", "0", "--weight_decay", "0"))
    assert result.returncode == 0, result.stderr
    new, learned = (load_file(folder / "text_encoder" / "model.safetensors") for folder in (tmp_path, reference))
    key = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(new[key], learned[key])
    pipe = VideoDiffusionPipeline.from_pretrained(reference)
    kwargs = {"num_inference_steps": 1, "output_type": "latent", "return_dict": False}
    one, other, free = (
        pipe(prompt, generator=torch.Generator().manual_seed(0), **kwargs)[0]
        for prompt in ("the digit 3 moves right", "a 7", None)
    )
    assert not torch.equal(one, other)
    assert not torch.equal(one, free)


def test_training_and_the_pipeline_read_a_caption_alike():
    from video_diffusion import VideoUNet3DConditionModel, VPContinuousScheduler

    encoder, tokenizer = text.small_bert(16)
    kept = torch.tensor([True, False])
    frozen = text.RunText(encoder, tokenizer, trained=False, device=torch.device("cpu"))
    captions = ["the digit 3 moves up", "a 7"]
    states = frozen.inputs(captions, kept, videos=2, images=1)["encoder_hidden_states"]
    unet = VideoUNet3DConditionModel(block_out_channels=(32,), cross_attention_dim=128)
    pipe = VideoDiffusionPipeline(unet, VPContinuousScheduler(), encoder, tokenizer)
    said, silent = pipe.encode_prompt([captions[0], ""])[0]
    torch.testing.assert_close(states, torch.stack([torch.stack([said, said, silent]), torch.stack([silent] * 3)]))
    trained = text.RunText(encoder, tokenizer, trained=True, device=torch.device("cpu"))
    inputs = trained.inputs(captions, kept, videos=2, images=1)
    again = encoder(inputs["input_ids"], attention_mask=inputs["input_mask"]).last_hidden_state[inputs["text_index"]]
    torch.testing.assert_close(again, states)


def test_a_frozen_encoder_reads_each_text_once():

    encoder, tokenizer = text.small_bert(16)
    frozen = text.RunText(encoder, tokenizer, trained=False, device=torch.device("cpu"), capacity=2)
    calls = []
    encoder.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    first = frozen.encode(["a 7", "a 3", "a 7"])
    assert torch.equal(frozen.encode(["a 3", "a 7"]), first[[1, 0]])
    assert calls == [2]
    frozen.encode(["a 1"])  # beyond the capacity: the others are forgotten
    assert len(frozen.states) == 1
    assert not any(p.requires_grad for p in encoder.parameters())


def test_an_encoder_by_folder_is_frozen_and_saved_with_the_pipeline(digits, tmp_path, monkeypatch):

    encoder, tokenizer = text.small_bert(16)
    encoder.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    flags = ("--text_encoder", str(tmp_path / "encoder"), "--max_steps", "2")
    result = run(command(digits, tmp_path / "run", *flags))
    assert result.returncode == 0, result.stderr
    saved = load_file(tmp_path / "run" / "text_encoder" / "model.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in encoder.state_dict().items())
    result = run(command(digits, tmp_path / "other", *flags, "--max_text_length", "99"))
    assert result.returncode == 2
    assert "`max_text_length` is 99, expected at most 16" in result.stderr


def test_killed_and_resumed_is_bit_equal_to_uninterrupted(digits, reference, tmp_path):
    words = command(digits, tmp_path, "--max_steps", "6", "--per_device_batch_size", "4", "--checkpointing_steps", "2")
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
    result = run(words)
    assert result.returncode == 0, result.stderr
    expected, got = weights(reference), weights(tmp_path)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_two_processes_give_the_loss_curve_of_one_with_twice_the_batch(digits, reference, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    words = command(digits, tmp_path, "--max_steps", "6", "--per_device_batch_size", "2", launcher=launcher)
    result = run(words)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(loss_curve(tmp_path), loss_curve(reference), rtol=1e-5)
    expected, got = weights(reference), weights(tmp_path)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=2e-5)


def test_sharded_weights_train_as_whole_ones_do_and_resume(digits, reference, tmp_path):
    """The configuration for FSDP, on two processes without a GPU; stopped after three steps of six."""
    config = ["--config_file", str(ROOT / "training" / "accelerate" / "fsdp.yaml"), "--num_processes", "2"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *config, "--mixed_precision", "no"]
    words = command(digits, tmp_path, "--per_device_batch_size", "2", launcher=launcher)
    words[words.index(SCRIPT)] = str(ROOT / "tests" / "support" / "sharded_training.py")
    for steps in ("3", "6"):
        result = run([*words, "--max_steps", steps])
        assert result.returncode == 0, result.stderr
    assert loss_curve(tmp_path) == pytest.approx(loss_curve(reference), rel=1e-5)
    expected, got = weights(reference), weights(tmp_path)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=2e-5)


def test_sharded_weights_refuse_an_optimiser_of_whole_matrices(monkeypatch, in_process):
    monkeypatch.setattr("accelerate.Accelerator.distributed_type", property(lambda self: DistributedType.FSDP))
    with pytest.raises(ValueError, match="`optimizer` is 'muon', expected adamw where weights are sharded"):
        in_process(set(), "--optimizer", "muon")


def test_a_built_dataset_trains(digits, tmp_path):
    videos = MovingMNIST(split="test", num_frames=4, image_size=32, num_digits=1, digits=str(digits), num_videos=6)
    write_parquet(tmp_path / "videos", videos)
    flags = ["--dataset_name", str(tmp_path / "videos"), "--train_split", "test", "--validation_steps", "1"]
    flags += ["--caption_column", "labels"]  # a column of any type is read as text
    result = run(command(digits, tmp_path / "run", "--max_steps", "2", "--per_device_batch_size", "4", *flags))
    assert result.returncode == 0, result.stderr
    assert "validation/generation" in result.stderr + result.stdout


def test_a_dataset_without_videos_is_refused_by_name(tmp_path, capsys):

    datasets.Dataset.from_dict({"image": [0, 1]}).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert loop.main(["--dataset_name", str(tmp_path), "--output_dir", str(tmp_path / "none")]) == 2
    assert "expected one named 'video'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_run_by_the_clock_ends_with_its_rate_at_zero(digits, tmp_path):
    flags = ("--max_steps", "1000000", "--max_minutes", "0.05", "--per_device_batch_size", "1")
    result = run(command(digits, tmp_path, *flags))
    assert result.returncode == 0, result.stderr
    assert "Trained" in result.stdout
    events = EventAccumulator(str(tmp_path / "logs" / "training"))
    events.Reload()
    rates = [event.value for event in events.Scalars("lr")]
    assert rates[0] == pytest.approx(max(rates))
    assert rates[-1] < 0.3 * rates[0]  # the last of many steps in three seconds, the rate falling in the last fifth
    assert sorted(rates, reverse=True) == rates
    VideoDiffusionPipeline.from_pretrained(tmp_path)


def test_sigterm_saves_and_the_exit_code_asks_to_be_resumed(digits, tmp_path):
    words = command(digits, tmp_path, "--max_steps", "100000", "--per_device_batch_size", "1")
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("logs/training/events*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert "resumes" in errors
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1


@pytest.fixture
def in_process(digits, tmp_path):
    """A run in this process whose loss is not a number in the passes that are named; the handler of SIGTERM stays."""

    def make(bad, *flags):
        words = command(digits, tmp_path / "run", "--per_device_batch_size", "1", "--tracker", "none", *flags)
        run = loop.Run(arguments.parse_arguments(words[2:]))
        true_loss = run.loss

        def loss(batch, index):
            value, error = true_loss(batch, index)
            return (value * float("nan") if index in bad else value), error

        run.loss = loss
        return run

    handler = signal.getsignal(signal.SIGTERM)
    yield make
    signal.signal(signal.SIGTERM, handler)


def test_a_step_whose_gradient_is_not_finite_is_skipped(in_process):
    run = in_process({1, 2}, "--max_steps", "4", "--checkpointing_steps", "0")
    history, averaged = [], run.ema.step

    def step(parameters):
        parameters = list(parameters)
        history.append([p.detach().clone() for p in parameters])
        averaged(parameters)

    run.ema.step = step
    assert loop.train(run)
    same = [all(map(torch.equal, a, b)) for a, b in pairwise(history)]
    assert same == [True, True, False]
    assert all(torch.isfinite(p).all() for p in run.denoiser.parameters())


def test_too_many_such_steps_in_a_row_end_the_run_and_leave_the_last_good_checkpoint(in_process):
    run = in_process(set(range(2, 99)), "--max_steps", "99", "--checkpointing_steps", "2", "--max_bad_steps", "2")
    with pytest.raises(FloatingPointError, match="not finite in 2 steps in a row"):
        loop.train(run)
    (kept,) = loop.checkpoints(run.output)
    assert kept.name == "checkpoint-2"
    saved = load_file(kept / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in saved.values())


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(in_process, monkeypatch):
    run = in_process(set(), "--max_steps", "2", "--checkpointing_steps", "1", "--checkpoints_total_limit", "1")
    save, calls = run.accelerator.save_state, []

    def full(folder):
        calls.append(folder)
        if len(calls) == 2:
            Path(folder).mkdir(parents=True)
            (Path(folder) / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(folder)

    monkeypatch.setattr(run.accelerator, "save_state", full)
    with pytest.raises(OSError, match="No space left"):
        loop.train(run)
    (kept,) = loop.checkpoints(run.output)
    assert kept.name == "checkpoint-1"
    assert load_file(kept / "model.safetensors")


def test_the_trapezoid_does_not_depend_on_the_length_before_it_falls():

    def curve(steps):
        flags = ["--lr_scheduler", "trapezoid", "--warmup_steps", "4", "--cooldown_steps", "5", "--learning_rate", "2"]
        args = arguments.parse_arguments([*flags, "--max_steps", str(steps)])[2]
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
        schedule, rates = build.build_lr_scheduler(optimizer, args), []
        for _ in range(steps):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return rates

    assert curve(12) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 1.6, 1.2, pytest.approx(0.8), pytest.approx(0.4)]
    assert curve(20)[:8] == curve(12)[:8]


def test_blocks_are_compiled_for_their_own_shapes_and_equal_ones_share_code(make_denoiser):

    plain = make_denoiser(block_out_channels=(8, 16, 24), layers_per_block=2)
    ours = make_denoiser(block_out_channels=(8, 16, 24), layers_per_block=2)
    compiled = []
    build.compile_blocks(ours, backend=lambda module, inputs: compiled.append(module) or module.forward)
    sample = torch.randn(1, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        assert torch.equal(ours(sample, 500.0).sample, plain(sample, 500.0).sample)
    assert len(compiled) == 2 * 3  # for each level one on the way down and one on the way up


@pytest.mark.parametrize(("few", "many"), [(1, (2, 1)), (2, (3, 4)), ((1, 2), (3, 2)), ((2, 1), (2, 1))])
def test_a_deeper_denoiser_starts_as_the_shallower_one_and_learns_from_there(make_denoiser, few, many):

    shallow = make_denoiser(layers_per_block=few, temporal_shift=0.5)
    deep = make_denoiser(layers_per_block=many, temporal_shift=0.5, randomise=False, seed=1)
    deep.load_state_dict(build.deepen(shallow, deep))
    sample = torch.randn(1, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(deep(sample, 500.0).sample, shallow(sample, 500.0).sample)
    deep(sample, 500.0).sample.square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in deep.named_parameters() if "resnet.conv2.weight" in name)


def test_a_shallower_denoiser_does_not_start_from_a_deeper_one(make_denoiser):

    with pytest.raises(ValueError, match="`layers_per_block` is 1 at level 1, expected at least 2"):
        build.deepen(make_denoiser(layers_per_block=(1, 2)), make_denoiser())


def test_a_checkpoint_of_another_config_is_refused_by_name(digits, reference, tmp_path):
    result = run(command(digits, reference, "--max_steps", "6", "--per_device_batch_size", "4", "--patch_size", "4"))
    assert result.returncode == 2
    assert "`patch_size` is 4, expected 8" in result.stderr


def test_a_run_starts_from_the_weights_of_a_pipeline(digits, reference, tmp_path):
    flags = ("--pretrained_model_name_or_path", str(reference), "--learning_rate", "0", "--weight_decay", "0")
    result = run(command(digits, tmp_path / "run", "--max_steps", "1", "--per_device_batch_size", "1", *flags))
    assert result.returncode == 0, result.stderr
    expected, got = weights(reference), weights(tmp_path / "run")
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    result = run(command(digits, tmp_path / "other", *flags, "--patch_size", "4"))
    assert result.returncode == 2
    assert "`patch_size` is 4, expected 8" in result.stderr


def test_dry_run_reports_and_writes_nothing(digits, tmp_path):
    result = run(command(digits, tmp_path / "none", "--dry_run"))
    assert result.returncode == 0, result.stderr
    for line in ("parameters", "clips per step", "peak memory", "GFLOP a clip", '"patch_size": 8'):
        assert line in result.stdout
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "nonsense"], "`preset` is 'nonsense', expected one of"),
        (["--max_steps", "0"], "`max_steps` is 0, expected at least 1"),
        (["--optimizer", "sgd"], "`optimizer` is 'sgd', expected adamw or muon"),
        (["--mixed_precision", "int8"], "int8"),
        (["--weighting", "none"], "`weighting` is 'none'"),
        (["--push_to_hub"], "`hub_model_id` is None"),
        (["--mask_probabilities", "1", "1", "0", "0"], "`mask_probabilities`"),
        (["--caption_dropout", "2"], "`caption_dropout` is 2.0, expected a share in [0, 1]"),
        (["--max_text_length", "1"], "`max_text_length` is 1, expected at least 2"),
        (["--text_encoder", "/no/such/folder"], "/no/such/folder"),
        (["--spatial_attention", "1", "0"], "`spatial_attention` is (True, False), expected a bool or one for each"),
        (["--prediction_type", "nothing"], "`prediction_type` is 'nothing'"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(flags, message, tmp_path, capsys):

    assert loop.main([*flags, "--output_dir", str(tmp_path / "none")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_preset_sets_what_flags_may_override(tmp_path):

    (tmp_path / "own.yaml").write_text("learning_rate: 0.5\nmax_steps: 7\n")
    _, _, args = arguments.parse_arguments(["--config", str(tmp_path / "own.yaml"), "--max_steps", "9"])
    assert (args.learning_rate, args.max_steps) == (0.5, 9)
    (tmp_path / "own.yaml").write_text("learning_rat: 0.5\n")
    with pytest.raises(ValueError, match="learning_rat"):
        arguments.parse_arguments(["--config", str(tmp_path / "own.yaml")])
    for preset in (ROOT / "training" / "presets").glob("*.yaml"):
        arguments.parse_arguments(["--preset", preset.stem])
