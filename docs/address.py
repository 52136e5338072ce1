"""
Writes the address of this repository where people are told to clone it. One setting, for all pages:

    python docs/address.py https://example.org/you/video-diffusion    # without an argument: git's remote "origin"

Run it again after a move. `pyproject.toml` (`project.urls`) and `mkdocs.yml` (`repo_url`) get it too.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACEHOLDER = "<address of this repository>"
CLONE = re.compile(r"git clone (<[^>]+>|\S+) video-diffusion")
PAGES = ("README.md", "CONTRIBUTING.md", "docs/tutorials/first_clip.md", "docs/docker.md")


def with_address(text: str, address: str) -> str:
    """A page's text with the address in its `git clone` lines."""
    return CLONE.sub(lambda _: f"git clone {address} video-diffusion", text)


def with_setting(text: str, line: str, pattern: str, before: str) -> str:
    """A configuration with a line in the place of the one that the pattern finds, or before a line where none is."""
    found = re.search(pattern, text, flags=re.MULTILINE)
    if found:
        return text[: found.start()] + line + text[found.end() :]
    return text.replace(before, f"{line}\n{before}", 1)


def main() -> None:
    """Writes all files."""
    git = ["git", "remote", "get-url", "origin"]
    address = sys.argv[1] if len(sys.argv) > 1 else subprocess.check_output(git, cwd=ROOT, text=True).strip()
    if not re.fullmatch(r"(https://|git@)\S+", address):
        sys.exit(f"The address is {address!r}, expected https://… or git@….")
    for page in PAGES:
        file = ROOT / page
        file.write_text(with_address(file.read_text(encoding="utf-8"), address), encoding="utf-8")
    site = ROOT / "mkdocs.yml"
    new = with_setting(site.read_text(encoding="utf-8"), f"repo_url: {address}", r"^repo_url: .*$", "docs_dir: docs")
    site.write_text(new, encoding="utf-8")
    project = ROOT / "pyproject.toml"
    urls = f'[project.urls]\nRepository = "{address}"\n'
    pattern = r'^\[project\.urls\]\nRepository = "[^"]*"\n'
    new = with_setting(project.read_text(encoding="utf-8"), urls, pattern, "[project.scripts]")
    project.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
