"""Uvicorn, with patience that ends: for requests that do not come, and for what is in flight at the end."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_HEAD_S = 10.0
"""For a request's first lines, which uvicorn would wait for without end."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Protocol(H11Protocol):
    """A connection that is closed when a request's head takes too long."""

    _head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's; the time for a head begins with its first byte, and ends with its last."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._expect_nothing()
        elif self._head_due is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._expect_nothing()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._head_due = self.loop.call_later(_HEAD_S, self.transport.close)

    def _expect_nothing(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None


class Listener(uvicorn.Server):
    """A server that, told to end, first answers what is in flight.

    Until then it goes on listening, so that who asks for its health is told that it is about to end. A second signal
    ends it at once.

    Args:
        config: Of uvicorn.
        drain_s: How long it waits for answers.
        in_flight: How many requests are not answered yet.
        drain: Called when it is told to end.
        cut: Called when it waits no longer.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        drain_s: float,
        in_flight: Callable[[], int],
        drain: Callable[[], None],
        cut: Callable[[int], None],
    ) -> None:
        super().__init__(config)
        self._drain_s = drain_s
        self._in_flight, self._drain, self._cut = in_flight, drain, cut
        self._ends_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; the second time, end."""
        if self._ends_at is None:
            self._ends_at = time.monotonic() + self._drain_s
            self._drain()
        else:
            self._ends_at = 0.0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which raises the signals again when all is done: this one's end is a success."""
        before: dict[signal.Signals, Any] = {sig: signal.signal(sig, self.handle_exit) for sig in _SIGNALS}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end. Called ten times a second."""
        if self._ends_at is not None:
            left = self._in_flight()
            if left and time.monotonic() >= self._ends_at:
                self._cut(left)
                self._ends_at = float("inf")
                self.should_exit = True
            elif not left:
                self.should_exit = True
        return await super().on_tick(counter)
