"""Variance-preserving diffusion in continuous time, on log-SNR.

Every formula of the project that contains α, σ or λ stands in this file; `docs/notation.md` holds the symbols and
`docs/errata.md` the corrections to the source, "Generation of temporally consistent video using synthetic images"
(Arya, Ahuja, Tangry, Agarwal), whose equation numbers are quoted below. t and s are times in [0, 1] with s < t and
1 = noise; a `timestep`, as diffusers' models and schedulers use it, is 1000·t. The pure functions come first, the
scheduler is a thin layer over them. Coefficients are computed in float64 and cast at the end.
"""

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffusers
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils import DummyObject
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

BETA_MIN, BETA_MAX = 0.1, 20.0  # DDPM's linear β, 1e-4 to 0.02 over 1000 steps, in its continuous limit
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


class Curve(NamedTuple):
    """A decreasing curve λ(u) on its natural time axis u, and its inverse u(λ)."""

    logsnr: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]


def _linear_beta_logsnr(u: Tensor) -> Tensor:
    integral = BETA_MIN * u + (BETA_MAX - BETA_MIN) * u**2 / 2  # ∫β = −log α²
    return -torch.log(torch.expm1(integral))


def _linear_beta_time(logsnr: Tensor) -> Tensor:
    integral = F.softplus(-logsnr, threshold=80.0)
    return 2 * integral / (BETA_MIN + torch.sqrt(BETA_MIN**2 + 2 * (BETA_MAX - BETA_MIN) * integral))


CURVES = {
    # Nichol and Dhariwal 2021, without their offset: α = cos(πu/2)
    "cosine": Curve(
        lambda u: -2 * torch.log(torch.tan(math.pi / 2 * u)),
        lambda logsnr: 2 / math.pi * torch.atan(torch.exp(-logsnr / 2)),
    ),
    # Kingma et al. 2021: λ itself falls linearly
    "linear": Curve(lambda u: -u, lambda logsnr: -logsnr),
    # Ho et al. 2020 in the limit of Song et al. 2021 (their VP SDE): β(u) rises linearly
    "linear_beta": Curve(_linear_beta_logsnr, _linear_beta_time),
}


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """α = sqrt(sigmoid(λ)) and σ = sqrt(sigmoid(−λ)), both in [0, 1], of any shape of λ."""
    return torch.exp(F.logsigmoid(logsnr) / 2), torch.exp(F.logsigmoid(-logsnr) / 2)


def posterior_coefficients(logsnr_t: Tensor, logsnr_s: Tensor) -> tuple[Tensor, Tensor]:
    """The weights (of z_t, of x) in the mean of q(z_s | z_t, x): equation (5) with the factor α_s/α_t it lacks."""
    r = logsnr_t - logsnr_s
    weight_z = torch.exp(r + (F.logsigmoid(logsnr_s) - F.logsigmoid(logsnr_t)) / 2)
    weight_x = -torch.expm1(r) * torch.exp(F.logsigmoid(logsnr_s) / 2)
    return weight_z, weight_x


def step_std(logsnr_t: Tensor, logsnr_s: Tensor, gamma: float) -> Tensor:
    """Standard deviation of one ancestral step: sqrt((σ̃²_{s|t})^{1−γ} (σ²_{t|s})^γ), equations (6), (2) and (7)."""
    log_gap = torch.log(-torch.expm1(logsnr_t - logsnr_s))
    log_posterior = log_gap + F.logsigmoid(-logsnr_s)
    log_forward = log_gap + F.logsigmoid(-logsnr_t)
    return torch.exp(((1 - gamma) * log_posterior + gamma * log_forward) / 2)


def ddim_coefficients(logsnr_t: Tensor, logsnr_s: Tensor) -> tuple[Tensor, Tensor]:
    """The weights (of z_t, of x) in DDIM's step (Song, Meng and Ermon 2021): z_s = α_s x + σ_s (z_t − α_t x)/σ_t."""
    weight_z = torch.exp((F.logsigmoid(-logsnr_s) - F.logsigmoid(-logsnr_t)) / 2)
    weight_x = -torch.expm1((logsnr_t - logsnr_s) / 2) * torch.exp(F.logsigmoid(logsnr_s) / 2)
    return weight_z, weight_x


