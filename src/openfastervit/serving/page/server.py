"""The page on a socket, until it is told to stop."""

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from openfastervit.inference.engines.engine import installed
from openfastervit.serving.page.subjects import Subject

_GRACE = 3
"""Seconds that connections have to end by themselves: a page that is open keeps one."""
_AROUND = 2**16
"""Bytes of a request around a file."""


def require_gradio() -> None:
    """Raise ``ValueError`` unless Gradio and Plotly are installed, saying how to get them."""
    missing = [name for name in ("gradio", "plotly") if not installed(name)]
    if missing:
        raise ValueError(f"the page needs {' and '.join(missing)}; install with: pip install 'openfastervit[app]'")


def serve_page(
    subjects: Sequence[Subject],
    *,
    host: str,
    port: int,
    max_pixels: int,
    max_body: int,
    benchmark: str | None,
    tell: Callable[[str], None],
) -> None:
    """Serve the page until SIGTERM. Ctrl-C raises ``KeyboardInterrupt`` once it is closed.

    Args:
        subjects: The network that is asked, then those that it can be compared with.
        host: Name or address to listen on.
        port: 0 for one that is free.
        max_pixels: Larger images are refused.
        max_body: Bytes of an upload.
        benchmark: A page for the second tab.
        tell: Called with a line that says where the page is.

    Raises:
        ValueError: If the address cannot be listened on.
    """
    with listening(host, port) as listener, _files_of_its_own():
        import uvicorn

        app = create_app(subjects, host=host, max_pixels=max_pixels, max_body=max_body, benchmark=benchmark)
        server = uvicorn.Server(
            uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=_GRACE
            )
        )
        name, bound = listener.getsockname()[:2]
        tell(f"the page is at http://{f'[{name}]' if ':' in name else name}:{bound}/ (Ctrl-C ends it)")
        # uvicorn closes on a signal, and then raises it again for who had it before: SIGTERM is done by then.
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            server.run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, before)


def create_app(subjects: Sequence[Subject], *, host: str, max_pixels: int, max_body: int, benchmark: str | None) -> Any:
    """The page as an ASGI app, behind its front door. See ``serve_page``."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware import Middleware
    from starlette.responses import HTMLResponse
    from starlette.routing import Route

    from openfastervit.serving.page.app import Page, style, theme
    from openfastervit.serving.page.front_door import LOOPBACK, FrontDoor

    async def shown(_: Any) -> HTMLResponse:
        return HTMLResponse(benchmark or "", 200 if benchmark else 404)

    door = Middleware(
        FrontDoor,
        max_body=max_body + _AROUND,
        hosts=LOOPBACK if is_loopback(host) else None,
        uploads=os.environ["GRADIO_TEMP_DIR"],
    )
    app = FastAPI(openapi_url=None, middleware=[door], routes=[Route("/benchmark", shown)])
    page = Page(subjects, max_pixels=max_pixels, max_body=max_body, benchmark=benchmark is not None)
    blocks = page.blocks()
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=max_body,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=style(),
    )
    # Gradio takes an app that it did not launch itself for one in the making, whose files need not be its own.
    blocks.has_launched = blocks.is_running = True
    return app


def is_loopback(host: str) -> bool:
    """Whether a name or address is of this machine alone."""
    return host in ("localhost", "::1") or host.startswith("127.")


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens.

    Raises:
        ValueError: If it cannot, with why.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"--host {host} --port {port} cannot be listened on: {reason}; choose others") from error
    with listener:
        yield listener


@contextlib.contextmanager
def _files_of_its_own() -> Iterator[None]:
    """A folder for what is uploaded and sent, which goes when the page does."""
    with tempfile.TemporaryDirectory(prefix="fastervit-page-", ignore_cleanup_errors=True) as folder:
        before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE")}
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder).resolve())
        os.environ["GRADIO_EXAMPLES_CACHE"] = str(Path(folder).resolve() / "examples")
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
