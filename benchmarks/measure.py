"""
What every part shares: options, a clock, interleaved repetitions, memory, and the description of the machine.

A part is a module with `run(options) -> dict`; `part_main` makes it a command of its own. Parts run in processes of
their own, so that the memory of one is not the other's.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

PACKAGES = ("torch", "numpy", "diffusers", "video-diffusion-pytorch", "numba")


@dataclass(frozen=True)
class Options:
    """
    How to run.

    Args:
        device: `"cpu"` or `"cuda"`.
        quick: less of everything, for a look in two minutes.
        threads: of torch, on the CPU.
    """

    device: str = "cpu"
    quick: bool = False
    threads: int = 1

    @property
    def repeats(self) -> int:
        """Timed repetitions behind each median."""
        return 5


def clock(options: Options) -> Callable[[], float]:
    """
    Seconds: of this process's processor time where one CPU thread works, else of the wall.

    Processor time leaves out what other programs took, though not what they did to caches and clock rates.
    """
    if options.device == "cuda":
        import torch

        def synchronised() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return synchronised
    return time.process_time if options.threads == 1 else time.perf_counter


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    now: Callable[[], float],
    calls: int = 1,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """
    Seconds a call, of every run once in each repetition, so that what the machine does meets all of them alike.

    Args:
        runs: by name.
        repeats: timed repetitions.
        now: the clock.
        calls: calls in a row behind each figure: a run in its own steady state, not in the memory others left.
        warm_up: whether an untimed repetition comes first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + warm_up):
        for name, run in runs.items():
            begin = now()
            for _ in range(calls):
                run()
            seconds[name].append((now() - begin) / calls)
    return {name: values[-repeats:] for name, values in seconds.items()}


def spread(values: list[float], digits: int = 4) -> dict[str, float]:
    """Median, smallest and largest, to some significant digits."""
    return {
        name: rounded(value, digits)
        for name, value in {"median": median(values), "min": min(values), "max": max(values)}.items()
    }


def rounded(value: float, digits: int = 4) -> float:
    """A number to some significant digits."""
    return float(f"{value:.{digits}g}")


def exponent(sizes: list[float], costs: list[float]) -> float:
    """The slope p of cost ∝ size^p, a least-squares fit on logarithms."""
    import numpy as np

    return rounded(float(np.polyfit(np.log(sizes), np.log(costs), 1)[0]), 3)


def peak_mb() -> float:
    """The highest resident memory of this process so far, MB (2²⁰ bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory, from before this program was loaded
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def in_process(module: str, *words: str) -> Any:
    """
    Runs `python -m module words` and reads the JSON on the last line that it prints.

    Raises:
        RuntimeError: if it fails, with what it said.
    """
    result = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"python -m {module} {' '.join(words)} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def processor() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(options: Options) -> dict[str, Any]:
    """What the figures depend on: the processor, the device and the versions."""
    found: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "threads": options.threads}
    if options.device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    found["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks take."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="less of everything: two minutes for all parts")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default: %(default)s)")


def options_of(args: argparse.Namespace) -> Options:
    """The options that were given."""
    return Options(args.device, args.quick, args.threads)


def words_of(options: Options) -> list[str]:
    """The options as command line words."""
    words = ["--device", options.device, "--threads", str(options.threads)]
    return [*words, "--quick"] if options.quick else words


def part_main(run: Callable[[Options], dict[str, Any]], doc: str | None) -> None:
    """The command of one part: prints what it measured as one line of JSON."""
    import torch

    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = options_of(parser.parse_args())
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(json.dumps(run(options) | {"options": asdict(options)}, ensure_ascii=False))
