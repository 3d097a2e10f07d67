"""What stands before the application: keys, limits on bodies and on time, and answers that tell nothing of us."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openfastervit.serving.http.keys import Keys
from openfastervit.serving.http.metrics import Metrics
from openfastervit.serving.http.room import UnavailableError
from openfastervit.serving.http.settings import Settings
from openfastervit.serving.http.worker import PATH

logger = logging.getLogger(__name__)

GONE = 499
"""The status of a request whose client has left, as nginx counts it. Nobody sees it but the metrics."""
_OPEN = "/health"
"""Needs no key."""
_UNCOUNTED = (_OPEN, "/metrics")
"""Are not waited for at the end."""
_FAIR_S = 0.5
"""For a body, when there are too many: those that take longer make room for others."""
_LINGER_S = 2.0
"""For the rest of a body that is refused: who is still sending may not read the answer."""
_SEND_S = 30.0
"""For a client to take a piece of its answer."""
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


class Guard:
    """An ASGI application around another one.

    Args:
        app: That one.
        settings: The limits.
        keys: Those that are taken; None where none is needed.
        metrics: Where answers are counted.
        admit: Raises ``UnavailableError`` where an image that comes now would not be predicted: under load most
            requests end with this, and it has to cost little.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, keys: Keys | None, metrics: Metrics, admit: Callable[[], None]
    ) -> None:
        self._app, self._settings, self._keys, self._metrics, self._admit = app, settings, keys, metrics, admit
        self._bodies: set[_Body] = set()
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        counted = scope["path"] not in _UNCOUNTED
        self.in_flight += counted
        self._metrics.in_flight.set(self.in_flight)
        body = _Body(scope, receive, self._settings)
        answer = _Answer(send, body)
        self._bodies.add(body)
        status = 500
        try:
            await self._answer(scope, body, answer)
            status = answer.status or GONE
        except ClientDisconnect:
            status = GONE
        except Exception:
            logger.exception("an error while a request was answered")
            if answer.status:
                raise  # too late for another answer: the connection is closed
            await _say(answer, 500, "internal error")
        finally:
            self._bodies.discard(body)
            self.in_flight -= counted
            self._metrics.in_flight.set(self.in_flight)
            self._metrics.answered(scope["path"], status, time.perf_counter() - started)

    def _room_for(self, body: "_Body") -> bool:
        """Whether one more body may come; for it, the one that has been coming for longest has to be in by now."""
        coming = [other for other in self._bodies if other.coming]
        if len(coming) <= self._settings.max_uploads:
            return True
        oldest = min(coming, key=lambda other: other.began)
        return oldest is not body and oldest.hurry()

    async def _answer(self, scope: Scope, body: "_Body", answer: "_Answer") -> None:
        if self._keys is not None and scope["path"] != _OPEN and not self._keys.allow(scope["headers"]):
            told = "this needs an API key, as Authorization: Bearer KEY or X-API-Key: KEY"
            await _say(answer, 401, told, {"WWW-Authenticate": 'Bearer realm="fastervit"'})
        elif body.announced > self._settings.max_body:
            await _say(answer, 413, body.too_large)
        elif not body.complete and not self._room_for(body):
            await _say(answer, 503, "too many requests are on their way in", {"Retry-After": "1"})
        elif (refused := self._refusal(scope)) is not None:
            await _say(answer, 503, refused.detail, {"Retry-After": str(refused.retry_after)})
        else:
            await self._app(scope, body.receive, answer.send)

    def _refusal(self, scope: Scope) -> UnavailableError | None:
        if scope["path"] != PATH or scope["method"] != "POST":
            return None
        try:
            self._admit()
        except UnavailableError as error:
            return error
        return None


class _Body:
    """A request's body on its way in, within limits."""

    def __init__(self, scope: Scope, receive: Receive, settings: Settings) -> None:
        headers = dict(scope["headers"])
        self.announced = int(headers.get(b"content-length", b"0"))  # of digits: uvicorn's parser sees to that
        self.complete = not self.announced and b"transfer-encoding" not in headers
        self.too_large = f"the body has more than {settings.max_body} bytes"
        self._expects = b"expect" in headers
        self._receive, self._most, self._seconds = receive, settings.max_body, settings.receive_s
        self.began = asyncio.get_running_loop().time()
        self._until = self.began + settings.receive_s
        self._timer: asyncio.Timeout | None = None
        self._size = 0
        self._late = False

    @property
    def coming(self) -> bool:
        """Whether it holds a place among those on their way in."""
        return not self.complete and not self._late

    def hurry(self) -> bool:
        """Give it up if it has had a fair time. What comes now is late."""
        now = asyncio.get_running_loop().time()
        if now - self.began < _FAIR_S:
            return False
        self._until, self._late = now, True
        if self._timer is not None:
            self._timer.reschedule(now)
        return True

    async def receive(self) -> Message:
        """The next piece of it, and after the last one whether the client has left.

        Raises:
            HTTPException: If it is too large or too slow.
        """
        if self.complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until) as self._timer:
                message = await self._piece()
        except TimeoutError:
            self._late = True
            told = f"the body took more than {self._seconds:g} seconds, or too many others wait"
            raise HTTPException(408, told) from None
        finally:
            self._timer = None
        if self._size > self._most:
            raise HTTPException(413, self.too_large)
        return message

    async def finish(self) -> None:
        """Pass over the rest: many clients send all of it before they read an answer."""
        if self._late or (self._expects and not self._size):  # who waits to be asked for it need not be
            return
        try:
            async with asyncio.timeout(_LINGER_S):
                while not self.complete:
                    await self._piece()
        except TimeoutError:
            self._late = True

    async def _piece(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        self.complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message


class _Answer:
    """An answer on its way out."""

    def __init__(self, send: Send, body: _Body) -> None:
        self.status: int | None = None
        self._send, self._body = send, body

    async def send(self, message: Message) -> None:
        """The next piece of it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            await self._body.finish()
            headers = [*message.get("headers", ()), *_HEADERS]
            if not self._body.complete:  # what follows on this connection is no request
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        async with asyncio.timeout(_SEND_S):
            await self._send(message)


async def _say(answer: _Answer, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
    """An answer in the form that all errors have."""
    body = json.dumps({"detail": detail}).encode()
    told = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    pairs = [(name.lower().encode(), value.encode()) for name, value in told.items()]
    await answer.send({"type": "http.response.start", "status": status, "headers": pairs})
    await answer.send({"type": "http.response.body", "body": body, "more_body": False})
