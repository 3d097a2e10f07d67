"""The phases: what is done to the server, what it has to do then, and a row for each."""

import asyncio
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.serving_load import judge, rude
from studies.serving_load.client import Client, Plan, Told, request_of
from studies.serving_load.engine import Bare
from studies.serving_load.judge import Criterion
from studies.serving_load.server import Server, Watch, cpu_of, fill, small_disk

_BACK_S = 10.0
_SLACK_S = 2.0
"""Of what a client may wait beyond the server's own patience."""
_GROWTH = 0.05
_BATCHES = 3.0
_DRIPS = 100
"""Slow clients at once."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all phases share."""

    server: Server
    bare: Bare
    images: tuple[Path, ...]
    seconds: float
    """Of the overload."""
    timeout_s: float
    """The server's, for an answer."""
    receive_s: float
    """The server's, for a body."""

    @property
    def short_s(self) -> float:
        """Of the other phases."""
        return min(60.0, max(1.0, self.seconds / 5))

    def plan(self, seconds: float, **asked: Any) -> Plan:
        """For a client."""
        images = tuple(str(path) for path in self.images)
        patience = self.timeout_s + self.receive_s + _SLACK_S
        return Plan(self.server.port, images, seconds, patience_s=patience, **asked)

    def row(self, phase: str, told: Told, criteria: Sequence[Criterion], detail: str = "", **more: Any) -> Row:
        """Of a phase."""
        return {
            "phase": phase,
            **judge.figures(told, self.bare.rate, self.bare.batch_s),
            **more,
            "detail": detail,
            **_judged(criteria),
        }


def _judged(criteria: Sequence[Criterion]) -> Row:
    return {"criteria": "; ".join(criterion.text for criterion in criteria), "met": judge.verdict(criteria)}


def bare_row(bare: Bare) -> Row:
    """The engine alone: what the others are compared with."""
    return {
        "phase": "engine alone",
        "answered_per_second": bare.rate,
        "share_of_engine": 1.0,
        "batch_ms": 1000 * bare.batch_s,
        "detail": f"{bare.engine}, batches of {bare.batch}, images ready; "
        f"{bare.decoding_rate:.1f} images a second where JPEGs are decoded meanwhile",
        "criteria": "none: the others are compared with it",
        "met": "",
    }


class _Around:
    """What the server's processes used, and how it batched, from here to ``figures``."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._worker = server.worker
        self._at, self._before = time.monotonic(), self._read()

    def _read(self) -> tuple[float, float, float, float]:
        server = self._server
        count, images = (server.metric(f"fastervit_batch_size_{name}") for name in ("count", "sum"))
        own = cpu_of(server.process.pid)
        return own, cpu_of(self._worker), count, images

    def figures(self) -> Row:
        own, worker, count, images = (now - then for now, then in zip(self._read(), self._before, strict=True))
        seconds = time.monotonic() - self._at
        return {
            "mean_batch": images / count if count else math.nan,
            "front_cores": own / seconds,
            "worker_cores": worker / seconds,
        }


def closed_loop(bench: Bench) -> Row:
    """As many requests at once as two batches have images: what the server can do when it is always asked."""
    around = _Around(bench.server)
    told = Client(bench.plan(bench.short_s, at_once=2 * bench.bare.batch)).result()
    share = judge.figures(told, bench.bare.rate, bench.bare.batch_s)["share_of_engine"]
    criteria = [Criterion("at least 85 % of the engine's rate", share >= 0.85), judge.only_refusals(told.answers)]
    return bench.row("two batches at once", told, criteria, **around.figures())


def load(bench: Bench) -> Row:
    """Four fifths of the engine's rate."""
    around = _Around(bench.server)
    told = Client(bench.plan(bench.short_s, rate=0.8 * bench.bare.rate)).result()
    share = judge.figures(told, bench.bare.rate, bench.bare.batch_s)["share_of_offered"]
    criteria = [
        Criterion("at least 85 % of what is offered is answered", share >= 0.85),
        judge.only_refusals(told.answers),
    ]
    return bench.row("80 % of the engine's rate", told, criteria, **around.figures())


