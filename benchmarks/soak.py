"""
Many visitors at once: what they get, how long they wait, and whether the server's memory stays flat.

    python -m benchmarks.soak [--visitors 20] [--tries 3] [--steps 12] [--model moving-mnist] [--out FILE.json]

The server of `video-diffusion demo` runs as a process of its own on this machine. In each of the tries all visitors
ask at once, half of them for something cheap (one clip, two steps) and half for something dear (three clips, more
steps); in the next try the halves change places. `wait` is from the question to the answer; `memory` is what the
server's process holds before the first try and after each of them. A refusal is an answer with a message in place of
a clip. The number of tries is fixed, so a slow machine takes longer and does not do less.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

CHEAP, DEAR = "cheap", "dear"
LONGEST = 1800.0  # seconds that an answer may take
LOOK = 5.0  # seconds that a server has to live before it is asked
SERVER = "from video_diffusion.demo.page import serve; serve({model!r}, port={port}, dtype='float32')"


@dataclass(frozen=True)
class Answer:
    """What a visitor got.

    Args:
        kind: `CHEAP` or `DEAR`.
        seconds: from the question to the answer.
        refused: the message; None where there was a clip.
        told: how often the place and the expected wait were told.
    """

    kind: str
    seconds: float
    refused: str | None
    told: int


def settings(kind: str, seed: int, steps: int) -> list[Any]:
    """The values of the tab "Create": prompt, what it is not, weight, frames, clips, sampler, and so on."""
    clips, calls = (1, 2) if kind == CHEAP else (3, steps)
    return ["", "", 1, 10, clips, "dpm++", calls, 0.3, 0, 1, "autoregressive", seed]


def ask(url: str, kind: str, seed: int, steps: int) -> Answer:
    """Asks as the page does, through the queue."""
    begin, told, refused = time.perf_counter(), 0, None
    try:
        for message in messages(url, settings(kind, seed, steps)):
            told += message["msg"] in ("estimation", "progress")
            if message["msg"] == "process_completed" and not message["success"]:
                refused = str(message.get("output", {}).get("error") or "no reason given")
    except OSError as error:
        refused = f"{type(error).__name__}: {error}"
    return Answer(kind, time.perf_counter() - begin, refused, told)


def messages(url: str, values: list[Any]) -> Iterator[dict[str, Any]]:
    """What a visitor's page is told until the answer is there."""
    session, number = uuid.uuid4().hex, function_number(url)
    post(f"{url}/gradio_api/queue/join", {"data": values, "fn_index": number, "session_hash": session})
    address = f"{url}/gradio_api/queue/data?session_hash={session}"
    with urllib.request.urlopen(address, timeout=LONGEST) as stream:  # noqa: S310  of this machine
        for line in stream:
            if line.startswith(b"data: "):
                yield (message := json.loads(line[6:]))
                if message["msg"] in ("process_completed", "close_stream"):
                    return


def function_number(url: str) -> int:
    """The number that gradio has for the tab "Create"."""
    with urllib.request.urlopen(f"{url}/config", timeout=60) as answer:  # noqa: S310
        return next(one["id"] for one in json.load(answer)["dependencies"] if one["api_name"] == "generate")


def post(url: str, value: Any) -> None:
    """Sends JSON."""
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})  # noqa: S310
    urllib.request.urlopen(request, timeout=60).read()  # noqa: S310


def visit(url: str, visitors: int, number: int, steps: int) -> list[Answer]:
    """The answers to one try of all visitors, who are there at the same time."""

    def one(visitor: int) -> Answer:
        return ask(url, (CHEAP, DEAR)[(visitor + number) % 2], 1000 * number + visitor, steps)

    with ThreadPoolExecutor(visitors) as pool:
        return list(pool.map(one, range(visitors)))


def report(answers: list[Answer]) -> dict[str, Any]:
    """Counts, and the waits of those that were served, by kind."""
    done = [answer for answer in answers if answer.refused is None]
    waits = {}
    for kind in (CHEAP, DEAR):
        seconds = sorted(answer.seconds for answer in done if answer.kind == kind)
        if seconds:
            waits[kind] = {"median": round(median(seconds), 1), "longest": round(seconds[-1], 1)}
    refusals = Counter(answer.refused for answer in answers if answer.refused is not None)
    told = sum(answer.told > 0 for answer in answers)
    return {"tries": len(answers), "done": len(done), "refused": dict(refusals), "told": told, "wait_seconds": waits}


def memory_mib(process: int) -> float:
    """What a process holds, in MiB (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


@contextmanager
def serving(model: str) -> Iterator[tuple[str, int]]:
    """Serves a model in a process of its own; gives the address and the process's number."""
    for _ in range(3):  # gradio gives up where a busy machine is slow to answer its own look at the page
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url, words = f"http://127.0.0.1:{port}", [sys.executable, "-c", SERVER.format(model=model, port=port)]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
            try:
                while process.poll() is None:
                    with suppress(OSError, StopIteration):
                        function_number(url)
                        time.sleep(LOOK)
                        if process.poll() is None:
                            yield url, process.pid
                            return
                    time.sleep(0.25)
            finally:
                process.terminate()
    raise RuntimeError(f"the server ended with code {process.returncode}")


def main(argv: list[str] | None = None) -> int:
    """Runs it, prints the report; 1 where a try was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--visitors", type=int, default=20, help="at the same time (default: %(default)s)")
    parser.add_argument("--tries", type=int, default=3, help="of each visitor (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="of a dear request (default: %(default)s)")
    parser.add_argument("--model", default="moving-mnist", help="embedded, folder or Hub id (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="a JSON file for the report")
    args = parser.parse_args(argv)
    with serving(args.model) as (url, process):
        visit(url, 2, 0, args.steps)  # the first requests of a server load what the later ones share
        memory, begin, answers = [memory_mib(process)], time.perf_counter(), []
        for number in range(args.tries):
            answers += visit(url, args.visitors, number, args.steps)
            memory.append(memory_mib(process))
        seconds = time.perf_counter() - begin
        found = {"visitors": args.visitors, **report(answers), "seconds": round(seconds, 1), "memory_mib": memory}
    print(json.dumps(found, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(found["done"] < found["tries"])


if __name__ == "__main__":
    sys.exit(main())
