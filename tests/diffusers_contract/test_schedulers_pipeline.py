"""Our pipeline with a stock `UNet3DConditionModel` under every scheduler of the table, and with its options."""

import diffusers
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UNet3DConditionModel

from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.model.scheduler import STOCK_SCHEDULERS


@pytest.fixture(scope="module")
def stock_unet():
    torch.manual_seed(0)
    return UNet3DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
    ).eval()


def run(pipeline, steps, **options):
    pipeline.set_progress_bar_config(disable=True)
    generator, counted = torch.Generator().manual_seed(0), []
    options["callback_on_step_end"] = lambda pipe, step, t, tensors: counted.append(step) or {}
    video = torch.linspace(0, 1, 2 * 16 * 16).reshape(1, 2, 1, 16, 16)
    options = {"video": video, "num_frames": 4, "output_type": "pt", "generator": generator} | options
    frames = pipeline(num_inference_steps=steps, **options).frames
    assert len(counted) == pipeline.num_timesteps == len(pipeline.scheduler.timesteps)
    return frames


@pytest.mark.parametrize("name", STOCK_SCHEDULERS)
def test_a_stock_network_runs_under_every_scheduler(name, stock_unet):
    ours = VPContinuousScheduler(prediction_type="v_prediction", clip_sample=False)
    solver = getattr(diffusers, name).from_config(ours.config)
    first, again = (run(VideoDiffusionPipeline(stock_unet, solver), 3) for _ in range(2))
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert first[:, 2:].std() > 0.01


CASES = [(n, o) for n, s in STOCK_SCHEDULERS.items() for o in s.spacings]


@pytest.mark.parametrize(("name", "option"), CASES)
def test_options_that_repeat_timesteps_run_to_the_end(name, option, make_denoiser):
    """Some spacings have integer timesteps twice: Karras' at 20 steps, the exponential one at 25."""
    ours = VPContinuousScheduler(prediction_type="v_prediction", clip_sample=False)
    pipeline = VideoDiffusionPipeline(make_denoiser(in_channels=3), ours)
    pipeline.scheduler = ours.as_diffusers(getattr(diffusers, name), **{option: True})
    assert run(pipeline, 25 if option == "use_exponential_sigmas" else 20).isfinite().all()


def test_a_scheduler_that_came_by_another_way_is_refused_by_the_call(make_denoiser, tmp_path):
    """The class reads our file itself, or the config of a third one."""
    pipeline = VideoDiffusionPipeline(make_denoiser(in_channels=3), VPContinuousScheduler())
    pipeline.scheduler.save_pretrained(tmp_path)
    third = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    for scheduler in (
        EulerDiscreteScheduler.from_pretrained(tmp_path),
        EulerDiscreteScheduler.from_config(third.config),
    ):
        pipeline.scheduler = scheduler
        with pytest.raises(ValueError, match="`scheduler` is a EulerDiscreteScheduler, which cannot sample"):
            run(pipeline, 2)
    pipeline.scheduler = third
    assert run(pipeline, 2).isfinite().all()
