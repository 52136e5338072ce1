"""Pictures in a terminal that can draw them.

Two protocols: iTerm2's (iterm2.com/documentation-images.html) and kitty's (sw.kovidgoyal.net/kitty/graphics-protocol).
"""

import base64
import os
import sys
from collections.abc import Mapping
from pathlib import Path

CHUNK = 4096  # bytes of base64 in one escape sequence of kitty's
ITERM2 = ("iTerm.app", "WezTerm", "mintty")  # names that TERM_PROGRAM has there
KITTY = ("ghostty", "kitty")


def protocol(environment: Mapping[str, str]) -> str | None:
    """The protocol that a terminal reads by its environment: "iterm2", "kitty" or None; None in tmux and screen."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if environment.get("TMUX") or term.startswith(("screen", "tmux")):
        return None
    if program in ITERM2 or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return "kitty" if program in KITTY or term in ("xterm-kitty", "xterm-ghostty") else None


def sequence(png: bytes, kind: str) -> str:
    """The escape sequence that draws a PNG, as wide as it is or as the terminal allows."""
    data = base64.b64encode(png).decode()
    if kind == "iterm2":
        return f"\033]1337;File=inline=1;size={len(png)};preserveAspectRatio=1:{data}\a\n"
    chunks = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
    heads = [f"{'a=T,f=100,' if i == 0 else ''}m={int(i < len(chunks) - 1)}" for i in range(len(chunks))]
    return "".join(f"\033_G{head};{chunk}\033\\" for head, chunk in zip(heads, chunks, strict=True)) + "\n"


def show_picture(path: Path) -> None:
    """Draws a PNG where standard output is a terminal that can; else does nothing."""
    kind = protocol(os.environ)
    if kind is not None and sys.stdout.isatty():
        sys.stdout.write(sequence(path.read_bytes(), kind))
