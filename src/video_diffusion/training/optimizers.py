"""AdamW, or Muon on matrices with AdamW on everything else.

Muon (Jordan et al. 2024) takes the momentum of a matrix, orthogonalises it and steps along that. The scale of a step
is that of Liu et al. 2025 ("Muon is scalable for LLM training"), so that AdamW's learning rates serve for both.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from video_diffusion.training.arguments import TrainArguments

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration
STEPS = 5
NOT_MATRICES = ("time_emb_proj", "position_bias", "pos_embed", "scale_shift_table", "adaln_single", "norm")


def orthogonalise(stack: Tensor, steps: int = STEPS) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values go to about 0.7 … 1.2 (Newton–Schulz).

    Args:
        stack: `[N, rows, columns]`, in the precision that the products are to have.
        steps: of the iteration.
    """
    a, b, c = COEFFICIENTS
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon on the groups with `use_muon`, AdamW on the others.

    All matrices of one shape are orthogonalised in one stack: a network of 130 matrices takes a handful of products.

    Args:
        groups: with `params`, `lr`, `use_muon` and `weight_decay`; `momentum` for Muon, `betas` and `eps` for AdamW.
        dtype: of the orthogonalisation's products: bfloat16 where that is fast, else float32.

    Raises:
        ValueError: if a parameter of a Muon group is no matrix or convolution.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], dtype: torch.dtype = torch.bfloat16) -> None:
        defaults = {"momentum": 0.95, "weight_decay": 0.0, "betas": (0.9, 0.99), "eps": 1e-8, "use_muon": False}
        super().__init__(list(groups), {"lr": 1e-3, **defaults})
        self.dtype = dtype
        for group in self.param_groups:
            if group["use_muon"] and any(parameter.ndim < 2 for parameter in group["params"]):
                raise ValueError("`groups` gives Muon a vector, expected matrices and convolutions.")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                (self._muon if group["use_muon"] else self._adamw)(group, parameters)

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            by_shape[len(parameter), parameter[0].numel()].append(parameter)
            self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        lr = group["lr"]
        for (rows, columns), members in by_shape.items():
            gradients = _gradients(members)
            momenta = [self.state[parameter]["momentum"] for parameter in members]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
            stack = torch.stack([value.reshape(rows, columns) for value in ahead]).to(self.dtype)
            updates = orthogonalise(stack)
            torch._foreach_mul_(members, 1 - lr * group["weight_decay"])
            steps = [u.reshape(p.shape).to(p.dtype) for u, p in zip(updates.unbind(0), members, strict=True)]
            torch._foreach_add_(members, steps, alpha=-lr * 0.2 * math.sqrt(max(rows, columns)))

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
            state["step"] += 1
        gradients = _gradients(parameters)
        means = [self.state[parameter]["mean"] for parameter in parameters]
        squares = [self.state[parameter]["square"] for parameter in parameters]
        (beta1, beta2), step = group["betas"], self.state[parameters[0]]["step"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, math.sqrt(1 - beta2**step))
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, means, roots, -group["lr"] / (1 - beta1**step))


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes a weight: matrices and convolutions of the blocks and between the levels."""
    inside = "block" in name or "samplers" in name
    return inside and parameter.ndim >= 2 and not any(part in name for part in NOT_MATRICES)


def build_optimizer(
    learner: nn.Module, args: TrainArguments, dtype: torch.dtype | None = None
) -> torch.optim.Optimizer:
    """AdamW, or Muon on the U-Net's matrices with AdamW on everything else; a text encoder learns more slowly.

    Args:
        learner: all that learns; weights without gradient in it do not.
        args: of the run.
        dtype: of Muon's products; None: bfloat16 on a GPU, and on a CPU that has instructions for it.
    """
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "others": [], "text": []}
    for name, parameter in learner.named_parameters():
        if not parameter.requires_grad:
            continue
        muon = args.optimizer == "muon" and is_matrix(name, parameter)
        kind = "text" if name.startswith("text_encoder.") else "matrices" if muon else "others"
        groups[kind].append(parameter)
    rate, decay = args.learning_rate, args.weight_decay
    adam = {"betas": (0.9, args.adam_beta2), "weight_decay": decay}
    other = rate if args.adam_learning_rate is None else args.adam_learning_rate
    found = [
        {"params": groups["others"], "lr": other, **adam},
        {"params": groups["text"], "lr": other * args.text_encoder_lr_scale, **adam},
    ]
    found = [group for group in found if group["params"]]
    if args.optimizer == "adamw":
        return torch.optim.AdamW(found, fused=True)
    if dtype is None:
        on_cpu = next(learner.parameters()).device.type == "cpu"
        dtype = torch.float32 if on_cpu and not torch.cpu._is_avx512_bf16_supported() else torch.bfloat16
    return Muon([{"params": groups["matrices"], "lr": rate, "weight_decay": decay, "use_muon": True}, *found], dtype)
