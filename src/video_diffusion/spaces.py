"""The demo as a Space of the Hub: its page, this package and a model in one commit, so that it needs nothing else."""

import json
import os
import re
import shlex
import warnings
from pathlib import Path

from video_diffusion.hub import INDEX, PACKAGE, PICKLES, embedded_models, refuse_pickles
from video_diffusion.transfer import Destination, upload

SPACES = (PACKAGE / "space", PACKAGE.parents[1] / "space")  # in an installed package, in the repository
ROOT = PACKAGE.name  # the folder of the package in the Space
LEFT_OUT = (
    "__pycache__",
    "pipelines",
    "space",
    "model_cards",
)  # parts of an installed package that a Space has no use for
WEIGHTS = (".safetensors", ".json", ".txt", ".model")  # of a pipeline: its code is the package's


def push_space(
    repo_id: str,
    *,
    model: str | os.PathLike[str] = "moving-mnist",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
) -> str:
    """Publishes the demo as a Gradio Space in one commit: page, package, model.

    Args:
        repo_id: "owner/name", or "name" for the owner of the token; made where it is missing.
        model: an embedded model by its name, or the folder of a pipeline; only read.
        private: whether a new Space is private; None: as the owner's settings say.
        token: of the Hub; None: the one of `HF_TOKEN` or `hf auth login`.
        revision: a branch, made where it is missing; None: main.
        create_pr: whether to propose the commit as a pull request.
        commit_message: its title.

    Returns:
        the address of the commit, or of the pull request.

    Raises:
        ValueError: where an argument or the model is refused, before anything is sent.
        OSError: where the upload failed, with the reason and how to go on.
    """
    to = Destination(repo_id, "space", private, token, revision, create_pr, commit_message or "Upload the demo")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*about to commit a data file")  # the digits belong to the package
        return upload(space_files(model), to, f"{to.command('space push')} --model {shlex.quote(str(model))}")


def space_files(model: str | os.PathLike[str]) -> dict[str, Path]:
    """The files of the Space, by their names there.

    Args:
        model: as in `push_space`.

    Raises:
        ValueError: where it is no pipeline, or one with pickles for weights.
    """
    folder = Path(embedded_models().get(str(model), model))
    if not (folder / INDEX).is_file():
        known = ", ".join(embedded_models()) or "there is none here"
        raise ValueError(f"`model` is {str(model)!r}, expected an embedded one ({known}) or the folder of a pipeline.")
    place = f"{ROOT}/pipelines/{re.sub(r'[^A-Za-z0-9._-]', '-', folder.resolve().name)}"
    parts, index = _files(folder), json.loads((folder / INDEX).read_text(encoding="utf-8"))
    refuse_pickles((file.relative_to(folder).as_posix() for file in folder.glob("*/*")), index)
    space = next(shelf for shelf in SPACES if (shelf / "app.py").is_file())
    files = _files(space)
    files |= {f"{ROOT}/{name}": file for name, file in _files(PACKAGE).items() if name.split("/")[0] not in LEFT_OUT}
    wanted = [n for n, file in parts.items() if n == INDEX or (n.split("/")[0] in index and file.suffix in WEIGHTS)]
    return files | {f"{place}/{name}": parts[name] for name in wanted}


def _files(folder: Path) -> dict[str, Path]:
    """The files below a folder by their names there, but for hidden ones, pickles and what Python compiled."""
    found = {file.relative_to(folder): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {
        name.as_posix(): file
        for name, file in found.items()
        if not any(part.startswith(".") or part == "__pycache__" for part in name.parts) and file.suffix not in PICKLES
    }
