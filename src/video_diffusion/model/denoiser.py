"""
The denoising network: a U-Net factorised over space and time (Ho et al. 2022, "Video Diffusion Models"), with a
transformer over space and time in its middle where `transformer_layers` asks for one.

Inside, a video is `[B·F, C, H, W]` in channels-last memory, so that a token view `[B, F, H·W, C]` is free:
convolutions see the frames as a batch, and attention along any of the axes needs no copy. Attention over time, joint
attention and `temporal_shift` move information between frames; nothing else does.
"""

import math
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks import FasterCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.activations import get_activation
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from diffusers.utils import apply_lora_scale
from einops import rearrange
from torch import Tensor, nn

Rotary = tuple[Tensor, Tensor]

ATTENTION_PATTERNS = {  # what sees what, and tokens [B, F, S, heads, D] as [batch, sequence, heads, D]
    "joint": lambda x: x.flatten(1, 2),  # all places of all frames
    "space": lambda x: x.flatten(0, 1),  # all places of one frame
    "time": lambda x: x.flatten(2, 3),  # one place in all frames: places are further heads, which costs no copy
}
TRANSFORMER_EPS = 1e-6


def space_to_depth(x: Tensor, patch: int) -> Tensor:
    """`[N, C, H·p, W·p]` → `[N, p·p·C, H, W]`, channels-last in and out."""
    tokens = rearrange(x.permute(0, 2, 3, 1), "n (h p) (w q) c -> n h w (p q c)", p=patch, q=patch)
    return tokens.permute(0, 3, 1, 2)


def depth_to_space(x: Tensor, patch: int) -> Tensor:
    """`[N, p·p·C, H, W]` → `[N, C, H·p, W·p]`, channels-last in and out."""
    tokens = rearrange(x.permute(0, 2, 3, 1), "n h w (p q c) -> n (h p) (w q) c", p=patch, q=patch)
    return tokens.permute(0, 3, 1, 2)


class RelativePositionBias(nn.Module):
    """A learned bias for each head and frame distance (Raffel et al. 2020).

    Each sign has 16 buckets: distances below 8 have their own, larger ones share them logarithmically up to
    `MAX_DISTANCE`. So a clip may be longer than the ones in training.
    """

    BUCKETS, EXACT, MAX_DISTANCE = 16, 8, 64

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(2 * self.BUCKETS, heads)
        nn.init.zeros_(self.table.weight)

    def forward(self, frames: int) -> Tensor:
        """Bias `[heads, F, F]` on the logits of query frame × key frame."""
        position = torch.arange(frames, device=self.table.weight.device)
        offset = position[None, :] - position[:, None]
        distance = offset.abs()
        scale = (self.BUCKETS - self.EXACT) / math.log(self.MAX_DISTANCE / self.EXACT)
        far = self.EXACT + (torch.log(distance.clamp(min=self.EXACT) / self.EXACT) * scale).long()
        bucket = torch.where(distance < self.EXACT, distance, far.clamp(max=self.BUCKETS - 1))
        return self.table(bucket + self.BUCKETS * (offset > 0)).permute(2, 0, 1)


