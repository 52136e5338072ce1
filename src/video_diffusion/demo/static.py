"""A server of files that isolates what it serves, as browsers ask for it before they give a page threads."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Isolating(SimpleHTTPRequestHandler):
    """Serves a folder, quietly, with `HEADERS`."""

    protocol_version = "HTTP/1.1"
    extensions_map = {  # noqa: RUF012  as its base has it
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        """Adds the headers to each answer."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def file_server(folder: Path, host: str | None = None, port: int | None = None) -> ThreadingHTTPServer:
    """A server of a folder, not yet serving; its address is `server_address`.

    Args:
        folder: what it serves.
        host: the address to listen at; None: this machine only.
        port: None: the first free one from 7860.

    Raises:
        OSError: where the port is taken.
    """
    ports = [port] if port is not None else [*range(7860, 7960), 0]
    for number in ports:
        try:
            return ThreadingHTTPServer((host or "127.0.0.1", number), partial(Isolating, directory=str(folder)))
        except OSError:
            if number == ports[-1]:
                raise
    raise AssertionError("the last port was tried")


def serve_page(model: str, host: str | None = None, port: int | None = None) -> None:
    """Exports a model as a page and serves it until it is stopped.

    Args:
        model: an embedded one by its name, a folder or a Hub id.
        host: as in `file_server`.
        port: likewise.

    Raises:
        ImportError: as in `export_page`.
        ValueError: likewise.
        OSError: likewise, and where the port is taken.
    """
    import tempfile

    from video_diffusion.hub.browser import export_page
    from video_diffusion.sampling import OWN_SAMPLER, load_pipeline

    with tempfile.TemporaryDirectory(prefix="video-diffusion-page-") as desk:
        export_page(load_pipeline(model, OWN_SAMPLER, device="cpu", dtype="float32"), desk, model)
        with file_server(Path(desk), host, port) as server:
            address, number = server.server_address[:2]
            print(f"The page is at http://{address!s}:{number} (Ctrl-C ends it).", flush=True)
            server.serve_forever()
