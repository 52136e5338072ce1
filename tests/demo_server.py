"""The demo's server for tests: started in this process, and a client of its API."""

import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(studio):
    """Serves a studio as `video-diffusion demo` does; gives the page's address."""
    from video_diffusion.demo.page import build, launch_options

    page = build(studio)
    port = free_port()
    options = {"server_name": "127.0.0.1", "server_port": port, "prevent_thread_lock": True, "quiet": True}
    page.launch(**options, **launch_options(studio.limits))
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
