"""Starting a server, and what it is made of."""

import logging
import os
import socket
import warnings
from collections.abc import Callable

import uvicorn

from openfastervit.serving.http.app import create_app
from openfastervit.serving.http.guard import Guard
from openfastervit.serving.http.keys import Keys
from openfastervit.serving.http.listener import Listener, Protocol
from openfastervit.serving.http.metrics import Metrics
from openfastervit.serving.http.room import UnavailableError
from openfastervit.serving.http.server import Server
from openfastervit.serving.http.settings import Settings


class ServingError(ValueError):
    """The server cannot start, or go on: the message says why."""


def serve(settings: Settings, keys: Keys | None = None, tell: Callable[[str], None] = lambda line: None) -> None:
    """Serve a model over HTTP until a signal (SIGTERM, SIGINT) ends it, and what was in flight is answered.

    Args:
        settings: What, where and how much.
        keys: Those that requests must bring one of; None lets everyone in.
        tell: Called with a line for each step.

    Raises:
        OSError: If the address cannot be listened on.
        ServingError: If the model cannot be read, or the server's own processes fail.
    """
    # What damaged images and forms look like is clients' business.
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.create_server((settings.host, settings.port), family=family, backlog=512)
    metrics = Metrics()

    def stop() -> None:
        listener.should_exit = True

    def drain() -> None:
        server.draining = True
        tell(f"ending: {guard.in_flight} requests in flight")

    def cut(left: int) -> None:
        tell(f"{left} requests were not answered within {settings.drain_s:g} seconds")
        server.room.give_up(UnavailableError("the server is about to end", 5.0))

    server = Server(settings, metrics, tell, stop)
    app = create_app(server, metrics, keys=keys is not None, decoders=min(4, os.cpu_count() or 1))
    guard = Guard(app, settings, keys, metrics, server.admit)
    config = uvicorn.Config(
        guard,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",  # a line for each damaged request would be a way to fill a disk
        access_log=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=16 * 1024,
    )
    listener = Listener(config, drain_s=settings.drain_s, in_flight=lambda: guard.in_flight, drain=drain, cut=cut)
    try:
        server.open(listening)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        tell(f"listening on http://{host}:{listening.getsockname()[1]}")
        listener.run(sockets=[listening])
    finally:
        listening.close()
        server.close()
    if server.failure is not None:
        raise ServingError(server.failure)
    tell("ended")
