"""What measuring asks of a case: how to build what is called, and which row comes of it."""

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar


@dataclass(frozen=True)
class Machine:
    """Where and how a case is measured."""

    device: str = "cpu"
    threads: int | None = None
    memory_limit: int | None = None
    """Bytes of data that a process may take."""
    warm_up_seconds: float = 0.3


@dataclass(frozen=True)
class Called:
    """What is measured."""

    call: Callable[[], object]
    """Done when it returns, on a GPU too."""
    facts: Callable[[], Mapping[str, Any]] = dict
    """What its row says beside the figures; asked for after calls. Plain data."""


@dataclass(frozen=True)
class Measured:
    """What the repeats of a case gave."""

    images_per_second: float
    """Median over the repeats."""
    images_per_second_q1: float
    images_per_second_q3: float
    rates: tuple[float, ...]
    """Images a second of each repeat."""
    seconds: tuple[float, ...]
    """Of each call of all repeats."""
    peak_memory_mb: float
    """In 10^6 bytes."""
    memory_before_mb: float
    memory_kind: str
    repeats: int
    threads: int
    block: int
    facts: Mapping[str, Any]


class AnyRow(Protocol):
    """A line of a ``results.csv``: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> Hashable:
        """Its case's."""

    @property
    def status(self) -> str:
        """As ``benchmarking.status`` has it."""


R = TypeVar("R", bound=AnyRow)
R_co = TypeVar("R_co", bound=AnyRow, covariant=True)


class Subject(Protocol[R_co]):
    """A case: plain data that goes to a process of its own, and is built there."""

    @property
    def batch_size(self) -> int:
        """Images a call."""

    @property
    def key(self) -> Hashable:
        """What no other case has."""

    @property
    def kin(self) -> Hashable:
        """What cases that are compared with one another have in common."""

    @property
    def counted(self) -> bool:
        """Whether torch counts all the memory that it takes of a GPU."""

    def unavailable(self) -> str | None:
        """The status of a case that cannot be had here."""

    def open(self, machine: Machine) -> AbstractContextManager[Called]:
        """Build what is called, in this process, and take it down in the end.

        Raises:
            UnsupportedError: If that cannot be built.
        """

    def unmeasured(self, status: str, *, threads: int | None = None) -> R_co:
        """The row of a case without figures."""

    def measured(self, found: Measured, status: str) -> R_co:
        """The row of a case with its figures so far."""


__all__ = ["AnyRow", "Called", "Machine", "Measured", "R", "Subject"]