def log_loss_weight(logsnr: Tensor, weighting: str) -> Tensor:
    """Logarithm of the weight w(λ) in the loss w(λ)·‖x − x̂_θ‖².

    Args:
        logsnr: λ, any shape.
        weighting: `"epsilon"` e^λ, the paper's (3); `"sample"` 1; `"v_prediction"` 1 + e^λ (Salimans and Ho 2022,
            "SNR+1"); `"min_snr"` min(e^λ, 5) (Hang et al. 2023); `"sigmoid"` e^λ·sigmoid(2 − λ) (Hoogeboom et al.
            2024, after Kingma and Gao 2023); `"clipped_v_prediction"` min(1 + e^λ, 20), the same as
            v up to λ = 2.9: what x-prediction needs (Li and He 2025 clip theirs likewise); `"edm"`
            (e^λ + 4)·N(λ; 2.4, 2.4²), EDM's loss under uniform λ (Karras et al. 2022, σ_data = 0.5).
    """
    match weighting:
        case "epsilon":
            return logsnr
        case "sample":
            return torch.zeros_like(logsnr)
        case "v_prediction":
            return F.softplus(logsnr, threshold=80.0)
        case "clipped_v_prediction":
            return F.softplus(logsnr, threshold=80.0).clamp(max=math.log(20.0))
        case "min_snr":
            return logsnr.clamp(max=math.log(5.0))
        case "sigmoid":
            return logsnr + F.logsigmoid(2.0 - logsnr)
        case "edm":
            return torch.logaddexp(logsnr, torch.full_like(logsnr, math.log(4.0))) - ((logsnr - 2.4) / 2.4) ** 2 / 2
    raise ValueError(
        f"`weighting` is {weighting!r}, expected one of epsilon, sample, v_prediction, clipped_v_prediction, min_snr, "
        "sigmoid, edm."
    )


def prediction_loss_weight(logsnr: Tensor, weighting: str, prediction_type: str) -> Tensor:
    """The same loss as a weight on the squared error of the network's own output.

    ‖x − x̂‖² is e^{−λ}‖ε − ε̂‖² and σ²‖v − v̂‖², so w(λ) turns into w·e^{−λ}, w or w·σ².
    """
    log_weight = log_loss_weight(logsnr, weighting)
    match prediction_type:
        case "epsilon":
            return torch.exp(log_weight - logsnr)
        case "sample":
            return torch.exp(log_weight)
        case "v_prediction":
            return torch.exp(log_weight + F.logsigmoid(-logsnr))
    raise ValueError(f"`prediction_type` is {prediction_type!r}, expected one of {PREDICTION_TYPES}.")


# -------------------------------------------------------------------------------------- the schedulers of diffusers
class Stock(NamedTuple):
    """What a scheduler of diffusers can do on our schedule, as `python -m benchmarks.schedulers` measures it.

    Args:
        prediction_types: those with which its error falls to nothing.
        clips: how it can hold x̂ in a range: its config keys that do so.
        spacings: its options for the places of the steps that leave it right.
    """

    prediction_types: tuple[str, ...] = PREDICTION_TYPES
    clips: tuple[str, ...] = ()
    spacings: tuple[str, ...] = ()


_BOTH = ("clip_sample", "thresholding")
_NO_X = ("epsilon", "v_prediction")
_WIDE = ("use_karras_sigmas", "use_exponential_sigmas")
STOCK_SCHEDULERS = {
    "CogVideoXDDIMScheduler": Stock(),
    "DDIMScheduler": Stock(clips=_BOTH),
    "DDIMParallelScheduler": Stock(clips=_BOTH),
    "DDPMScheduler": Stock(clips=_BOTH),
    "DDPMParallelScheduler": Stock(clips=_BOTH),
    "DEISMultistepScheduler": Stock(clips=("thresholding",), spacings=_WIDE),
    "DPMSolverMultistepScheduler": Stock(clips=("thresholding",), spacings=(*_WIDE, "use_lu_lambdas")),
    "DPMSolverSinglestepScheduler": Stock(clips=("thresholding",), spacings=_WIDE),
    "EulerAncestralDiscreteScheduler": Stock(_NO_X),
    "EulerDiscreteScheduler": Stock(spacings=_WIDE),
    "HeunDiscreteScheduler": Stock(clips=("clip_sample",), spacings=_WIDE),
    "KDPM2AncestralDiscreteScheduler": Stock(_NO_X, spacings=_WIDE),
    "KDPM2DiscreteScheduler": Stock(_NO_X, spacings=_WIDE),
    "LMSDiscreteScheduler": Stock(spacings=_WIDE),
    "PNDMScheduler": Stock(_NO_X),
    "SASolverScheduler": Stock(clips=("thresholding",)),
    "UniPCMultistepScheduler": Stock(clips=("thresholding",), spacings=_WIDE),
}
REFUSED_SCHEDULERS = {
    "it goes from data to noise": ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"),
    "it is for networks distilled to few calls": (
        *("CMStochasticIterativeScheduler", "FlowMapEulerDiscreteScheduler", "FlowMatchLCMScheduler"),
        *("HeliosDMDScheduler", "LCMScheduler", "PiflowScheduler", "SCMScheduler", "TCDScheduler"),
    ),
    "it is for flow matching, whose forward process is another": (
        *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "HeliosScheduler"),
        *("LTXEulerAncestralRFScheduler", "MiniMaxH3Scheduler", "RFD4ProteinaScheduler"),
    ),
    "it has a schedule of its own and takes no other": (
        *("CosineDPMSolverMultistepScheduler", "DDPMWuerstchenScheduler", "EDMDPMSolverMultistepScheduler"),
        *("EDMEulerScheduler", "IPNDMScheduler", "KarrasVeScheduler", "ScoreSdeVeScheduler", "UnCLIPScheduler"),
    ),
    "it is for tokens": (
        *("AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler"),
        "VQDiffusionScheduler",
    ),
    "its `step` wants more than a pipeline passes": ("CogVideoXDPMScheduler", "RePaintScheduler"),
    "its noise comes from no generator": ("DPMSolverSDEScheduler",),
}
# options of stock schedulers that move their steps to other noise levels, or change these levels
SPACINGS = {
    "use_karras_sigmas": "with it this class needs far more than 20 steps",
    "use_exponential_sigmas": "with it this class needs far more than 20 steps",
    "use_beta_sigmas": "it places the steps evenly in σ/α, nearly all of them in pure noise",
    "use_lu_lambdas": "with it this class needs far more than 20 steps",
    "use_flow_sigmas": "flow matching has another forward process",
    "rescale_betas_zero_snr": "with ε it divides by zero; `logsnr_min` and `shift` say where the schedule ends",
}


