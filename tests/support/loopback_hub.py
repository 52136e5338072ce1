"""A Hub on the loopback interface, for tests: commits, LFS, branches, pull requests, private repositories, tokens.

It answers what huggingface_hub asks for without xet (`HF_HUB_DISABLE_XET=1`), from memory, and can break connections.

    with LoopbackHub(tokens={"hf_secret": "alice"}) as hub:
        run(..., env=hub.environment(cache))
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from loopback_repository import File, Refusal, Repository

LFS_ENDINGS = (".safetensors", ".parquet", ".bin", ".pt", ".gif", ".png")
ACTIONS = "revision|tree|refs|branch|preupload|commit|paths-info"
API = re.compile(rf"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/({ACTIONS})(?:/([^/]+)(?:/(.*))?)?)?$")
RESOLVE = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
LFS_BATCH = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch$")


@dataclass
class Break:
    """A connection to be cut: before the request is acted on, in the middle of the answer, or in its place."""

    method: str
    part: str
    times: int
    when: str


class LoopbackHub:
    """The server. `requests` (method, path, token) and `repositories` are there to be looked at."""

    def __init__(self, tokens=None):
        self.tokens = dict(tokens or {})
        self.repositories, self.objects, self.requests, self.breaks = {}, {}, [], []
        self.lock = threading.RLock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.storage = self.url.replace("127.0.0.1", "localhost")  # another host, as the Hub's storage is

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home, token=None):
        """Variables for a process that talks to this Hub and keeps its cache under `home`."""
        variables = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        variables |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1,localhost"}
        return variables | ({"HF_TOKEN": token} if token else {})

    def log_in(self, monkeypatch, folder, token):
        """Makes this the Hub of this process, with the cache in `folder` and no waits between attempts."""
        from huggingface_hub import constants

        from video_diffusion.hub import transfer

        values = {"ENDPOINT": self.url, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}
        values |= {"HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}"}
        values |= {"HF_HUB_CACHE": str(folder / "cache"), "HF_TOKEN_PATH": str(folder / "no-token")}
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr(transfer, "WAIT", 0.0)

    def put(self, repo_id, files, kind="models", private=False, revision="main"):
        """Makes a commit of `files` (name: bytes) with no questions asked: also names that no Hub would take."""
        repository = self.repositories.setdefault((kind, repo_id), Repository(private))
        repository.add(revision, "put", {n: File(data, n.endswith(LFS_ENDINGS)) for n, data in files.items()})

    def files(self, repo_id, kind="models", revision="main"):
        """name: bytes of a revision."""
        return {n: file.data for n, file in self.repositories[kind, repo_id].find(revision).files.items()}

    def commits(self, repo_id, kind="models", ref="main"):
        return self.repositories[kind, repo_id].refs[ref]

    def break_connection(self, method, part, times=1, when="before"):
        """Cuts the next `times` connections whose path holds `part`; `when`: before, during or after the action."""
        self.breaks.append(Break(method, part, times, when))

    def find_break(self, method, path, when):
        with self.lock:
            for item in self.breaks:
                if item.times and item.method == method and item.part in path and item.when == when:
                    item.times -= 1
                    return True
        return False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *args):
        pass

    def serve(self):
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        parts = urlsplit(self.path)
        self.route, self.query = parts.path, parse_qs(parts.query)
        self.hub.requests.append((self.command, self.path, self.token))
        if self.hub.find_break(self.command, self.path, "before"):
            return self.cut()
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.read_chunks()
        try:
            with self.hub.lock:
                status, headers, data = self.answer()
        except Refusal as refusal:
            status, data = refusal.status, json.dumps({"error": str(refusal)}).encode()
            headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            headers["X-Error-Message"] = str(refusal)
        if self.hub.find_break(self.command, self.path, "after"):
            return self.cut()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.hub.find_break(self.command, self.path, "during"):
            self.wfile.write(data[: len(data) // 2])
            return self.cut()
        if self.command != "HEAD":
            self.wfile.write(data)
        return None

    do_GET = do_HEAD = do_POST = do_PUT = serve  # noqa: N815

    def read_chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def cut(self):
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    # ----------------------------------------------------------------------------------------------------- permissions
    @property
    def user(self):
        if self.token is None:
            return None
        if self.token not in self.hub.tokens:
            raise Refusal(401, text="Invalid credentials in Authorization header")
        return self.hub.tokens[self.token]

    def open(self, kind, repo_id, write=False):
        """The repository, where this user may see it; a private one is not told from a missing one."""
        repository, owner = self.hub.repositories.get((kind, repo_id)), repo_id.split("/")[0]
        if repository is None or (repository.private and self.user != owner):
            raise Refusal(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
        if write and self.user is None:
            raise Refusal(401, text="Invalid username or password.")
        if write and self.user != owner and "create_pr" not in self.query:
            raise Refusal(403, text="You don't have the rights to write here")
        return repository

    # ---------------------------------------------------------------------------------------------------------- routes
    def answer(self):
        """Status, headers and data of the answer."""
        if self.route == "/api/whoami-v2":
            if self.user is None:
                raise Refusal(401, text="Invalid username or password.")
            return self.json({"type": "user", "name": self.user, "auth": {"accessToken": {"role": "write"}}})
        if self.route == "/api/validate-yaml":
            return self.validate_yaml()
        if self.route == "/api/repos/create":
            return self.create(json.loads(self.body))
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", self.route):
            return self.put_object(match[1]) if self.command == "PUT" else self.content(self.hub.objects[match[1]])
        if self.route == "/lfs/verify":
            known = self.hub.objects.get(json.loads(self.body)["oid"], b"")
            if len(known) != json.loads(self.body)["size"]:
                raise Refusal(404, text="no such object")
            return self.json({})
        if match := LFS_BATCH.match(self.route):
            self.open(match[1] or "models", match[2], write=True)
            return self.batch(json.loads(self.body))
        if match := API.match(self.route):
            return self.api(match[1], match[2], match[3] or "revision", unquote(match[4] or "main"), match[5])
        if match := RESOLVE.match(self.route):
            return self.resolve(match[1] or "models", match[2], unquote(match[3]), unquote(match[4]))
        raise Refusal(404, text=f"no route {self.route}")

    def json(self, value, status=200):
        return status, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def validate_yaml(self):
        text = json.loads(self.body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        try:
            found = yaml.safe_load(match[1]) if match else {}
            errors = [] if isinstance(found, dict) else [{"message": "not a mapping"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        return self.json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create(self, asked):
        if self.user is None:
            raise Refusal(401, text="Invalid username or password.")
        kind, repo_id = asked.get("type", "model") + "s", f"{asked.get('organization') or self.user}/{asked['name']}"
        if repo_id.split("/")[0] != self.user:
            raise Refusal(403, text="You don't have the rights to create a model under this namespace")
        if kind == "spaces" and not asked.get("sdk"):
            raise Refusal(400, text="A Space needs an sdk")
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        if (kind, repo_id) in self.hub.repositories:
            return self.json({"error": "You already created this model repo", "url": url}, 409)
        repository = Repository(asked.get("visibility") == "private" or asked.get("private") is True)
        self.hub.repositories[kind, repo_id] = repository
        repository.add("main", "initial commit", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)})
        return self.json({"url": url, "name": repo_id})

    def api(self, kind, repo_id, action, revision, rest):
        writes = action in ("branch", "preupload", "commit")
        repository = self.open(kind, repo_id, writes)
        if action == "refs":
            refs = {name: {"name": name, "ref": f"refs/heads/{name}", "targetCommit": history[-1].sha}
                    for name, history in repository.refs.items()}  # fmt: skip
            pulls = [ref | {"ref": name} for name, ref in refs.items() if name.startswith("refs/pr/")]
            branches = [ref for name, ref in refs.items() if not name.startswith("refs/pr/")]
            return self.json({"branches": branches, "tags": [], "converts": [], "pullRequests": pulls})
        if action == "branch":
            if revision in repository.refs:
                raise Refusal(409, text="Reference already exists")
            repository.refs[revision] = [repository.find(json.loads(self.body).get("startingPoint", "main"))]
            return self.json({})
        commit = repository.find(revision)
        if action == "preupload":
            return self.preupload(commit, json.loads(self.body)["files"])
        if action == "commit":
            return self.commit(kind, repo_id, repository, revision)
        if action in ("tree", "paths-info"):
            wanted = None if action == "tree" else {unquote(name) for name in parse_qs(self.body.decode())["paths"]}
            entries = [self.entry(n, file) for n, file in commit.files.items() if wanted is None or n in wanted]
            folders = {name.rpartition("/")[0] for name in commit.files} - {""}
            entries += [{"type": "directory", "path": n, "oid": "0" * 40, "size": 0} for n in sorted(folders)
                        if wanted is None or n in wanted]  # fmt: skip
            if rest or (action == "tree" and self.query.get("recursive", ["False"])[0].lower() != "true"):
                entries = [item for item in entries if item["path"].rpartition("/")[0] == unquote(rest or "")]
            return self.json(entries)
        siblings = [{"rfilename": name} for name in commit.files]
        info = {"_id": repo_id, "id": repo_id, "modelId": repo_id, "sha": commit.sha, "private": repository.private}
        info |= {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False}
        return self.json(info | {"author": repo_id.split("/")[0], "lastModified": "2026-01-01T00:00:00.000Z"})

    def entry(self, name, file):
        entry = {"type": "file", "path": name, "oid": file.oid, "size": len(file.data)}
        return entry | ({"lfs": {"oid": file.sha256, "size": len(file.data), "pointerSize": 130}} if file.lfs else {})

    # --------------------------------------------------------------------------------------------------------- uploads
    def preupload(self, commit, files):
        answers = []
        for file in files:
            there = commit.files.get(file["path"])
            mode = "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular"
            oid = there and there.etag
            answers.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False} | ({"oid": oid} if oid else {})
            )
        return self.json({"files": answers})

    def batch(self, asked):
        objects = []
        for item in asked["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                upload, verify = f"{self.hub.url}/lfs/{item['oid']}", f"{self.hub.url}/lfs/verify"
                entry["actions"] = {"upload": {"href": upload, "header": {}}, "verify": {"href": verify, "header": {}}}
            objects.append(entry)
        return self.json({"transfer": "basic", "objects": objects})

    def put_object(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, text="the content is not that of the oid")
        self.hub.objects[oid] = self.body
        return self.json({})

    def commit(self, kind, repo_id, repository, revision):
        message, files = "", dict(repository.find(revision).files)
        for line in self.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                files[value["path"]] = File(self.hub.objects[value["oid"]], True)
            elif key == "deletedFile":
                files.pop(value["path"])
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
        pull = "create_pr" in self.query
        commit = repository.add(f"refs/pr/{number}" if pull else revision, message, files)
        answer = {"success": True, "commitOid": commit.sha, "commitUrl": f"{url}/commit/{commit.sha}"}
        return self.json(answer | ({"pullRequestUrl": f"{url}/discussions/{number}"} if pull else {}))

    # ------------------------------------------------------------------------------------------------------- downloads
    def resolve(self, kind, repo_id, revision, name):
        commit = self.open(kind, repo_id).find(revision)
        if name not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        file = commit.files[name]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.etag}"'}
        if not file.lfs:
            return self.content(file.data, headers)
        self.hub.objects[file.sha256] = file.data
        headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
        return 302, headers | {"Location": f"{self.hub.storage}/lfs/{file.sha256}"}, b""

    def content(self, data, headers=None):
        """The data, or the part that a Range header asks for."""
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **(headers or {})}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return 206, headers, data[first : last + 1]
        return 200, headers, data
