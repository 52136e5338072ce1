"""The table of diffusers' schedulers: what works is measured to work, what is refused to fail, as the page says."""

import logging
import re
import sys
from inspect import signature
from pathlib import Path

import diffusers
import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import schedulers as table  # noqa: E402
from oracle import Gaussian, sampled_moments  # noqa: E402
from video_diffusion import VPContinuousScheduler  # noqa: E402
from video_diffusion.model.scheduler import (  # noqa: E402
    PREDICTION_TYPES,
    REFUSED_SCHEDULERS,
    SPACINGS,
    STOCK_SCHEDULERS,
)

REFUSED = [name for names in REFUSED_SCHEDULERS.values() for name in names]
PAGE = (ROOT / "docs" / "schedulers.md").read_text(encoding="utf-8")


def seen_to_work(name, prediction_type, option=None):
    """At 20 steps; a class that raises does not."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    try:
        return table.measure(name, prediction_type, 20, option) <= table.LIMITS[20]
    except Exception:
        return False


def test_every_scheduler_that_diffusers_exports_is_in_the_table_once():
    assert sorted([*STOCK_SCHEDULERS, *REFUSED]) == [n for n in table.scheduler_names() if n != "SchedulerMixin"]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", [n for n in table.scheduler_names() if table.follows(n) and n != "TCDScheduler"])
def test_a_class_works_or_is_refused(name, prediction_type):
    """TCD is refused for what it is made for; at 20 steps its error is 0.08."""
    assert seen_to_work(name, prediction_type) == (table.status(name, prediction_type) is None)


OPTIONS = [
    (name, option)
    for name in STOCK_SCHEDULERS
    for option in SPACINGS
    if option != "rescale_betas_zero_snr" and option in signature(getattr(diffusers, name).__init__).parameters
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_an_option_works_or_is_refused(name, option):
    solver_class = getattr(diffusers, name)
    scheduler = VPContinuousScheduler(prediction_type="v_prediction", clip_sample=False)
    if seen_to_work(name, "v_prediction", option):
        assert scheduler.as_diffusers(solver_class, **{option: True}).config[option]
    else:
        with pytest.raises(ValueError, match=f"{name}: `{option}` is True, expected False"):
            scheduler.as_diffusers(solver_class, **{option: True})


def test_the_error_is_that_of_the_oracle():
    """DDPM's steps are ours with γ = 0, so its error is the closed recursion's."""
    ours = VPContinuousScheduler(gamma=0.0, clip_sample=False, prediction_type="v_prediction")
    mean, variance = sampled_moments(ours, Gaussian(0.3, 0.5), [1000 - 50 * i - 1 for i in range(20)], False)
    expected = ((mean - 0.3) ** 2 + (variance**0.5 - 0.5) ** 2) ** 0.5
    assert table.measure("DDPMScheduler", "v_prediction", 20) == pytest.approx(expected, abs=2e-3)


def test_the_page_has_the_statuses_of_the_code():
    rows = {line.split("|")[1].strip(" `"): line for line in PAGE.splitlines() if line.startswith("| `")}
    classes = PAGE[: PAGE.index("## Options")]
    for name in (n for n in table.scheduler_names() if n != "SchedulerMixin"):
        if table.follows(name):
            row = next(line for line in classes.splitlines() if line.startswith(f"| `{name}`"))
            said = re.findall(r"\b(works|refused) \(", row)
            assert said == [table.mark(table.status(name, kind)) for kind in PREDICTION_TYPES]
        else:
            assert table.status(name, "v_prediction") in rows[name]
    options = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (works|refused) ", PAGE, re.MULTILINE)
    assert len(options) > 40
    for name, option, said in options:
        assert said == table.mark(table.status(name, "v_prediction", option))


def test_the_page_is_what_the_command_writes():
    """Its head, its notes, and one measured cell."""
    assert PAGE.startswith(table.INTRODUCTION)
    assert PAGE.endswith(table.ODDITIES)
    assert table.shown("DPMSolverMultistepScheduler", "v_prediction") in PAGE


def test_noise_is_one_unit_vector_a_draw():
    noise = table.UnitNoise()
    draws = torch.stack([noise((6, 1)) for _ in range(3)])[..., 0]
    assert torch.equal(draws, torch.eye(6)[2:5])
