"""To the Hub and back: a pipeline, a data set or the Space in one commit, and a pipeline's repository as a folder."""

import json
import os
import re
import shlex
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from video_diffusion.data.modes import as_usual
from video_diffusion.hub.adapters import WORKING
from video_diffusion.hub.configs import GENERATION_CONFIG, INDEX
from video_diffusion.hub.finding import PACKAGE, embedded_adapters, embedded_models, find_base, is_adapter
from video_diffusion.hub.folder import check_target, export_folder, swap
from video_diffusion.hub.loading import PICKLES, check_weights, refuse_pickles
from video_diffusion.hub.transfer import Destination, check_names, check_repo_id, explain, full_id, retry, upload

if TYPE_CHECKING:
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

SHARD = "5GB"
PULLED = ("*.json", "*.safetensors", "*.py", "*.txt", "*.md", "*.model", "*.gif", "*.mp4", "*.png", "*LICENSE*")
PREVIEW = "preview.gif"
CARD_NAME = "<this folder or its Hub id>"  # in the card of a data set folder: the place for its name
SPACES = (PACKAGE / "space", PACKAGE.parents[1] / "space")  # in an installed package, in the repository
ROOT = PACKAGE.name  # the folder of the package in the Space
LEFT_OUT = (
    "__pycache__",
    "pipelines",
    "space",
    "space_static",
    "model_cards",
)  # parts of an installed package that a Space has no use for
WEIGHTS = (".safetensors", ".json", ".txt", ".model")  # of a pipeline: its code is the package's


# ----------------------------------------------------------------------------------------------------------- pipelines
def push_pipeline(
    pipeline: "VideoDiffusionPipeline | str | os.PathLike[str]",
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    variant: str | None = "fp16",
) -> str:
    """Publishes a pipeline in one commit: weights, code for those without this package, card, evaluations, samples.

    Args:
        pipeline: a pipeline, or the folder of one; with a folder its run.json, evaluations and samples come along. The
            folder is only read.
        repo_id: "owner/name", or "name" for the owner of the token; made where it is missing.
        private: whether a new repository is private; None: as the owner's settings say.
        token: of the Hub; None: the one of `HF_TOKEN` or `hf auth login`.
        revision: a branch, made where it is missing; None: main.
        create_pr: whether to propose the commit as a pull request.
        commit_message: its title.
        variant: the half-precision weights beside the full ones: "fp16", "bf16" or None.

    Returns:
        the address of the commit, or of the pull request.

    Raises:
        ValueError: where an argument or the pipeline is refused, before anything is sent.
        OSError: where the upload failed, with the reason and how to go on. A pipeline that was no folder is then kept
            in one.
    """
    from video_diffusion.hub.cards import refresh_card

    message = commit_message or "Upload pipeline, code and card"
    repo_id = full_id(repo_id, token)
    to = Destination(repo_id, "model", private, token, revision, create_pr, message)
    source = Path(pipeline).absolute() if isinstance(pipeline, str | os.PathLike) else None
    if source is not None and not (source / INDEX).is_file():
        raise ValueError(f"`pipeline` is {str(pipeline)!r}, expected a pipeline or a folder that holds a {INDEX}.")
    shelf = Path(tempfile.mkdtemp(prefix="video-diffusion-push-"))
    keep = False
    try:
        out = export_folder(pipeline, shelf / repo_id.rpartition("/")[2], variant, SHARD)
        refresh_card(out, repo_id)
        files = published_files(out)
        try:
            return upload(files, to, to.command("push", source or out))
        except OSError:
            keep = source is None
            raise
    finally:
        if not keep:
            shutil.rmtree(shelf, ignore_errors=True)


