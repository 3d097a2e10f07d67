"""The second step: parts to rows. Runs on actors, each with an engine that it builds once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from openfastervit.inference.cluster.checkpoint import Network
from openfastervit.inference.engines import Precision
from openfastervit.inference.journal import failure_line
from openfastervit.inference.output import columns, rounded
from openfastervit.inference.parquet import row_schema

ROWS = pa.schema(
    [
        ("shard", pa.int64()),
        ("part", pa.int64()),
        ("parts", pa.int64()),
        ("images", pa.int64()),
        ("failed", pa.int64()),  # of these
        ("rows", pa.binary()),  # a table in Arrow's format; null where there are none
        ("unreadable", pa.binary()),  # lines of JSON
        ("error", pa.string()),
        ("wrong", pa.string()),  # why no shard can be predicted
    ]
)
"""What the step gives, a row for each part."""


@dataclass(frozen=True)
class EngineSettings:
    """What an actor builds."""

    device: str
    engine: str
    precision: Precision
    batch_size: int
    topk: int


class Predict:
    """An engine at work, from tables of ``decoding.PARTS`` to tables of ``ROWS``.

    What is wrong with the engine is told in rows, in the words of the local command: an exception would arrive inside
    of two others of Ray's.

    Args:
        network: A reference to a ``Network`` in Ray's object store.
        settings: What to build of it.
    """

    def __init__(self, network: Any, settings: EngineSettings) -> None:
        import ray

        self._wrong: str | None = None
        self._topk = settings.topk
        if settings.device == "cpu":
            torch.set_num_threads(1)  # there are as many engines as processors
        content: Network = ray.get(network)
        try:
            self._predictor = content.predictor(
                device=settings.device,
                engine=settings.engine,
                precision=settings.precision,
                batch_size=settings.batch_size,
            )
        except ValueError as error:
            self._wrong = str(error)

    def __call__(self, parts: pa.Table) -> pa.Table:
        """The rows of a block of parts."""
        return pa.Table.from_pylist([self._rows(part) for part in parts.to_pylist()], ROWS)

    def _rows(self, part: dict[str, Any]) -> dict[str, Any]:
        names, reasons = part["images"] or [], part["reasons"] or []
        row = {key: part[key] for key in ("shard", "part", "parts", "error")} | {"images": len(names), "wrong": None}
        failures = [(name, reason) for name, reason in zip(names, reasons, strict=True) if reason is not None]
        row["failed"] = len(failures)
        row["unreadable"] = b"".join(failure_line(name, reason) for name, reason in failures)
        row["rows"] = None
        if part["pixels"] is not None and self._wrong is None:
            pixels = torch.frombuffer(bytearray(part["pixels"]), dtype=torch.uint8).view(part["shape"])
            readable = [name for name, reason in zip(names, reasons, strict=True) if reason is None]
            try:
                row["rows"] = to_bytes(self._table(readable, pixels))
            except ValueError as error:
                self._wrong = str(error)
        row["wrong"] = self._wrong
        return row

    def _table(self, images: Sequence[str], pixels: torch.Tensor) -> pa.Table:
        """The columns of the local command's Parquet files."""
        topk = min(self._topk, len(self._predictor.classes))
        found = self._predictor._classify(list(pixels), topk)
        cells: list[Sequence[Any]] = [images]
        for rank in range(topk):
            indices = [indices[rank] for indices, _ in found]
            cells += [[self._predictor.classes[index] for index in indices], indices]
            cells.append([rounded(scores[rank]) for _, scores in found])
        return pa.table(cells, schema=row_schema(columns(topk)))


def to_bytes(table: pa.Table) -> bytes:
    """A table in Arrow's format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_bytes(content: bytes) -> pa.Table:
    """A table that ``to_bytes`` wrote."""
    with pa.ipc.open_stream(content) as reader:
        return reader.read_all()
