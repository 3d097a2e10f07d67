"""What is measured: a network made to run in some way, in a part of the session; and the row that comes of it."""

import contextlib
import copy
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openfastervit.benchmarking.cases import Case
from openfastervit.benchmarking.engine_call import open_engine
from openfastervit.benchmarking.published import published_for
from openfastervit.benchmarking.subject import Called, Machine, Measured, Subject
from openfastervit.benchmarking.timing import percentile, tail
from openfastervit.inference.engines import Settings
from openfastervit.inference.engines.engine import DTYPES, in_channels
from openfastervit.inference.engines.torch import TorchEngine, kernels
from openfastervit.kernels.availability import interpreted

EAGER, COMPILED = "eager", "compiled"
"""The network as it is, under autocast, its weights in float32; and ``torch.compile`` of that. Other ways to run a
network are engines of this package."""


@dataclass(frozen=True)
class WayCase(Case):
    """A network on an engine, ``EAGER`` and ``COMPILED`` included."""

    def unavailable(self) -> str | None:
        """The status of a case whose engine cannot be had here."""
        return None if self.engine in (EAGER, COMPILED) else super().unavailable()

    def open(self, machine: Machine) -> AbstractContextManager[Called]:
        """The network on its engine, in this process."""
        if self.engine in (EAGER, COMPILED):
            return open_engine(self, machine, autocast_engine)
        if self.engine == "torch-kernels" and interpreted():  # the table has it for GPUs alone: it is slow there
            return open_engine(self, machine, lambda network, name, settings: kernels(network, settings))
        return super().open(machine)


def autocast_engine(network: nn.Module, name: str, settings: Settings) -> TorchEngine:
    """A network as it is, channels-last, under autocast; through ``torch.compile`` where the name is ``COMPILED``."""
    plain = copy.deepcopy(network).eval().requires_grad_(False)
    plain = plain.to(settings.device).to(memory_format=torch.channels_last)
    device, dtype = torch.device(settings.device).type, DTYPES[settings.precision]

    def call(images: Tensor) -> Tensor:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            logits: Tensor = plain(images)
        return logits

    ready = call if name == EAGER else torch.compile(call, dynamic=False)
    return TorchEngine(name, ready, settings, in_channels(network), fixed_batch=name == COMPILED)


@dataclass(frozen=True)
class Row:
    """A line of ``inference.csv`` or ``training.csv``. None where nothing was measured."""

    part: str
    network: str
    way: str
    peer: bool
    precision: str
    batch_size: int
    side: int
    images_per_second: float | None
    """Median over the repeats."""
    images_per_second_q1: float | None
    images_per_second_q3: float | None
    milliseconds_p50: float | None
    """Of a call, over all calls of all repeats."""
    milliseconds_p99: float | None
    """Only where there were at least 100 calls."""
    peak_memory_mb: float | None
    repeats: int
    calls: int
    rates: tuple[float, ...]
    """Images a second of each repeat. Rows of a part and block were measured in turns: their ratios are by repeat."""
    block: int | None
    top1_published: float | None
    """In percent, at this size; for weights that learned from ImageNet-1K alone."""
    status: str

    @property
    def key(self) -> Hashable:
        """What no other row has."""
        return self.part, self.network, self.way, self.precision, self.batch_size, self.side


@dataclass(frozen=True)
class Entry:
    """A ``Subject`` in a part of the session."""

    part: str
    network: str
    way: str
    peer: bool
    precision: str
    batch_size: int
    side: int
    subject: Subject[Any]

    @property
    def key(self) -> Hashable:
        """What no other one has."""
        return self.part, self.network, self.way, self.precision, self.batch_size, self.side

    @property
    def kin(self) -> Hashable:
        """Those of a part are compared with one another."""
        return self.part

    @property
    def counted(self) -> bool:
        """Torch takes all the memory that is taken of a GPU."""
        return True

    def unavailable(self) -> str | None:
        """The status of one that cannot be had here."""
        return self.subject.unavailable()

    @contextlib.contextmanager
    def open(self, machine: Machine) -> Iterator[Called]:
        """What is called, in this process; cuDNN chooses convolutions by measuring, for all alike."""
        torch.backends.cudnn.benchmark = True
        with self.subject.open(machine) as called:
            yield called

    def unmeasured(self, status: str, *, threads: int | None = None) -> Row:
        """The row without figures."""
        return self._row(status)

    def measured(self, found: Measured, status: str) -> Row:
        """The row with its figures so far."""
        last = tail(found.seconds)
        return self._row(
            status,
            images_per_second=found.images_per_second,
            images_per_second_q1=found.images_per_second_q1,
            images_per_second_q3=found.images_per_second_q3,
            milliseconds_p50=1000 * percentile(found.seconds, 50),
            milliseconds_p99=None if last is None else 1000 * last,
            peak_memory_mb=found.peak_memory_mb,
            repeats=found.repeats,
            calls=len(found.seconds),
            rates=found.rates,
            block=found.block,
        )

    def _row(self, status: str, **figures: Any) -> Row:
        none: dict[str, Any] = dict.fromkeys(
            (
                "images_per_second",
                "images_per_second_q1",
                "images_per_second_q3",
                "milliseconds_p50",
                "milliseconds_p99",
                "peak_memory_mb",
                "block",
            )
        )
        return Row(
            part=self.part,
            network=self.network,
            way=self.way,
            peer=self.peer,
            precision=self.precision,
            batch_size=self.batch_size,
            side=self.side,
            status=status,
            top1_published=top1(self.network, self.side),
            **{**none, "repeats": 0, "calls": 0, "rates": (), **figures},
        )

    def __str__(self) -> str:
        return f"{self.network} {self.way} {self.precision} {self.batch_size} x {self.side} x {self.side}"


def top1(network: str, side: int) -> float | None:
    """Published for images of that very size, of weights that learned from ImageNet-1K alone."""
    figure = published_for(network, (side, side))
    if figure is None or figure.size != side or figure.data != "ImageNet-1K":
        return None
    return figure.top1
