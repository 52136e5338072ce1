"""Distillation: its target against theory, its stages, its guidance, and a whole run that is stopped and goes on."""

import json
import re
import runpy
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from denoisers import tiny_denoiser
from loopback_hub import LoopbackHub
from oracle import Gaussian, sampled_moments
from tiny_training import scalars
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.cli import main as video_diffusion_command
from video_diffusion.data.reading import read_video
from video_diffusion.evaluation import open_source
from video_diffusion.hub.finding import ADAPTER
from video_diffusion.hub.loading import weights_digest
from video_diffusion.model.guidance import guidance_embedding
from video_diffusion.model.steps import spaced_timesteps
from video_diffusion.training import command
from video_diffusion.training.distillation import Distillation, measure, student_of
from video_diffusion.training.distillation_arguments import parse_distillation, plan_stages
from video_diffusion.training.distillation_objective import (
    Told,
    distillation_loss,
    draw_scales,
    joined_steps,
    step_nodes,
    step_times,
    times_at,
)
from video_diffusion.training.objective import Draw

ROOT = Path(__file__).parents[2]
GAUSSIAN = Gaussian()
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scheduler_of(prediction_type="sample"):
    return VPContinuousScheduler(prediction_type=prediction_type, clip_sample=False, deterministic=True)


class Model:
    """A function in a denoiser's place."""

    def __init__(self, function):
        self.function, self.calls = function, []

    def __call__(self, sample, timestep, **conditions):
        self.calls.append((sample, timestep, conditions))
        return SimpleNamespace(sample=self.function(sample, timestep, **conditions))


def exact(scheduler):
    """The Gaussian's exact denoiser, as a network."""

    def predict(sample, timestep, **_):
        logsnr = scheduler.logsnr(timestep / 1000).reshape(-1, *[1] * (sample.ndim - 1))
        return GAUSSIAN.denoise(sample, logsnr, scheduler.config.prediction_type)

    return predict


EVENLY = torch.tensor([0.0, 1.0], dtype=torch.float64)
SPACED = step_nodes(scheduler_of(), {"logsnr_spacing": [-3.0, 2.0]}, 4, True)


def exact_student(scheduler, calls, nodes=EVENLY, parts=2, order=1):
    """The network whose one step is several of the exact denoiser's, by `joined_steps`, as an own-output function."""
    starts = times_at(torch.arange(1, calls + 1).double() / calls, nodes)
    teacher = exact(scheduler)

    def predict(sample, timestep, **_):
        number = torch.searchsorted(starts, timestep.double() / 1000 - 1e-6) + 1
        times = [1000 * time for time in step_times(number / calls, calls, nodes, parts)]

        def original(z, time):
            return scheduler.predict_original(teacher(z, time), time, z)

        return scheduler.from_original(joined_steps(original, scheduler, sample, times, order), timestep, sample)

    return predict


def drawn(t, *shape, given=()):
    mask = torch.zeros(shape[0], shape[2], dtype=torch.bool)
    mask[:, list(given)] = True
    return Draw(torch.as_tensor(t, dtype=torch.float64), noise(*shape, seed=1), mask)


# ---------------------------------------------------------------------------------------------------------- the target
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize(("calls", "nodes"), [(1, EVENLY), (2, EVENLY), (8, EVENLY), (2, SPACED), (8, SPACED)])
@pytest.mark.parametrize(("parts", "order"), [(2, 1), (3, 2)])
def test_the_exact_student_has_no_loss_and_any_other_has(prediction_type, calls, nodes, parts, order):
    scheduler, shape = scheduler_of(prediction_type), (4, 1, 2, 3, 3)
    x, step = noise(*shape), drawn([0.1, 0.3, 0.7, 1.0], *shape)

    def loss(student):
        networks, schedule = (Model(student), Model(exact(scheduler)), scheduler), (calls, nodes, "v_prediction")
        return distillation_loss(*networks, x, step, *schedule, Told(), 1, parts, order)

    best = loss(exact_student(scheduler, calls, nodes, parts, order))
    assert max(value.max() for value in best) < 1e-12
    other = loss(exact(scheduler))  # one step of the teacher is not several
    assert min(value.min() for value in other) > 1e-8


def test_the_exact_students_sampler_has_the_moments_of_its_teachers_with_twice_the_calls(monkeypatch):
    scheduler = scheduler_of()
    teachers = sampled_moments(scheduler, GAUSSIAN, 8)
    student = exact_student(scheduler, 4)
    times = {round(scheduler.logsnr(torch.tensor(t / 4).double()).item(), 6): 250.0 * t for t in range(1, 5)}

    class Student(Gaussian):
        def denoise(self, z_t, logsnr, prediction_type="sample"):
            return student(z_t[:, None], torch.full((len(z_t),), times[round(logsnr.item(), 6)]).double())[:, 0]

    assert sampled_moments(scheduler, Student(), 4) == pytest.approx(teachers, abs=1e-9)
    assert sampled_moments(scheduler, GAUSSIAN, 4) != pytest.approx(teachers, abs=1e-3)


