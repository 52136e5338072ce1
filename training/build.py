"""What a run is built of: denoiser and scheduler, saved weights to start from, the optimiser and its schedule."""

from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from config import DataArguments, ModelArguments, TrainArguments
from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.hub import resolve_model

ARCHITECTURE = (
    *("in_channels", "out_channels", "patch_size", "block_out_channels", "layers_per_block"),
    *("attention_head_dim", "norm_num_groups", "temporal_shift", "spatial_attention"),
)


def build_model(
    model: ModelArguments, data: DataArguments, text_width: int | None = None
) -> tuple[VideoUNet3DConditionModel, VPContinuousScheduler]:
    """The denoiser with mask channels, attending to text states of `text_width` channels if given; the scheduler."""
    spatial = tuple(map(bool, model.spatial_attention))
    denoiser = VideoUNet3DConditionModel(
        sample_size=data.image_size,
        num_frames=data.num_frames,
        in_channels=2 * data.num_channels + 1,
        out_channels=data.num_channels,
        patch_size=model.patch_size,
        block_out_channels=tuple(model.block_out_channels),
        layers_per_block=model.layers_per_block,
        attention_head_dim=model.attention_head_dim,
        norm_num_groups=model.norm_num_groups,
        temporal_shift=model.temporal_shift,
        spatial_attention=spatial[0] if len(spatial) == 1 else spatial,
        cross_attention_dim=text_width,
    )
    scheduler = VPContinuousScheduler(
        schedule=model.schedule,
        logsnr_min=model.logsnr_min,
        logsnr_max=model.logsnr_max,
        shift=model.shift,
        prediction_type=model.prediction_type,
        gamma=model.gamma,
    )
    return denoiser, scheduler


def load_pretrained(
    denoiser: VideoUNet3DConditionModel, text_encoder: nn.Module | None, scheduler: VPContinuousScheduler, name: str
) -> None:
    """Puts the weights of a saved pipeline into the denoiser and, where both have one, into the text encoder.

    Attention to text that the pipeline lacks starts anew, and so does nothing at first.

    Raises:
        ValueError: if the pipeline's architecture or parametrisation is another.
    """
    pipe = VideoDiffusionPipeline.from_pretrained(resolve_model(name))
    pairs = {key: (denoiser.config[key], pipe.unet.config[key]) for key in ARCHITECTURE}
    pairs["prediction_type"] = (scheduler.config.prediction_type, pipe.scheduler.config.prediction_type)
    for key, (ours, theirs) in pairs.items():
        if str(ours).strip("()[]") != str(theirs).strip("()[]"):  # a saved tuple comes back as a list
            raise ValueError(f"`{key}` is {ours}, expected {theirs}, what {name} was trained with.")
    saved, own = pipe.unet.state_dict(), denoiser.state_dict()
    if pipe.unet.config.cross_attention_dim is None:
        saved |= {key: value for key, value in own.items() if ".cross_attention." in key}
    for key, value in saved.items():
        if key not in own or own[key].shape != value.shape:
            raise ValueError(
                f"`text_encoder` gives {denoiser.config.cross_attention_dim} channels, expected "
                f"{pipe.unet.config.cross_attention_dim}, what {name} was trained with."
            )
    denoiser.load_state_dict(saved)
    if text_encoder is not None and pipe.text_encoder is not None:
        text_encoder.load_state_dict(pipe.text_encoder.state_dict())


def build_optimizer(learner: nn.Module, args: TrainArguments) -> torch.optim.Optimizer:
    """AdamW, or Muon on the U-Net's matrices with AdamW on everything else; a text encoder learns more slowly."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    text: list[nn.Parameter] = []
    for name, parameter in learner.named_parameters():
        inside = "block" in name and "time_emb_proj" not in name and "position_bias" not in name
        if name.startswith("text_encoder."):
            text.append(parameter)
        elif args.optimizer == "muon" and inside and parameter.ndim >= 2:
            matrices.append(parameter)
        else:
            others.append(parameter)
    betas = (0.9, args.adam_beta2)
    rates = [(others, args.learning_rate), (text, args.learning_rate * args.text_encoder_lr_scale)]
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "weight_decay": args.weight_decay, "betas": betas}
        for parameters, rate in rates
        if parameters
    ]
    if args.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    try:
        from pytorch_optimizer import Muon
    except ImportError as error:
        raise ImportError("`optimizer` is muon, which needs `pip install pytorch_optimizer`.") from error
    of_muon = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "use_adjusted_lr": True}
    return Muon([{"params": matrices, "use_muon": True, **of_muon}, *({**g, "use_muon": False} for g in groups)])


def build_lr_scheduler(optimizer: torch.optim.Optimizer, args: TrainArguments) -> Any:
    """One of diffusers' schedules, or the trapezoid: its middle does not depend on `max_steps`, so a run can be made
    longer or shorter while it goes on (Hägele et al. 2024).
    """
    if args.lr_scheduler != "trapezoid":
        return get_scheduler(
            args.lr_scheduler, optimizer, num_warmup_steps=args.warmup_steps, num_training_steps=args.max_steps
        )

    def factor(step: int) -> float:
        up, down = (step + 1) / max(args.warmup_steps, 1), (args.max_steps - step) / args.cooldown_steps
        return max(0.0, min(1.0, up, down))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
