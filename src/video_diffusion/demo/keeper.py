"""A process that starts the server and starts it again where it was killed, as when the memory ran out."""

import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence

DEATHS, WITHIN = 5, 600.0  # so many in so many seconds are no accident: the page is broken
REST = 1.0  # seconds before the next start
KILLED = 128  # a shell's code for a signal is 128 + its number
ENDING = (signal.SIGINT, signal.SIGTERM)


def keep(command: Sequence[str]) -> int:
    """Runs a command until it ends by itself; starts it again where it died of a signal, up to `DEATHS` times.

    SIGINT and SIGTERM end both. The visitors' pages connect again by themselves; what was being made is lost.

    Returns:
        the code of the command; 1 where it died too often.
    """
    deaths: deque[float] = deque(maxlen=DEATHS)
    asked: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def end(number: int, frame: object) -> None:
        asked.append(number)
        if process is not None:
            process.send_signal(number)

    previous = {number: signal.signal(number, end) for number in ENDING}
    try:
        while True:
            process = subprocess.Popen(list(command))
            code = process.wait()
            died = code < 0 or code > KILLED
            if asked or not died:
                return KILLED - code if code < 0 else code
            deaths.append(time.monotonic())
            said = f"The server was killed (code {code}); the memory may have run out."
            if len(deaths) == DEATHS and deaths[-1] - deaths[0] < WITHIN:
                print(f"{said} It was so {DEATHS} times in {WITHIN:.0f} s: giving up.", file=sys.stderr)
                return 1
            print(f"{said} It starts again.", file=sys.stderr, flush=True)
            time.sleep(REST)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
