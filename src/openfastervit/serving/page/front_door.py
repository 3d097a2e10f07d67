"""What of Gradio's server can be reached, by whom, with how much: all else is turned away before Gradio sees it.

Gradio has many routes that the page does not use: some fetch what is on the internet, some run parts of other apps. A
file that a call names may only be one that was uploaded: Gradio would fetch one that is named by its address. A page on
another site must not reach this one through the visitor's browser under a name of its own (DNS rebinding).
"""

import json
import os
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openfastervit.serving.page.upload import is_below

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_CALL = "/gradio_api/queue/join"
_CALL_BODY = 2**16
"""Bytes of a call: it names files, and does not hold them."""

_OPEN = re.compile(
    r"/(|benchmark|config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(assets|static)/[\w./@+-]+"
    r"|gradio_api/(info|upload|upload_progress|queue/(join|data)|cancel|reset|startup-events|heartbeat/\w+"
    # A file that lies here: one that is named by its address would be fetched.
    r"|file=/[^\0]*))"
)
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class FrontDoor:
    """ASGI middleware.

    Args:
        app: What lies behind it.
        max_body: Bytes of a request's body.
        hosts: Names that the server is called by; None for any.
        uploads: The folder of the files that calls may name.
    """

    def __init__(
        self, app: ASGIApp, *, max_body: int, hosts: Collection[str] | None, uploads: str | os.PathLike[str]
    ) -> None:
        self._app, self._max_body, self._hosts, self._uploads = app, max_body, hosts, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        most = min(_CALL_BODY, self._max_body) if scope["path"] == _CALL else self._max_body
        refused = self._refused(scope["path"], headers, most)
        receive = _counted(receive, most)
        if refused is None and scope["path"] == _CALL and scope["method"] == "POST":
            try:
                body = await _whole(receive)
            except HTTPException as error:
                refused = PlainTextResponse(error.detail, error.status_code)
            else:
                refused = None if self._may_be_called(body) else PlainTextResponse("No such upload", 400)
                receive = _again(body, receive)
        await (refused or self._app)(scope, receive, _with_headers(send))

    def _refused(self, path: str, headers: dict[str, str], most: int) -> PlainTextResponse | None:
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            return PlainTextResponse("This page answers to the name of its own machine only.", 421)
        if not _OPEN.fullmatch(path):
            return PlainTextResponse("Not found", 404)
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return PlainTextResponse("Bad Content-Length", 400)
        if int(length) > most:
            return PlainTextResponse(_too_large(most), 413)
        return None

    def _may_be_called(self, body: bytes) -> bool:
        """Whether all files that a call names were uploaded."""
        try:
            left = [json.loads(body)]
        except (ValueError, RecursionError):
            return False
        while left:
            value = left.pop()
            if isinstance(value, dict):
                path = value.get("path")
                if path is not None and not (isinstance(path, str) and is_below(path, self._uploads)):
                    return False
                left += value.values()
            elif isinstance(value, list):
                left += value
        return True


def _counted(receive: Receive, most: int) -> Receive:
    """A body that does not tell its length is not read on for ever."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise HTTPException(413, _too_large(most))
        return message

    return counted


def _too_large(most: int) -> str:
    return f"More than {most} bytes"


async def _whole(receive: Receive) -> bytes:
    """A request's body."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read once more."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(send: Send) -> Send:
    added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return sending


def _host(header: str) -> str | None:
    """The name in a Host header, without the port and the brackets of IPv6."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None
