"""Repositories of the loopback Hub: files, commits, branches and pull requests, in memory."""

import hashlib
import json
from dataclasses import dataclass, field


class Refusal(Exception):  # noqa: N818
    """An answer that is an error."""

    def __init__(self, status, code="", text=""):
        super().__init__(text or code)
        self.status, self.code = status, code


@dataclass(frozen=True)
class File:
    data: bytes
    lfs: bool

    @property
    def oid(self):
        """What git calls the blob: the data's, or that of the LFS pointer."""
        content = self.data
        if self.lfs:
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n".encode()
            )
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def sha256(self):
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    sha: str
    message: str
    files: dict[str, File]


@dataclass
class Repository:
    private: bool
    refs: dict[str, list[Commit]] = field(default_factory=dict)  # branches and refs/pr/N

    def add(self, ref, message, files):
        history = self.refs.setdefault(ref, [])
        names = json.dumps([len(history), ref, message, {name: file.oid for name, file in files.items()}])
        history.append(Commit(hashlib.sha1(names.encode()).hexdigest(), message, files))
        return history[-1]

    def find(self, revision):
        if revision in self.refs:
            return self.refs[revision][-1]
        for history in self.refs.values():
            for commit in history:
                if commit.sha == revision:
                    return commit
        raise Refusal(404, "RevisionNotFound", f"no revision {revision}")
