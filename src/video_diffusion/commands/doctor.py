"""`video-diffusion doctor`: what is installed here, what is fast here, what is reachable and what takes space."""

import argparse
import os
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from video_diffusion.commands.report import add_json, report

PACKAGES = {  # what the package needs, and what installs it
    "video-diffusion": "",
    "torch": "",
    "diffusers": "",
    "transformers": "",
    "huggingface_hub": "",
    "numpy": "",
    "accelerate": "train",
    "datasets": "train",
    "evaluate": "metrics",
    "gradio": "demo",
    "onnx": "onnx",
}
SIDE, TRIALS = 768, 5  # of the matrices that are multiplied, and how often
HUB_TIMEOUT = 3.0  # seconds
ENOUGH = 2e9  # bytes of free disk space: weights, caches and some clips
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    doctor = subparsers.add_parser(
        "doctor",
        help="say what works here: versions, device, precision, browser, Hub, caches, disk",
        description="Looks at this machine and says what works and what to do about the rest. It changes nothing.",
    )
    add_json(doctor)
    doctor.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> None:
    """Makes all checks and prints them."""
    facts = {name: check() for name, check in CHECKS.items()}
    lines = [
        f"{name if i == 0 else '':<10} {line}"
        for name, found in facts.items()
        for i, line in enumerate(in_words(found))
    ]
    report(args, "\n".join(lines), **facts)


def in_words(found: dict[str, Any]) -> list[str]:
    """The lines about one check; what to do, where there is something, comes last."""
    advice = found.get("advice")
    facts = {name: value for name, value in found.items() if name != "advice" and value is not None}
    lines = [f"{name.replace('_', ' ')}: {shown(value)}" for name, value in facts.items()]
    return [*lines, *([f"→ {advice}"] if advice else [])]


def shown(value: Any) -> str:
    """A value for people."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(item)}" for name, item in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


# ---------------------------------------------------------------------------------------------------------- the checks
def versions() -> dict[str, Any]:
    """Python and the packages; those that are missing with the extra that brings them."""
    found, missing = {"python": platform.python_version()}, {}
    for name, extra in PACKAGES.items():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            missing[name] = extra
    extras = ",".join(sorted({extra for extra in missing.values() if extra}))
    wanted = f"video-diffusion[{extras}]" if extras else "video-diffusion"
    advice = f"pip install '{wanted}' brings {', '.join(missing)}" if missing else None
    return {"installed": found, "advice": advice}


def device() -> dict[str, Any]:
    """The fastest device, its memory, and the cores."""
    import torch

    from video_diffusion.sampling import fastest_device

    name = fastest_device()
    found: dict[str, Any] = {"fastest": name, "cpu_cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if name == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {"gpu": torch.cuda.get_device_name(), "gpu_memory": f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"}
    return found


def precision() -> dict[str, Any]:
    """What `--dtype auto` takes, and how much faster bfloat16 multiplies matrices than float32, measured."""
    import torch

    from video_diffusion.sampling import fast_dtype, fastest_device

    name = fastest_device()
    seconds = {dtype: multiply(getattr(torch, dtype), name) for dtype in ("float32", "bfloat16")}
    return {"auto": fast_dtype(name), "speed_of_bfloat16": f"{seconds['float32'] / seconds['bfloat16']:.1f} × float32"}


def multiply(dtype: Any, device: str) -> float:
    """The shortest time of a matrix product, in seconds."""
    import torch

    matrix = torch.ones(SIDE, SIDE, dtype=dtype, device=device)
    times = []
    for _ in range(TRIALS + 1):  # the first one warms up
        begin = time.perf_counter()
        (matrix @ matrix).sum().item()  # reading a number waits for the device
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def models() -> dict[str, Any]:
    """The models that come with the package."""
    from video_diffusion.hub.finding import embedded_adapters, embedded_models

    found = sorted(embedded_models() | embedded_adapters())
    advice = None if found else "there is no embedded model here: install the package anew"
    return {"embedded": ", ".join(found) or "none", "advice": advice}


def browser() -> dict[str, Any]:
    """The browser that the tests of the demo drive."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    advice = None if path else f"only the demo's tests need one: apt-get install {BROWSERS[0]}"
    return {"chromium": path or "none", "advice": advice}


def hub() -> dict[str, Any]:
    """Whether the Hub answers, and whether a token is here (not which)."""
    import urllib.error
    import urllib.request

    from huggingface_hub import constants, get_token

    found: dict[str, Any] = {"endpoint": constants.ENDPOINT, "token": get_token() is not None}
    if constants.HF_HUB_OFFLINE:
        return found | {"reachable": False, "advice": "HF_HUB_OFFLINE is set: embedded and cached models only"}
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310  the user's own setting
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT):  # noqa: S310
            return found | {"reachable": True}
    except urllib.error.HTTPError:
        return found | {"reachable": True}  # it answered
    except (OSError, ValueError) as error:
        advice = "without the Hub: embedded and cached models only; a proxy is set with HTTPS_PROXY"
        return found | {"reachable": False, "reason": str(error), "advice": advice}


def caches() -> dict[str, Any]:
    """The folders that hold downloads and what was computed, with their sizes; each may be deleted."""
    from huggingface_hub import constants

    folders = {"hub": Path(constants.HF_HUB_CACHE), "networks": Path(constants.HF_ASSETS_CACHE) / "video_diffusion"}
    return {name: f"{size(folder) / 1e6:.1f} MB in {folder}" for name, folder in folders.items()}


def size(folder: Path) -> int:
    """Bytes of the files under a folder; links count nothing, as what they point to lies in the folder too."""
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


def disk() -> dict[str, Any]:
    """The free space here and at the caches."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    places = {"here": Path.cwd(), "caches": next(place for place in (cache, *cache.parents) if place.exists())}
    free = {name: shutil.disk_usage(place).free for name, place in places.items()}
    short = [name for name, room in free.items() if room < ENOUGH]
    advice = f"less than {ENOUGH / 1e9:.0f} GB is free ({', '.join(short)}): make room" if short else None
    return {**{name: f"{room / 1e9:.1f} GB free" for name, room in free.items()}, "advice": advice}


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    "versions": versions,
    "device": device,
    "precision": precision,
    "models": models,
    "browser": browser,
    "hub": hub,
    "caches": caches,
    "disk": disk,
}
