"""Uploads to the Hub: checks before, one commit, retried where a connection breaks, errors that hold no token."""

import logging
import re
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

logger = logging.getLogger(__name__)

ATTEMPTS = 4
WAIT = 1.0  # seconds before the second attempt; doubled before each later one
TRANSIENT = (408, 429, 500, 502, 503, 504)
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
SECRETS = {  # what services call their keys, and how these begin
    "a token of the Hub": TOKEN,
    "a token of GitHub": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{50,})"),
    "a key of AWS": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a key of Google": re.compile(r"\bAIza[\w-]{35}\b"),
    "a key of a language model's service": re.compile(r"\bsk-(?:proj-|ant-)?[\w-]{32,}"),
    "a token of Slack": re.compile(r"\bxox[abprs]-[\w-]{20,}"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
}
NO_TEXT = (".safetensors", ".onnx", ".gif", ".png", ".mp4", ".npz", ".npy", ".parquet", ".wasm")
STALE = ("*/*.safetensors", "*/*.safetensors.index*.json", "data/*.parquet")  # ours: removed where no longer written
OF_SPACES = {"gradio": ("video_diffusion/",), "static": ("model/", "ort/")}  # in a Space, all below these is ours

T = TypeVar("T")


@dataclass(frozen=True)
class Destination:
    """Where an upload goes.

    Args:
        repo_id: "owner/name".
        repo_type: "model", "dataset" or "space".
        private: whether a new repository is private; None: as the owner's settings say.
        token: of the Hub; None: the one of `HF_TOKEN` or `hf auth login`.
        revision: a branch, made where it is missing; None: main.
        create_pr: whether to propose the commit as a pull request.
        commit_message: its title.
        space_sdk: of a new Space, "gradio" or "static".

    Raises:
        ValueError: where the id is none, or a pull request is to start at a branch.
    """

    repo_id: str
    repo_type: str
    private: bool | None = None
    token: str | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str = "Upload"
    space_sdk: str = "gradio"

    def __post_init__(self) -> None:
        check_repo_id(self.repo_id)
        if self.create_pr and self.revision is not None:
            raise ValueError(f"`revision` is {self.revision!r}, expected None: a pull request starts at main.")

    def command(self, verb: str, *folder: Path) -> str:
        """The command line that does the same, with `folder` where there is one."""
        words = ["video-diffusion", *verb.split(), *map(str, folder), self.repo_id]
        words += ["--private"] * bool(self.private) + ["--create-pr"] * self.create_pr
        return shlex.join([*words, *([] if self.revision is None else ["--revision", self.revision])])


# ---------------------------------------------------------------------------------------------------------- the checks
def check_repo_id(repo_id: str) -> None:
    """Refuses what is no id on the Hub. Raises ValueError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`repo_id` is {repo_id!r}, expected 'owner/name'.") from error


def full_id(repo_id: str, token: str | None) -> str:
    """The id with its owner; where only a name is given, that is the owner of the token.

    Raises:
        ValueError: where the id is none.
        OSError: where the Hub does not say whose token it is.
    """
    from huggingface_hub import HfApi, get_token

    check_repo_id(repo_id)
    if "/" in repo_id:
        return repo_id
    try:
        return f"{retry(HfApi(token=token).whoami, 'look whose token it is')['name']}/{repo_id}"
    except Exception as error:
        reason = explain(error, token or get_token())
    raise OSError(f"`repo_id` is {repo_id!r}, expected 'owner/name': the Hub did not say whose token it is. {reason}")


def check_names(names: Iterable[str]) -> None:
    """Refuses file names of a repository that would lead out of the folder they are put in. Raises ValueError."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or re.match(r"[A-Za-z]:", name):
            raise ValueError(f"The repository has a file named {name!r}, expected names inside its folder.")


def check_no_secrets(files: dict[str, Path], token: str | None) -> None:
    """Refuses to publish a text that holds the token, or what looks like a secret of `SECRETS`.

    Raises:
        ValueError: with the file and the line, never with the secret.
    """
    for name, file in files.items():
        if file.suffix in NO_TEXT:
            continue
        data = file.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
            kind = next((kind for kind, pattern in SECRETS.items() if pattern.search(line)), None)
            if kind is None and token and token in line:
                kind = "a token of the Hub"
            if kind is not None:
                raise ValueError(f"{name}, line {number}, holds {kind}, expected none: it would be published.")


def hide_tokens(text: str, token: str | None) -> str:
    """The text on one line, without the token and without what looks like one."""
    text = " ".join(text.split())
    return TOKEN.sub("***", text.replace(token, "***") if token else text)


