"""The queue between requests and workers, and who starts workers again.

LitServe has the queue, the workers' loop, and starts workers. Its own ``run`` is not used: requests of a worker that
died under it are never answered there, SIGTERM ends it without an answer to anyone, and workers outlive it.
"""

import asyncio
import contextlib
import gc
import logging
import math
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from multiprocessing.managers import SyncManager
from typing import Any

import litserve
from litserve.transport.factory import create_transport_from_config
from litserve.utils import LitAPIStatus, WorkerSetupStatus

from openfastervit.serving.http.answers import Reply
from openfastervit.serving.http.metrics import Metrics
from openfastervit.serving.http.room import Place, UnavailableError, WaitingRoom
from openfastervit.serving.http.settings import Settings
from openfastervit.serving.http.worker import IDLE_S, PATH, About, Api, Work

logger = logging.getLogger(__name__)

_LOOK_S = 0.1
"""How often workers are looked at."""
_RESTART_S = 5.0
"""What clients are told to wait where no worker is ready."""
_MOST_BETWEEN_S = 30.0
"""Between two starts of a worker that does not come up."""
_REMEMBER_S = 120.0
"""How long it is remembered that nobody waits for an image, if it is never met."""
_Gone = (OSError, EOFError)
"""What talking to the queue's process raises when it is no more."""


@dataclass
class _Worker:
    """What is known of a worker."""

    process: Any = None
    """None while there is none."""
    prepared: bool = False
    """Whether it has its model."""
    active: bool = False
    """Whether it is to take images: as many as were asked for are, the others stand by."""
    ready: bool = False
    """Whether it does."""
    busy_since: float | None = None
    starts: int = 0
    """In a row that led to nothing."""
    start_at: float = 0.0
    """When the next one is due."""