def refusal(scheduler_class: type, config: Mapping[str, Any]) -> str | None:
    """Why a scheduler of diffusers would sample wrongly, or not at all, on one of our schedules.

    Args:
        scheduler_class: the class, or one derived from it.
        config: of a `VPContinuousScheduler`, with options of the class where it has some.

    Returns:
        the reason, or None where the class is right.
    """
    name = next((c.__name__ for c in scheduler_class.__mro__ if c.__name__ in STOCK_SCHEDULERS), None)
    if name is None:
        found = (why for why, names in REFUSED_SCHEDULERS.items() if scheduler_class.__name__ in names)
        return next(found, "it is none of those that were measured on this schedule")
    return _stock_refusal(STOCK_SCHEDULERS[name], config)


def _stock_refusal(stock: Stock, config: Mapping[str, Any]) -> str | None:
    if config["prediction_type"] not in stock.prediction_types:
        return f"it cannot sample with `prediction_type` {config['prediction_type']!r}"
    for option, why in SPACINGS.items():
        if config.get(option) and option not in stock.spacings:
            return f"`{option}` is True, expected False: {why}"
    return _clip_refusal(stock, config)


def _clip_refusal(stock: Stock, config: Mapping[str, Any]) -> str | None:
    """Why a scheduler cannot hold x̂ where the config says, or None."""
    if config["thresholding"] and config["sample_max_value"] > 1:
        return None if "thresholding" in stock.clips else "it has no dynamic thresholding"
    if not config["clip_sample"] or "clip_sample" in stock.clips:
        return None
    if not stock.clips:
        return "it cannot clip x̂, which `clip_sample` promises; with `clip_sample=False` it samples unclipped"
    if config["clip_sample_range"] != 1:
        return f"it clips x̂ to ±1 only, `clip_sample_range` is {config['clip_sample_range']}"
    return None


# config keys that follow from the others, for the schedulers of diffusers and for the pipeline
DERIVED = ("trained_betas", "timestep_spacing", "snr_shift_scale", "skip_prk_steps", "_compatible_schedulers")


class _Origin(str):
    """The class name in a config that is about to be used by another class; it has the last word on that.

    `from_config` of a scheduler of diffusers compares this name with its own. No other code of ours runs while it
    builds itself, so this comparison is where a class that would sample wrongly is refused.
    """

    config: Mapping[str, Any]

    def __ne__(self, other: object) -> bool:
        scheduler_class = getattr(diffusers, other, None) if isinstance(other, str) else None
        if isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin):
            reason = refusal(scheduler_class, self.config)
            if reason is not None:
                raise ValueError(f"{other} cannot take over from {self!s}: {reason}. See `as_diffusers`.")
        return str.__ne__(self, other)

    __hash__ = str.__hash__


