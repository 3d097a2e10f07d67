"""Clients that do not behave: they leave half-way, or send their bodies byte by byte."""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from studies.serving_load.client import request_of


@dataclass(frozen=True)
class Slow:
    """How a slow client's connection ended."""

    seconds: float
    status: int
    """0 if it was closed without a word, -1 if it was not closed at all."""


async def leave_half_way(port: int, image: bytes, rate: float, seconds: float, seed: int = 0) -> tuple[int, int]:
    """Connections that are closed: every other one in its upload, the others while they wait for the answer.

    Returns:
        How many of either.
    """
    request = request_of(port, image)
    draw = random.Random(seed)

    async def leave(number: int) -> int:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            in_upload = number % 2 == 0
            writer.write(request[: len(request) - (len(image) // 2 if in_upload else 0)])
            await writer.drain()
            await asyncio.sleep(draw.uniform(0, 0.03))
            if draw.random() < 0.5:
                writer.transport.abort()  # with a reset
            writer.close()
            return 1 if in_upload else 2
        return 0

    tasks = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        tasks.append(asyncio.create_task(leave(len(tasks))))
        await asyncio.sleep(draw.expovariate(rate))
    left = await asyncio.gather(*tasks)
    return left.count(1), left.count(2)


async def drip(port: int, image: bytes, count: int, patience_s: float, pause_s: float = 0.25) -> list[Slow]:
    """Connections whose bytes come one at a time: every fourth one from the head on, the others from the body on."""
    request = request_of(port, image)

    async def one(number: int) -> Slow:
        started = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return Slow(time.monotonic() - started, 0)
        at = 0 if number % 4 == 0 else request.index(b"\r\n\r\n") + 4
        writer.write(request[:at])
        answer = asyncio.create_task(reader.read(4096))
        await _while_it_lasts(
            answer, lambda place: _send(writer, request[at + place : at + place + 1]), patience_s, pause_s
        )
        lasted = time.monotonic() - started
        status = -1
        if answer.done():
            data = b"" if answer.exception() else answer.result()
            status = int(data[9:12]) if data.startswith(b"HTTP/1.1 ") else 0
        answer.cancel()
        writer.transport.abort()
        return Slow(lasted, status)

    return await asyncio.gather(*(one(number) for number in range(count)))


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _while_it_lasts(
    answer: "asyncio.Task[bytes]", step: Callable[[int], Awaitable[None]], patience_s: float, pause_s: float
) -> None:
    place = 0
    until = time.monotonic() + patience_s
    while not answer.done() and time.monotonic() < until:
        with contextlib.suppress(OSError):
            await step(place)
        place += 1
        await asyncio.wait((answer,), timeout=pause_s)
