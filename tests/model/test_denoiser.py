"""What `VideoUNet3DConditionModel` computes: masks, equivariance, its arguments, its config, learning."""

import inspect

import pytest
import torch

from denoisers import MIDDLES, TRANSFORMER
from video_diffusion.model.denoiser import (
    RelativePositionBias,
    VideoUNet3DConditionModel,
    depth_to_space,
    space_to_depth,
    temporal_shift,
)

FRAMES = 4


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clip(batch=2, frames=FRAMES, channels=1, size=16):
    return noise(batch, channels, frames, size, size)


def identity(batch=2, frames=FRAMES):
    return torch.eye(frames, dtype=torch.bool).expand(batch, frames, frames)


@torch.no_grad()
def run(model, sample, timestep=500.0, **arguments):
    return model(sample, timestep, **arguments).sample


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def distance(a, b):
    return (a - b).abs().max().item()


# ------------------------------------------------------------------------------------------- frames and time
@MIDDLES
def test_a_new_model_returns_exactly_zero(make_denoiser, middle):
    assert torch.equal(run(make_denoiser(**middle, randomise=False), clip()), torch.zeros(2, 1, FRAMES, 16, 16))


@MIDDLES
def test_frames_under_the_identity_mask_are_equivariant_to_permutation(make_denoiser, middle):
    model, sample, order = make_denoiser(**middle), clip(), [2, 0, 3, 1]
    out = run(model, sample, frame_attention_mask=identity())
    close(run(model, sample[:, :, order], frame_attention_mask=identity()), out[:, :, order])
    assert (
        distance(run(model, sample[:, :, order]), run(model, sample)[:, :, order]) > 0.01
    )  # without it, order counts


@MIDDLES
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_frames_under_the_identity_mask_are_single_images(make_denoiser, middle, shift):
    model, sample = make_denoiser(**middle | {"temporal_shift": shift}), clip()
    frames = [run(model, sample[:, :, i : i + 1]) for i in range(FRAMES)]
    close(run(model, sample, frame_attention_mask=identity()), torch.cat(frames, dim=2))


@MIDDLES
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_change_in_a_masked_frame_changes_nothing_elsewhere(make_denoiser, middle, shift):
    model, sample = make_denoiser(**middle | {"temporal_shift": shift}), clip()
    mask = torch.ones(2, FRAMES, FRAMES, dtype=torch.bool)
    mask[0, :, 2] = False
    mask[0, 2, 2] = True
    changed = sample.clone()
    changed[:, :, 2] += 1
    before, after = (run(model, s, frame_attention_mask=mask) for s in (sample, changed))
    others = [0, 1, 3]
    assert torch.equal(before[0, :, others], after[0, :, others])
    assert distance(before[0, :, 2], after[0, :, 2]) > 0.01
    assert distance(before[1, :, others], after[1, :, others]) > 1e-3  # the other clip does not mask it


@MIDDLES
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_full_mask_is_no_mask(make_denoiser, middle, shift):
    model, full = make_denoiser(**middle | {"temporal_shift": shift}), torch.ones(2, FRAMES, FRAMES, dtype=torch.bool)
    close(run(model, clip(), frame_attention_mask=full), run(model, clip()))


@MIDDLES
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_clip_longer_than_in_training_runs_and_its_halves_agree_when_separated(make_denoiser, middle, shift):
    model, sample = make_denoiser(**middle | {"temporal_shift": shift}), clip(frames=2 * FRAMES)
    half = torch.arange(2 * FRAMES) // FRAMES
    mask = (half[:, None] == half[None, :]).expand(2, -1, -1)
    separate = [run(model, part) for part in sample.chunk(2, dim=2)]
    close(run(model, sample, frame_attention_mask=mask), torch.cat(separate, dim=2))
    assert distance(run(model, sample), torch.cat(separate, dim=2)) > 0.01


def test_position_bias_depends_on_the_signed_distance_alone():
    bias = RelativePositionBias(2)
    torch.nn.init.normal_(bias.table.weight, generator=torch.Generator().manual_seed(0))
    table = bias(200).detach()
    assert torch.equal(table[:, 5:, 5:], table[:, :-5, :-5])
    assert torch.equal(table[:, :10, :10], bias(10).detach())
    near = torch.cat([table[0, 0, :8], table[0, 1:8, 0]])  # −7..7: a bucket each
    assert len(near.unique()) == 15
    far = table[0, 0]
    assert far[8:].unique().numel() == 8
    assert len(far[64:].unique()) == 1


