"""Who may read what was written: as the umask says, also where a library or `tempfile` said "the owner only"."""

import os
from pathlib import Path


def as_usual(path: Path) -> None:
    """Gives a file or a folder the permissions that it would have if it had been written without further thought."""
    mask = os.umask(0o077)  # there is no other way to ask; in between, other threads write for the owner only
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