def overload(bench: Bench) -> Row:
    """Four times the engine's rate, for long."""
    around = _Around(bench.server)
    with Watch(bench.server) as watch:
        told = Client(bench.plan(bench.seconds, rate=4 * bench.bare.rate)).result()
    found = judge.figures(told, bench.bare.rate, bench.bare.batch_s)
    grown = judge.growth(watch.bytes)
    criteria = [
        judge.only_refusals(told.answers),
        Criterion("nothing unanswered", found["no_answer"] + found["closed"] + found["not_connected"] == 0),
        Criterion("memory grows by less than 5 %", grown < _GROWTH),
        Criterion("p99 of accepted requests under 3 batch times", found["p99_batches"] < _BATCHES),
    ]
    tenth = max(1, len(watch.bytes) // 10)
    memory = {
        "memory_mib": sum(watch.bytes[-tenth:]) / tenth / 2**20 if watch.bytes else math.nan,
        "memory_growth_percent": 100 * grown,
    }
    return bench.row("4 times the engine's rate", told, criteria, **around.figures(), **memory)


def killed_worker(bench: Bench) -> Row:
    """The worker is killed (SIGKILL) under load."""
    seconds = 2 + _BACK_S + 2
    client = Client(bench.plan(seconds, rate=0.8 * bench.bare.rate, seed=1))
    _sleep_until(client.started + 2)
    moment = _kill_worker(bench.server)
    told = client.result()
    back = judge.back_after(told.answers, moment)
    criteria = [
        judge.only_refusals(told.answers),
        judge.all_answered(told.answers, bench.timeout_s),
        Criterion("service back within 10 s", back < _BACK_S),
    ]
    return bench.row("worker killed", told, criteria, back_s=back)


def leaving_clients(bench: Bench) -> Row:
    """Half the engine's rate from clients that behave; a quarter of it from some that leave."""
    before = bench.server.sockets
    client = Client(bench.plan(bench.short_s, rate=0.5 * bench.bare.rate, seed=2))
    image = bench.images[0].read_bytes()
    rate = max(1.0, 0.25 * bench.bare.rate)
    uploads, waits = asyncio.run(rude.leave_half_way(bench.server.port, image, rate, bench.short_s))
    told = client.result()
    left = _settles(lambda: bench.server.metric("fastervit_in_flight"))
    sockets = _settles(lambda: bench.server.sockets - before)
    return bench.row(
        "clients that leave",
        told,
        [
            *_undisturbed(bench, told),
            Criterion("nothing of them stays", left <= 0 and sockets <= 2),
        ],
        f"{uploads} left in their upload and {waits} while they waited; afterwards {left:g} requests in flight "
        f"and {sockets:+g} open sockets",
    )


def slow_bodies(bench: Bench) -> Row:
    """Half the engine's rate from clients that behave, and many whose bytes come one at a time."""
    patience = max(bench.receive_s, 10.0) + 5.0  # a head has 10 s
    slow: list[rude.Slow] = []
    image = bench.images[0].read_bytes()

    def drip() -> None:
        slow.extend(asyncio.run(rude.drip(bench.server.port, image, _DRIPS, patience)))

    dripping = threading.Thread(target=drip)
    dripping.start()
    time.sleep(0.5)  # they are there before the others
    client = Client(bench.plan(max(bench.receive_s - 1, 1.0), rate=0.5 * bench.bare.rate, seed=3))
    told = client.result()
    dripping.join()
    statuses = {status: sum(one.status == status for one in slow) for status in sorted({one.status for one in slow})}
    longest = max(one.seconds for one in slow)
    names = {0: "closed", -1: "still open"}
    ended = ", ".join(f"{count} {names.get(status, status)}" for status, count in statuses.items())
    return bench.row(
        f"{_DRIPS} slow bodies",
        told,
        [
            *_undisturbed(bench, told),
            Criterion("each of them gets 408, 503 or is closed", set(statuses) <= {408, 503, 0}),
        ],
        f"of the slow: {ended}; the last after {longest:.1f} s",
    )


def end_under_load(bench: Bench) -> Row:
    """SIGTERM under load."""
    client = Client(bench.plan(4.0, rate=0.8 * bench.bare.rate, seed=4))
    _sleep_until(client.started + 2)
    moment = time.monotonic()
    bench.server.process.send_signal(signal.SIGTERM)
    code = bench.server.process.wait(120)
    took = time.monotonic() - moment
    told = client.result()
    before = [answer for answer in told.answers if answer.sent < moment]
    criteria = [
        Criterion("exit code 0", code == 0),
        judge.all_answered(before, bench.timeout_s),
        judge.only_refusals(told.answers),
    ]
    found = judge.counts(before)
    detail = (
        f"ended after {took:.1f} s; of {found['requests']} requests that were sent before the signal "
        f"{found['answered_200']} were answered with 200 and {found['refused_503']} with 503"
    )
    return bench.row("SIGTERM", told, criteria, detail, exit_code=code)


def full_disk(bench: Bench, start: Callable[..., Server], folder: Path) -> Row:
    """A server whose temporary folder, caches and log are on a disk that is full: load, a large form, a killed worker.

    Args:
        bench: Of the others; its server is not used.
        start: Starts a server.
        folder: Where its disk is.
    """
    try:
        with small_disk(folder, kib=8192) as before:
            own = dict.fromkeys(("TMPDIR", "HOME", "XDG_CACHE_HOME"), str(folder))
            server = start(before=before, environment=own, seen_log=f"/proc/{{pid}}/root{folder}/log")
    except RuntimeError as error:
        return {"phase": "disk full", "detail": str(error), "criteria": "", "met": "not tried"}
    try:
        seen = Path(f"/proc/{server.process.pid}/root{folder}")
        image = bench.images[0].read_bytes()
        first = asyncio.run(_large_form(server.port, image))  # from now on it knows where temporary files go
        written = sorted(str(path.relative_to(seen)) for path in seen.rglob("*"))
        fill(seen)
        bench = Bench(server, bench.bare, bench.images, bench.seconds, bench.timeout_s, bench.receive_s)
        client = Client(bench.plan(2 + _BACK_S + 2, rate=0.5 * bench.bare.rate, seed=5))
        _sleep_until(client.started + 1)
        form = asyncio.run(_large_form(server.port, image))
        moment = _kill_worker(server)
        told = client.result()
        back = judge.back_after(told.answers, moment)
        added = sorted({str(path.relative_to(seen)) for path in seen.rglob("*")} - {*written, "filler"})
        code = server.end()
    finally:
        server.kill()
    criteria = [
        judge.only_refusals(told.answers),
        judge.all_answered(told.answers, bench.timeout_s),
        Criterion("a form of 3 MB gets no 5xx but 503", 0 < form < 500 or form == 503),
        Criterion("a killed worker is back within 10 s", back < _BACK_S),
        Criterion("exit code 0", code == 0),
    ]
    detail = (
        f"there when it was ready: {' '.join(written) or 'nothing'}; new files under load: "
        f"{' '.join(added) or 'none'}; a form of 3 MB got {first} before the disk was full and {form} after"
    )
    return bench.row("disk full", told, criteria, detail, back_s=back, exit_code=code)


async def _large_form(port: int, image: bytes) -> int:
    """The status that an image gets in a form so large that it may be put on the disk; 0 if there is none."""
    padded = image + bytes(3_000_000)  # what follows a JPEG's end is passed over
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="i.jpg"\r\n\r\n'
    request = request_of(port, head + padded + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")
    try:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            line = await reader.readline()
            writer.transport.abort()
    except (OSError, TimeoutError):
        return 0
    return int(line.split()[1]) if line else 0


def _undisturbed(bench: Bench, told: Told) -> list[Criterion]:
    found = judge.figures(told, bench.bare.rate, bench.bare.batch_s)
    return [
        judge.only_refusals(told.answers),
        judge.all_answered(told.answers, bench.timeout_s),
        Criterion("at least 95 % of the others are answered", found["share_of_offered"] >= 0.95),
    ]


def _settles(value: Callable[[], float], patience_s: float = 10.0) -> float:
    """A figure once it is 0 or less, or as it is when patience ends."""
    until = time.monotonic() + patience_s
    while (now := value()) > 0 and time.monotonic() < until:
        time.sleep(0.2)
    return now


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _kill_worker(server: Server) -> float:
    """When it was killed. To find it takes a moment, and counts for nothing."""
    worker = server.worker
    os.kill(worker, signal.SIGKILL)
    while "\nState:\tZ" not in _status(worker) and _status(worker):
        time.sleep(0.001)  # what it still says is no sign that the service is back
    return time.monotonic()


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


PHASES: tuple[Callable[[Bench], Row], ...] = (
    closed_loop,
    load,
    overload,
    killed_worker,
    leaving_clients,
    slow_bodies,
    end_under_load,
)
"""On one server, in this order: the last one ends it."""
