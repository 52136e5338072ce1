"""The demo's server for tests: started in this process, and a client of its API."""

import json
import socket
import time
import urllib.request
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(studio, examples=None):
    """Serves a studio as `video-diffusion demo` does; gives the page's address."""
    from video_diffusion.demo.page import build, launch_options

    options = {"server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True}
    for attempt in range(3):
        page, port = build(studio, examples), free_port()
        try:
            page.launch(server_port=port, **options, **launch_options(studio.limits))
            break
        except ValueError:  # a busy machine was slow to answer gradio's own look at the page
            page.close(verbose=False)
            if attempt == 2:
                raise
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        page.close(verbose=False)


def connect(port, folder, alive=lambda: True, log=None, seconds=120):
    """A client of the server at a port, once it answers; what it downloads goes to `folder`."""
    from gradio_client import Client

    end = time.monotonic() + seconds
    while time.monotonic() < end and alive():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return Client(
                f"http://127.0.0.1:{port}", verbose=False, download_files=str(folder), analytics_enabled=False
            )
        time.sleep(0.2)
    raise AssertionError(f"no server: {Path(log).read_text()[-2000:] if log else ''}")


def call(url, name, *data):
    """What the server answers to a program: the outputs of a call, or a RuntimeError with its message."""
    path = f"{url}/gradio_api/call/{name}"
    posted = request(path, json.dumps({"data": data}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(f"{path}/{json.loads(posted)['event_id']}", timeout=60) as stream:
        kind = None
        for line in stream.read().decode().splitlines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: ") and kind in ("complete", "error"):
                answer = json.loads(line.removeprefix("data: "))
                if kind == "error":
                    raise RuntimeError(answer)
                return answer
    raise AssertionError("the stream ended without an answer")


def messages(url, name, *data):
    """What the page's own way of asking is told, one after the other: place, progress, the end."""
    session = uuid.uuid4().hex
    config = json.loads(request(f"{url}/config"))
    number = next(one["id"] for one in config["dependencies"] if one["api_name"] == name)
    body = {"data": data, "fn_index": number, "session_hash": session}
    request(f"{url}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(f"{url}/gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        for line in stream:
            if line.startswith(b"data: "):
                message = json.loads(line[6:])
                yield message
                if message["msg"] in ("process_completed", "close_stream"):
                    return


def wait_for(condition, seconds=30):
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)


def request(url, data=None, headers=None):
    """The body of an answer; an HTTPError where the server refuses."""
    asked = urllib.request.Request(url, data, headers or {})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return answer.read()


def upload(url, name, data):
    """Uploads one file under any name, as no browser would; returns the server's path of it."""
    head = f'--part\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
    body = head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n--part--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=part"}
    return json.loads(request(f"{url}/gradio_api/upload", body, kind))[0]


def as_file(path, name="clip.gif"):
    """A file of the server's as a call names it."""
    return [{"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}]