def test_two_steps_of_the_sampler_with_the_teacher_lead_where_one_step_with_the_target_does():
    """Through the pipeline's own scheduler, with a network that is no Gaussian's."""
    scheduler, z = scheduler_of("v_prediction"), noise(2, 1, 3, 4, 4)

    def network(sample, timestep):
        return torch.sin(3 * sample) + timestep.double().reshape(-1, 1, 1, 1, 1) / 1000

    two, one = scheduler_of("v_prediction"), scheduler_of("v_prediction")
    two.set_timesteps(timesteps=[750.0, 625.0, 500.0])
    z_m = two.step(network(z, torch.tensor([750.0])), 750.0, z).prev_sample
    z_s = two.step(network(z_m, torch.tensor([625.0])), 625.0, z_m).prev_sample
    times = tuple(torch.full((2,), time, dtype=torch.float64) for time in (750.0, 625.0, 500.0))
    x = joined_steps(lambda z, t: scheduler.predict_original(network(z, t), t, z), scheduler, z, times)
    one.set_timesteps(timesteps=[750.0, 500.0])
    torch.testing.assert_close(one.step(one.from_original(x, 750.0, z), 750.0, z).prev_sample, z_s)


def test_the_steps_of_second_order_are_those_of_diffusers_dpm_solver():
    """On the timesteps that the stock solver has; steps of first order are far from its."""
    scheduler, z = scheduler_of(), noise(1, 1, 3, 4, 4)

    def network(sample, timestep):
        return torch.sin(3 * sample) * (1 - timestep / 1000)

    stock = scheduler.as_diffusers(DPMSolverMultistepScheduler)
    stock.set_timesteps(timesteps=[900, 700, 500, 300])
    expected = z
    for t in (900, 700, 500):
        expected = stock.step(network(expected, t), t, expected).prev_sample
    times = [torch.tensor([t], dtype=torch.float64) for t in (900.0, 700.0, 500.0, 300.0)]

    def end(order):
        x = joined_steps(lambda z, t: network(z, float(t)), scheduler, z, times, order)
        return scheduler.ddim_step(x, times[0], times[-1], z)

    first, second = ((end(order) - expected).abs().max() for order in (1, 2))
    assert second < 1e-5 < 1e-3 < first


def test_more_steps_of_second_order_come_to_the_true_solution_faster():
    scheduler, z = scheduler_of(), noise(1, 1, 3, 4, 4)
    exactly, ends = exact(scheduler), [torch.tensor([t], dtype=torch.float64) for t in (900.0, 300.0)]
    solution = GAUSSIAN.solve_ode(z, *(scheduler.logsnr(end / 1000) for end in ends))

    def error(parts, order):
        times = [torch.lerp(*ends, part / parts) for part in range(parts + 1)]
        x = joined_steps(exactly, scheduler, z, times, order)
        return (scheduler.ddim_step(x, *ends, z) - solution).abs().max().item()

    for order in (1, 2):
        assert error(32, order) / error(64, order) == pytest.approx(2**order, rel=0.15)


def test_a_step_to_the_data_is_of_first_order():
    scheduler, x, before = scheduler_of(), noise(2, 1, 3, 4, 4), noise(2, 1, 3, 4, 4, seed=1)
    times = [torch.tensor(pair, dtype=torch.float64) for pair in ([900.0, 900.0], [500.0, 500.0], [300.0, 0.0])]
    made = scheduler.extrapolate_original(x, before, tuple(times))
    assert torch.equal(made[1], x[1])
    lam = [scheduler.logsnr(torch.tensor(t)).double() for t in (0.9, 0.5, 0.3)]
    torch.testing.assert_close(made[0], x[0] + (x - before)[0] * (lam[2] - lam[1]) / (lam[1] - lam[0]) / 2)
    with pytest.raises(ValueError, match="expected falling timesteps"):
        scheduler.extrapolate_original(x, before, (500.0, 900.0, 300.0))
    with pytest.raises(ValueError, match="`before` has shape"):
        scheduler.extrapolate_original(x, before[:1], (900.0, 500.0, 300.0))


def test_the_times_of_a_step_are_those_of_the_sampler():
    t, m, s = step_times(torch.tensor([1e-6, 0.25, 0.2500001, 0.6, 1.0]), 4, EVENLY)
    assert t.tolist() == [0.25, 0.25, 0.5, 0.75, 1.0]
    assert m.tolist() == [0.125, 0.125, 0.375, 0.625, 0.875]
    assert s.tolist() == [0.0, 0.0, 0.25, 0.5, 0.75]
    scheduler = VPContinuousScheduler()
    scheduler.set_timesteps(4)
    assert set((1000 * t).tolist()) == set(scheduler.timesteps.tolist())


def test_spaced_times_are_those_of_the_last_student_and_every_stage_has_them_among_its_own():
    scheduler = scheduler_of()
    placed = [place / 1000 for place in spaced_timesteps(scheduler, 4, -3.0, 2.0)]
    t, m, s = step_times(torch.tensor([0.25, 0.5, 0.75, 1.0]), 4, SPACED)
    assert t.tolist() == pytest.approx([*reversed(placed)])
    assert s.tolist() == pytest.approx([0.0, *reversed(placed[1:])])
    assert m.tolist() == pytest.approx(((t + s) / 2).tolist())
    thirds = step_times(torch.tensor([1.0]), 4, SPACED, 3)
    assert [1000 * float(time) for time in thirds] == pytest.approx(
        [float(torch.lerp(1000 * t[3], 1000 * s[3], part / 3)) for part in range(4)]
    )
    of_8 = step_times(torch.arange(1, 9) / 8, 8, SPACED)
    assert of_8[0][1::2].tolist() == pytest.approx(t.tolist())
    assert of_8[0][::2].tolist() == pytest.approx(m.tolist())


