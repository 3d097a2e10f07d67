"""What runs in a worker: a model, and the loop that takes batches from LitServe's queue.

Only ``Settings`` and strings go to a worker when it starts; what it says of its model comes back in ``told``.
"""

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, replace
from queue import Empty, Queue
from typing import Any

import litserve
import numpy as np
import torch
from litserve.loops.simple_loops import BatchedLoop
from litserve.transport.base import MessageTransport
from litserve.utils import LitAPIStatus, LoopResponseType
from numpy.typing import NDArray
from PIL import Image

from openfastervit.inference.images_in_memory import (
    Answer,
    Classes,
    Model,
    Objects,
    Prepared,
    Preparer,
    open_model,
)
from openfastervit.serving.http.answers import Reply, encode
from openfastervit.serving.http.settings import Settings

IDLE_S = 0.2
"""How long a worker waits for work before it looks whether the server is still there."""
_STAND_BY_S = 0.1
"""How often a worker that stands by looks whether it is needed."""
PATH = "/predict"
_STOP = (None, None, None, None)
"""What LitServe puts into the queue for a worker to end."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class About:
    """What a worker says of its model."""

    engine: str
    classes: tuple[str, ...]
    prepare: Preparer


@dataclass(frozen=True)
class Work:
    """An image to be predicted, and what is asked of it."""

    pixels: NDArray[np.uint8]
    """``(C, H, W)`` of a classifier, ``(H, W, 3)`` of others."""
    size: tuple[int, int]
    topk: int
    score_threshold: float
    masks: bool
    png: bool

    @classmethod
    def of(cls, image: Prepared, **asked: Any) -> "Work":
        """With pixels as numpy has them: tensors would go to another process as handles to shared memory."""
        return cls(np.asarray(image.pixels), image.size, **asked)

    def image(self) -> Prepared:
        """As the model takes it."""
        if self.pixels.shape[-1] == 3 and self.pixels.shape[0] not in (1, 3):
            return Prepared(Image.fromarray(self.pixels), self.size)
        return Prepared(torch.from_numpy(self.pixels), self.size)


class Api(litserve.LitAPI):
    """A model as LitServe runs it.

    Args:
        settings: Of the server.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            max_batch_size=settings.max_batch,
            batch_timeout=settings.batch_wait_ms / 1000,
            api_path=PATH,
            loop=Loop(),
        )
        self.settings = settings
        self.engine = settings.engine
        """Changes from "auto" to what the first worker found."""
        self.told: MutableMapping[str, Any] = {}
        """Shared with the server: what it and its workers have to say to one another."""
        self.dropped: MutableMapping[str, float] = {}
        """Shared with the server: numbers of requests that nobody waits for any more."""
        self._model: Model | None = None

    def setup(self, device: str) -> None:
        """Read the model. Called in the worker, once."""
        # The server ends its workers itself: what was begun is finished, whoever else got the same signal.
        for ending in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ending, signal.SIG_IGN)
        settings = self.settings
        torch.set_num_threads(max(1, torch.get_num_threads() // settings.workers))
        try:
            model = open_model(
                settings.checkpoint,
                engine=self.engine,
                precision=settings.precision,
                device=self._device(),
                batch_size=settings.max_batch,
                tell=_tell,
            )
            model.run([Image.new(model.prepare.mode, (64, 64))])  # what is made ready with the first image is ready
        except (OSError, ValueError, MemoryError) as error:
            self.told[f"complaint {_index()}"] = str(error) or type(error).__name__
            raise SystemExit(1) from error
        self._model = model
        about = About(model.engine_name, model.classes, model.prepare)
        # Bytes to the process between, which has no need to know of it.
        self.told[f"about {_index()}"] = pickle.dumps(about)
        while not self.told.get(f"active {_index()}"):
            _stay_with_server()
            time.sleep(_STAND_BY_S)

    def about(self, index: int = 0) -> About:
        """What a worker that is prepared says of its model."""
        about: About = pickle.loads(self.told[f"about {index}"])  # from our own worker
        return about

    def is_prepared(self, index: int) -> bool:
        """Whether a worker has its model."""
        return f"about {index}" in self.told

    def activate(self, index: int) -> None:
        """Let a worker that stands by take images."""
        self.told[f"active {index}"] = True

    def complaint(self, index: int) -> str | None:
        """Why a worker could not read its model."""
        said: str | None = self.told.pop(f"complaint {index}", None)
        return said

    def forget(self, index: int) -> None:
        """What was said to and by the worker that was there before."""
        for what in ("about", "active", "complaint"):
            self.told.pop(f"{what} {index}", None)

    def _device(self) -> str:
        if self.settings.device != "cuda" or not torch.cuda.is_available():
            return self.settings.device
        return f"cuda:{_index() % torch.cuda.device_count()}"

    def decode_request(self, request: bytes) -> Work:
        """What the server put into the queue."""
        work: Work = pickle.loads(request)  # from our own server
        return work

    def predict(self, works: Sequence[Work]) -> list[Reply]:
        """A reply for each image, in order."""
        assert self._model is not None
        topk = max(work.topk for work in works)
        threshold = min(work.score_threshold for work in works)
        try:
            answers = self._model.predict([work.image() for work in works], topk=topk, score_threshold=threshold)
        except Exception:
            if len(works) == 1:
                logger.exception("an image could not be predicted")
                return [Reply("", b"", 1)]
            # One of them may be the reason: the others should not fail with it.
            return [self.predict([work])[0] for work in works]
        replies = [self._encoded(answer, work) for answer, work in zip(answers, works, strict=True)]
        return [replace(replies[0], batch=len(works)), *replies[1:]]

    def _encoded(self, answer: Any, work: Work) -> Reply:
        assert self._model is not None
        try:
            media_type, body = encode(
                _cut(answer, work), self._model.classes, work.size, masks=work.masks, png=work.png
            )
        except Exception:
            logger.exception("an answer could not be written")
            return Reply("", b"")
        return Reply(media_type, body)

    def encode_response(self, output: Reply) -> Reply:
        """Written it is already."""
        return output


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # a disk that is full takes no lines; images it needs not
        print(f"fastervit: {line}", file=sys.stderr, flush=True)


def _index() -> int:
    """Of this worker."""
    return int(os.environ["LITSERVE_WORKER_ID"])


def _stay_with_server() -> None:
    """End with the server, however that came about."""
    server = multiprocessing.parent_process()
    if server is not None and not server.is_alive():
        os._exit(1)


def _cut(answer: Answer, work: Work) -> Answer:
    """What was asked of this image: a batch is predicted with the most that any of its images asks for."""
    if isinstance(answer, Classes):
        most = work.topk
        return Classes(answer.names[:most], answer.indices[:most], answer.scores[:most])
    if isinstance(answer, Objects):
        kept = [place for place, score in enumerate(answer.scores) if score >= work.score_threshold]
        if len(kept) == len(answer.scores):
            return answer
        return Objects(
            answer.boxes[kept],
            tuple(answer.labels[place] for place in kept),
            tuple(answer.names[place] for place in kept),
            tuple(answer.scores[place] for place in kept),
            None if answer.masks is None else answer.masks.chosen(kept),
        )
    return answer


class Loop(BatchedLoop):
    """LitServe's loop, but for how a batch comes together.

    LitServe's own asks the queue a thousand times a second when there is nothing in it, counts a batch's wait from a
    moment before its first image came, and predicts what nobody waits for any more.
    """

    def get_batch_requests(
        self, lit_api: Api, request_queue: "Queue[Any]", transport: MessageTransport
    ) -> tuple[list[tuple[int, str, bytes]], list[tuple[int, str]]]:
        """The next batch, or none after a while without work."""
        try:
            items = _collected(lit_api, request_queue)
            dropped = set(lit_api.dropped.keys()) if items else ()
            batch: list[tuple[int, str, bytes]] = []
            for consumer, uid, _, payload in items:
                if uid in dropped:
                    lit_api.dropped.pop(uid, None)
                    continue
                batch.append((consumer, uid, payload))
                self.put_response(transport, consumer, uid, (), LitAPIStatus.START, LoopResponseType.REGULAR)
        except (OSError, EOFError):  # the process that has the queue is gone, and so is the server
            raise SystemExit(1) from None
        return batch, []


def _collected(lit_api: Api, request_queue: "Queue[Any]") -> list[tuple[int, str, float, bytes]]:
    """Up to a batch of what is in the queue."""
    items: list[Any] = []
    until = 0.0
    while len(items) < lit_api.max_batch_size:
        try:
            item = request_queue.get(timeout=max(0.0, until - time.monotonic()) if items else IDLE_S)
        except Empty:
            break
        if item == _STOP:
            os._exit(0)  # nothing is left to be done, and taking torch apart takes seconds
        until = until or time.monotonic() + lit_api.batch_timeout
        items.append(item)
    if not items:
        _stay_with_server()
    return items
