"""The denoiser with a transformer middle, said once more in plain algebra and in the precision of its weights.

Every attention is one over all tokens of all frames with a table of what may see what; rotary positions are complex
numbers; nothing is a view, a kernel or a class. It reads the weights by the names of `VideoUNet3DConditionModel` and
knows one layout: two levels, the second without blocks, no attention in the levels.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Oracle:
    """The network as a function of its weights."""

    weights: dict[str, Tensor]
    patch: int
    head_dim: int
    groups: int
    shift: float
    patterns: tuple[str, ...]
    thetas: tuple[float, float, float] = (1000.0, 100.0, 100.0)
    prefix: str = field(default="")

    def at(self, name: str) -> Tensor:
        return self.weights[self.prefix + name]

    def inside(self, prefix: str) -> "Oracle":
        return Oracle(**vars(self) | {"prefix": f"{self.prefix}{prefix}."})

    def linear(self, name: str, x: Tensor) -> Tensor:
        out = x @ self.at(f"{name}.weight").mT
        return out + self.at(f"{name}.bias") if f"{self.prefix}{name}.bias" in self.weights else out

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.at(f"{name}.weight")
        return F.conv2d(x, weight, self.at(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def group_norm(self, name: str, x: Tensor) -> Tensor:
        parts = x.reshape(len(x), self.groups, -1)
        parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return (
            parts.reshape(x.shape) * self.at(f"{name}.weight")[:, None, None] + self.at(f"{name}.bias")[:, None, None]
        )

    # -------------------------------------------------------------------------------------------------- the levels
    def shifted(self, x: Tensor, frames: int, frame_mask: Tensor) -> Tensor:
        """Some channels of each frame from the one before, as many from the one after, where the mask allows it."""
        video, count = x.unflatten(0, (-1, frames)), int(self.shift * x.shape[1] / 2)
        out = video.clone()
        for b in range(len(video)):
            for f in range(frames):
                for step, channels in ((-1, slice(0, count)), (1, slice(count, 2 * count))):
                    seen = 0 <= f + step < frames and bool(frame_mask[b, f, f + step])
                    out[b, f, channels] = video[b, f + step, channels] if seen else 0
        return out.flatten(0, 1)

    def resnet(self, name: str, x: Tensor, temb: Tensor, frames: int, frame_mask: Tensor) -> Tensor:
        own = self.inside(name)
        scale, shift = own.linear("time_emb_proj", temb).repeat_interleave(frames, 0)[..., None, None].chunk(2, 1)
        h = own.conv("conv1", own.shifted(F.silu(own.group_norm("norm1", x)), frames, frame_mask))
        h = F.silu(own.group_norm("norm2", h) * (1 + scale) + shift)
        h = own.conv("conv2", own.shifted(h, frames, frame_mask))
        return h + (own.conv("conv_shortcut", x) if f"{own.prefix}conv_shortcut.weight" in own.weights else x)

    # -------------------------------------------------------------------------------------------------- the middle
    def heads(self, name: str, x: Tensor) -> Tensor:
        """`[B, L, C]` → `[B, heads, L, head_dim]`."""
        return self.linear(name, x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def attention(self, x: Tensor, source: Tensor, allowed: Tensor, turn: Tensor | None) -> Tensor:
        """Attention of `[B, L, C]` to `[B, M, D]` where `allowed` `[B, L, M]`; `turn` `[L, head_dim / 2]`: e^{iφ}."""
        found = {}
        for letter, tokens in (("q", x), ("k", source)):
            y = self.heads(f"to_{letter}", tokens)
            y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.at(f"norm_{letter}.weight")
            if turn is not None:
                z = torch.complex(*y.chunk(2, -1)) * turn
                y = torch.cat([z.real, z.imag], -1)
            found[letter] = y
        logits = torch.einsum("bhld,bhmd->bhlm", found["q"], found["k"]) / math.sqrt(self.head_dim)
        share = logits.masked_fill(~allowed[:, None], -math.inf).softmax(-1)
        mixed = torch.einsum("bhlm,bhmd->blhd", share, self.heads("to_v", source)).flatten(2)
        return self.linear("to_out.0", mixed)

    def layer_norm(self, x: Tensor, name: str | None = None) -> Tensor:
        y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return y if name is None else y * self.at(f"{name}.weight") + self.at(f"{name}.bias")

    def middle(self, x: Tensor, temb: Tensor, frames: int, text: Tensor | None, text_mask: Tensor | None, frame_mask):
        own = self.inside("mid_block")
        height, width = x.shape[-2:]
        place = F.interpolate(own.at("pos_embed"), (height, width), mode="bilinear", align_corners=False)
        x = (x + place).unflatten(0, (-1, frames)).permute(0, 1, 3, 4, 2).flatten(1, 3)
        f, y, across = (
            n.flatten() for n in torch.meshgrid(*map(torch.arange, (frames, height, width)), indexing="ij")
        )
        angles = [
            place[:, None] * theta ** (-torch.arange(pairs) / pairs).to(x.dtype)
            for place, theta, share in zip((f, y, across), self.thetas, (2, 3, 3), strict=True)
            for pairs in [share * self.head_dim // 16]
        ]
        turn = torch.exp(1j * torch.cat(angles, 1))
        sees = frame_mask[:, f][:, :, f]
        same = {
            "joint": sees,
            "space": (f[:, None] == f)[None].expand_as(sees),
            "time": sees & (y[:, None] == y) & (across[:, None] == across),
        }
        modulation = own.linear("adaln_single", temb).unflatten(1, (6, -1))
        for i, pattern in enumerate(self.patterns):
            block = own.inside(f"transformer_blocks.{i}")
            s1, b1, g1, s2, b2, g2 = (modulation + block.at("scale_shift_table"))[:, :, None].unbind(1)
            h = self.layer_norm(x) * (1 + s1) + b1
            x = x + (1 + g1) * block.inside("attn1").attention(h, h, same[pattern], turn)
            if text is not None and f"{block.prefix}norm2.weight" in self.weights:
                allowed = text_mask[:, None].expand(-1, x.shape[1], -1)
                x = x + block.inside("attn2").attention(block.layer_norm(x, "norm2"), text, allowed, None)
            h, gate = block.linear("ff.net.0.proj", self.layer_norm(x) * (1 + s2) + b2).chunk(2, -1)
            x = x + (1 + g2) * block.linear("ff.net.2", h * F.silu(gate))
        x = own.layer_norm(x, "norm_out").unflatten(1, (frames, height, width))
        return x.permute(0, 1, 4, 2, 3).flatten(0, 1)

    # -------------------------------------------------------------------------------------------------- all of it
    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """As `VideoUNet3DConditionModel`, with a bool text mask `[B, L]`."""
        batch, frames = len(sample), sample.shape[2]
        if frame_mask is None:
            frame_mask = torch.ones(batch, frames, frames, dtype=torch.bool)
        x = self.conv("conv_in", fold(sample.transpose(1, 2).flatten(0, 1), self.patch))
        half = x.shape[1] // 2
        angle = timestep[:, None].to(x.dtype) * 10000 ** (-torch.arange(half, dtype=x.dtype) / half)
        temb = self.linear("time_embedding.linear_1", torch.cat([angle.cos(), angle.sin()], 1))
        temb = F.silu(self.linear("time_embedding.linear_2", F.silu(temb)))
        stem, skips = x, []
        while f"down_blocks.0.{len(skips)}.resnet.conv1.weight" in self.weights:
            x = self.resnet(f"down_blocks.0.{len(skips)}.resnet", x, temb, frames, frame_mask)
            skips.append(x)
        x = self.conv("downsamplers.0", fold(x, 2))
        x = self.middle(x, temb, frames, text, text_mask, frame_mask)
        x = unfold(self.conv("upsamplers.0", x), 2)
        for i, skip in enumerate(reversed(skips)):
            x = self.resnet(f"up_blocks.1.{i}.resnet", torch.cat([x, skip], 1), temb, frames, frame_mask)
        x = self.conv("conv_out", F.silu(self.group_norm("conv_norm_out", torch.cat([x, stem], 1))))
        return unfold(x, self.patch).unflatten(0, (batch, frames)).transpose(1, 2)


def fold(x: Tensor, p: int) -> Tensor:
    """Squares of p × p pixels into channels, the place in the square counting more than the channel."""
    return torch.cat([x[:, :, i::p, j::p] for i in range(p) for j in range(p)], 1)


def unfold(x: Tensor, p: int) -> Tensor:
    """The inverse of `fold`."""
    n, c, h, w = x.shape
    out = x.new_zeros(n, c // p**2, h * p, w * p)
    for k, part in enumerate(x.chunk(p**2, 1)):
        out[:, :, k // p :: p, k % p :: p] = part
    return out
