"""The schedule of the rate, compiled blocks, and denoisers that start from shallower ones."""

import pytest
import torch

from video_diffusion.training import build, train_arguments


def test_the_trapezoid_does_not_depend_on_the_length_before_it_falls():
    def curve(steps):
        flags = ["--lr_scheduler", "trapezoid", "--warmup_steps", "4", "--cooldown_steps", "5", "--learning_rate", "2"]
        args = train_arguments.parse_arguments([*flags, "--max_steps", str(steps)])[2]
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