def test_a_distilled_teachers_times_stay():
    config = {"timesteps": [960.0, 700.0, 300.0, 100.0], "logsnr_spacing": [-3.0, 2.0]}
    for spaced in (True, False):
        nodes = step_nodes(scheduler_of(), config, 2, spaced)
        assert nodes.tolist() == pytest.approx([0, 0.1, 0.3, 0.7, 0.96])
        assert step_times(torch.tensor([0.5, 1.0]), 2, nodes)[0].tolist() == pytest.approx([0.3, 0.96])
    assert step_nodes(scheduler_of(), {"logsnr_spacing": [-3.0, 2.0]}, 2, False).tolist() == [0, 0.5, 1]


def test_given_frames_are_seen_clean_at_both_of_the_teachers_steps_and_are_not_learned():
    scheduler, shape = scheduler_of(), (1, 1, 3, 2, 2)
    x, teacher, student = noise(*shape), Model(lambda z, t, **_: z[:, :1]), Model(lambda z, t, **_: z[:, :1])
    loss, _ = distillation_loss(
        student, teacher, scheduler, x, drawn([1.0], *shape, given=[0, 2]), 2, EVENLY, "sample", Told(), 3
    )
    assert [float(t) for _, t, _ in (*teacher.calls, *student.calls)] == [1000.0, 750.0, 1000.0]
    for z, _, _ in (*teacher.calls, *student.calls):
        assert torch.equal(z[:, 0, [0, 2]], x[:, 0, [0, 2]])
        assert torch.equal(z[:, 2, :, 0, 0], torch.tensor([[1.0, 0.0, 1.0]]).double())
    spoiled = Model(lambda z, t, **_: z[:, :1] + torch.tensor([9.0, 0, 9]).reshape(1, 1, 3, 1, 1))
    again, _ = distillation_loss(
        spoiled, teacher, scheduler, x, drawn([1.0], *shape, given=[0, 2]), 2, EVENLY, "sample", Told(), 3
    )
    torch.testing.assert_close(again, loss)


def test_the_first_teacher_is_guided_at_the_scale_of_each_clip():
    """x̂ = free + w (bound − free): with constant networks the target is that number."""
    scheduler, shape = scheduler_of(), (3, 1, 1, 2, 2)
    teacher = Model(lambda z, t, side, **_: torch.full_like(z, side))
    seen = []
    student = Model(lambda z, t, scale, **_: seen.append(scale) or torch.zeros_like(z))
    scale = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    told = Told({"scale": scale}, {"side": 0.3}, {"side": 0.1}, scale)
    step = drawn([0.5, 0.5, 0.5], *shape)
    loss, error = distillation_loss(student, teacher, scheduler, noise(*shape), step, 2, EVENLY, "sample", told, 1)
    expected = (0.1 + scale * 0.2) ** 2
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(error, expected)
    assert torch.equal(seen[0], scale)
    assert [len(z) for z, _, _ in teacher.calls] == [3, 2, 3, 2]  # a clip at w = 1 needs one side alone


def test_the_target_is_clipped_as_the_sampler_clips():
    scheduler, shape = VPContinuousScheduler(prediction_type="sample", deterministic=True), (1, 1, 1, 2, 2)
    teacher = Model(lambda z, t, **_: torch.full_like(z, 7.0))
    student = Model(lambda z, t, **_: torch.zeros_like(z))
    loss, _ = distillation_loss(
        student, teacher, scheduler, noise(*shape), drawn([0.5], *shape), 2, EVENLY, "sample", Told(), 1
    )
    torch.testing.assert_close(loss, torch.ones(1).double())


def test_only_the_student_gets_gradients():
    scheduler, shape = scheduler_of(), (2, 1, 2, 16, 16)
    teacher, student = tiny_denoiser(0), tiny_denoiser(1)
    step = drawn([0.5, 1.0], *shape)
    step = Draw(step.t, step.noise.float(), step.frame_mask)
    loss, error = distillation_loss(
        student, teacher, scheduler, noise(*shape).float(), step, 2, EVENLY, "v_prediction", Told(), 1
    )
    assert not error.requires_grad
    loss.mean().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert sum(parameter.grad is not None for parameter in student.parameters()) > 10


def test_scales_are_uniform_in_their_range_and_those_of_each_step_its_own():
    scales = torch.cat([draw_scales(100, [2.0, 6.0], 0, step) for step in range(40)])
    assert 2 <= scales.min() < 2.01
    assert 5.99 < scales.max() <= 6
    assert scales.mean() == pytest.approx(4, abs=0.1)
    assert torch.equal(draw_scales(4, [1.0, 4.0], 3, 7), draw_scales(4, [1.0, 4.0], 3, 7))
    assert not torch.equal(draw_scales(4, [1.0, 4.0], 3, 7), draw_scales(4, [1.0, 4.0], 4, 7))


# ------------------------------------------------------------------------------------------------- students and stages
def test_a_student_starts_as_its_teacher_whatever_the_scale():
    teacher = tiny_denoiser(cross_attention_dim=8)
    student = student_of(teacher, guided=True).eval()
    z, text = noise(2, 1, 4, 16, 16).float(), noise(2, 5, 8).float()
    cond = guidance_embedding(torch.tensor([1.0, 7.0]), student.config.time_cond_proj_dim)
    expected = teacher(z, 500.0, text).sample
    assert torch.equal(student(z, 500.0, text, timestep_cond=cond).sample, expected)
    assert student_of(teacher, guided=False).config.time_cond_proj_dim is None
    assert student_of(student, guided=True).config.time_cond_proj_dim == student.config.time_cond_proj_dim


