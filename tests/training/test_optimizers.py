"""Muon in stacks against the same arithmetic matrix by matrix, and AdamW against torch's."""

import copy

import pytest
import torch
from torch import nn

from video_diffusion.training.optimizers import COEFFICIENTS, Muon, build_optimizer, is_matrix, orthogonalise
from video_diffusion.training.train_arguments import parse_arguments


def network():
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(3, 8), nn.Conv2d(3, 5, 3), nn.Linear(6, 4)])


def gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def of_muon(model):
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return Muon([{"params": matrices, "lr": 0.02, "use_muon": True}, {"params": vectors, "lr": 0.01}])


def test_orthogonalised_matrices_have_singular_values_near_one():
    stack = torch.randn(5, 12, 30, generator=torch.Generator().manual_seed(0))
    for matrices in (stack, stack.mT):
        values = torch.linalg.svdvals(orthogonalise(matrices))
        assert values.min() > 0.6
        assert values.max() < 1.3
    torch.testing.assert_close(orthogonalise(stack.mT.contiguous()), orthogonalise(stack).mT)


def test_a_stack_steps_as_single_matrices_do():
    """Three steps against the formulas for one matrix: momentum, Nesterov, five iterations, decay, scale."""
    model = network()
    expected = copy.deepcopy(model)
    weights = [p for p in model.parameters() if p.ndim >= 2]
    optimizer = Muon([{"params": weights, "lr": 0.02, "weight_decay": 0.1, "use_muon": True}], torch.float32)
    momenta = [torch.zeros_like(p) for p in expected.parameters()]
    a, b, c = COEFFICIENTS
    for seed in range(3):
        gradients(model, seed)
        gradients(expected, seed)
        optimizer.step()
        for p, m in zip(expected.parameters(), momenta, strict=True):
            if p.ndim < 2:
                continue
            m.mul_(0.95).add_(p.grad, alpha=0.05)
            x = (0.05 * p.grad + 0.95 * m).flatten(1)
            rows, columns = x.shape
            x = x.T if rows > columns else x
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                gram = x @ x.T
                x = a * x + (b * gram + c * gram @ gram) @ x
            x = x.T if rows > columns else x
            p.data = p.data * (1 - 0.02 * 0.1) - 0.02 * 0.2 * max(rows, columns) ** 0.5 * x.reshape(p.shape)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_other_groups_step_as_adamw_of_torch_does():
    model = network()
    expected = copy.deepcopy(model)
    options = {"lr": 0.01, "betas": (0.9, 0.98), "weight_decay": 0.05}
    ours = Muon([{"params": list(model.parameters()), **options}])
    theirs = torch.optim.AdamW(expected.parameters(), **options)
    for seed in range(4):
        gradients(model, seed)
        gradients(expected, seed)
        ours.step()
        theirs.step()
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_saved_state_goes_on_to_the_bit():
    model = network()
    optimizer = of_muon(model)
    gradients(model, 0)
    optimizer.step()
    other = copy.deepcopy(model)
    resumed = of_muon(other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network_, optimizer_ in ((model, optimizer), (other, resumed)):
        gradients(network_, 1)
        optimizer_.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match="gives Muon a vector"):
        Muon([{"params": [nn.Parameter(torch.zeros(3))], "use_muon": True}])


def test_muon_takes_the_matrices_of_the_blocks_and_no_embeddings(module_denoiser):
    taken = {name for name, p in module_denoiser.named_parameters() if is_matrix(name, p)}
    for part in ("attn1.to_q", "attn2.to_k", "ff.net.0.proj", "resnet.conv1", "downsamplers.0", "upsamplers.0"):
        assert any(part in name for name in taken), part
    for part in ("pos_embed", "adaln_single", "scale_shift_table", "conv_in", "conv_out", "time_emb", "norm"):
        assert not any(part in name for name in taken), part
    flags = ["--optimizer", "muon", "--learning_rate", "0.003", "--adam_learning_rate", "0.001"]
    optimizer = build_optimizer(module_denoiser, parse_arguments(flags)[2])
    rates = [(group["use_muon"], group["lr"]) for group in optimizer.param_groups]
    assert rates == [(True, 0.003), (False, 0.001)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(module_denoiser.parameters()))
