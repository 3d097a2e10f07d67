"""A client that behaves: requests at a rate or one after another, over connections that stay open.

::

    python -m studies.serving_load.client < plan.json > answers.json

It runs in a process of its own and does as little as it can: images are encoded, requests are bytes that lie ready, and
of an answer it looks at the status and at Retry-After. Times are those of ``time.monotonic``, which all processes of a
machine share.
"""

import asyncio
import collections
import contextlib
import gc
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

NO_ANSWER, CLOSED, NOT_CONNECTED = 0, -1, -2
"""In place of a status: it did not come in time; the connection was closed before it came; there was no connection."""
_IDLE_S = 2.0
"""Connections that were idle for longer are not used again: the server may be about to close them."""


@dataclass(frozen=True)
class Plan:
    """What a client does."""

    port: int
    images: tuple[str, ...]
    seconds: float
    rate: float | None = None
    """Requests a second, as a Poisson process: they come whether or not the server keeps up."""
    at_once: int = 1
    """Without a rate: requests that are always under way."""
    patience_s: float = 40.0
    """How long an answer is waited for."""
    most: int = 512
    """Connections. A request for which there is none left is not sent, and counted."""
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """How a request went."""

    due: float
    """When it should have been sent."""
    sent: float
    done: float
    status: int
    retry_after: bool

    @property
    def seconds(self) -> float:
        """From its first byte to the answer's last."""
        return self.done - self.sent


@dataclass(frozen=True)
class Told:
    """What a client has seen."""

    answers: list[Answer]
    unsent: int
    started: float
    ended: float
    """Of sending."""
    cpu_s: float


class Client:
    """The client's process.

    Args:
        plan: What it does, from now on.
    """

    def __init__(self, plan: Plan) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "studies.serving_load.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stdin, self._stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        json.dump(asdict(plan), stdin)
        stdin.close()
        assert self._stdout is not None
        self.started = float(self._stdout.readline())
        """When it begins to send."""

    def result(self) -> Told:
        """What it has seen, once it has done."""
        assert self._stdout is not None
        with self._stdout:
            found = json.load(self._stdout)
        if self._process.wait() != 0:
            raise RuntimeError(f"the client ended with code {self._process.returncode}")
        answers = [Answer(*row) for row in found.pop("answers")]
        return Told(answers, started=self.started, **found)

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()


def request_of(port: int, body: bytes, content_type: str = "image/jpeg") -> bytes:
    """A POST with all of its bytes."""
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """A connection with at most one request under way."""

    def __init__(self) -> None:
        self.open = False
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bool]] | None = None
        self._bytes = b""

    def ask(self, request: bytes) -> "asyncio.Future[tuple[int, bool]]":
        """Send a request. The future gives the status, and whether the answer has Retry-After."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Give it up at once."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.open = transport, True

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        self._bytes = self._bytes + data if self._bytes else data
        end = self._bytes.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._bytes[:end].lower()
        place = head.find(b"content-length:")
        length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if len(self._bytes) < end + 4 + length:
            return
        self._bytes = b""
        if b"\r\nconnection: close" in head:
            self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((int(head[9:12]), b"\r\nretry-after:" in head))

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio."""
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((CLOSED, False))


class _Sender:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._requests = [request_of(plan.port, Path(path).read_bytes()) for path in plan.images]
        self._draw = random.Random(plan.seed)
        self._idle: collections.deque[Connection] = collections.deque()
        self._open = 0
        self.answers: list[tuple[float, float, float, int, bool]] = []
        self.unsent = 0

    async def run(self, started: float) -> None:
        if self._plan.rate is None:
            await asyncio.gather(*(self._one_after_another(started) for _ in range(self._plan.at_once)))
        else:
            await self._at_rate(self._plan.rate, started)

    async def _one_after_another(self, started: float) -> None:
        while (now := time.monotonic()) < started + self._plan.seconds:
            status = await self._send(now)
            if status != 200:
                await asyncio.sleep(0.02)

    async def _at_rate(self, rate: float, started: float) -> None:
        under_way: set[asyncio.Task[int]] = set()
        due = started + self._draw.expovariate(rate)
        while due < started + self._plan.seconds:
            wait = due - time.monotonic()
            await asyncio.sleep(max(0.0, wait))
            if len(under_way) >= self._plan.most:
                self.unsent += 1
            else:
                task = asyncio.create_task(self._send(due))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            due += self._draw.expovariate(rate)
        await asyncio.gather(*under_way)

    async def _send(self, due: float) -> int:
        connection = await self._connection()
        sent = time.monotonic()
        status, retry_after = NOT_CONNECTED, False
        if connection is not None:
            answer = connection.ask(self._draw.choice(self._requests))
            try:
                async with asyncio.timeout(self._plan.patience_s):
                    status, retry_after = await answer
            except TimeoutError:
                status = NO_ANSWER
                connection.close()
            if connection.open:
                connection.idle_since = time.monotonic()
                self._idle.append(connection)
            else:
                connection.close()
        self.answers.append((due, sent, time.monotonic(), status, retry_after))
        return status

    async def _connection(self) -> Connection | None:
        now = time.monotonic()
        while self._idle and (not self._idle[0].open or now - self._idle[0].idle_since > _IDLE_S):
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()  # the one that was used last: the others may go
            if connection.open:
                return connection
        try:
            _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self._plan.port)
        except OSError:
            return None
        return connection


async def _follow(plan: Plan, out: IO[str]) -> None:
    sender = _Sender(plan)
    gc.collect()
    gc.freeze()
    started = time.monotonic()
    print(started, file=out, flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await sender.run(started)
    found = {
        "answers": sender.answers,
        "unsent": sender.unsent,
        "ended": started + plan.seconds,
        "cpu_s": time.process_time(),
    }
    json.dump(found, out)


def _main(arguments: Sequence[str] = ()) -> None:
    told = json.load(sys.stdin)
    asyncio.run(_follow(Plan(**{**told, "images": tuple(told["images"])}), sys.stdout))


if __name__ == "__main__":
    _main()