@pytest.mark.parametrize(
    ("teacher", "student", "expected"), [(16, 1, [8, 4, 2, 1]), (20, 5, [10, 5]), (6, 3, [3]), (2, 1, [1])]
)
def test_stages_halve_the_calls(teacher, student, expected):
    assert plan_stages(teacher, student) == expected


@pytest.mark.parametrize(
    ("teacher", "student", "stages", "expected"),
    [(12, 4, 1, [4]), (16, 4, 1, [4]), (18, 2, 2, [6, 2]), (8, 2, 2, [4, 2])],
)
def test_stages_of_another_ratio(teacher, student, stages, expected):
    assert plan_stages(teacher, student, stages) == expected


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ((4, 8), "`student_calls` is 8, expected fewer than `teacher_calls`, 4"),
        ((4, 4), "`student_calls` is 4, expected fewer than `teacher_calls`, 4"),
        ((20, 2), "`teacher_calls` is 20, expected `student_calls`, 2, times a power of two"),
        ((16, 3), "`teacher_calls` is 16, expected `student_calls`, 3, times a power of two; or say `stages`"),
        ((6, 4, 1), "`teacher_calls` is 6, expected `student_calls`, 4, times a whole number."),
        (
            (12, 4, 2),
            "`teacher_calls` is 12, expected `student_calls`, 4, times a whole number to the power of `stages`, 2",
        ),
    ],
)
def test_stages_that_do_not_lead_to_the_student_are_refused(calls, message):
    with pytest.raises(ValueError, match=message):
        plan_stages(*calls)


# --------------------------------------------------------------------------------------------------------- whole runs
def flags_of(digits, teacher, output, *more):
    common = ["--pretrained_model_name_or_path", teacher, "--digits", digits, "--output_dir", output, "--seed", 5]
    common += ["--teacher_calls", 4, "--student_calls", 1, "--max_steps", 4, "--per_device_batch_size", 2]
    common += ["--warmup_steps", 0, "--log_steps", 1, "--validation_steps", 0, "--guidance_range", 1, 3]
    return [str(word) for word in (*common, *more)]