@MIDDLES
def test_the_result_of_a_clip_does_not_depend_on_its_batch(make_denoiser, middle):
    model, sample, timesteps = make_denoiser(**middle), clip(3), torch.tensor([10.0, 500.0, 990.0])
    alone = [run(model, sample[i : i + 1], timesteps[i : i + 1]) for i in range(3)]
    close(run(model, sample, timesteps), torch.cat(alone))
    assert distance(run(model, sample, timesteps), run(model, sample, timesteps.flip(0))) > 0.01


@pytest.mark.parametrize(
    "timestep", [500, 500.0, torch.tensor(500.0), torch.tensor([500.0]), torch.tensor([500, 500])]
)
def test_every_form_of_a_timestep_means_the_same(make_denoiser, timestep):
    model = make_denoiser()
    close(run(model, clip(), timestep), run(model, clip(), torch.tensor([500.0, 500.0])), atol=1e-6)


def test_space_to_depth_and_back_is_the_identity_and_keeps_neighbours_together():
    x = noise(2, 3, 8, 8).to(memory_format=torch.channels_last)
    folded = space_to_depth(x, 4)
    assert torch.equal(depth_to_space(folded, 4), x)
    expected = torch.nn.functional.pixel_unshuffle(x, 4).unflatten(1, (3, 16)).transpose(1, 2).flatten(1, 2)
    assert torch.equal(folded, expected)
    assert folded.is_contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------------- text, class, residuals
@MIDDLES
def test_text_changes_the_output_and_masked_tokens_do_not(make_denoiser, middle):
    model, text = make_denoiser(**middle, cross_attention_dim=12), noise(2, 5, 12, seed=1)
    out = run(model, clip(), encoder_hidden_states=text)
    assert distance(out, run(model, clip(), encoder_hidden_states=text + 1)) > 0.01
    assert distance(out, run(model, clip())) > 0.01
    mask, changed = torch.ones(2, 5), text.clone()
    mask[:, 3:], changed[:, 3:] = 0, 9.0
    kept = run(model, clip(), encoder_hidden_states=text, attention_mask=mask)
    close(run(model, clip(), encoder_hidden_states=changed, attention_mask=mask), kept, atol=0)
    close(run(model, clip(), encoder_hidden_states=text[:, :3]), kept)


