"""The defaults of a call, as the generation config has them: above all how many steps there are and where they stand.

This file travels to the Hub beside `pipeline.py`.
"""

import inspect
import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import LIMITS, check_guidance_number, check_integers, check_number, shown

NO_TIMESTEPS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas")
DEFAULTS = {"num_inference_steps": 50, "guidance_scale": 1.0, "history_guidance_scale": 1.0}
FIRST = 1 / 8  # the quantile of the first of few spaced steps


def check_generation_config(config: Any) -> dict[str, Any]:
    """The defaults of a pipeline's call and of its sampler.

    Args:
        config: flat, with some of
            `sampler`: a name;
            `num_inference_steps`, `guidance_scale`, `history_guidance_scale`: as in the pipeline's call;
            `logsnr_spacing`: mean and standard deviation of the log-SNR at the steps where no frames are known, see
            `spaced_timesteps`;
            `timesteps`: those that a model was distilled for, for a call with as many by a `VPContinuousScheduler`;
            `example_prompts`: a list of texts that the model knows well, for a caller who has none.

    Returns:
        a copy.

    Raises:
        ValueError: where it is no dict, or a key or a value is not one of these.
    """
    known = ("sampler", "logsnr_spacing", "timesteps", "example_prompts", *DEFAULTS)
    if not isinstance(config, Mapping):
        raise ValueError(f"`generation_config` is {config!r}, expected a dict of some of {known}.")
    if unknown := sorted(str(key) for key in config if key not in known):
        raise ValueError(f"`generation_config` has {unknown}, expected some of {known}.")
    if not isinstance(config.get("sampler", ""), str):
        raise ValueError(f"`sampler` is {config['sampler']!r}, expected a name.")
    prompts = config.get("example_prompts", [])
    if not isinstance(prompts, list | tuple) or not all(isinstance(text, str) and text for text in prompts):
        raise ValueError(f"`example_prompts` is {shown(prompts)}, expected a list of texts.")
    if "num_inference_steps" in config:
        check_integers(num_inference_steps=config["num_inference_steps"])
    if "logsnr_spacing" in config:
        check_spacing(config["logsnr_spacing"])
    if "timesteps" in config:
        check_falling(config["timesteps"], 0.0, math.inf, "numbers that fall, to above 0")
    if "guidance_scale" in config:
        check_guidance_number(config["guidance_scale"])
    if "history_guidance_scale" in config:
        check_number("history_guidance_scale", config["history_guidance_scale"])
    return dict(config)


def resolve_steps(
    pipeline: Any, count: Any, timesteps: Any = None, noise_pyramid: float = 0.0
) -> tuple[int, list[float] | None, list[float] | None]:
    """The number of steps of a window and, where the scheduler does not choose them, their timesteps.

    Args:
        pipeline: its `generation_config` may say the number and the places.
        count: the number, or None.
        timesteps: own ones in its place, or None.
        noise_pyramid: with it every frame has times of its own.

    Returns:
        the number; timesteps, or None; other timesteps for windows without known frames, or None.

    Raises:
        ValueError: where the number or the timesteps are refused.
    """
    config, scheduler = pipeline.generation_config, pipeline.scheduler
    if timesteps is not None:
        if count is not None:
            raise ValueError("`timesteps` and `num_inference_steps` are both given, expected at most one of them.")
        if noise_pyramid:
            raise ValueError(f"`timesteps` is given, expected None with a `noise_pyramid` of {noise_pyramid}.")
        chosen = read_timesteps(scheduler, timesteps)
        return len(chosen), chosen, None
    count = config.get("num_inference_steps", DEFAULTS["num_inference_steps"]) if count is None else count
    check_integers(num_inference_steps=count)
    return int(count), *((None, None) if noise_pyramid else usual_timesteps(config, scheduler, int(count)))


def usual_timesteps(
    config: Mapping[str, Any], scheduler: Any, count: int
) -> tuple[list[float] | None, list[float] | None]:
    """The places of n steps by a generation config.

    Args:
        config: the generation config.
        scheduler: what they are for.
        count: n.

    Returns:
        its `timesteps`, if they are n, else None: the scheduler places them; and those of its `logsnr_spacing` for
        windows without known frames, if it has no such timesteps, else None.

    Raises:
        ValueError: where the config's values are none.
    """
    if "timesteps" in config and hasattr(scheduler, "as_diffusers"):
        own = check_falling(config["timesteps"], 0.0, math.inf, "numbers that fall, to above 0")
        if len(own) == count:
            return read_timesteps(scheduler, own), None
    if "logsnr_spacing" not in config:
        return None, None
    check_spacing(config["logsnr_spacing"])
    return None, spaced_timesteps(scheduler, count, *config["logsnr_spacing"])


