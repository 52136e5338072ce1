"""The denoising network: a U-Net factorised over space and time (Ho et al. 2022, "Video Diffusion Models").

Inside, a video is `[B·F, C, H, W]` in channels-last memory, so that a token view `[B·F, H·W, C]` is free: 1×3×3
convolutions and spatial attention see the frames as a batch; temporal attention sees height × width as a batch. Only
temporal attention moves information between frames, and `temporal_shift` where it is asked for.
"""

import math
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.activations import get_activation
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from diffusers.utils import apply_lora_scale
from einops import rearrange
from torch import Tensor, nn


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
    ) -> Tensor:
        """Queries `[N, L, C]`, keys from `[N, M, D]`, mask broadcast to `[N, heads, L, M]` → `[N, L, C]`."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attn.fused_projections and encoder_hidden_states is None:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in (query, key, value))
        out = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out[0](out.flatten(2))


class VideoAttention(nn.Module, AttentionModuleMixin):
    """Pre-normalised multi-head attention with a zero-initialised output, returned without its residual."""

    _default_processor_cls = VideoAttnProcessor
    _available_processors = [VideoAttnProcessor]  # noqa: RUF012  diffusers' hook
    processor: Any
    to_qkv: Any  # made by `fuse_projections`

    def __init__(self, channels: int, head_dim: int, eps: float, cross_attention_dim: int | None = None) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.head_dim = head_dim
        self.is_cross_attention = cross_attention_dim is not None
        self.cross_attention_dim = cross_attention_dim
        self.use_bias = False
        source = channels if cross_attention_dim is None else cross_attention_dim
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(source, channels, bias=False)
        self.to_v = nn.Linear(source, channels, bias=False)
        self.to_out = nn.ModuleList([zero_init(nn.Linear(channels, channels))])
        self.processor = VideoAttnProcessor()

    def forward(
        self, tokens: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Tokens `[N, L, C]` → `[N, L, C]`; the rest as in the processor."""
        return self.processor(self, self.norm(tokens), encoder_hidden_states, attention_mask)


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
    video = x.unflatten(0, (-1, frames))
    before = F.pad(video[:, :-1, :channels], (0, 0, 0, 0, 0, 0, 1, 0))
    after = F.pad(video[:, 1:, channels : 2 * channels], (0, 0, 0, 0, 0, 0, 0, 1))
    if frame_mask is not None:
        sees_before = F.pad(frame_mask.diagonal(-1, 1, 2), (1, 0))
        sees_after = F.pad(frame_mask.diagonal(1, 1, 2), (0, 1))
        before = torch.where(sees_before[..., None, None, None], before, 0)
        after = torch.where(sees_after[..., None, None, None], after, 0)
    return torch.cat([before, after, video[:, :, 2 * channels :]], dim=2).flatten(0, 1)


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
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, 2 * out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.act = get_activation(act_fn)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor, frames: int, frame_mask: Tensor | None = None) -> Tensor:
        """`[B·F, C, H, W]` and the activated time embedding `[B·F, D]` → `[B·F, C', H, W]`; the rest as in a block."""
        scale, shift = self.time_emb_proj(temb)[:, :, None, None].chunk(2, dim=1)
        h = self.act(self.norm1(x))
        if self.shifted_in:
            h = temporal_shift(h, frames, self.shifted_in, frame_mask)
        h = self.act(torch.addcmul(shift, self.norm2(self.conv1(h)), 1 + scale))
        if self.shifted_out:
            h = temporal_shift(h, frames, self.shifted_out, frame_mask)
        return self.conv_shortcut(x) + self.conv2(h)