class VideoRotaryPosEmbed(nn.Module):
    """Rotary positions over time, y and x (Su et al. 2021, "RoFormer"), on 1/4, 3/8 and 3/8 of a head's channels.

    Args:
        head_dim: channels of a head, a multiple of 16.
        theta: the base for time, y and x; the slowest rotation of an axis turns by about 1/theta radians a step.
    """

    def __init__(self, head_dim: int, theta: tuple[float, float, float]) -> None:
        super().__init__()
        self.theta = tuple(theta)
        self.pairs = (head_dim // 8, 3 * head_dim // 16, 3 * head_dim // 16)
        self._last: tuple[Any, Rotary] | None = None  # the tables of the last call, no part of the weights

    def forward(self, frames: int, height: int, width: int, device: torch.device) -> Rotary:
        """What `rotate` takes, `[F, H·W, 1, head_dim]` in float32; made once as long as the shape stays."""
        if torch.compiler.is_compiling():
            return self._tables(frames, height, width, device)
        key, last = (frames, height, width, device), self._last
        if last is None or last[0] != key:
            with torch.inference_mode(False):  # tables made while sampling must serve in training too
                last = self._last = (key, self._tables(*key))
        return last[1]

    def _tables(self, frames: int, height: int, width: int, device: torch.device) -> Rotary:
        places = torch.meshgrid(*(torch.arange(n, device=device) for n in (frames, height, width)), indexing="ij")
        angles = [
            place.reshape(frames, -1, 1, 1).float() * theta ** (-torch.arange(pairs, device=device) / pairs)
            for place, pairs, theta in zip(places, self.pairs, self.theta, strict=True)
        ]
        angle = torch.cat(angles, dim=-1)
        return torch.cat([angle, angle], dim=-1).cos(), torch.cat([-angle, angle], dim=-1).sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns channel i of `[…, D]` with channel i + D/2, as a pair, by an angle.

    Args:
        x: `[…, D]`.
        cos: cosine of the angles `[…, D]`, the second half like the first.
        sin: sine, the first half with the sign changed.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 in the place of half precision."""
    return torch.promote_types(dtype, torch.float32)


class HeadNorm(nn.RMSNorm):
    """RMSNorm of a head's channels (Zhang and Sennrich 2019), computed and returned in float32 at least."""

    def forward(self, x: Tensor) -> Tensor:
        """`[…, D]` → `[…, D]`."""
        x = x.to(at_least_float32(x.dtype))
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]  # faster than mean(x²)
        return x * torch.rsqrt(square + self.eps) * self.weight.to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu and He 2018) that keeps the input's precision, under autocast too.

    In half precision a CPU computes it in float32: PyTorch's own kernel for channels-last memory takes five times as
    long as that with both conversions.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` → `[N, C, H, W]`."""
        inner = at_least_float32(x.dtype) if x.device.type == "cpu" else x.dtype
        weight, bias = self.weight.to(inner), self.bias.to(inner)
        return F.group_norm(x.to(inner), self.num_groups, weight, bias, self.eps).to(x.dtype)


class VideoAttnProcessor:
    """Scaled dot-product attention through diffusers' dispatcher, so that `set_attention_backend` applies."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "VideoAttention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> Tensor:
        """As `VideoAttention.forward`, without the first normalisation."""
        if not attn.fused_projections:
            source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        elif attn.is_cross_attention:
            query, (key, value) = attn.to_q(hidden_states), attn.to_kv(encoder_hidden_states).chunk(2, dim=-1)
        else:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in (query, key, value))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if rotary_emb is not None:
            query, key = rotate(query, *rotary_emb), rotate(key, *rotary_emb)
        query, key = query.to(value.dtype), key.to(value.dtype)
        if attn.is_cross_attention:  # all tokens that read one text are one sequence
            query = query.reshape(key.shape[0], -1, *query.shape[-2:])
        else:
            query, key, value = (ATTENTION_PATTERNS[attn.pattern](x) for x in (query, key, value))
        out = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out[0](out.reshape(hidden_states.shape))


class VideoAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention with a zero-initialised output, returned without its residual.

    Args:
        channels: C.
        head_dim: D, channels of a head.
        pattern: a name of `ATTENTION_PATTERNS`; attention to text has no use for it.
        cross_attention_dim: width of the text that is attended to; None: attention among the tokens.
        norm_eps: ε of a LayerNorm before everything; None: the caller normalises.
        qk_norm: whether queries and keys are normalised by RMSNorm (Dehghani et al. 2023, "ViT-22B").
    """

    _default_processor_cls = VideoAttnProcessor
    _available_processors = [VideoAttnProcessor]  # noqa: RUF012  diffusers' hook
    processor: Any
    to_qkv: Any  # made by `fuse_projections`
    to_kv: Any

    def __init__(
        self,
        channels: int,
        head_dim: int,
        pattern: str = "joint",
        cross_attention_dim: int | None = None,
        norm_eps: float | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.head_dim = head_dim
        self.pattern = pattern
        self.is_cross_attention = cross_attention_dim is not None
        self.cross_attention_dim = cross_attention_dim
        self.use_bias = False
        source = channels if cross_attention_dim is None else cross_attention_dim
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(channels, eps=norm_eps)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(source, channels, bias=False)
        self.to_v = nn.Linear(source, channels, bias=False)
        self.norm_q = HeadNorm(head_dim, eps=TRANSFORMER_EPS) if qk_norm else nn.Identity()
        self.norm_k = HeadNorm(head_dim, eps=TRANSFORMER_EPS) if qk_norm else nn.Identity()
        self.to_out = nn.ModuleList([zero_init(nn.Linear(channels, channels))])
        self.processor = VideoAttnProcessor()

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> Tensor:
        """Tokens `[B, F, S, C]` → `[B, F, S, C]`.

        Args:
            hidden_states: S places of F frames.
            encoder_hidden_states: text `[N, M, cross_attention_dim]`; N is B, or B·F for one text a frame.
            attention_mask: for text `[N, 1, 1, M]`; among tokens what the pattern asks for: joint `[B, 1, F·S, F·S]`,
                space `[B·F, 1, S, S]`, time `[B, 1 or S·heads, F, F]`; bool (true: may attend) or a bias.
            rotary_emb: cosine and sine for `rotate`, broadcast to `[B, F, S, heads, D]`.
        """
        return self.processor(
            self, self.norm(hidden_states), encoder_hidden_states, attention_mask, rotary_emb=rotary_emb
        )


def temporal_shift(x: Tensor, frames: int, channels: int, frame_mask: Tensor | None = None) -> Tensor:
    """
    Lets each frame see its neighbours (Lin, Gan and Han 2019, "TSM"), so that the next 3×3 convolution sees motion.

    Args:
        x: features `[B·F, C, H, W]`.
        frames: F.
        channels: k, 2·k ≤ C: the first k come from the frame before, the next k from the one after; zero at the ends.
        frame_mask: bool `[B, F, F]`; what a frame may not attend to is zero for it here too.

    Returns:
        `[B·F, C, H, W]`.
    """
    video = x.permute(0, 2, 3, 1).unflatten(0, (-1, frames))  # so that the result is channels-last too
    before = F.pad(video[:, :-1, ..., :channels], (0, 0, 0, 0, 0, 0, 1, 0))
    after = F.pad(video[:, 1:, ..., channels : 2 * channels], (0, 0, 0, 0, 0, 0, 0, 1))
    if frame_mask is not None:
        sees_before = F.pad(frame_mask.diagonal(-1, 1, 2), (1, 0))
        sees_after = F.pad(frame_mask.diagonal(1, 1, 2), (0, 1))
        before = torch.where(sees_before[..., None, None, None], before, 0)
        after = torch.where(sees_after[..., None, None, None], after, 0)
    shifted = torch.cat([before, after, video[..., 2 * channels :]], dim=-1)
    return shifted.flatten(0, 1).permute(0, 3, 1, 2)


class ResnetBlock(nn.Module):
    """Two 3×3 convolutions; between them the time embedding scales and shifts the features (FiLM)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        groups: int,
        eps: float,
        act_fn: str,
        shifted: float,
    ) -> None:
        super().__init__()
        self.shifted_in, self.shifted_out = (int(shifted * n / 2) for n in (in_channels, out_channels))
        self.norm1 = GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, 2 * out_channels)
        self.norm2 = GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.act = get_activation(act_fn)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor, frames: int, frame_mask: Tensor | None = None) -> Tensor:
        """`[B·F, C, H, W]` and the activated time embedding → `[B·F, C', H, W]`; the arguments as in a block."""
        modulation = self.time_emb_proj(temb).expand(-1, frames, -1).flatten(0, 1)
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        h = self.act(self.norm1(x))
        if self.shifted_in:
            h = temporal_shift(h, frames, self.shifted_in, frame_mask)
        h = self.act(torch.addcmul(shift, self.norm2(self.conv1(h)), 1 + scale))
        if self.shifted_out:
            h = temporal_shift(h, frames, self.shifted_out, frame_mask)
        return self.conv_shortcut(x) + self.conv2(h)


class VideoUNetBlock(nn.Module):
    """Convolutions, then, where asked for, attention over space, to the text and over time: a level's unit."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        groups: int,
        eps: float,
        act_fn: str,
        head_dim: int,
        cross_attention_dim: int | None,
        shifted: float,
        spatial: bool,
        temporal: bool,
    ) -> None:
        super().__init__()
        self.resnet = ResnetBlock(in_channels, out_channels, temb_channels, groups, eps, act_fn, shifted)
        self.spatial_attention = VideoAttention(out_channels, head_dim, "space", norm_eps=eps) if spatial else None
        self.cross_attention = (
            VideoAttention(out_channels, head_dim, cross_attention_dim=cross_attention_dim, norm_eps=eps)
            if spatial and cross_attention_dim is not None
            else None
        )
        self.position_bias = RelativePositionBias(out_channels // head_dim) if temporal else None
        self.temporal_attention = VideoAttention(out_channels, head_dim, "time", norm_eps=eps) if temporal else None

    def forward(
        self,
        x: Tensor,
        temb: Tensor,
        frames: int,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """Features `[B·F, C, H, W]` → `[B·F, C', H, W]`.

        Args:
            x: features.
            temb: activated time embedding `[B, 1, D]`, or `[B, F, D]` for times of each frame.
            frames: F.
            text: token states `[N, L, cross_attention_dim]`; N is B, or B·F for one text a frame.
            text_mask: `[N, 1, 1, L]`, true where a token may be attended to.
            frame_mask: `[B, F, F]`, true where a frame (row) may attend to a frame (column).
        """
        x = self.resnet(x, temb, frames, frame_mask)
        height, width = x.shape[-2:]
        tokens = to_tokens(x, frames)
        if self.spatial_attention is not None:
            tokens = tokens + self.spatial_attention(tokens)
        if self.cross_attention is not None and text is not None:
            tokens = tokens + self.cross_attention(tokens, text, text_mask)
        if self.position_bias is not None and self.temporal_attention is not None:
            bias = self.position_bias(frames)[None].to(tokens.dtype)
            if frame_mask is not None:
                bias = bias.masked_fill(~frame_mask[:, None], -torch.inf)
            bias = bias.repeat(1, height * width, 1, 1)  # the same for all places
            tokens = tokens + self.temporal_attention(tokens, attention_mask=bias)
        return from_tokens(tokens, height, width)


class VideoTransformerBlock(nn.Module):
    """Attention along one pattern, then to the text (if any), then SwiGLU (Shazeer 2020), with modulated residuals.

    Scale, shift and gate of attention and SwiGLU are the model's modulation plus a learned table of the block
    ("adaLN-single", Chen et al. 2023, "PixArt-α"). A new block is the identity.
    """

    def __init__(
        self, channels: int, head_dim: int, pattern: str, inner_dim: int, cross_attention_dim: int | None
    ) -> None:
        super().__init__()
        eps = TRANSFORMER_EPS
        self.norm1 = nn.LayerNorm(channels, eps=eps, elementwise_affine=False)
        self.attn1 = VideoAttention(channels, head_dim, pattern, qk_norm=True)
        self.norm2, self.attn2 = None, None
        if cross_attention_dim is not None:
            self.norm2 = nn.LayerNorm(channels, eps=eps)
            self.attn2 = VideoAttention(channels, head_dim, cross_attention_dim=cross_attention_dim, qk_norm=True)
        self.norm3 = nn.LayerNorm(channels, eps=eps, elementwise_affine=False)
        self.ff = FeedForward(channels, inner_dim=inner_dim, activation_fn="swiglu")
        zero_init(self.ff.net[-1])
        self.scale_shift_table = nn.Parameter(torch.zeros(6, channels))

    def forward(
        self,
        tokens: Tensor,
        modulation: Tensor,
        rotary_emb: Rotary,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Tokens `[B, F, S, C]` and the model's modulation `[B, 1 or F, 6, C]` → `[B, F, S, C]`."""
        parts = (self.scale_shift_table.to(modulation.dtype) + modulation)[:, :, :, None].unbind(2)
        scale1, shift1, gate1, scale2, shift2, gate2 = parts
        hidden = torch.addcmul(shift1, self.norm1(tokens), 1 + scale1)
        hidden = self.attn1(hidden, attention_mask=attention_mask, rotary_emb=rotary_emb)
        tokens = torch.addcmul(tokens, hidden, 1 + gate1)
        if self.norm2 is not None and self.attn2 is not None and text is not None:
            tokens = tokens + self.attn2(self.norm2(tokens), text, text_mask)
        hidden = self.ff(torch.addcmul(shift2, self.norm3(tokens), 1 + scale2))
        return torch.addcmul(tokens, hidden, 1 + gate2)


class VideoTransformer(nn.Module):
    """A stack of transformer blocks over all tokens of a clip: the U-Net's middle.

    Rotary positions tell frames and places apart relative to each other, so other lengths work. A learned embedding of
    the places tells where the picture ends; it is resized (bilinear) for other sizes.

    Args:
        channels: C.
        head_dim: channels of a head.
        patterns: of each block's attention, names of `ATTENTION_PATTERNS`.
        inner_dim: width of SwiGLU.
        cross_attention_dim: width of the text; None: no text.
        cross_attention_every: every how many-th block attends to the text.
        rope_theta: bases of the rotary embedding of time, y and x.
        temb_channels: width of the time embedding.
        places: rows and columns of the place embedding.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        patterns: tuple[str, ...],
        inner_dim: int,
        cross_attention_dim: int | None,
        cross_attention_every: int,
        rope_theta: tuple[float, float, float],
        temb_channels: int,
        places: tuple[int, int],
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, channels, *places))
        self.rope = VideoRotaryPosEmbed(head_dim, rope_theta)
        self.adaln_single = zero_init(nn.Linear(temb_channels, 6 * channels))
        self.transformer_blocks = nn.ModuleList(
            VideoTransformerBlock(
                channels, head_dim, pattern, inner_dim, None if place % cross_attention_every else cross_attention_dim
            )
            for place, pattern in enumerate(patterns, start=1)
        )
        self.norm_out = nn.LayerNorm(channels, eps=TRANSFORMER_EPS)

    def forward(
        self,
        x: Tensor,
        temb: Tensor,
        frames: int,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """Features `[B·F, C, H, W]` → `[B·F, C, H, W]`; the arguments are those of `VideoUNetBlock.forward`."""
        height, width = x.shape[-2:]
        place: Tensor = self.pos_embed
        if place.shape[-2:] != (height, width):
            place = F.interpolate(place, (height, width), mode="bilinear")
        tokens = to_tokens(x + place.to(x.dtype), frames)
        modulation = self.adaln_single(temb).unflatten(2, (6, -1)).to(x.dtype)
        rotary_emb = self.rope(frames, height, width, x.device)
        masks = _frame_masks(frame_mask, height * width)
        for block in cast(Any, self.transformer_blocks):
            mask = masks.get(block.attn1.pattern)
            tokens = run_block(self, block, tokens, modulation, rotary_emb, text, text_mask, mask)
        return from_tokens(self.norm_out(tokens).to(x.dtype), height, width)


def _frame_masks(frame_mask: Tensor | None, places: int) -> dict[str, Tensor]:
    """The mask on frames `[B, F, F]` as the attention mask of each pattern that it concerns."""
    if frame_mask is None:
        return {}
    tokens = frame_mask.repeat_interleave(places, dim=1).repeat_interleave(places, dim=2)
    return {"time": frame_mask[:, None], "joint": tokens[:, None]}


def to_tokens(x: Tensor, frames: int) -> Tensor:
    """`[B·F, C, H, W]` → `[B, F, H·W, C]`, a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).unflatten(0, (-1, frames))


