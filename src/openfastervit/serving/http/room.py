"""The waiting room: images between their acceptance and their answer."""

import asyncio
import contextlib
import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from openfastervit.serving.http.answers import Reply


class UnavailableError(Exception):
    """There is no answer now; later there may be.

    Args:
        detail: What the client is told.
        retry_after_s: When it may ask again.
    """

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = max(1, math.ceil(retry_after_s))


@dataclass
class Place:
    """Of one image."""

    answer: asyncio.Future[Reply]
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)
    queued: bool = False
    """Whether it lies in the workers' queue, or did."""
    worker: int | None = None
    """That has begun with it."""


class WaitingRoom:
    """Places for images. All of it is for the server's thread alone.

    Args:
        most: Images that may be here without having been begun.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: dict[str, Place] = {}

    @property
    def waiting(self) -> int:
        """Images that are accepted, and not begun."""
        return sum(place.worker is None for place in self._places.values())

    def check(self) -> None:
        """Raise ``UnavailableError`` if there is no place."""
        if self.waiting >= self._most:
            raise UnavailableError("too many images are waiting")

    @contextlib.contextmanager
    def place(self) -> Iterator[Place]:
        """A place for as long as the block lasts.

        Raises:
            UnavailableError: If too many wait.
        """
        self.check()
        place = Place(asyncio.get_running_loop().create_future())
        self._places[place.uid] = place
        try:
            yield place
        finally:
            del self._places[place.uid]
            if place.answer.done() and not place.answer.cancelled():
                place.answer.exception()  # it may have come too late for anyone to look at it
            else:
                place.answer.cancel()

    def begun(self, uid: str, worker: int) -> None:
        """A worker has begun with an image."""
        place = self._places.get(uid)
        if place is not None:
            place.worker = worker

    def answered(self, uid: str, reply: Reply) -> None:
        """A worker has done with an image. Whose place is gone does not want to know."""
        place = self._places.get(uid)
        if place is not None and not place.answer.done():
            place.answer.set_result(reply)

    def give_up(self, error: UnavailableError, worker: int | None = None) -> None:
        """Answer those who would wait in vain.

        Args:
            error: What they get.
            worker: One that is no more: those that it had begun with, and all that lie in the queue, since it may
                have taken them out of it without a word. By default everyone.
        """
        for place in self._places.values():
            lost = place.queued and place.worker in (None, worker)
            if (worker is None or lost) and not place.answer.done():
                place.answer.set_exception(error)
