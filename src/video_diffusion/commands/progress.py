"""Progress bars: one line that moves in a terminal, in a log one line each 10 seconds."""

import io
import sys
import time
from typing import Any

EVERY = 10.0  # seconds between two lines of a log


class LogLines(io.TextIOBase):
    """A file for tqdm that is no terminal: of what a bar draws it writes a line each `EVERY` seconds, and the last."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.waiting, self.written = stream, "", time.monotonic()

    def write(self, text: str) -> int:
        """Takes a drawing of the bar, which begins with a carriage return, or the line break that ends it."""
        self.waiting = text.strip() or self.waiting
        if self.waiting and (text == "\n" or time.monotonic() - self.written >= EVERY):
            self.stream.write(f"{self.waiting}\n")
            self.stream.flush()
            self.waiting, self.written = "", time.monotonic()
        return len(text)


def bar_options() -> dict[str, Any]:
    """Arguments of tqdm, and of `set_progress_bar_config`: how a bar is drawn on standard error."""
    if sys.stderr.isatty():
        return {"dynamic_ncols": True}
    return {"file": LogLines(sys.stderr)}