def from_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
    """`[B, F, H·W, C]` → `[B·F, C, H, W]` in channels-last memory."""
    return tokens.flatten(0, 1).unflatten(1, (height, width)).permute(0, 3, 1, 2)


def run_block(owner: Any, block: nn.Module, *args: Any) -> Tensor:
    """Runs a block, under gradient checkpointing where its owner has that switched on."""
    if owner.gradient_checkpointing and torch.is_grad_enabled():
        return owner._gradient_checkpointing_func(block, *args)
    return block(*args)


class VideoUNet3DConditionModel(ModelMixin, AttentionMixin, CacheMixin, PeftAdapterMixin, ConfigMixin):
    """A 3D U-Net over space and time, with the call and the output of diffusers' `UNet3DConditionModel`.

    Its middle is one block like those of the levels or, with `transformer_layers`, a transformer over space and time.

    Args:
        sample_size: height and width in training, pixels (what a pipeline makes by default).
        num_frames: frames in training (what a pipeline makes by default); other lengths work.
        in_channels: channels of the input: C, or 2·C + 1 for `[z_t, given frames, mask]`.
        out_channels: C.
        patch_size: p of the space-to-depth stem: the U-Net works at H/p × W/p.
        block_out_channels: width of each level; each next level halves height and width.
        layers_per_block: blocks in each level, on the way down and on the way up; one number, or one for each level.
            0 only beside a transformer.
        attention_head_dim: channels of a head (a dimension, not a count); divides every width.
        norm_num_groups: groups of the normalisation; divides every width.
        norm_eps: its ε.
        act_fn: name of the activation, as in diffusers.
        cross_attention_dim: width of `encoder_hidden_states`; `None` builds no text attention.
        time_cond_proj_dim: width of `timestep_cond`; `None` builds no projection.
        num_class_embeds: number of classes for `class_labels`; `None` builds no embedding.
        temporal_shift: share of the channels that each 3×3 convolution takes from the frames before and after, half
            from either, in [0, 1]: see `temporal_shift`. 0: only temporal attention moves anything between frames.
        spatial_attention: for each level, or for all, whether its blocks attend over space and to the text. Its cost
            grows with the square of height × width.
        temporal_attention: for each level, or for all, whether its blocks attend over time, with a bias learned for
            each distance.
        transformer_layers: blocks of the transformer in the middle; `None`: the middle is one block of the last level.
        attention_pattern: what attention of the transformer's blocks sees, repeated over them: "joint" (all places of
            all frames), "space" (all places of a frame), "time" (one place in all frames).
        cross_attention_every: every how many-th block of the transformer attends to the text.
        rope_theta: bases of the transformer's rotary positions over time, y and x; `attention_head_dim` must be a
            multiple of 16 for them.
        transformer_inner_dim: width of the transformer's SwiGLU; `None`: 8/3 of the last level's width.
        frame_timesteps: whether it was trained with a time for each frame (Chen et al. 2024, "Diffusion Forcing").
            Then a pipeline gives it known frames at time 0, and it needs no channels for them.

    Raises:
        ValueError: if a value does not fit, as a width that `attention_head_dim` does not divide.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["VideoUNetBlock", "VideoTransformerBlock"]  # noqa: RUF012  diffusers' hooks
    _repeated_blocks = ["VideoUNetBlock", "VideoTransformerBlock"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = [  # noqa: RUF012
        *("norm", "conv_in", "conv_out", "time_embedding", "position_bias", "pos_embed", "adaln_single"),
    ]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 64,
        num_frames: int = 10,
        in_channels: int = 3,
        out_channels: int = 1,
        patch_size: int = 4,
        block_out_channels: tuple[int, ...] = (64, 256),
        layers_per_block: int | tuple[int, ...] = 1,
        attention_head_dim: int = 32,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        act_fn: str = "silu",
        cross_attention_dim: int | None = None,
        time_cond_proj_dim: int | None = None,
        num_class_embeds: int | None = None,
        temporal_shift: float = 0.0,
        spatial_attention: bool | tuple[bool, ...] = True,
        temporal_attention: bool | tuple[bool, ...] = True,
        transformer_layers: int | None = None,
        attention_pattern: tuple[str, ...] = ("joint", "space", "time", "space"),
        cross_attention_every: int = 2,
        rope_theta: tuple[float, float, float] = (1000.0, 100.0, 100.0),
        transformer_inner_dim: int | None = None,
        frame_timesteps: bool = False,
    ) -> None:
        super().__init__()
        _check_config(block_out_channels, attention_head_dim, norm_num_groups, patch_size, temporal_shift)
        try:
            activation = get_activation(act_fn)
        except (AttributeError, ValueError) as error:
            raise ValueError(f"`act_fn` is {act_fn!r}, expected the name of an activation in diffusers.") from error
        _check_transformer(transformer_layers, transformer_inner_dim, attention_head_dim)
        _check_attention(attention_pattern, cross_attention_every, rope_theta)
        self.gradient_checkpointing = False
        widths = tuple(block_out_channels)
        spatial = _per_level("spatial_attention", spatial_attention, len(widths), bool)
        temporal = _per_level("temporal_attention", temporal_attention, len(widths), bool)
        depths = _per_level("layers_per_block", layers_per_block, len(widths), int)
        if min(depths) < (1 if transformer_layers is None else 0):
            lowest = "1 (0 beside `transformer_layers`)" if transformer_layers is None else "0"
            raise ValueError(f"`layers_per_block` is {layers_per_block}, expected at least {lowest}.")
        stem = widths[0]
        temb_channels = 4 * stem
        self.time_proj = Timesteps(stem, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(stem, temb_channels, act_fn, cond_proj_dim=time_cond_proj_dim)
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, temb_channels)
        self.act = activation
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, stem, 3, padding=1)

        def block(in_channels: int, level: int) -> VideoUNetBlock:
            return VideoUNetBlock(
                in_channels,
                widths[level],
                temb_channels,
                norm_num_groups,
                norm_eps,
                act_fn,
                attention_head_dim,
                cross_attention_dim,
                temporal_shift,
                spatial[level],
                temporal[level],
            )

        levels = range(len(widths))
        self.down_blocks = nn.ModuleList(nn.ModuleList(block(widths[i], i) for _ in range(depths[i])) for i in levels)
        self.downsamplers = nn.ModuleList(nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in pairwise(widths))
        if transformer_layers is None:
            self.mid_block: nn.Module = block(widths[-1], levels[-1])
        else:
            pattern = tuple(attention_pattern) * transformer_layers
            self.mid_block = VideoTransformer(
                widths[-1],
                attention_head_dim,
                pattern[:transformer_layers],
                8 * widths[-1] // 3 if transformer_inner_dim is None else transformer_inner_dim,
                cross_attention_dim,
                cross_attention_every,
                rope_theta,
                temb_channels,
                _places(sample_size, patch_size * 2 ** (len(widths) - 1)),
            )
        self.up_blocks = nn.ModuleList(
            nn.ModuleList(block(2 * widths[i], i) for _ in range(depths[i])) for i in reversed(levels)
        )
        self.upsamplers = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for coarse, fine in pairwise(reversed(widths)))
        # The stem's output joins here once more, so that ε need not pass through the whole network.
        self.conv_norm_out = GroupNorm(norm_num_groups, 2 * stem, eps=norm_eps)
        self.conv_out = zero_init(nn.Conv2d(2 * stem, out_channels * patch_size**2, 3, padding=1))
        readers = [m for m in self.modules() if isinstance(m, VideoAttention) and m.is_cross_attention]
        if cross_attention_dim is not None and not readers:
            raise ValueError(
                f"`cross_attention_dim` is {cross_attention_dim}, expected None where no block attends to the text: "
                f"`spatial_attention` = {spatial_attention}, `transformer_layers` = {transformer_layers}, "
                f"`cross_attention_every` = {cross_attention_every}."
            )
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers, but the weights lie in memory of their own.

        Those of a mapped file lie at odd addresses, which on some CPUs changes the last bits of a result.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for weights in model.parameters():
            weights.data = weights.data.clone()
        return loaded

    def enable_cache(self, config: Any) -> None:
        """Lets an earlier step of the sampler stand in part for this one, as `config` says.

        Args:
            config: `PyramidAttentionBroadcastConfig` keeps attention, over space and time alike as its "spatial" kind;
                `FasterCacheConfig` keeps the negative side of guidance by text; its attention part finds no layer.

        Raises:
            ValueError: where `config` would have no effect. Other caches know models that are one row of blocks only.
        """
        if not isinstance(config, PyramidAttentionBroadcastConfig | FasterCacheConfig):
            raise ValueError(
                f"`config` is a {type(config).__name__}, expected a PyramidAttentionBroadcastConfig or a "
                "FasterCacheConfig: other caches work on models that are one row of transformer blocks."
            )
        if isinstance(config, FasterCacheConfig) and config.is_guidance_distilled:
            raise ValueError("`is_guidance_distilled` is True, expected False: the cache keeps one side of guidance.")
        super().enable_cache(config)
        layers = [module for module in self.modules() if isinstance(module, VideoAttention)]
        if isinstance(config, PyramidAttentionBroadcastConfig) and not any(
            hasattr(layer, "_diffusers_hook") for layer in layers
        ):
            self.disable_cache()
            raise ValueError(
                "`config` names no attention layer of this model, expected a `spatial_attention_block_skip_range`."
            )

    @apply_lora_scale("cross_attention_kwargs")
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        frame_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet3DConditionOutput | tuple[Tensor]:
        """Predicts ε, x or v (the scheduler knows which).

        Args:
            sample: `[B, in_channels, F, H, W]`; H and W divisible by `patch_size`·2^(levels − 1).
            timestep: 1000·t, one number, `[B]`, or `[B, F]` for a time of each frame.
            encoder_hidden_states: text token states `[B, L, cross_attention_dim]`, or one text a frame,
                `[B, F, L, cross_attention_dim]`; `None` leaves the text out.
            class_labels: `[B]`, integers, for a model with `num_class_embeds`.
            timestep_cond: `[B, time_cond_proj_dim]`, for a model with that key.
            attention_mask: `[B, L]` (`[B, F, L]`), true or 1 where a text token may be attended to.
            cross_attention_kwargs: `{"scale": s}` scales LoRA layers; nothing else is accepted.
            down_block_additional_residuals: one tensor a block on the way down, `[B·F, C, h, w]`, added to the skips.
            mid_block_additional_residual: `[B·F, C, h, w]`, added after the middle block.
            frame_attention_mask: bool `[B, F, F]`, true where a frame (row) may attend to a frame (column); the
                identity makes the frames independent images.
            return_dict: whether `UNet3DConditionOutput` or a tuple comes back.

        Returns:
            `sample` `[B, out_channels, F, H, W]`.

        Raises:
            ValueError: if a shape does not fit, or an argument is given that this model was not built for.
        """
        self._check_inputs(sample, encoder_hidden_states, attention_mask, cross_attention_kwargs, frame_attention_mask)
        batch, _, frames = sample.shape[:3]
        temb = self._embed_time(sample, timestep, class_labels, timestep_cond)
        text = text_mask = None
        if encoder_hidden_states is not None:
            text = encoder_hidden_states.to(sample.dtype).flatten(0, -3)
            if attention_mask is not None:
                text_mask = attention_mask.bool().flatten(0, -2)[:, None, None]
        context = (temb, frames, text, text_mask, frame_attention_mask)

        x = self.conv_in(space_to_depth(rearrange(sample, "b c f h w -> (b f) c h w"), self.config.patch_size))
        stem, skips = x, []
        for level, blocks in enumerate(self.down_blocks):
            for block in cast(nn.ModuleList, blocks):
                x = run_block(self, block, x, *context)
                skips.append(x)
            if level < len(self.downsamplers):
                x = self.downsamplers[level](space_to_depth(x, 2))
        skips = _add_residuals("down_block_additional_residuals", skips, down_block_additional_residuals)

        if isinstance(self.mid_block, VideoTransformer):
            x = self.mid_block(x, *context)  # which checkpoints its own blocks
        else:
            x = run_block(self, self.mid_block, x, *context)
        if mid_block_additional_residual is not None:
            (x,) = _add_residuals("mid_block_additional_residual", [x], (mid_block_additional_residual,))

        for level, blocks in enumerate(self.up_blocks):
            for block in cast(nn.ModuleList, blocks):
                x = run_block(self, block, torch.cat([x, skips.pop()], dim=1), *context)
            if level < len(self.upsamplers):
                x = depth_to_space(self.upsamplers[level](x), 2)

        x = self.conv_out(self.act(self.conv_norm_out(torch.cat([x, stem], dim=1))))
        x = rearrange(depth_to_space(x, self.config.patch_size), "(b f) c h w -> b c f h w", b=batch)
        return UNet3DConditionOutput(sample=x) if return_dict else (x,)

    def _embed_time(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None, timestep_cond: Tensor | None
    ) -> Tensor:
        """The activated embedding of time and, where the model has them, class and time condition.

        `[B, 1, D]`, or `[B, F, D]` for times of each frame.
        """
        timestep, (batch, frames) = torch.as_tensor(timestep, device=sample.device), (sample.shape[0], sample.shape[2])
        if timestep.ndim < 2 and timestep.numel() in (1, batch):
            timestep = timestep.reshape(-1, 1).expand(batch, 1)
        elif timestep.shape != (batch, frames):
            raise ValueError(
                f"`timestep` has shape {tuple(timestep.shape)}, expected one number, one a clip, [{batch}], or one a "
                f"frame, [{batch}, {frames}]."
            )
        if (timestep_cond is None) != (self.config.time_cond_proj_dim is None):
            raise ValueError(
                f"`timestep_cond` is {_kind(timestep_cond)}, expected what `time_cond_proj_dim` = "
                f"{self.config.time_cond_proj_dim} asks for."
            )
        if (class_labels is None) != (self.class_embedding is None):
            raise ValueError(
                f"`class_labels` is {_kind(class_labels)}, expected what `num_class_embeds` = "
                f"{self.config.num_class_embeds} asks for."
            )
        embedding = self.time_proj(timestep.flatten()).unflatten(0, timestep.shape).to(sample.dtype)
        temb = self.time_embedding(embedding, None if timestep_cond is None else timestep_cond[:, None])
        if self.class_embedding is not None:
            temb = temb + self.class_embedding(class_labels)[:, None]
        return self.act(temb)

    def _check_inputs(
        self,
        sample: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        cross_attention_kwargs: dict[str, Any] | None,
        frame_attention_mask: Tensor | None,
    ) -> None:
        config = self.config
        if sample.ndim != 5 or sample.shape[1] != config.in_channels:
            raise ValueError(f"`sample` has shape {tuple(sample.shape)}, expected [B, {config.in_channels}, F, H, W].")
        batch, _, frames, height, width = sample.shape
        multiple = config.patch_size * 2 ** (len(config.block_out_channels) - 1)
        if height % multiple or width % multiple:
            raise ValueError(f"`sample` is {height}×{width} pixels, expected multiples of {multiple}.")
        if encoder_hidden_states is not None:
            if config.cross_attention_dim is None:
                raise ValueError("`encoder_hidden_states` was given, but `cross_attention_dim` of this model is None.")
            shape, width = tuple(encoder_hidden_states.shape), config.cross_attention_dim
            if shape[:-2] not in ((batch,), (batch, frames)) or shape[-1] != width:
                raise ValueError(
                    f"`encoder_hidden_states` has shape {shape}, expected [{batch}, L, {width}] or, for one text a "
                    f"frame, [{batch}, {frames}, L, {width}]."
                )
        if attention_mask is not None:
            if encoder_hidden_states is None:
                raise ValueError("`attention_mask` masks text tokens, but `encoder_hidden_states` was not given.")
            if attention_mask.shape != encoder_hidden_states.shape[:-1]:
                expected_mask = list(encoder_hidden_states.shape[:-1])
                raise ValueError(
                    f"`attention_mask` has shape {tuple(attention_mask.shape)}, expected {expected_mask}."
                )
        if cross_attention_kwargs:
            raise ValueError(f"`cross_attention_kwargs` has {sorted(cross_attention_kwargs)}, expected only 'scale'.")
        mask = frame_attention_mask
        if mask is not None and (mask.shape != (batch, frames, frames) or mask.dtype != torch.bool):
            raise ValueError(
                f"`frame_attention_mask` is {mask.dtype} {tuple(mask.shape)}, expected bool "
                f"[{batch}, {frames}, {frames}]."
            )


def zero_init(layer: nn.Module) -> nn.Module:
    """Sets every parameter to zero: the residual branch that ends here starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _check_config(widths: tuple[int, ...], head_dim: int, groups: int, patch_size: int, shift: float) -> None:
    for name, value in {"patch_size": patch_size, "attention_head_dim": head_dim}.items():
        if value < 1:
            raise ValueError(f"`{name}` is {value}, expected at least 1.")
    if not widths or any(width % head_dim or width % groups for width in widths):
        raise ValueError(
            f"`block_out_channels` is {tuple(widths)}, expected multiples of `attention_head_dim` = {head_dim} and "
            f"`norm_num_groups` = {groups}."
        )
    if not 0 <= shift <= 1:
        raise ValueError(f"`temporal_shift` is {shift}, expected a share of the channels in [0, 1].")