def distil(*flags):
    """The exit code of a part of a distillation in this process; the handlers of signals stay."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return command.distill(flags_of(*flags))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def distilled(digits, reference, tmp_path_factory):
    """Four steps from four calls to one, never interrupted, with checkpoints of each. Not to be written to."""
    output = tmp_path_factory.mktemp("distilled") / "run"
    flags = ("--checkpointing_steps", 1, "--checkpoints_total_limit", 9)
    assert distil(digits, reference, output, *flags) == 0
    return output


def test_each_stage_leaves_a_pipeline_that_samples_with_its_calls(distilled, reference):
    for folder, calls in ((distilled / "calls-2", 2), (distilled, 1)):
        pipe = VideoDiffusionPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        assert pipe.generation_config["num_inference_steps"] == calls
        assert pipe.scheduler.config.deterministic is True
        seen = []
        pipe.unet.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        video = torch.rand(1, 1, 1, 32, 32)
        frames = pipe("a 3", video=video, guidance_scale=2.0, output_type="pt").frames
        assert len(seen) == calls
        assert torch.equal(frames[:, :1], video)
        assert torch.isfinite(frames).all()
    teacher, student = weights(reference), weights(distilled)
    assert set(student) - set(teacher) == {"time_embedding.cond_proj.weight"}
    assert student["time_embedding.cond_proj.weight"].abs().max() > 0  # it has learned to read the scale
    encoders = (load_file(folder / "text_encoder" / "model.safetensors") for folder in (reference, distilled))
    assert all(torch.equal(*pair) for pair in zip(*(encoder.values() for encoder in encoders), strict=True))


def test_students_of_a_teacher_with_spaced_steps_sample_at_theirs(digits, reference, tmp_path):
    teacher = VideoDiffusionPipeline.from_pretrained(reference)
    teacher.generation_config = {"logsnr_spacing": [-3.0, 2.0]}
    teacher.save_pretrained(tmp_path / "teacher")
    assert distil(digits, tmp_path / "teacher", tmp_path / "run", "--student_calls", 2, "--max_steps", 1) == 0
    pipe = VideoDiffusionPipeline.from_pretrained(tmp_path / "run")
    pipe.set_progress_bar_config(disable=True)
    placed = spaced_timesteps(pipe.scheduler, 2, -3.0, 2.0)
    assert pipe.generation_config["timesteps"] == pytest.approx(placed)
    for steps, expected in ((None, placed), (4, [1000.0, 750.0, 500.0, 250.0])):
        seen = []
        pipe.unet.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(float(args[1].flatten()[0])))
        pipe(num_inference_steps=steps, num_frames=2, output_type="latent")
        assert seen == pytest.approx(expected, rel=1e-3)


def test_a_run_that_was_stopped_in_any_stage_goes_on_bit_for_bit(digits, reference, distilled, tmp_path, capsys):
    for step in (2, 3):  # at a new stage, and within one
        copy = tmp_path / str(step)
        copy.mkdir()
        shutil.copytree(distilled / f"checkpoint-{step}", copy / f"checkpoint-{step}")
        assert distil(digits, reference, copy) == 0
        assert f"distill: goes on from {copy / f'checkpoint-{step}'}" in capsys.readouterr().err
        expected, got = weights(distilled), weights(copy)
        assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_the_next_stage_starts_from_the_average_and_is_taught_by_it(digits, reference, tmp_path):
    flags = flags_of(digits, reference, tmp_path, "--ema_decay", 0.5)
    run = Distillation(parse_distillation(flags))
    run.optimizer.step()
    assert run.calls == 2
    run.progress.step = 1
    run.next_stage()
    assert run.calls == 2  # two steps each
    average = [w.clone() + 0.01 for w in run.ema.shadow_params]
    run.ema.shadow_params = [w.clone() for w in average]
    run.progress.step = 2
    run.next_stage()
    assert run.calls == 1
    for one, other, mean in zip(run.denoiser.parameters(), run.stages.teacher.parameters(), average, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, mean)
        assert not other.requires_grad
    assert run.lr_scheduler.last_epoch == 0
    assert len(run.optimizer.state) == 0
    run.progress.step = 4
    run.next_stage()
    assert run.calls == 1  # the last stage has no next


def test_the_learning_rate_falls_in_every_stage_anew(distilled):
    rates = scalars(distilled, "lr")
    assert rates[0] == pytest.approx(rates[2])
    assert rates[1] < rates[0]


def test_a_run_by_the_clock_has_stages_of_equal_time(digits, reference, tmp_path):
    run = Distillation(parse_distillation(flags_of(digits, reference, tmp_path, "--max_minutes", 10)))
    run.optimizer.step()
    run.progress.seconds = 4.9 * 60
    run.next_stage()
    assert (run.calls, run.minutes_left()) == (2, pytest.approx(0.1))
    run.progress.seconds = 5.1 * 60
    run.next_stage()
    assert (run.calls, run.minutes_left()) == (1, pytest.approx(4.9))


def test_two_processes_share_the_clips_times_and_scales_of_one(digits, reference, tmp_path, monkeypatch):
    def losses(batch):
        run = Distillation(parse_distillation(flags_of(digits, reference, tmp_path, "--per_device_batch_size", batch)))
        run.stages.advance(run.denoiser.state_dict())
        run.denoiser.time_embedding.cond_proj.weight.data.normal_(generator=torch.Generator().manual_seed(0))
        return [float(value.detach()) for value in run.loss(run.batches[3], 3)]

    expected = losses(4)
    monkeypatch.setattr("accelerate.Accelerator.num_processes", property(lambda self: 2))
    halves = []
    for rank in range(2):
        monkeypatch.setattr("accelerate.Accelerator.process_index", property(lambda self, rank=rank: rank))
        halves.append(losses(2))
    assert [sum(pair) / 2 for pair in zip(*halves, strict=True)] == pytest.approx(expected, rel=1e-5)


def test_the_report_compares_with_the_first_teacher(digits, reference, tmp_path):
    flags = flags_of(digits, reference, tmp_path, "--validation_videos", 2, "--solver_order", 1)
    run = Distillation(parse_distillation(flags))
    values = measure(run)
    names = [f"validation/{task}_in_2{of}" for task in ("generation", "prediction") for of in ("", "_of_teacher")]
    assert list(values) == names
    for task in ("generation", "prediction"):  # a new student is its teacher
        assert values[f"validation/{task}_in_2"] == pytest.approx(
            values[f"validation/{task}_in_2_of_teacher"], rel=1e-4
        )
        assert values[f"validation/{task}_in_2"] > 0
    run.ema.shadow_params = [w + 0.05 for w in run.ema.shadow_params]
    assert measure(run)["validation/generation_in_2"] != pytest.approx(values["validation/generation_in_2"], rel=1e-3)


def test_a_distilled_model_is_distilled_further(digits, distilled, tmp_path):
    teacher, student = shutil.copytree(distilled / "calls-2", tmp_path / "teacher"), tmp_path / "student"
    pipe = VideoDiffusionPipeline.from_pretrained(teacher)
    pipe.generation_config["example_prompts"] = ["the digit 3"]
    pipe.save_pretrained(teacher)
    flags = ("--teacher_calls", 2, "--max_steps", 1, "--num_images", 1)
    assert distil(digits, teacher, student, *flags) == 0
    assert weights(student).keys() == weights(distilled).keys()
    config = VideoDiffusionPipeline.from_pretrained(student).generation_config
    assert (config["num_inference_steps"], config["example_prompts"]) == (1, ["the digit 3"])


def test_guidance_stays_outside_where_the_range_is_1_to_1(digits, reference, tmp_path):
    assert distil(digits, reference, tmp_path, "--guidance_range", 1, 1, "--max_steps", 2) == 0
    assert weights(tmp_path).keys() == weights(reference).keys()


def test_a_single_scale_is_folded_in_without_being_read(digits, reference, tmp_path):
    assert distil(digits, reference, tmp_path, "--guidance_range", 3, 3, "--max_steps", 2) == 0
    assert weights(tmp_path).keys() == weights(reference).keys()
    assert VideoDiffusionPipeline.from_pretrained(tmp_path).generation_config["guidance_scale"] == 1.0
    run = Distillation(parse_distillation(flags_of(digits, reference, tmp_path, "--guidance_range", 3, 3)))
    told = run._told(*parts_of(run, 0))
    assert told.free is not None
    assert set(told.scale.tolist()) <= {1.0, 3.0}
    assert "timestep_cond" not in told.student
    run.stages.advance(run.denoiser.state_dict())  # whose guidance is in its weights
    assert run._told(*parts_of(run, 0)).free is None


def parts_of(run, index):
    x, noise = run.drawn(run.batches[index], index)
    return run.batches[index], noise, index, x


# ------------------------------------------------------------------------------------------------ adapters as students
CHANGED = "mid_block.resnet.conv1.weight"
ADAPTED = ("--lora_rank", 2, "--lora_target_modules", "conv1", "--guidance_range", 2, 2, "--learning_rate", 0.02)


@pytest.fixture(scope="module")
def adapted(digits, reference, tmp_path_factory):
    """Four steps from six calls to two and one, of an adapter. Not to be written to."""
    pytest.importorskip("peft")
    output = tmp_path_factory.mktemp("adapted") / "run"
    flags = ("--teacher_calls", 8, "--student_calls", 2, "--checkpointing_steps", 1, "--checkpoints_total_limit", 9)
    assert distil(digits, reference, output, *ADAPTED, *flags) == 0
    return output


def test_the_folder_of_an_adapter_makes_a_pipeline_of_its_base(adapted, reference):
    assert {file.name for file in adapted.iterdir()} >= {ADAPTER, "README.md", "scheduler", "generation_config.json"}
    pipe, base = (VideoDiffusionPipeline.from_pretrained(folder) for folder in (adapted, reference))
    assert pipe.scheduler.config.deterministic is True
    assert pipe.generation_config["num_inference_steps"] == 2
    assert pipe.generation_config["guidance_scale"] == 1.0  # it is in the weights
    learned, before = pipe.unet.state_dict(), base.unet.state_dict()
    assert learned.keys() == before.keys()
    changed = {name for name, value in learned.items() if not torch.equal(value, before[name])}
    assert changed
    assert CHANGED in changed
    assert all(name.endswith("conv1.weight") for name in changed)
    base.load_lora_weights(str(adapted))
    z, text = torch.randn(1, 3, 3, 32, 32), torch.randn(1, 5, pipe.unet.config.cross_attention_dim)
    torch.testing.assert_close(
        pipe.unet(z, 500.0, text).sample, base.unet(z, 500.0, text).sample, atol=1e-5, rtol=1e-4
    )


def test_the_adapter_of_the_package_loads_by_its_name_both_ways():
    whole, base = (VideoDiffusionPipeline.from_pretrained(name) for name in ("moving-mnist-4step", "moving-mnist"))
    assert (whole.generation_config["num_inference_steps"], len(whole.generation_config["timesteps"])) == (4, 4)
    assert whole.scheduler.config.deterministic is True
    base.load_lora_weights("moving-mnist-4step")
    base.fuse_lora()
    base.unload_lora_weights()
    one, other = (pipe.unet.state_dict() for pipe in (whole, base))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_every_stage_of_an_adapter_starts_from_the_one_before(adapted, digits, reference, tmp_path):
    first, last = (VideoDiffusionPipeline.from_pretrained(folder) for folder in (adapted / "calls-4", adapted))
    assert first.generation_config["num_inference_steps"] == 4
    flags = flags_of(digits, reference, tmp_path, *ADAPTED, "--teacher_calls", 8, "--student_calls", 2)
    run = Distillation(parse_distillation(flags))
    assert sum(weight.numel() for weight in run.learned(run.learner)) < 0.2 * run.denoiser.num_parameters()
    assert {name for name, weight in run.learner.named_parameters() if weight.requires_grad} == {
        name for name, _ in run.learner.named_parameters() if "lora_" in name
    }
    average = [weight + 0.01 for weight in run.ema.shadow_params]
    run.ema.shadow_params = [weight.clone() for weight in average]
    run.progress.step = 2
    run.next_stage()
    assert run.calls == 2
    for network in (run.denoiser, run.stages.teacher):
        assert all(torch.equal(*pair) for pair in zip(run.learned(network), average, strict=True))
    pairs = zip(first.unet.parameters(), last.unet.parameters(), strict=True)
    assert not all(torch.equal(*pair) for pair in pairs)  # the second stage has learned too


def test_an_adapters_run_that_was_stopped_goes_on_bit_for_bit(adapted, digits, reference, tmp_path):
    for step in (2, 3):
        copy = tmp_path / str(step)
        copy.mkdir()
        shutil.copytree(adapted / f"checkpoint-{step}", copy / f"checkpoint-{step}")
        assert distil(digits, reference, copy, *ADAPTED, "--teacher_calls", 8, "--student_calls", 2) == 0
        expected, got = load_file(adapted / ADAPTER), load_file(copy / ADAPTER)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_an_adapter_is_distilled_further(adapted, digits, tmp_path):
    flags = ("--teacher_calls", 2, "--student_calls", 1, "--max_steps", 1, "--lora_rank", 2, "--lora_target_modules")
    words = flags_of(digits, adapted, tmp_path, *flags, "conv1", "--guidance_range", 1, 1)
    data, _ = parse_distillation(words)
    assert (data.num_frames, data.image_size) == (3, 32)
    assert distil(digits, adapted, tmp_path, *flags, "conv1", "--guidance_range", 1, 1) == 0
    one, two = (VideoDiffusionPipeline.from_pretrained(folder) for folder in (tmp_path, adapted))
    assert [pipe.generation_config["num_inference_steps"] for pipe in (one, two)] == [1, 2]
    assert not torch.equal(*(pipe.unet.state_dict()[CHANGED] for pipe in (one, two)))


def test_a_merged_adapter_is_a_whole_pipeline(adapted, digits, reference, tmp_path):
    flags = ("--teacher_calls", 8, "--student_calls", 2, "--merged")
    assert distil(digits, reference, tmp_path, *ADAPTED, *flags) == 0
    assert not (tmp_path / ADAPTER).exists()
    one, other = (VideoDiffusionPipeline.from_pretrained(folder) for folder in (adapted, tmp_path))
    for mine, theirs in zip(one.unet.parameters(), other.unet.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert one.generation_config == other.generation_config


def test_the_card_of_an_adapter_tells_of_its_calls_and_its_examples_run(
    adapted, reference, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(adapted, tmp_path / "few", ignore=shutil.ignore_patterns("checkpoint-*", "calls-*"))
    assert video_diffusion_command(["card", str(folder), "--samples"]) == 0
    assert {file.name for file in (folder / "samples").iterdir()} == {"generated.gif", "predicted.gif"}
    card = ModelCard.load(folder / "README.md")
    assert "a clip in 2 calls of the network" in card.text
    assert "![generated](samples/generated.gif)" in card.text
    for row in ("of the teacher | 8", "of the last student | 2", "that are folded in | 2.0, 2.0", "steps | 4"):
        assert f"{row} |" in card.text
    blocks = [part.split("```")[0] for part in card.text.split("```python\n")[1:]]
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        code = block.replace(f'"{reference.name}"', repr(str(reference))).replace('"few"', repr(str(folder)))
        exec(compile(code, "card", "exec"), names)
    assert len(read_video(tmp_path / "clip.gif")) == 3


def test_figures_belong_to_an_adapter_and_its_base(adapted, reference, tmp_path):
    folder = shutil.copytree(adapted, tmp_path / "few", ignore=shutil.ignore_patterns("checkpoint-*", "calls-*"))
    digest = weights_digest(folder)
    assert digest == weights_digest(adapted)
    assert digest != weights_digest(reference)
    learned = load_file(folder / ADAPTER)
    save_file({key: value + 0.1 for key, value in learned.items()}, folder / ADAPTER)
    assert weights_digest(folder) != digest
    save_file({key: value * float("nan") for key, value in learned.items()}, folder / ADAPTER)
    with pytest.raises(ValueError, match="has NaN or infinite values"):
        VideoDiffusionPipeline.from_pretrained(folder)
    source = open_source(str(adapted))
    assert source.identity["weights"] == digest
    assert (source.settings["steps"], source.settings["sampler"]) == (2, "ddim")


def test_a_distilled_adapter_is_published_whole_and_is_a_pipeline_from_the_hub(
    adapted, reference, tmp_path, monkeypatch
):
    folder = shutil.copytree(adapted, tmp_path / "few", ignore=shutil.ignore_patterns("checkpoint-*", "calls-*"))
    (folder / "samples").mkdir()
    (folder / "samples" / "generated.gif").write_bytes(b"GIF89a")
    video = torch.rand(1, 1, 1, 32, 32)

    def clip(pipe):
        pipe.set_progress_bar_config(disable=True)
        return pipe("a 3", video=video, generator=torch.Generator().manual_seed(0), output_type="pt").frames

    token = "hf_" + "t" * 34
    with LoopbackHub({token: "you"}) as hub:
        hub.log_in(monkeypatch, tmp_path, token)
        assert video_diffusion_command(["push", str(folder), "you/few"]) == 0
        found = VideoDiffusionPipeline.from_pretrained("you/few", cache_dir=tmp_path / "cache")
        with pytest.raises(OSError, match="you/none"):
            VideoDiffusionPipeline.from_pretrained("you/none", cache_dir=tmp_path / "cache")
    sent = {file.name for file in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert {ADAPTER, "run.json", "generation_config.json", "scheduler"} <= sent
    offline = VideoDiffusionPipeline.from_pretrained("you/few", cache_dir=tmp_path / "cache", local_files_only=True)
    for pipe in (found, offline):
        assert torch.equal(clip(pipe), clip(VideoDiffusionPipeline.from_pretrained(folder)))
    assert found.config["_name_or_path"] == "you/few"


def test_an_adapter_without_its_base_or_of_another_adapter_is_refused(adapted, tmp_path):
    copy = shutil.copytree(adapted, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*", "calls-*"))
    record = json.loads((copy / "run.json").read_text())
    for base, error, message in (
        (None, ValueError, "`pretrained_model_name_or_path` = None, expected the name of the base"),
        (str(copy), ValueError, "which leads back to it, expected a pipeline"),
        ("moving-mmist", OSError, "Did you mean moving-mnist?"),
    ):
        (copy / "run.json").write_text(json.dumps(record | {"pretrained_model_name_or_path": base}))
        with pytest.raises(error, match=re.escape(message)):
            VideoDiffusionPipeline.from_pretrained(copy)
        assert video_diffusion_command(["card", str(copy)]) == 0  # without figures it needs no base


def test_what_the_teacher_was_trained_on_is_the_default_and_flags_win(digits, reference, tmp_path):
    data, args = parse_distillation(["--pretrained_model_name_or_path", str(reference)])
    assert (data.num_frames, data.image_size, data.num_digits, data.num_images) == (3, 32, 1, 0)
    assert data.digits == str(digits)
    assert args.caption_dropout == 0.5
    data, args = parse_distillation(flags_of(digits, reference, tmp_path, "--num_frames", 2, "--caption_dropout", 0))
    assert (data.num_frames, args.caption_dropout) == (2, 0)
    (tmp_path / "run.yaml").write_text(f"pretrained_model_name_or_path: {reference}\nnum_digits: 2\n")
    assert parse_distillation(["--config", str(tmp_path / "run.yaml")])[0].num_digits == 2


def test_the_scripts_dry_run_says_what_it_costs_and_writes_nothing(digits, reference, tmp_path, monkeypatch, capsys):
    script = str(ROOT / "training" / "distill.py")
    words = flags_of(digits, reference, tmp_path / "none", "--dry_run")
    for flags, code in ((words, 0), ([*words, "--student_calls", "9"], 2)):
        monkeypatch.setattr(sys, "argv", [script, *flags])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        assert ended.value.code == code
    said = capsys.readouterr().out
    for line in (
        "seconds per step",
        "GFLOP a clip",
        "4 → 2 → 1 calls, 2 steps each",
        "hours at the speed of the first",
    ):
        assert line in said
    assert not (tmp_path / "none").exists()


def test_the_command_distils(digits, reference, tmp_path, capsys):
    flags = flags_of(digits, reference, tmp_path, "--teacher_calls", 2, "--max_steps", 1, "--tracker", "none")
    assert video_diffusion_command(["distill", *flags]) == 0
    assert "Trained 1 steps" in capsys.readouterr().out
    assert video_diffusion_command(["distill", "--studend_calls", "1"]) == 2
    assert "distill: `--studend_calls` is no argument; the nearest name is --student_calls" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--student_calls", 8), "`student_calls` is 8, expected fewer than `teacher_calls`, 4"),
        (("--guidance_range", 4, 1), r"`guidance_range` is [4.0, 1.0], expected the least scale first"),
        (("--guidance_range", 0, 2), "`guidance_range` is [0.0, 2.0], expected two, each a number at least 1"),
        (("--guidance_range", 2), "`guidance_range` is [2.0], expected two"),
        (("--lora_rank", 2), "`guidance_range` is [1.0, 3.0], expected one scale twice with `lora_rank`"),
        (("--lora_rank", 0), "`lora_rank` is 0, expected a whole number from 1"),
        (("--lora_target_modules", "to_q"), "`lora_target_modules` is ['to_q'], expected ['to_q', 'to_k',"),
        (("--merged",), "`merged` is True, expected False without `lora_rank`"),
        (("--logit_normal", 0, 1), "`logit_normal` is [0.0, 1.0], expected None: a student learns at its own steps"),
        (
            (*ADAPTED, "--lora_target_modules", "to_w"),
            "`lora_target_modules` has 'to_w', expected the end of a",
        ),
        (("--stages", 3), "times a whole number to the power of `stages`, 3"),
        (("--solver_order", 3), "`solver_order` is 3, expected a whole number from 1 to 2"),
        (("--max_steps", 1), "`max_steps` is 1, expected one at least for each of 2 stages"),
        (("--num_channels", 3), "`num_channels` is 3, expected"),
        (("--pretrained_model_name_or_path", "moving-mmist"), "Did you mean moving-mnist?"),
        (("--patch_size", 4), "`--patch_size` is no argument"),
        (("--preset", "tiny-cpu"), "`--preset` is no argument"),
    ],
)
def test_arguments_that_cannot_be_are_refused(digits, reference, tmp_path, capsys, flags, message):
    assert distil(digits, reference, tmp_path / "none", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def changed(folder, part, file, **values):
    path = folder / part / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"prediction_type": "flow_prediction"}, "`prediction_type` is 'flow_prediction', expected one of"),
        ({"_class_name": "DDPMScheduler"}, "whose scheduler is a DDPMScheduler, expected a VPContinuousScheduler"),
    ],
)
def test_a_teacher_with_another_prediction_or_schedule_is_refused(
    digits, reference, tmp_path, capsys, scheduler, message
):
    teacher = tmp_path / "teacher"
    shutil.copytree(reference, teacher, ignore=shutil.ignore_patterns("checkpoint-*", "logs"))
    changed(teacher, "scheduler", "scheduler_config.json", **scheduler)
    if "_class_name" in scheduler:
        index = json.loads((teacher / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", scheduler["_class_name"]]
        (teacher / "model_index.json").write_text(json.dumps(index))
    assert distil(digits, teacher, tmp_path / "none") == 2
    assert message in capsys.readouterr().err


def test_a_teacher_without_text_takes_no_guidance(digits, tmp_path, capsys):
    teacher = VideoDiffusionPipeline(tiny_denoiser(in_channels=3), VPContinuousScheduler(prediction_type="sample"))
    teacher.save_pretrained(tmp_path / "teacher")
    flags = ("--image_size", 32, "--num_digits", 1, "--max_steps", 2)
    assert distil(digits, tmp_path / "teacher", tmp_path / "none", *flags) == 2
    assert "`guidance_range` is [1.0, 3.0], expected none: the teacher reads no text" in capsys.readouterr().err
    words = flags_of(digits, tmp_path / "teacher", tmp_path / "run", *flags)
    at = words.index("--guidance_range")
    assert command.distill(words[:at] + words[at + 3 :]) == 0
    assert "time_embedding.cond_proj.weight" not in weights(tmp_path / "run")