@MIDDLES
def test_each_clip_reads_its_own_text_and_text_mask(make_denoiser, middle):
    model, text = make_denoiser(**middle, cross_attention_dim=12), noise(2, 5, 12, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    batch = run(model, clip(), encoder_hidden_states=text, attention_mask=mask)
    alone = [run(model, clip()[i : i + 1], encoder_hidden_states=text[i : i + 1, : mask[i].sum()]) for i in range(2)]
    close(batch, torch.cat(alone))


@MIDDLES
def test_class_labels_and_timestep_cond_are_honoured(make_denoiser, middle):
    model = make_denoiser(**middle, num_class_embeds=3, time_cond_proj_dim=5)
    labels, cond = torch.tensor([0, 2]), noise(2, 5, seed=1)
    out = run(model, clip(), class_labels=labels, timestep_cond=cond)
    assert distance(out[1], run(model, clip(), class_labels=labels.flip(0), timestep_cond=cond)[1]) > 0.01
    assert distance(out, run(model, clip(), class_labels=labels, timestep_cond=-cond)) > 0.01


def test_residuals_are_added_to_the_skips_and_the_middle(make_denoiser):
    model = make_denoiser()
    down = (noise(2 * FRAMES, 16, 8, 8), noise(2 * FRAMES, 32, 4, 4))
    mid = noise(2 * FRAMES, 32, 4, 4)
    seen = {}
    hooks = [
        model.up_blocks[0][0].register_forward_pre_hook(lambda _, args: seen.update(coarse=args[0])),
        model.up_blocks[1][0].register_forward_pre_hook(lambda _, args: seen.update(fine=args[0])),
    ]
    run(model, clip())
    plain = dict(seen)
    run(model, clip(), down_block_additional_residuals=down, mid_block_additional_residual=mid)
    close(seen["coarse"] - plain["coarse"], torch.cat([mid, down[1]], dim=1))
    close((seen["fine"] - plain["fine"])[:, 16:], down[0])
    for hook in hooks:
        hook.remove()


def test_zero_residuals_change_nothing(make_denoiser):
    model = make_denoiser()
    zeros = (torch.zeros(2 * FRAMES, 16, 8, 8), torch.zeros(2 * FRAMES, 32, 4, 4))
    out = run(model, clip(), down_block_additional_residuals=zeros, mid_block_additional_residual=zeros[1])
    close(out, run(model, clip()), atol=0)


@MIDDLES
def test_one_text_a_frame_is_that_text_for_the_frame(make_denoiser, middle):
    model, sample, mask = make_denoiser(**middle, cross_attention_dim=12), clip(), identity()
    texts = noise(2, FRAMES, 3, 12, seed=1)
    whole = run(model, sample, encoder_hidden_states=texts, frame_attention_mask=mask)
    for f in range(FRAMES):
        one = run(model, sample, encoder_hidden_states=texts[:, f], frame_attention_mask=mask)
        close(whole[:, :, f], one[:, :, f])
    same = texts[:, :1].expand(-1, FRAMES, -1, -1)
    close(run(model, sample, encoder_hidden_states=same), run(model, sample, encoder_hidden_states=texts[:, 0]))


def test_the_temporal_shift_moves_the_channels_it_says():
    x = noise(2 * FRAMES, 6, 3, 3)
    out, video = temporal_shift(x, FRAMES, 2).unflatten(0, (2, FRAMES)), x.unflatten(0, (2, FRAMES))
    assert torch.equal(out[:, 1:, :2], video[:, :-1, :2])
    assert torch.equal(out[:, :-1, 2:4], video[:, 1:, 2:4])
    assert torch.equal(out[:, :, 4:], video[:, :, 4:])
    assert not out[:, 0, :2].any()
    assert not out[:, -1, 2:4].any()


# ------------------------------------------------------------------------------------------- config
ARCHITECTURE = {
    "spatial_attention": (False, True),
    "temporal_attention": (True, False),
    "temporal_shift": 0.5,
    "in_channels": 3,
    "out_channels": 2,
    "patch_size": 4,
    "block_out_channels": (16, 16),
    "layers_per_block": 2,
    "attention_head_dim": 16,
    "norm_num_groups": 8,
    "norm_eps": 0.1,
    "act_fn": "gelu",
    "cross_attention_dim": 12,
    "time_cond_proj_dim": 5,
    "num_class_embeds": 3,
}
OF_THE_TRANSFORMER = {  # beside `TRANSFORMER`
    "transformer_layers": 3,
    "attention_pattern": ("joint", "time"),
    "cross_attention_every": 1,
    "rope_theta": (4.0, 2.0, 1.5),
    "transformer_inner_dim": 40,
}
PIPELINE_DEFAULTS = {"sample_size": 24, "num_frames": 5}


def fingerprint(model):
    """Shapes of the weights, and the output of weights that are a fixed function of the shape."""
    config = model.config
    for name, parameter in model.named_parameters():
        sharp = 3 if name.endswith(("norm_q.weight", "norm_k.weight")) else 0  # or all would see all alike
        parameter.data = noise(*parameter.shape) * 0.3 + sharp
    arguments = {}
    if config.cross_attention_dim:
        arguments["encoder_hidden_states"] = noise(1, 3, config.cross_attention_dim)
    if config.time_cond_proj_dim:
        arguments["timestep_cond"] = noise(1, config.time_cond_proj_dim)
    if config.num_class_embeds:
        arguments["class_labels"] = torch.tensor([1])
    out = run(model, clip(1, channels=config.in_channels), **arguments)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}, out


def test_the_lists_of_changed_fields_are_the_config():
    fields = set(inspect.signature(VideoUNet3DConditionModel.__init__).parameters) - {"self"}
    assert set(ARCHITECTURE) | set(OF_THE_TRANSFORMER) | set(PIPELINE_DEFAULTS) | {"frame_timesteps"} == fields


@pytest.mark.parametrize(
    ("base", "field", "value"),
    [*(({}, *item) for item in ARCHITECTURE.items()), *((TRANSFORMER, *item) for item in OF_THE_TRANSFORMER.items())],
)
def test_every_field_of_the_architecture_changes_the_network(make_denoiser, base, field, value):
    base = base | {"cross_attention_dim": 12} if field == "cross_attention_every" else base
    shapes, out = fingerprint(make_denoiser(**base))
    changed_shapes, changed = fingerprint(make_denoiser(**base | {field: value}))
    assert shapes != changed_shapes or distance(out, changed) > 1e-3


@pytest.mark.parametrize(("field", "axis"), [("sample_size", -1), ("num_frames", 1)])
def test_sample_size_and_num_frames_are_what_a_pipeline_makes_by_default(make_denoiser, field, axis):
    from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler

    value = PIPELINE_DEFAULTS[field]
    pipe = VideoDiffusionPipeline(unet=make_denoiser(**{field: value}), scheduler=VPContinuousScheduler())
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(num_inference_steps=1, output_type="pt").frames
    assert frames.shape[axis] == value
    _, out = fingerprint(make_denoiser())
    _, same = fingerprint(make_denoiser(**{field: value}))
    close(same, out, atol=0)  # they change nothing in the network