def explain(error: Exception, token: str | None) -> str:
    """What went wrong, in sentences that hold no token; where the Hub did not let us in, how to log in."""
    from huggingface_hub.errors import HfHubHTTPError

    text = hide_tokens(f"{type(error).__name__}: {error}", token).rstrip(".") + "."
    if isinstance(error, HfHubHTTPError) and getattr(error.response, "status_code", None) in (401, 403, 404):
        text += " Log in with `hf auth login`, or set HF_TOKEN to a token that is allowed to."
    return text


# --------------------------------------------------------------------------------------------------------- the network
def is_broken_connection(error: BaseException | None) -> bool:
    """Whether trying again can help: the connection broke, or the Hub was busy."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, OfflineModeIsEnabled):
            return False
        if isinstance(error, HfHubHTTPError) and getattr(error.response, "status_code", None) in TRANSIENT:
            return True
        # the HTTP library under huggingface_hub has changed twice; its name for this error has not
        if isinstance(error, ConnectionError | TimeoutError) or "TransportError" in (
            c.__name__ for c in type(error).mro()
        ):
            return not isinstance(error, ValueError) and type(error).__name__ != "LocalProtocolError"
        error = error.__cause__
    return False


def retry(action: Callable[[], T], what: str) -> T:
    """The result of `action`, called again where the connection breaks, `ATTEMPTS` times in all."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return action()
        except Exception as error:
            if not is_broken_connection(error):
                raise
            logger.warning("%s: the connection broke (%s); trying again.", what, type(error).__name__)
            time.sleep(WAIT * 2**attempt)
    return action()


def commit(files: dict[str, Path], destination: Destination) -> "CommitInfo":
    """Puts the files into the repository in one commit; takes out its weights and parts that are not among them."""
    from huggingface_hub import HfApi

    to = destination
    api = HfApi(token=to.token)
    where: dict[str, Any] = {"repo_id": to.repo_id, "repo_type": to.repo_type}
    kind: dict[str, Any] = {"space_sdk": to.space_sdk} if to.repo_type == "space" else {}
    url = retry(lambda: api.create_repo(**where, **kind, private=to.private, exist_ok=True), "create the repository")
    where["repo_id"] = url.repo_id
    if to.revision is not None and not to.revision.startswith("refs/"):
        branch = to.revision
        retry(lambda: api.create_branch(**where, branch=branch, exist_ok=True), "make the branch")
    before = _pull_requests(api, where) if to.create_pr else set()

    def send() -> "CommitInfo":
        if to.create_pr and (new := _pull_requests(api, where) - before):
            raise ValueError(
                f"the answer to the commit was lost, and there is a new pull request {', '.join(sorted(new))} that "
                "may be this one: look at it before you push again"
            )
        return api.create_commit(
            **where,
            operations=_operations(api, files, where, to),
            revision=to.revision,
            create_pr=to.create_pr,
            commit_message=to.commit_message,
        )

    return retry(send, "commit")


def _operations(
    api: "HfApi", files: dict[str, Path], where: dict[str, Any], to: Destination
) -> list["CommitOperationAdd | CommitOperationDelete"]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = api.list_repo_files(**where, revision=to.revision)
    stale = [name for name in there if name not in files and _is_ours(name, to)]
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
    return [*added, *(CommitOperationDelete(path_in_repo=name) for name in stale)]


def _is_ours(name: str, to: Destination) -> bool:
    """Whether a file of a repository was put there by a push: an older one, where this push does not write it."""
    if to.repo_type == "space":
        return name.startswith(OF_SPACES[to.space_sdk])
    return any(PurePosixPath(name).match(pattern) for pattern in STALE)


def _pull_requests(api: "HfApi", where: dict[str, Any]) -> set[str]:
    refs = retry(lambda: api.list_repo_refs(**where, include_pull_requests=True), "list the pull requests")
    return {ref.ref for ref in refs.pull_requests or ()}


def upload(files: dict[str, Path], destination: Destination, resume: str) -> str:
    """Uploads files as `commit` does.

    Args:
        files: by their names in the repository.
        destination: where they go.
        resume: a command for the error's text: how to go on.

    Returns:
        the address of the commit, or of the pull request.

    Raises:
        ValueError: where a file holds a token or another secret.
        OSError: where it did not work, with the reason and how to go on.
    """
    from huggingface_hub import get_token

    token = destination.token or get_token()
    check_no_secrets(files, token)
    try:
        info = commit(files, destination)
    except Exception as error:
        reason = explain(error, token)
    else:
        return str(info.pr_url or info.commit_url)
    raise OSError(  # outside of the except clause: no traceback of requests and their headers behind it
        f"{destination.repo_id} was not written: {reason} Nothing here has changed; go on with "
        f"`{resume}` (what has arrived is not sent twice)."
    )