def _check_transformer(layers: int | None, inner_dim: int | None, head_dim: int) -> None:
    if layers is None:
        if inner_dim is not None:
            raise ValueError(f"`transformer_inner_dim` is {inner_dim}, expected None without `transformer_layers`.")
        return
    if not isinstance(layers, int) or layers < 1:
        raise ValueError(
            f"`transformer_layers` is {layers}, expected an integer of at least 1, or None for a middle of one block "
            "of the last level."
        )
    if inner_dim is not None and (not isinstance(inner_dim, int) or inner_dim < 1):
        raise ValueError(f"`transformer_inner_dim` is {inner_dim}, expected None or an integer of at least 1.")
    if head_dim % 16:
        raise ValueError(
            f"`attention_head_dim` is {head_dim}, expected a multiple of 16 beside `transformer_layers`: rotary "
            "positions of time, y and x take pairs of channels, 1/4, 3/8 and 3/8 of a head."
        )


def _check_attention(pattern: Any, every: int, theta: Any) -> None:
    names = tuple(ATTENTION_PATTERNS)
    if not isinstance(pattern, list | tuple) or not pattern or any(name not in names for name in pattern):
        raise ValueError(f"`attention_pattern` is {pattern!r}, expected a sequence of names among {names}.")
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"`cross_attention_every` is {every}, expected an integer of at least 1.")
    if not isinstance(theta, list | tuple) or len(theta) != 3 or min(theta) <= 0:
        raise ValueError(f"`rope_theta` is {theta}, expected three numbers above 0, for time, y and x.")