@dataclass
class VPContinuousSchedulerOutput(SchedulerOutput):
    """Output of a step.

    Args:
        prev_sample: z_s, same shape as the sample.
        pred_original_sample: x̂_θ(z_t) after clipping, same shape.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class VPContinuousScheduler(SchedulerMixin, ConfigMixin):
    """Ancestral sampler of a variance-preserving diffusion in continuous time, z_t = α_t x + σ_t ε (equation (1)).

    One step (equation (7)): z_s = μ̃_{s|t}(z_t, x̂_θ(z_t)) + sqrt((σ̃²_{s|t})^{1−γ} (σ²_{t|s})^γ) ε; the last, to s = 0,
    returns the mean. With `deterministic` it is DDIM's step, without noise, as for a network that was distilled to few
    calls. Every method takes samples of any shape whose first axis is the batch.

    Args:
        schedule: λ(t): `"cosine"`, `"linear"` (in λ) or `"linear_beta"` (the continuous limit of DDPM's). All of them
            run from `logsnr_max` at t = 0 to `logsnr_min` at t = 1.
        logsnr_min: λ(1) before the shift.
        logsnr_max: λ(0) before the shift.
        shift: resolution shift, λ ← λ − 2·log(shift) (Hoogeboom et al. 2023); above 1 means more noise at every t;
            their recipe is resolution / 64.
        prediction_type: what the network gives: `"epsilon"`, `"sample"` (x̂) or `"v_prediction"` (v = α ε − σ x).
        gamma: 0 (posterior variance) to 1 (forward variance), equation (7).
        clip_sample: whether x̂ is clipped to ±`clip_sample_range` before it is used.
        clip_sample_range: see `clip_sample`.
        thresholding: dynamic thresholding (Saharia et al. 2022) in place of the clip. With a `sample_max_value` of 1
            it is the clip to ±1, and that clip stands in the config in this form, which more schedulers know.
        dynamic_thresholding_ratio: its quantile, per clip.
        sample_max_value: its upper bound.
        num_train_timesteps: the value of `timestep` at t = 1: the scale, not a number of levels.
        deterministic: whether a step is DDIM's; `gamma` then has no effect.

    The config also holds, derived from these, what a scheduler of diffusers needs to follow the same schedule:
    `DPMSolverMultistepScheduler.from_config(scheduler.config)` does, and its config leads back here. A class that
    would sample wrongly raises a ValueError there. docs/schedulers.md lists them all.

    Raises:
        ValueError: if an argument is out of its range, or two contradict each other.
    """

    _compatibles = list(STOCK_SCHEDULERS)  # noqa: RUF012  a hook of diffusers
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        schedule: str = "cosine",
        logsnr_min: float = -20.0,
        logsnr_max: float = 20.0,
        shift: float = 1.0,
        prediction_type: str = "epsilon",
        gamma: float = 0.3,
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        num_train_timesteps: int = 1000,
        deterministic: bool = False,
    ) -> None:
        if schedule not in CURVES:
            raise ValueError(f"`schedule` is {schedule!r}, expected one of {tuple(CURVES)}.")
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"`prediction_type` is {prediction_type!r}, expected one of {PREDICTION_TYPES}.")
        if not logsnr_min < logsnr_max:
            raise ValueError(f"`logsnr_min` is {logsnr_min}, expected less than `logsnr_max`, {logsnr_max}.")
        if not 0 <= gamma <= 1:
            raise ValueError(f"`gamma` is {gamma}, expected a number from 0 to 1.")
        positive = {"shift": shift, "clip_sample_range": clip_sample_range, "num_train_timesteps": num_train_timesteps}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"`{name}` is {value}, expected a positive number.")
        if not 0 < dynamic_thresholding_ratio <= 1:
            raise ValueError(f"`dynamic_thresholding_ratio` is {dynamic_thresholding_ratio}, expected (0, 1].")
        if sample_max_value < 1:
            raise ValueError(f"`sample_max_value` is {sample_max_value}, expected at least 1.")
        clips_to_1 = clip_sample and clip_sample_range == 1
        if thresholding and sample_max_value == 1 and not clips_to_1:
            raise ValueError(
                f"`thresholding` is True with `sample_max_value` 1, which is the clip to ±1, but `clip_sample` is "
                f"{clip_sample} and `clip_sample_range` is {clip_sample_range}: expected `thresholding=False`."
            )
        if clips_to_1 and not thresholding:
            self.register_to_config(thresholding=True, sample_max_value=1.0)
        super().register_to_config(**self._stock_config(), _use_default_values=[])
        self._mark_origin()
        self.num_inference_steps: int | None = None
        self.timesteps = torch.linspace(1, 0, num_train_timesteps + 1)[:-1] * num_train_timesteps
        self._times = torch.linspace(1, 0, num_train_timesteps + 1, dtype=torch.float64)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # ------------------------------------------------------------------------------------------- λ(t) and back
    def logsnr(self, t: Tensor) -> Tensor:
        """λ at times t in [0, 1]; same shape and dtype, computed in float64."""
        curve, u_0, u_1 = self._curve()
        u = u_0 + (u_1 - u_0) * _double(t)
        return (curve.logsnr(u) - 2 * math.log(self.config.shift)).to(t.dtype)

    def time(self, logsnr: Tensor) -> Tensor:
        """The time in [0, 1] at which the schedule reaches λ: the inverse of `logsnr`; same shape and dtype."""
        curve, u_0, u_1 = self._curve()
        u = curve.time(_double(logsnr) + 2 * math.log(self.config.shift))
        return ((u - u_0) / (u_1 - u_0)).to(logsnr.dtype)

    def _curve(self) -> tuple[Curve, float, float]:
        curve = CURVES[self.config.schedule]
        ends = torch.tensor([self.config.logsnr_max, self.config.logsnr_min], dtype=torch.float64)
        u_0, u_1 = curve.time(ends).tolist()
        return curve, u_0, u_1

    def _logsnr_like(self, timesteps: Tensor | float, sample: Tensor) -> Tensor:
        """λ at timesteps (a number, [], [B] or, of frames, [B, F]), float64, to broadcast against the sample."""
        return self.logsnr(self._times_like(timesteps, sample))

    def _times_like(self, timesteps: Tensor | float, sample: Tensor) -> Tensor:
        """The times in [0, 1], likewise."""
        timesteps = torch.as_tensor(timesteps, device=sample.device)
        times = _double(timesteps) / self.config.num_train_timesteps
        if timesteps.ndim == 2 and sample.ndim == 5 and timesteps.shape == (len(sample), sample.shape[2]):
            return times[:, None, :, None, None]
        if timesteps.ndim > 1 or (timesteps.ndim == 1 and len(timesteps) not in (1, len(sample))):
            frames = f", or one for each frame of clips, {[len(sample), sample.shape[2]]}" if sample.ndim == 5 else ""
            raise ValueError(
                f"`timesteps` has shape {tuple(timesteps.shape)}, expected one number or one for each of the "
                f"{len(sample)} samples{frames}."
            )
        return times.reshape(-1, *[1] * (sample.ndim - 1)) if times.ndim else times

    # --------------------------------------------------------------------------------------- the forward process
    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | float) -> Tensor:
        """z_t = α_t x + σ_t ε, equation (1).

        Args:
            original_samples: x, `[B, ...]`.
            noise: ε, same shape.
            timesteps: 1000·t: one number, `[B]`, or for clips `[B, C, F, H, W]` a time of each frame, `[B, F]`. So it
                is in all methods but `step`.
        """
        _check_shape("noise", noise, original_samples)
        alpha, sigma = alpha_sigma(self._logsnr_like(timesteps, original_samples))
        return alpha.to(original_samples.dtype) * original_samples + sigma.to(original_samples.dtype) * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor | float) -> Tensor:
        """The velocity v = α_t ε − σ_t x (Salimans and Ho 2022); arguments as in `add_noise`, `sample` is x."""
        _check_shape("noise", noise, sample)
        alpha, sigma = alpha_sigma(self._logsnr_like(timesteps, sample))
        return alpha.to(sample.dtype) * noise - sigma.to(sample.dtype) * sample

    def get_target(self, sample: Tensor, noise: Tensor, timesteps: Tensor | float) -> Tensor:
        """What the network should give, in the scheduler's `prediction_type`; arguments as in `get_velocity`."""
        if self.config.prediction_type == "epsilon":
            return noise
        if self.config.prediction_type == "sample":
            return sample
        return self.get_velocity(sample, noise, timesteps)

    # --------------------------------------------------------------------------------------- the reverse process
    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """Returns the sample as it is: a variance-preserving process needs no scaling."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Chooses the times the sampler visits: t = 1, 1 − 1/n, …, 1/n by default.

        Each step ends at the next of them, the last at 0.

        Args:
            num_inference_steps: n, at least 1; left out when `timesteps` is given.
            device: where `timesteps` is kept.
            timesteps: an own choice, strictly decreasing in (0, 1000].

        Raises:
            ValueError: if both or neither is given, or a value is out of its range.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(
                "Expected exactly one of `num_inference_steps` and `timesteps`, got "
                f"{num_inference_steps} and {timesteps}."
            )
        scale = self.config.num_train_timesteps
        if timesteps is None:
            if (
                isinstance(num_inference_steps, bool)
                or not isinstance(num_inference_steps, int)
                or num_inference_steps < 1
            ):
                raise ValueError(
                    f"`num_inference_steps` is {num_inference_steps!r}, expected an integer of at least 1."
                )
            times = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        else:
            given = torch.as_tensor(timesteps, dtype=torch.float64).cpu()
            if given.ndim != 1 or not len(given) or not (given[-1] > 0 and given[0] <= scale):
                raise ValueError(f"`timesteps` is {timesteps}, expected a list of numbers in (0, {scale}].")
            if not (given.diff() < 0).all():
                raise ValueError(f"`timesteps` is {timesteps}, expected strictly decreasing numbers.")
            times = torch.cat([given / scale, torch.zeros(1, dtype=torch.float64)])
        self._times = times
        self.num_inference_steps = len(times) - 1
        self.timesteps = (times[:-1] * scale).to(device=device, dtype=torch.float32)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> VPContinuousSchedulerOutput | tuple[Tensor, Tensor]:
        """One step, equation (7) or DDIM's, from z_t to z_s, s being the time that follows t in `timesteps`.

        Args:
            model_output: the network's output at (z_t, t), `[B, ...]`.
            timestep: 1000·t, one of `timesteps`.
            sample: z_t, `[B, ...]`.
            generator: one for the batch, or a list of one a clip: then a clip does not depend on its neighbours.
            return_dict: whether an output object or the tuple (z_s, x̂) comes back.

        Raises:
            ValueError: if `timestep` is not one of `timesteps`, or the shapes differ.
        """
        _check_shape("model_output", model_output, sample)
        t, s = self._interval(timestep)
        logsnr_t, logsnr_s = self.logsnr(t), self.logsnr(s)
        x = self._clip(self._to_original(model_output, sample, logsnr_t))
        deterministic = self.config.deterministic
        coefficients = ddim_coefficients if deterministic else posterior_coefficients
        weight_z, weight_x = coefficients(logsnr_t, logsnr_s)
        prev_sample = weight_z.item() * sample + weight_x.item() * x
        if s > 0 and not deterministic:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            prev_sample = prev_sample + step_std(logsnr_t, logsnr_s, self.config.gamma).item() * noise
        if not return_dict:
            return prev_sample, x
        return VPContinuousSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x)

    def predict_original(self, model_output: Tensor, timestep: Tensor | float, sample: Tensor) -> Tensor:
        """x̂_θ(z_t) from the network's output, unclipped: equation (4) for ε. `[B, ...]`; timestep one or `[B]`."""
        return self._to_original(model_output, sample, self._logsnr_like(timestep, sample))

    def from_original(self, x: Tensor, timestep: Tensor | float, sample: Tensor) -> Tensor:
        """The network output that stands for x̂ at z_t: the inverse of `predict_original`, same arguments.

        So a step of this or a stock scheduler can take an x̂ that was changed.
        """
        _check_shape("x", x, sample)
        if self.config.prediction_type == "sample":
            return x
        alpha, sigma = alpha_sigma(self._logsnr_like(timestep, sample))
        if self.config.prediction_type == "epsilon":
            return sample * (1 / sigma).to(sample) - x * (alpha / sigma).to(sample)
        return sample * (alpha / sigma).to(sample) - x * (1 / sigma).to(sample)

    def step_to(
        self,
        x: Tensor,
        timestep: Tensor | float,
        prev_timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Tensor:
        """z_s from z_t as in `step`, for times of each sample's, or each frame's, own; where s = t nothing moves.

        Args:
            x: x̂ at z_t, `[B, ...]`; not clipped here.
            timestep: 1000·t, one number, `[B]` or `[B, F]`.
            prev_timestep: 1000·s, likewise, s ≤ t; at s = 0 the mean is taken.
            sample: z_t, same shape as x.
            generator: of the noise, as in `step`.
        """
        _check_shape("x", x, sample)
        t, s = (self._times_like(times, sample) for times in (timestep, prev_timestep))
        if not (s <= t).all():
            raise ValueError(f"`prev_timestep` is {prev_timestep}, expected at most `timestep`, {timestep}.")
        logsnr_t, logsnr_s, deterministic = self.logsnr(t), self.logsnr(s), self.config.deterministic
        weight_z, weight_x = (ddim_coefficients if deterministic else posterior_coefficients)(logsnr_t, logsnr_s)
        moved = weight_z.to(sample) * sample + weight_x.to(sample) * x
        if not deterministic:
            std = torch.where(s > 0, step_std(logsnr_t, logsnr_s, self.config.gamma), 0.0).to(sample)
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            moved = moved + std * noise
        return torch.where(s < t, moved, sample)

    def ddim_step(self, x: Tensor, timestep: Tensor | float, prev_timestep: Tensor | float, sample: Tensor) -> Tensor:
        """z_s by DDIM's step from z_t, for times of each sample's own.

        Args:
            x: x̂ at z_t, `[B, ...]`; not clipped here.
            timestep: 1000·t, one number or `[B]`.
            prev_timestep: 1000·s, likewise, s < t.
            sample: z_t, same shape as x.
        """
        _check_shape("x", x, sample)
        weight_z, weight_x = self._ddim_weights(timestep, prev_timestep, sample)
        return weight_z * sample + weight_x * x

    def ddim_original(
        self, prev_sample: Tensor, timestep: Tensor | float, prev_timestep: Tensor | float, sample: Tensor
    ) -> Tensor:
        """The x̂ with which DDIM's step leads from z_t to a given z_s: the inverse of `ddim_step`, same arguments.

        Where z_s is what two steps of a teacher lead to, it is the target of progressive distillation (Salimans and Ho
        2022, algorithm 2).
        """
        _check_shape("prev_sample", prev_sample, sample)
        weight_z, weight_x = self._ddim_weights(timestep, prev_timestep, sample)
        return (prev_sample - weight_z * sample) / weight_x

    def extrapolate_original(
        self, x: Tensor, before: Tensor, times: tuple[Tensor | float, Tensor | float, Tensor | float]
    ) -> Tensor:
        """The x̂ with which DDIM's step from t to s is one of DPM-Solver++ 2M (Lu et al. 2022), of second order.

        Args:
            x: x̂ at z_t, `[B, ...]`.
            before: x̂ at the z of the step before, same shape.
            times: the timesteps of the step before, of t and of s, falling; each one number or `[B]`.

        Returns:
            x + (x − before) h / (2 h'), h and h' being how far λ rises in this step and in the one before. Where s is
            0, x: there λ has no bound in earnest, and the solver takes a step of first order.
        """
        _check_shape("before", before, x)
        first, middle, last = (self._logsnr_like(time, x) for time in times)
        if not ((first < middle) & (middle < last)).all():
            raise ValueError(f"`times` is {times}, expected falling timesteps.")
        ratio = (last - middle) / (middle - first) / 2
        ratio = torch.where(self._times_like(times[2], x) > 0, ratio, 0.0)
        return x + (x - before) * ratio.to(x)

    def _ddim_weights(
        self, timestep: Tensor | float, prev_timestep: Tensor | float, sample: Tensor
    ) -> tuple[Tensor, Tensor]:
        logsnr_t, logsnr_s = (self._logsnr_like(time, sample) for time in (timestep, prev_timestep))
        if not (logsnr_t < logsnr_s).all():
            raise ValueError(f"`prev_timestep` is {prev_timestep}, expected less than `timestep`, {timestep}.")
        weight_z, weight_x = ddim_coefficients(logsnr_t, logsnr_s)
        return weight_z.to(sample), weight_x.to(sample)

    def guide_original(self, x: Tensor, gradient: Tensor, timestep: Tensor | float, scale: float) -> Tensor:
        """x̂ − (w α_t / 2) ∇_{z_t} ‖x_a − x̂_a‖²: reconstruction guidance, equation (8) of Ho et al. 2022.

        Args:
            x: x̂_θ(z_t), `[B, ...]`.
            gradient: ∇_{z_t} of the squared error at the given places, same shape.
            timestep: 1000·t, one number or `[B]`.
            scale: w; 1 is the Gaussian approximation of the exact conditional, they found more to work better.
        """
        _check_shape("gradient", gradient, x)
        alpha, _ = alpha_sigma(self._logsnr_like(timestep, x))
        return x - (scale * alpha / 2).to(x) * gradient

    def clip_original(self, x: Tensor) -> Tensor:
        """x̂ `[B, ...]` as `step` uses it: clipped or thresholded by the config, or as it is."""
        return self._clip(x)

    def _to_original(self, model_output: Tensor, sample: Tensor, logsnr: Tensor) -> Tensor:
        if self.config.prediction_type == "sample":
            return model_output
        alpha, sigma = alpha_sigma(logsnr)
        if self.config.prediction_type == "epsilon":
            return sample * (1 / alpha).to(sample) - model_output * (sigma / alpha).to(sample)
        return alpha.to(sample) * sample - sigma.to(sample) * model_output

    def _clip(self, x: Tensor) -> Tensor:
        if self.config.thresholding and self.config.sample_max_value > 1:
            bound = _quantile(x.flatten(1).abs().float(), self.config.dynamic_thresholding_ratio)
            bound = bound.clamp(1, self.config.sample_max_value).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
            return torch.maximum(torch.minimum(x, bound), -bound) / bound
        if self.config.clip_sample:
            return x.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return x

    def _interval(self, timestep: Tensor | float) -> tuple[Tensor, Tensor]:
        """The times (t, s) of the step that starts at `timestep`, float64."""
        gap = (self._times[:-1] * self.config.num_train_timesteps - float(timestep)).abs()
        index = int(gap.argmin())
        if gap[index] > 1e-3:
            raise ValueError(
                f"`timestep` is {float(timestep)}, expected one of `timesteps`, {self.timesteps.tolist()}."
            )
        return self._times[index], self._times[index + 1]

    # ------------------------------------------------------------------------- config, and schedulers of diffusers
    def register_to_config(self, **kwargs: Any) -> None:
        """Keeps values in the config, as diffusers does; what is derived from others is not taken from outside."""
        super().register_to_config(**{key: value for key, value in kwargs.items() if key not in DERIVED})
        self._mark_origin()

    def _mark_origin(self) -> None:
        origin = _Origin(type(self).__name__)
        super().register_to_config(_class_name=origin)
        origin.config = self.config

    @property
    def compatibles(self) -> list[Any]:
        """The schedulers of diffusers that sample as this config says, each by its `from_config`."""
        found = (c for c in self._get_compatibles() if not isinstance(c, DummyObject))
        return sorted((c for c in found if refusal(c, self.config) is None), key=lambda c: c.__name__)

    def to_json_string(self) -> str:
        """The config as JSON, each list on one line."""
        config = {
            key: value for key, value in self.config.items() if key not in ("_use_default_values", "_ignore_files")
        }
        config |= {"_class_name": type(self).__name__, "_diffusers_version": diffusers.__version__}
        lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(config.items()))
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def __repr__(self) -> str:
        names = inspect.signature(type(self).__init__).parameters
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in self.config.items() if n in names)})"

    def trained_betas(self, num_levels: int = 1000) -> list[float]:
        """The discrete β_i = 1 − ᾱ_i/ᾱ_{i−1}, ᾱ_i = α²(i/N), of this schedule at N levels, in float32.

        Level i is t = i/N, so with N = 1000 a stock scheduler's integer timestep means what it means here and goes to
        the network unchanged. 1 − ᾱ_i is at least (i + 1)·2⁻²³: stock schedulers keep ᾱ in float32, and two levels
        with the same ᾱ would make a multistep solver divide by zero.
        """
        level = torch.arange(num_levels, dtype=torch.float64)
        highest = -torch.logit((level + 1) * 2.0**-23)
        log_alpha_bar = F.logsigmoid(torch.minimum(self.logsnr(level / num_levels), highest))
        betas = -torch.expm1(log_alpha_bar.diff(prepend=torch.zeros(1, dtype=torch.float64)))
        return [float(str(beta)) for beta in betas.float().numpy()]  # the shortest decimals of these float32

    def _stock_config(self) -> dict[str, Any]:
        """The config keys of stock schedulers that follow from ours."""
        config = self.config
        fitting = [name for name, stock in STOCK_SCHEDULERS.items() if _stock_refusal(stock, config) is None]
        return {
            "trained_betas": self.trained_betas(config.num_train_timesteps),
            "timestep_spacing": "trailing",  # the first step starts at the highest level
            "snr_shift_scale": 1.0,  # CogVideoX would shift the schedule
            "skip_prk_steps": True,  # PNDM's first steps leave the range of its betas
            "_compatible_schedulers": fitting,  # the pipeline looks whether its scheduler is one of these
        }

    def as_diffusers(self, scheduler_class: type[SchedulerMixin], **overrides: Any) -> Any:
        """A stock variance-preserving scheduler of diffusers (DDIM, DPM++ 2M, UniPC, DDPM, …) on this schedule.

        As `scheduler_class.from_config(self.config, **overrides)`, but checks the overrides too.

        Args:
            scheduler_class: a class of diffusers, or one derived from it.
            overrides: config keys, of that class or of this one, that shall differ from the ones here.
                `clip_sample=False` lets a class without clipping sample unclipped.

        Raises:
            ValueError: if the class would sample wrongly, with the reason, or has no such key.
        """
        name, keys = scheduler_class.__name__, inspect.signature(type(self).__init__).parameters
        own = {key: value for key, value in overrides.items() if key in keys}
        if {"clip_sample", "clip_sample_range"} & own.keys():
            own.setdefault("thresholding", False)  # which may stand here for the clip that is to change
        config = dict(type(self).from_config(self.config, **own).config) | overrides
        reason = refusal(scheduler_class, config)
        if reason is not None:
            raise ValueError(f"`scheduler_class` is {name}: {reason}.")
        accepted = inspect.signature(scheduler_class.__init__).parameters
        unknown = [key for key in overrides if key not in own and (key not in accepted or key == "trained_betas")]
        if unknown:
            raise ValueError(f"`{unknown[0]}` is no option of {name} on this schedule.")
        made: Any = scheduler_class(**{key: value for key, value in config.items() if key in accepted})
        kept = {key for key in config if not key.startswith("_")} - accepted.keys() | {"_compatible_schedulers"}
        made.register_to_config(**{key: config[key] for key in kept})
        return made


def _check_shape(name: str, value: Tensor, sample: Tensor) -> None:
    if value.shape != sample.shape:
        raise ValueError(f"`{name}` has shape {tuple(value.shape)}, expected the sample's, {tuple(sample.shape)}.")


def _double(x: Tensor) -> Tensor:
    """float64 where the device has it."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def _quantile(x: Tensor, q: float) -> Tensor:
    """Linear-interpolated quantile along the last axis, for any size (`torch.quantile` stops at 16 M elements)."""
    ordered = x.sort(dim=-1).values
    position = q * (ordered.shape[-1] - 1)
    low = math.floor(position)
    high = min(low + 1, ordered.shape[-1] - 1)
    return torch.lerp(ordered[..., low], ordered[..., high], position - low)