def published_files(folder: Path) -> dict[str, Path]:
    """The files of an export that go to the Hub, by name: all but hidden ones and pickles."""
    files = {file.relative_to(folder): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {
        name.as_posix(): file
        for name, file in files.items()
        if file.suffix not in PICKLES and not any(part.startswith(".") for part in name.parts)
    }


def pull_pipeline(
    repo_id: str,
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """Downloads a pipeline's repository into a folder, for `VideoDiffusionPipeline.from_pretrained(folder)`.

    The folder appears whole or not at all; an interrupted download goes on from the cache of the Hub's files. No
    pickle is downloaded, and code is only written, not run.

    Args:
        repo_id: "owner/name".
        folder: new, empty, or that of a pipeline, which is then replaced.
        revision: a branch, a tag, a commit or "refs/pr/N".
        token: of the Hub; None: the one of `HF_TOKEN` or `hf auth login`.

    Returns:
        the folder.

    Raises:
        ValueError: where the repository is refused: no pipeline, weights in pickles only, or names that lead out.
        OSError: where it could not be downloaded, with the reason.
    """
    from huggingface_hub import get_token

    check_repo_id(repo_id)
    out = check_target(folder)
    try:
        snapshot = _download(repo_id, revision, token)
    except (ValueError, PermissionError):
        raise
    except Exception as error:
        reason = explain(error, token or get_token())
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        ignored = shutil.ignore_patterns(*(f"*{ending}" for ending in PICKLES))  # another program may have cached one
        try:
            as_usual(draft)
            shutil.copytree(snapshot, draft, dirs_exist_ok=True, ignore=ignored)
            swap(draft, out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return out
    raise OSError(
        f"{repo_id} was not downloaded: {reason} What has arrived is kept: the same call goes on from there."
    )


def _download(repo_id: str, revision: str | None, token: str | None) -> Path:
    """The folder of a repository in the cache, checked."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    info = retry(lambda: api.model_info(repo_id, revision=revision), "look at the repository")
    names = [sibling.rfilename for sibling in info.siblings or ()]
    check_names(names)
    if INDEX not in names:
        raise ValueError(f"{repo_id} holds no {INDEX}, expected the repository of a pipeline.")
    patterns = list(PULLED)
    snapshot = Path(
        retry(lambda: api.snapshot_download(repo_id, revision=info.sha, allow_patterns=patterns), "download")
    )
    refuse_pickles(names, json.loads((snapshot / INDEX).read_text(encoding="utf-8")))
    if (snapshot / "unet").is_dir():
        check_weights(snapshot / "unet")
    return snapshot


# ----------------------------------------------------------------------------------------------------------- data sets
def push_dataset(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
) -> str:
    """Publishes a folder of `video-diffusion dataset build` in one commit: parquet files, card, a GIF of some clips.

    Args:
        folder: holds `README.md` and `data/*.parquet`; only read.
        repo_id: "owner/name", or "name" for the owner of the token.
        private: as in `push_pipeline`.
        token: as in `push_pipeline`.
        revision: as in `push_pipeline`.
        create_pr: as in `push_pipeline`.
        commit_message: as in `push_pipeline`.

    Returns:
        the address of the commit, or of the pull request.

    Raises:
        ValueError: where an argument or the folder is refused, before anything is sent.
        OSError: where the upload failed, with the reason and how to go on.
    """
    to = Destination(
        repo_id, "dataset", private, token, revision, create_pr, commit_message or "Upload clips and card"
    )
    folder = Path(folder).absolute()
    card, parts = folder / "README.md", sorted(folder.glob("data/*.parquet"))
    if not card.is_file() or not parts:
        raise ValueError(
            f"`folder` is {folder}, expected one of `video-diffusion dataset build`: README.md and data/."
        )
    with tempfile.TemporaryDirectory() as desk:
        named, preview = Path(desk) / "README.md", Path(desk) / PREVIEW
        write_preview(parts[0], preview)
        named.write_text(card_with_preview(card.read_text(encoding="utf-8"), repo_id), encoding="utf-8")
        files = {"README.md": named, PREVIEW: preview} | {f"data/{part.name}": part for part in parts}
        return upload(files, to, to.command("dataset push", folder))


def card_with_preview(text: str, repo_id: str) -> str:
    """The card of a data set with its name on the Hub, and the GIF below the title."""
    metadata, line, body = text.replace(CARD_NAME, repo_id).partition("\n---\n")
    title, _, rest = body.partition("\n")
    return f"{metadata}{line}{title}\n\n![clips]({PREVIEW})\n{rest}"


def write_preview(part: Path, gif: Path, count: int = 8) -> None:
    """Draws the first clips of a parquet file, uint8 `[F, H, W]` or `[F, H, W, C]` each, into one GIF."""
    import numpy as np
    import pyarrow.parquet as pq

    from video_diffusion.data.video_io import tile, write_gif

    batch = next(pq.ParquetFile(part).iter_batches(batch_size=count, columns=["video"]))
    column = batch.column("video")
    clips = np.array(getattr(column, "storage", column).to_pylist(), dtype=np.uint8)
    write_gif(tile(list(clips if clips.ndim == 5 else clips[..., None]), min(len(clips), 4)), gif, scale=2)


# -------------------------------------------------------------------------------------------------------------- Spaces
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
        model: an embedded model by its name, or the folder of a pipeline or of an embedded model's adapter; only read.
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
        ValueError: where it is no pipeline, or one with pickles for weights, or an adapter of a model that is not
            embedded.
    """
    embedded = embedded_models() | embedded_adapters()
    folder = Path(embedded.get(str(model), model))
    if not (folder / INDEX).is_file() and not is_adapter(folder):
        known = ", ".join(embedded) or "there is none here"
        raise ValueError(f"`model` is {str(model)!r}, expected an embedded one ({known}) or the folder of a pipeline.")
    folders = [folder]
    if is_adapter(folder):
        folders.append(base := find_base(folder))
        if embedded_models().get(base.name) != base:
            raise ValueError(
                f"`model` is {str(model)!r}, an adapter of {base}, expected one of an embedded model: the Space would "
                "not find its base. Train with `--merged` for a whole pipeline."
            )
    models: dict[str, Path] = {}
    for one in folders:
        models |= _model_files(one)
    space = next(shelf for shelf in SPACES if (shelf / "app.py").is_file())
    files = _files(space)
    files |= {f"{ROOT}/{name}": file for name, file in _files(PACKAGE).items() if name.split("/")[0] not in LEFT_OUT}
    return files | models


def _model_files(folder: Path) -> dict[str, Path]:
    """Those files of a pipeline or an adapter that the page needs, by their names in the Space."""
    place = f"{ROOT}/pipelines/{re.sub(r'[^A-Za-z0-9._-]', '-', folder.resolve().name)}"
    if is_adapter(folder):
        return {f"{place}/{name}": folder / name for name in WORKING if (folder / name).is_file()}
    parts, index = _files(folder), json.loads((folder / INDEX).read_text(encoding="utf-8"))
    refuse_pickles((file.relative_to(folder).as_posix() for file in folder.glob("*/*")), index)
    named = (INDEX, GENERATION_CONFIG)
    wanted = [n for n, file in parts.items() if n in named or (n.split("/")[0] in index and file.suffix in WEIGHTS)]
    return {f"{place}/{name}": parts[name] for name in wanted}


def _files(folder: Path) -> dict[str, Path]:
    """The files below a folder by their names there, but for hidden ones, pickles and what Python compiled."""
    found = {file.relative_to(folder): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {
        name.as_posix(): file
        for name, file in found.items()
        if not any(part.startswith(".") or part == "__pycache__" for part in name.parts) and file.suffix not in PICKLES
    }
