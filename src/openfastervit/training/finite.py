"""Noticing that a loss or a gradient is no longer a number, without waiting for the GPU."""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class NotFinite(NamedTuple):
    """An update that went wrong."""

    update: int
    """Counted from 1."""
    loss: float
    norm: float
    names: Sequence[str]
    """The images of its batches on this process."""


class FiniteCheck:
    """Keeps losses and gradient norms until they have arrived on the CPU, and then judges them.

    On a GPU the verdict on an update comes one or two updates later: the loop need not stop and wait for each. It is
    complete after ``settle``, which comes before every checkpoint.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Tensor, torch.cuda.Event | None, int, Sequence[str]]] = deque()
        self.found: NotFinite | None = None
        """The first update that was not finite."""

    def push(self, update: int, loss: Tensor, norm: Tensor, names: Sequence[str]) -> None:
        """Take the loss and the gradient's norm of an update."""
        pair = torch.stack([loss.detach().float(), norm.detach().float()])
        event = None
        if pair.is_cuda:
            pair = pair.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((pair, event, update, names))
        self._judge(wait=False)

    def settle(self) -> None:
        """Wait for what has not arrived."""
        self._judge(wait=True)

    def _judge(self, *, wait: bool) -> None:
        while self._waiting:
            pair, event, update, names = self._waiting[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self._waiting.popleft()
            loss, norm = pair.tolist()
            if self.found is None and not (math.isfinite(loss) and math.isfinite(norm)):
                self.found = NotFinite(update, loss, norm, names)
