"""Rows for tests that measure nothing."""

from dataclasses import replace
from typing import Any

from openfastervit.benchmarking.cases import Case, Row, empty_row
from openfastervit.benchmarking.peers import resolve_peer


def row(model: str = "fastervit_0", speed: float = 100.0, *, spread: float = 0.0, **changes: Any) -> Row:
    """A measured row; with its published top-1, unless ``changes`` say otherwise."""
    peer = not model.startswith("fastervit")
    engine, precision = changes.pop("engine", "torch-eager"), changes.pop("precision", "fp32")
    batch_size, side = changes.pop("batch_size", 8), changes.pop("side", 224)
    case = Case(model, resolve_peer(model) if peer else model, peer, engine, precision, batch_size, side, side)
    measured = replace(
        empty_row(case, "ok"),
        images_per_second=speed,
        images_per_second_q1=speed * (1 - spread),
        images_per_second_q3=speed * (1 + spread),
        latency_ms_p50=1000 * batch_size / speed,
        peak_memory_mb=500.0,
        memory_before_mb=300.0,
        memory_kind="process",
        repeats=5,
        calls=50,
        threads=1,
        block=1,
    )
    return replace(measured, **changes)