# ------------------------------------------------------------------------------------------- learning
@MIDDLES
def test_a_few_training_steps_overfit_one_clip(make_denoiser, middle):
    """It learns to give a fixed clip from noise: the error falls more than fivefold."""
    model, target = make_denoiser(**middle, randomise=False).train(), clip(1).tanh()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(80):
        loss = (model(clip(1), 500.0).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5


@MIDDLES
def test_every_weight_gets_a_gradient(make_denoiser, middle):
    model = make_denoiser(**middle, cross_attention_dim=12, num_class_embeds=3, time_cond_proj_dim=5)
    arguments = {
        "encoder_hidden_states": noise(2, 3, 12),
        "class_labels": torch.tensor([0, 1]),
        "timestep_cond": noise(2, 5),
    }
    model(clip(), torch.tensor([300.0, 600.0]), **arguments).sample.square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


# ------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample": noise(2, 1, 16, 16)}, r"`sample` has shape .*expected \[B, 1, F, H, W\]"),
        ({"sample": clip(channels=3)}, r"`sample` has shape .*expected \[B, 1, F, H, W\]"),
        ({"sample": clip(size=18)}, "`sample` is 18×18 pixels, expected multiples of 4"),
        ({"timestep": torch.ones(3)}, r"`timestep` has shape \(3,\)"),
        ({"timestep": torch.ones(1, 1)}, r"`timestep` has shape \(1, 1\)"),
        ({"encoder_hidden_states": noise(2, 3, 8)}, "`encoder_hidden_states` was given, but `cross_attention_dim`"),
        ({"attention_mask": torch.ones(2, 3)}, "`attention_mask` masks text tokens, but `encoder_hidden_states`"),
        ({"class_labels": torch.tensor([0, 1])}, "`class_labels` is given, expected what `num_class_embeds` = None"),
        ({"timestep_cond": noise(2, 5)}, "`timestep_cond` is given, expected what `time_cond_proj_dim` = None"),
        (
            {"cross_attention_kwargs": {"gligen": 1}},
            r"`cross_attention_kwargs` has \['gligen'\], expected only 'scale'",
        ),
        ({"frame_attention_mask": identity().float()}, "`frame_attention_mask` is torch.float32"),
        ({"frame_attention_mask": identity(frames=3)}, r"`frame_attention_mask` is torch.bool \(2, 3, 3\), expected"),
        ({"down_block_additional_residuals": (noise(8, 16, 8, 8),)}, "`down_block_additional_residuals` has shapes"),
        (
            {"mid_block_additional_residual": noise(8, 1, 4, 4)},
            r"`mid_block_additional_residual` has .* \[\(8, 32, 4, 4\)",
        ),
    ],
)
def test_an_argument_that_does_not_fit_is_refused(make_denoiser, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_denoiser()(**{"sample": clip(), "timestep": 500.0} | arguments)


def test_conditions_that_the_model_was_built_for_are_required_and_checked(make_denoiser):
    model = make_denoiser(num_class_embeds=3, cross_attention_dim=12)
    with pytest.raises(ValueError, match="`class_labels` is None, expected what `num_class_embeds` = 3"):
        model(clip(), 500.0)
    labels, text = torch.tensor([0, 1]), noise(2, 5, 12)
    with pytest.raises(ValueError, match=r"`encoder_hidden_states` has shape \(2, 5, 8\), expected \[2, L, 12\]"):
        model(clip(), 500.0, text[..., :8], labels)
    with pytest.raises(ValueError, match=r"`attention_mask` has shape \(2, 4\), expected \[2, 5\]"):
        model(clip(), 500.0, text, labels, attention_mask=torch.ones(2, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": ()}, r"`block_out_channels` is \(\)"),
        ({"block_out_channels": (16, 30)}, r"`block_out_channels` is \(16, 30\), expected multiples"),
        ({"norm_num_groups": 5}, r"`block_out_channels` is .*`norm_num_groups` = 5"),
        ({"patch_size": 0}, "`patch_size` is 0, expected at least 1"),
        ({"layers_per_block": 0}, "`layers_per_block` is 0, expected at least 1"),
        ({"layers_per_block": (1, 0)}, r"`layers_per_block` is \(1, 0\), expected at least 1"),
        (
            {"layers_per_block": (1, 1, 1)},
            r"`layers_per_block` is \(1, 1, 1\), expected an integer or one for each of 2",
        ),
        ({"layers_per_block": 1.5}, r"`layers_per_block` is 1\.5, expected an integer or one for each of 2 levels"),
        ({"spatial_attention": (True,)}, r"`spatial_attention` is \(True,\), expected a bool or one for each of 2"),
        ({"attention_head_dim": 0}, "`attention_head_dim` is 0, expected at least 1"),
    ],
)
def test_a_bad_config_value_is_named(make_denoiser, changes, message):
    with pytest.raises(ValueError, match=message):
        make_denoiser(**changes)
