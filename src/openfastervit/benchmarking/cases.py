"""What is measured: a network on an engine at one precision, batch and size; and the row that comes of it."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from openfastervit.benchmarking.engine_call import open_engine
from openfastervit.benchmarking.published import published_for
from openfastervit.benchmarking.status import OK, status_of
from openfastervit.benchmarking.subject import AnyRow, Called, Machine, Measured
from openfastervit.benchmarking.timing import percentile, tail
from openfastervit.inference.engines import ENGINES, EngineError, Precision
from openfastervit.inference.engines.engine import require

Key = tuple[str, str, str, int, int, int]


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    model: str
    """As asked for."""
    architecture: str
    """Its name here, or timm's."""
    peer: bool
    """Whether it is timm's."""
    engine: str
    precision: Precision
    batch_size: int
    height: int
    width: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Of the network's constructor, where it is one of ours."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def key(self) -> Key:
        """What no other case has."""
        return self.model, self.engine, self.precision, self.batch_size, self.height, self.width

    @property
    def kin(self) -> tuple[int, str]:
        """What is compared with one another has this in common."""
        return self.batch_size, self.precision

    @property
    def counted(self) -> bool:
        """Whether torch counts all the memory that it takes of a GPU."""
        return self.engine.startswith("torch")

    def unavailable(self) -> str | None:
        """The status of a case whose engine cannot be had here."""
        kind = ENGINES[self.engine]
        try:
            require(self.engine, kind.extra, kind.modules)
        except EngineError as error:
            return status_of(error)
        if self.precision not in kind.precisions:
            return f"unavailable: {self.engine} has {', '.join(kind.precisions)}, not {self.precision}"
        return None

    def open(self, machine: Machine) -> AbstractContextManager[Called]:
        """The network on its engine, in this process."""
        return open_engine(self, machine)

    def unmeasured(self, status: str, *, threads: int | None = None) -> "Row":
        """The row without figures."""
        return empty_row(self, status, threads=threads)

    def measured(self, found: Measured, status: str) -> "Row":
        """The row with its figures so far."""
        last = tail(found.seconds)
        return replace(
            empty_row(self, status, threads=found.threads),
            images_per_second=found.images_per_second,
            images_per_second_q1=found.images_per_second_q1,
            images_per_second_q3=found.images_per_second_q3,
            latency_ms_p50=1000 * percentile(found.seconds, 50),
            latency_ms_p99=None if last is None else 1000 * last,
            peak_memory_mb=found.peak_memory_mb,
            memory_before_mb=found.memory_before_mb,
            memory_kind=found.memory_kind,
            repeats=found.repeats,
            calls=len(found.seconds),
            block=found.block,
        )

    def __str__(self) -> str:
        return f"{self.model} {self.engine} {self.precision} {self.batch_size} x {self.height} x {self.width}"


@dataclass(frozen=True)
class Row:
    """A line of ``results.csv``: medians over the repeats. None where nothing was measured."""

    model: str
    engine: str
    precision: str
    batch_size: int
    height: int
    width: int
    images_per_second: float | None
    latency_ms_p50: float | None
    """Of a call, over all calls of all repeats."""
    latency_ms_p99: float | None
    """Only where there were at least 100 calls."""
    peak_memory_mb: float | None
    """In 10^6 bytes."""
    top1_published: float | None
    """In percent; at the size ``top1_size``, which may be another than the row's."""
    status: str
    images_per_second_q1: float | None
    images_per_second_q3: float | None
    repeats: int
    calls: int
    """Of all repeats."""
    threads: int | None
    memory_kind: str
    """What ``peak_memory_mb`` is."""
    memory_before_mb: float | None
    """What was held before there was a network, of the same kind."""
    block: int | None
    """Rows of one block were measured in turns, the others before or after."""
    peer: bool
    architecture: str
    top1_size: int | None
    top1_weights: str
    top1_data: str
    top1_source: str
    not_faster_than: str = ""
    """Networks of equal or better published top-1 that this one is not faster than; of one engine, precision, batch."""

    @property
    def key(self) -> Key:
        """Its case's."""
        return self.model, self.engine, self.precision, self.batch_size, self.height, self.width

    @property
    def measured(self) -> bool:
        """Whether it was measured whole."""
        return self.status == OK

    @property
    def comparable(self) -> bool:
        """Whether its published top-1 was measured at the size that its speed was measured at."""
        return self.measured and self.top1_published is not None and self.top1_size == self.height == self.width


COLUMNS: tuple[str, ...] = tuple(column.name for column in fields(Row))
"""Of ``results.csv``."""


def empty_row(case: Case, status: str, *, threads: int | None = None) -> Row:
    """The row of a case that was not measured."""
    published = published_for(case.architecture, case.size)
    return Row(
        model=case.model,
        engine=case.engine,
        precision=case.precision,
        batch_size=case.batch_size,
        height=case.height,
        width=case.width,
        images_per_second=None,
        latency_ms_p50=None,
        latency_ms_p99=None,
        peak_memory_mb=None,
        top1_published=None if published is None else published.top1,
        status=status,
        images_per_second_q1=None,
        images_per_second_q3=None,
        repeats=0,
        calls=0,
        threads=threads,
        memory_kind="",
        memory_before_mb=None,
        block=None,
        peer=case.peer,
        architecture=case.architecture,
        top1_size=None if published is None else published.size,
        top1_weights="" if published is None else published.tag,
        top1_data="" if published is None else published.data,
        top1_source="" if published is None else published.source,
    )


def to_csv(rows: Iterable[AnyRow], columns: Sequence[str] = COLUMNS) -> str:
    """The rows as ``results.csv`` has them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in asdict(row).items()})
    return text.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        digits = 0 if value == 0 else max(0, 5 - math.floor(math.log10(abs(value))) - 1)
        return f"{value:.{digits}f}"
    return str(value)


def plan(
    networks: Sequence[tuple[str, str, bool]],
    engines: Sequence[str],
    precisions: Sequence[Precision],
    batch_sizes: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    *,
    published_sizes: bool = False,
) -> list[Case]:
    """All cases, those that will be compared beside one another: by batch, precision, engine, size, network.

    Args:
        networks: (name as asked for, architecture, whether a peer).
        engines: Names of engines.
        precisions: Of the products.
        batch_sizes: Images a call.
        sizes: Heights and widths.
        published_sizes: Measure each network also at the size, nearest to the first of ``sizes``, that its top-1 was
            published at.
    """
    cases = []
    for batch_size in batch_sizes:
        for precision in precisions:
            for engine in engines:
                wanted = [(size, network) for size in sizes for network in networks]
                if published_sizes:
                    wanted += _own_sizes(networks, sizes)
                for (height, width), (name, architecture, peer) in wanted:
                    cases.append(Case(name, architecture, peer, engine, precision, batch_size, height, width))
    return cases


def _own_sizes(
    networks: Sequence[tuple[str, str, bool]], sizes: Sequence[tuple[int, int]]
) -> list[tuple[tuple[int, int], tuple[str, str, bool]]]:
    own = []
    for network in networks:
        published = published_for(network[1], sizes[0])
        if published is not None and (published.size, published.size) not in sizes:
            own.append(((published.size, published.size), network))
    return own
