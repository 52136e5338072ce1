"""
All benchmarks, side by side in one run.

    python -m benchmarks                  # benchmarks/results/cpu.json, a table (.md) and a plot (.png)
    python -m benchmarks --quick          # the table alone, in at most two minutes
    python -m benchmarks --only denoiser sampling

Each part is a module of this folder and runs in a process of its own; what it measures and how stands at its head.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Options, add_options, machine, options_of, words_of
from benchmarks.report import table

PARTS = {
    "data_generators": "Moving MNIST against the published loops",
    "denoiser": "speed, memory and FLOPs of three denoisers",
    "sampling": "network calls that a sampler needs",
    "long_video": "cost of long videos",
    "loading": "import, and from nothing to the first clip",
    "metrics": "FVD features and LPIPS",
    "equal_minutes": "quality of three denoisers after equal minutes",
}
NOT_QUICK = ("equal_minutes",)
QUICK_LIMIT = 115.0  # seconds for all parts: a slower machine gets fewer of them
RESULTS = Path(__file__).parent / "results"


def run_part(name: str, options: Options, limit: float | None) -> dict[str, Any]:
    """What a part measured, or `{"error": why}`."""
    words = [sys.executable, "-m", f"benchmarks.{name}", *words_of(options)]
    begin, cpu = time.perf_counter(), processor_seconds()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return {"error": "the time was up"}
        finally:
            if process.poll() is None:  # also where the run is interrupted: the part and its own processes
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        return {"error": (stderr.strip().splitlines() or ["it ended without a word"])[-1]}
    took = {"wall_seconds": time.perf_counter() - begin, "processor_seconds": processor_seconds() - cpu}
    return json.loads(stdout.splitlines()[-1]) | {key: round(value, 1) for key, value in took.items()}


def processor_seconds() -> float:
    """Processor time of the processes started from here that have ended."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parts = "".join(f"\n  {name}: {what}" for name, what in PARTS.items())
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="NAME", help="of: " + parts)
    parser.add_argument("--note", help="to stand below the table, such as what else the machine did")
    parser.add_argument("--out", type=Path, help="the JSON (default: results/<device>.json; quick: none)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the parts, prints the table and writes the files; 1 if a part failed in a full run."""
    args = parse(argv)
    options = options_of(args)
    out = args.out or (None if options.quick else RESULTS / f"{options.device}.json")
    names = args.only or [name for name in PARTS if not (options.quick and name in NOT_QUICK)]
    report: dict[str, Any] = {"command": "python -m benchmarks " + " ".join(words_of(options))}
    report |= {"machine": machine(options), "load_average": round(os.getloadavg()[0], 1), "parts": {}}
    if args.only and out is not None and out.exists():
        kept = json.loads(out.read_text(encoding="utf-8"))
        if kept["machine"] == report["machine"]:  # figures of another machine are not mixed with these
            report["parts"] = kept["parts"]
    if args.note:
        report["notes"] = [args.note]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the `finally` that ends a part
    begin, failed = time.perf_counter(), False
    for name in names:
        left = QUICK_LIMIT - (time.perf_counter() - begin) if options.quick else None
        if left is not None and left <= 0:
            report["parts"][name] = {"error": "the time was up"}
            continue
        print(f"{name}: {PARTS[name]} …", file=sys.stderr, flush=True)
        part = run_part(name, options, left)
        failed = failed or "error" in part
        report["parts"][name] = part
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = table(report)
    print(text)
    if out is not None:
        from benchmarks.plot import write_plot

        out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
        write_plot(report, out.with_suffix(".png"))
        print(f"\nwrote {out} and beside it the table (.md) and the plot (.png)")
    return int(failed and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