def read_timesteps(scheduler: Any, timesteps: Any) -> list[float]:
    """Own timesteps as a list; whole numbers for a scheduler of diffusers, whose levels are discrete.

    Raises:
        ValueError: where they do not fall from at most 1000 to above 0, or the scheduler takes none.
    """
    if not takes_timesteps(scheduler):
        raise ValueError(
            f"`timesteps` is {shown(timesteps)}, expected None: the scheduler, a {type(scheduler).__name__}, "
            "places its steps itself."
        )
    own, scale = hasattr(scheduler, "as_diffusers"), scheduler.config.num_train_timesteps
    if own:
        values = check_falling(timesteps, 0.0, scale, f"numbers that fall, from at most {scale} to above 0")
        return [float(value) for value in values]
    expected = f"whole numbers that fall, from at most {scale - 1} to above 0"
    values = check_falling(timesteps, 0.5, scale - 1, expected)
    if (values % 1 != 0).any():
        raise ValueError(f"`timesteps` is {shown(timesteps)}, expected {expected}.")
    return [int(value) for value in values]


def takes_timesteps(scheduler: Any) -> bool:
    """Whether a scheduler lets its caller choose the timesteps."""
    moves = any(scheduler.config.get(option) for option in NO_TIMESTEPS)
    return "timesteps" in inspect.signature(scheduler.set_timesteps).parameters and not moves


def spaced_timesteps(scheduler: Any, count: int, mean: float, std: float) -> list[float] | None:
    """Timesteps at the quantiles (i + ½)/n of a normal distribution of log-SNR, from noise to data.

    A network decides what a clip shows in a range of noise levels; there the steps belong. Evenly in t, as schedulers
    place them, few stand there. The first is at most at the quantile 1/8, because it gets pure noise. The last step
    leads to the data. Where frames are known, they have decided that already, and the places matter less.

    Args:
        scheduler: ours, or one of diffusers on a variance-preserving schedule.
        count: n.
        mean: of the distribution.
        std: of the distribution, positive.

    Returns:
        n falling timesteps; or None, by which the scheduler places them itself: where it takes none, or where it has
        fewer levels there than steps.
    """
    if not takes_timesteps(scheduler):
        return None
    normal, scale = NormalDist(mean, std), scheduler.config.num_train_timesteps
    shares = [min(0.5 / count, FIRST), *((i + 0.5) / count for i in range(1, count))]
    wanted = torch.tensor([normal.inv_cdf(share) for share in shares], dtype=torch.float64)
    if hasattr(scheduler, "as_diffusers"):
        found = scheduler.time(wanted).clamp(0, 1) * scale
    elif "alphas_cumprod" in vars(scheduler):
        levels = torch.logit(scheduler.alphas_cumprod.cpu().double())[1:].flip(0)  # rising, of scale − 1 … 1
        after = torch.searchsorted(levels, wanted).clamp(1, len(levels) - 1)
        nearer = after - (wanted - levels[after - 1] < levels[after] - wanted).long()
        found = scale - 1 - nearer
    else:
        return None
    return found.tolist() if found[-1] > 0 and (found.diff() < 0).all() else None


def check_spacing(value: Any) -> None:
    """Refuses what is no mean and standard deviation of log-SNR."""
    pair = isinstance(value, list | tuple) and len(value) == 2
    if not pair or not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value):
        raise ValueError(f"`logsnr_spacing` is {shown(value)}, expected two numbers: mean and standard deviation.")
    if not value[1] > 0:
        raise ValueError(f"`logsnr_spacing` is {shown(value)}, expected a positive standard deviation.")


def check_falling(timesteps: Any, above: float, most: float, expected: str) -> np.ndarray:
    """Timesteps as an array `[n]`, float64.

    Raises:
        ValueError: where they are no numbers that fall from at most `most` to above `above`.
    """
    try:
        count = min(len(timesteps), LIMITS["num_inference_steps"] + 1)
        found = np.asarray((timesteps.detach().cpu() if isinstance(timesteps, Tensor) else timesteps)[:count])
    except (KeyError, OverflowError, TypeError, ValueError, RuntimeError):  # no list, a ragged one, without values
        found = np.empty(0)
    values = found.astype(np.float64) if found.dtype.kind in "iuf" and found.ndim == 1 else np.empty(0)
    inside = len(values) and np.isfinite(values).all() and (values > above).all() and (values <= most).all()
    if not inside or not (np.diff(values) < 0).all():
        raise ValueError(f"`timesteps` is {shown(timesteps)}, expected {expected}.")
    check_integers(num_inference_steps=len(values))
    return values