class Server(litserve.LitServer):
    """A model behind a queue, with workers that are started again when they end.

    Args:
        settings: What it serves, and how much of it.
        metrics: Where it counts.
        tell: Called with lines that say how it goes.
        stop: Called when it cannot go on; ``failure`` says why.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, tell: Callable[[str], None], stop: Callable[[], None]
    ) -> None:
        self.settings = settings
        self.about: About | None = None
        """What the first worker said of its model."""
        self.failure: str | None = None
        self.draining = False
        self.room = WaitingRoom(settings.max_queue)
        self._api = Api(settings)
        self._metrics, self._tell, self._stop = metrics, tell, stop
        self._workers = {index: _Worker() for index in range(settings.workers + settings.standby)}
        self._dropped: dict[str, float] = {}
        self._queue_settles_at = 0.0
        self._manager: SyncManager | None = None
        super().__init__(
            self._api,
            accelerator="cpu",  # workers find their devices themselves
            devices=1,
            workers_per_device=len(self._workers),
            timeout=False,  # ours also ends what was begun
            restart_workers=True,  # so that workers tell what they begin with
            disable_openapi_url=True,
        )
        metrics.watch(lambda: self.room.waiting, lambda: sum(worker.ready for worker in self._workers.values()))

    def register_endpoints(self) -> None:
        """None of LitServe's (/, /info, /health, ...): ``app`` has all there are."""

    # --- What requests want ------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """One of "starting", "ok", "recovering" (no worker is ready), "draining"."""
        if self.draining:
            return "draining"
        if self._has_workers:
            return "ok"
        return "starting" if self.about is None else "recovering"

    @property
    def _has_workers(self) -> bool:
        return any(worker.ready for worker in self._workers.values())

    def model(self) -> About:
        """What is served.

        Raises:
            UnavailableError: If nothing can be, just now.
        """
        if self.about is None or not self._has_workers:
            raise UnavailableError(f"the server is {self.state}", _RESTART_S)
        return self.about

    def admit(self) -> None:
        """Raise ``UnavailableError`` unless a request that comes now may hope for an answer."""
        self.model()
        if self.draining:
            raise UnavailableError("the server is about to end", _RESTART_S)
        self.room.check()

    async def predict(self, place: Place, work: Work) -> Reply:
        """A worker's reply. Whoever no longer waits for it cancels this.

        Raises:
            UnavailableError: If no worker is ready, or the one that had the image died.
        """
        self.model()
        # What a dead worker asked the queue for last is taken out of it, and lost.
        while (wait := self._queue_settles_at - time.monotonic()) > 0:
            await asyncio.sleep(wait)
            self.model()
        queue = self._get_request_queue(PATH)
        place.queued = True
        try:
            queue.put((0, place.uid, time.monotonic(), pickle.dumps(work, protocol=5)))
            return await place.answer
        except _Gone as error:
            raise UnavailableError("the server is about to end", _RESTART_S) from error
        finally:
            if place.worker is None:  # it still lies there
                self._drop(place.uid)

    def _drop(self, uid: str) -> None:
        now = time.monotonic()
        old = [other for other, since in self._dropped.items() if now - since > _REMEMBER_S]
        with contextlib.suppress(*_Gone):  # no queue, nothing in it
            for other in old:
                del self._dropped[other]
                self._api.dropped.pop(other, None)
            self._dropped[uid] = self._api.dropped[uid] = now

    # --- From start to end -------------------------------------------------------------------------------------------

    def open(self, listening: socket.socket) -> None:
        """Start the process that has the queue. To be called before there are threads: it is forked.

        Args:
            listening: What that process must not keep: with it the address would stay open until it ends.
        """
        self._listening = listening
        # Both processes share what there is by now, until one writes to it, as collecting garbage does: they would seem
        # small at first, and then not.
        gc.collect()
        gc.freeze()
        self._init_manager(1)

    def _init_manager(self, num_api_servers: int) -> SyncManager:
        """As LitServe's, with a process that ends with this one and not before."""
        self._manager = manager = SyncManager(ctx=multiprocessing.get_context())
        manager.start(_outlive_signals, (os.getpid(), self._listening))
        self.transport_config.manager = manager
        self.transport_config.num_consumers = num_api_servers
        self.workers_setup_status = manager.dict()
        self.litapi_request_queues[PATH] = manager.Queue()
        self._transport = create_transport_from_config(self.transport_config)
        self._api.told, self._api.dropped = manager.dict(), manager.dict()
        return manager

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """Of the application: workers are there, or on their way, while it runs."""
        tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._supervise())]
        for task in tasks:
            task.add_done_callback(self._noticed)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """End the workers and the queue's process."""
        workers = [worker for worker in self._workers.values() if worker.process is not None]
        listening = [worker.process for worker in workers if worker.ready]
        with contextlib.suppress(*_Gone):
            for _ in listening:
                self._get_request_queue(PATH).put((None, None, None, None))
        until = time.monotonic() + 10 * IDLE_S
        for process in listening:
            process.join(max(0.0, until - time.monotonic()))
        for worker in workers:
            worker.process.kill()
            worker.process.join()
        if self._manager is not None:
            self._manager.shutdown()

    def _noticed(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.error("the server's own work ended", exc_info=task.exception())
            self._fail("it met an error of its own")

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason
        self.room.give_up(UnavailableError("the server is about to end", _RESTART_S))
        self._stop()

    # --- Workers -----------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Bring what workers say to those who wait for it."""
        while True:
            asked = time.monotonic()
            message = await self._transport.areceive(0)
            if message is None:
                if time.monotonic() - asked < _LOOK_S:  # the queue's process is gone; _supervise notices
                    await asyncio.sleep(_LOOK_S)
                continue
            uid, (data, status, _, index) = message
            worker = self._workers[int(index)]
            if status == LitAPIStatus.START:
                worker.busy_since = time.monotonic()
                self.room.begun(uid, int(index))
                continue
            worker.busy_since = None
            if status != LitAPIStatus.OK or not isinstance(data, Reply):
                data = Reply("", b"")  # LitServe has logged what it was
            if data.batch:
                self._metrics.batches.observe(data.batch)
            self.room.answered(uid, data)

    async def _supervise(self) -> None:
        """Start workers, and again those that end. The others wait for the first one's choice of an engine."""
        while self.failure is None:
            if self._manager is None or not self._manager._process.is_alive():  # type: ignore[attr-defined]
                self._fail("the process that keeps the queue has died")
                return
            try:
                for index, worker in list(self._workers.items()):
                    if index == 0 or self.about is not None:
                        await self._look_after(index, worker)
            except _Gone:  # between two looks at it
                continue
            await asyncio.sleep(_LOOK_S)

    async def _look_after(self, index: int, worker: _Worker) -> None:
        now = time.monotonic()
        if worker.process is None:
            if now >= worker.start_at:
                worker.starts += 1
                self._api.forget(index)
                worker.process = await asyncio.to_thread(self.launch_single_inference_worker, self._api, index)
        elif not worker.process.is_alive():
            self._ended(index, worker)
        elif not worker.prepared:
            worker.prepared = self._api.is_prepared(index)
        elif not worker.active:
            if sum(other.active for other in self._workers.values()) < self.settings.workers:
                worker.active = True
                self._api.activate(index)
        elif not worker.ready:
            worker.ready = self.workers_setup_status.get(f"{PATH[1:]}_{index}") == WorkerSetupStatus.READY
            if worker.ready:
                self._introduce()
        elif worker.busy_since is not None and now - worker.busy_since > 2 * self.settings.timeout_s:
            logger.error("worker %d has been at one batch for %.0f s: it is ended", index, now - worker.busy_since)
            worker.process.kill()

    def _introduce(self) -> None:
        """Learn of the first worker what the model is."""
        if self.about is None:
            self.about = self._api.about()
            self._api.engine = self.about.engine
            self._tell(f"ready: {self.settings.task}, {len(self.about.classes)} classes, on {self.about.engine}")

    def _ended(self, index: int, worker: _Worker) -> None:
        """A worker is no more: nobody waits for it, and another one takes its place."""
        reason = self._api.complaint(index) or f"it ended with code {worker.process.exitcode}"
        worker.process.close()
        between = 0.0 if worker.prepared else min(_MOST_BETWEEN_S, 2.0**worker.starts / 2)
        starts, was_active = worker.starts, worker.active
        worker = self._workers[index] = _Worker(starts=starts, start_at=time.monotonic() + between)
        if self.draining:
            worker.start_at = math.inf
        elif self.about is None:
            self._fail(reason)
            return
        logger.error("worker %d: %s; another one is started", index, reason)
        self._metrics.restarts.inc()
        if was_active:
            self._queue_settles_at = time.monotonic() + IDLE_S + self.settings.batch_wait_ms / 1000 + _LOOK_S
            self.room.give_up(UnavailableError("the worker that had the image died", _RESTART_S), worker=index)


def _outlive_signals(server: int, listening: socket.socket) -> None:
    """In the queue's process: the server ends it, or its own end does."""
    listening.close()
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == server:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