class VideoUNetBlock(nn.Module):
    """Convolutions, then attention over space, over the text (if any), and over time: the unit the U-Net repeats."""

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
        spatial: bool = True,
    ) -> None:
        super().__init__()
        self.resnet = ResnetBlock(in_channels, out_channels, temb_channels, groups, eps, act_fn, shifted)
        self.spatial_attention = VideoAttention(out_channels, head_dim, eps) if spatial else None
        self.cross_attention = (
            VideoAttention(out_channels, head_dim, eps, cross_attention_dim)
            if spatial and cross_attention_dim is not None
            else None
        )
        self.position_bias = RelativePositionBias(out_channels // head_dim)
        self.temporal_attention = VideoAttention(out_channels, head_dim, eps)

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
            temb: activated time embedding `[B·F, D]`.
            frames: F.
            text: token states `[N, L, cross_attention_dim]`; N is B, or B·F for one text a frame.
            text_mask: `[N, 1, 1, L]`, true where a token may be attended to.
            frame_mask: `[B, F, F]`, true where a frame (row) may attend to a frame (column).
        """
        x = self.resnet(x, temb, frames, frame_mask)
        height, width = x.shape[-2:]
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)  # a view: the memory is channels-last
        if self.spatial_attention is not None:
            tokens = tokens + self.spatial_attention(tokens)
        if self.cross_attention is not None and text is not None:
            queries = tokens.reshape(len(text), -1, tokens.shape[-1])  # a view: all places that read one text
            tokens = tokens + self.cross_attention(queries, text, text_mask).reshape(tokens.shape)
        bias = self.position_bias(frames)[None].to(tokens.dtype)
        if frame_mask is not None:
            bias = bias.masked_fill(~frame_mask[:, None], -torch.inf).repeat_interleave(height * width, dim=0)
        tracks = rearrange(tokens, "(b f) s c -> (b s) f c", f=frames)
        moved = self.temporal_attention(tracks, attention_mask=bias)
        tokens = tokens + rearrange(moved, "(b s) f c -> (b f) s c", s=height * width)
        return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class VideoUNet3DConditionModel(ModelMixin, AttentionMixin, PeftAdapterMixin, ConfigMixin):
    """A 3D U-Net factorised over space and time, with the call and the output of diffusers' `UNet3DConditionModel`.

    Args:
        sample_size: height and width in training, pixels (what a pipeline makes by default).
        num_frames: frames in training (what a pipeline makes by default); other lengths work.
        in_channels: channels of the input: C, or 2·C + 1 for `[z_t, given frames, mask]`.
        out_channels: C.
        patch_size: p of the space-to-depth stem: the U-Net works at H/p × W/p.
        block_out_channels: width of each level; each next level halves height and width.
        layers_per_block: blocks in each level, on the way down and on the way up; one number, or one for each level.
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
            grows with the square of height × width; convolutions and temporal attention are in every block.

    Raises:
        ValueError: if a width is not divisible by `attention_head_dim` or `norm_num_groups`, or a number is below 1.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["VideoUNetBlock"]  # noqa: RUF012  diffusers' hooks
    _repeated_blocks = ["VideoUNetBlock"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["norm", "conv_in", "conv_out", "time_embedding", "position_bias"]  # noqa: RUF012

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
    ) -> None:
        super().__init__()
        _check_config(block_out_channels, attention_head_dim, norm_num_groups, patch_size)
        if not 0 <= temporal_shift <= 1:
            raise ValueError(f"`temporal_shift` is {temporal_shift}, expected a share of the channels in [0, 1].")
        self.gradient_checkpointing = False
        widths = tuple(block_out_channels)
        spatial = _per_level("spatial_attention", spatial_attention, len(widths), bool)
        depths = _per_level("layers_per_block", layers_per_block, len(widths), int)
        if min(depths) < 1:
            raise ValueError(f"`layers_per_block` is {layers_per_block}, expected at least 1.")
        stem = widths[0]
        temb_channels = 4 * stem
        self.time_proj = Timesteps(stem, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(stem, temb_channels, act_fn, cond_proj_dim=time_cond_proj_dim)
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, temb_channels)
        self.act = get_activation(act_fn)
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
            )

        levels = range(len(widths))
        self.down_blocks = nn.ModuleList(nn.ModuleList(block(widths[i], i) for _ in range(depths[i])) for i in levels)
        self.downsamplers = nn.ModuleList(nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in pairwise(widths))
        self.mid_block = block(widths[-1], levels[-1])
        self.up_blocks = nn.ModuleList(
            nn.ModuleList(block(2 * widths[i], i) for _ in range(depths[i])) for i in reversed(levels)
        )
        self.upsamplers = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for coarse, fine in pairwise(reversed(widths)))
        # The stem's output joins here once more, so that ε need not pass through the whole network.
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, 2 * stem, eps=norm_eps)
        self.conv_out = zero_init(nn.Conv2d(2 * stem, out_channels * patch_size**2, 3, padding=1))
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
            timestep: 1000·t, one number or `[B]`.
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
        temb = self._embed_time(sample, timestep, class_labels, timestep_cond).repeat_interleave(frames, dim=0)
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
                x = self._run(block, x, *context)
                skips.append(x)
            if level < len(self.downsamplers):
                x = self.downsamplers[level](space_to_depth(x, 2))
        skips = _add_residuals("down_block_additional_residuals", skips, down_block_additional_residuals)

        x = self._run(self.mid_block, x, *context)
        if mid_block_additional_residual is not None:
            (x,) = _add_residuals("mid_block_additional_residual", [x], (mid_block_additional_residual,))

        for level, blocks in enumerate(self.up_blocks):
            for block in cast(nn.ModuleList, blocks):
                x = self._run(block, torch.cat([x, skips.pop()], dim=1), *context)
            if level < len(self.upsamplers):
                x = depth_to_space(self.upsamplers[level](x), 2)

        x = self.conv_out(self.act(self.conv_norm_out(torch.cat([x, stem], dim=1))))
        x = rearrange(depth_to_space(x, self.config.patch_size), "(b f) c h w -> b c f h w", b=batch)
        return UNet3DConditionOutput(sample=x) if return_dict else (x,)

    def _run(self, block: nn.Module, *args: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _embed_time(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None, timestep_cond: Tensor | None
    ) -> Tensor:
        """The activated embedding `[B, D]` of time and, where the model has them, class and time condition."""
        timestep = torch.as_tensor(timestep, device=sample.device)
        if timestep.numel() not in (1, len(sample)) or timestep.ndim > 1:
            raise ValueError(
                f"`timestep` has shape {tuple(timestep.shape)}, expected one number or one a clip, [{len(sample)}]."
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
        temb = self.time_embedding(self.time_proj(timestep.expand(len(sample))).to(sample.dtype), timestep_cond)
        if self.class_embedding is not None:
            temb = temb + self.class_embedding(class_labels)
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


def _check_config(widths: tuple[int, ...], head_dim: int, groups: int, patch_size: int) -> None:
    for name, value in {"patch_size": patch_size, "attention_head_dim": head_dim}.items():
        if value < 1:
            raise ValueError(f"`{name}` is {value}, expected at least 1.")
    if not widths or any(width % head_dim or width % groups for width in widths):
        raise ValueError(
            f"`block_out_channels` is {tuple(widths)}, expected multiples of `attention_head_dim` = {head_dim} and "
            f"`norm_num_groups` = {groups}."
        )


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