def _places(sample_size: int | tuple[int, int], multiple: int) -> tuple[int, int]:
    """Rows and columns of tokens in the middle of a picture of `sample_size` pixels."""
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    if height < 1 or width < 1 or height % multiple or width % multiple:
        raise ValueError(
            f"`sample_size` is {sample_size}, expected multiples of {multiple} beside `transformer_layers`, which has "
            "an embedding for each place."
        )
    return height // multiple, width // multiple


def _per_level(name: str, value: Any, levels: int, kind: type) -> tuple[Any, ...]:
    values = (value,) * levels if isinstance(value, kind) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(values) != levels or not all(isinstance(item, kind) for item in values):
        one = {bool: "a bool", int: "an integer"}[kind]
        raise ValueError(f"`{name}` is {value}, expected {one} or one for each of {levels} levels.")
    return values


def _add_residuals(name: str, features: list[Tensor], residuals: tuple[Tensor, ...] | None) -> list[Tensor]:
    if residuals is None:
        return features
    given, expected = ([tuple(x.shape) for x in tensors] for tensors in (residuals, features))
    if given != expected:
        raise ValueError(f"`{name}` has shapes {given}, expected {expected}.")
    return [feature + residual for feature, residual in zip(features, residuals, strict=True)]


def _kind(value: Any) -> str:
    return "None" if value is None else "given"
