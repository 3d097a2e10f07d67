"""Finding a cluster, or starting one here, and doing a job there."""

import collections
import contextlib
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from openfastervit.inference.cluster.job import ClusterJob, Event, run
from openfastervit.inference.cluster.sources import local_path

_POLL_SECONDS = 0.5
_KNOCK_SECONDS = 10.0
_STOP_SECONDS = 60.0


def run_on(address: str, job: ClusterJob) -> Iterator[Event]:
    """Do a job on a cluster; ``job.run`` tells what it raises.

    Args:
        address: "local" starts Ray on this machine, for this job; "auto" finds a cluster that this machine is a node
            of, and "host:6379" names it; "ray://host:10001" is a cluster that this machine is no node of: there paths
            are those of its head node.
        job: What to do.

    Raises:
        ValueError: If no cluster answers.
    """
    with _signals_kept(), connected(address):
        if address.startswith("ray://"):
            yield from _run_there(job)
        else:
            yield from run(job)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """What SIGTERM did before, it does afterwards: Ray leaves a handler of its own."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to a cluster; none is made where this process has one.

    Raises:
        ValueError: If no cluster answers.
    """
    quieten()
    if address == "auto":  # Ray remembers where one was, and would look for it there for a quarter of an hour
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    import ray
    import ray.data

    if ray.is_initialized():
        yield
        return
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)  # errors come as exceptions; all is in Ray's own log
    dashboard = False if address == "local" else None  # a cluster that runs has its own
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:  # Ray's ways to say so
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--cluster {address}: no cluster answers ({reason}); start one with `ray start --head`, or give "
            "--cluster local. host:6379 is for its nodes; from elsewhere it is ray://host:10001"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise ``OSError`` or ``ValueError`` if nobody listens: Ray would try for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


def quieten() -> None:
    """Before Ray is imported: nothing is sent to its makers, and its notes on what it retries stay in its logs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")


class _Driver:
    """A job in a process of the cluster: Ray Data does not work through Ray's client."""

    def __init__(self) -> None:
        quieten()
        self._events: collections.deque[Event] = collections.deque()
        self._stopped = False

    def run(self, job: ClusterJob) -> None:
        for event in run(job, stop=lambda: self._stopped):
            self._events.append(event)

    def events(self) -> list[Event]:
        return [self._events.popleft() for _ in range(len(self._events))]

    def stop(self) -> None:
        self._stopped = True


def _run_there(job: ClusterJob) -> Iterator[Event]:
    import ray
    from ray.exceptions import RayTaskError

    driver: Any = ray.remote(_Driver).options(num_cpus=0, max_concurrency=2).remote()
    done = driver.run.remote(replace(job, source=_absolute(job.source), out=_absolute(job.out)))
    try:
        ended = False
        while not ended:
            ended = bool(ray.wait([done], timeout=_POLL_SECONDS)[0])
            yield from ray.get(driver.events.remote())
        ray.get(done)
    except RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, ValueError | OSError) else error) from None
    finally:
        if not ended:
            driver.stop.remote()
            began = time.monotonic()
            while not ray.wait([done], timeout=1)[0] and time.monotonic() - began < _STOP_SECONDS:
                pass


def _absolute(location: str) -> str:
    """A path of this machine's as others see it, if they see it at all; a URL as it is."""
    path = local_path(location)
    return location if path is None else str(Path(path).absolute())
