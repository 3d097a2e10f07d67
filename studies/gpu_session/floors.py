"""The rows of ``floors.csv``: what networks would take at the ceilings, by stage."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from studies.gpu_session.floor import StageFloor, floor, products_of

ALL = "all"
"""The stage of the row for the whole network."""


@dataclass(frozen=True)
class Counted:
    """A network at a size, and the ceilings where they are known."""

    network: str
    side: int
    batch_size: int
    flop_per_second: float | None
    bytes_per_second: float | None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


def label(counted: Counted) -> dict[str, Any]:
    """What names its rows."""
    return {"network": counted.network, "side": counted.side, "batch_size": counted.batch_size}


def make(counted: Counted, device: str) -> list[dict[str, Any]]:
    """A row for each stage, and one for all of them. Nothing of it is computed on the device.

    Raises:
        ValueError: If the ceilings are not known.
    """
    if counted.flop_per_second is None or counted.bytes_per_second is None:
        raise ValueError("the ceilings were not measured")
    stages = floor(
        products_of(counted.network, counted.side, counted.batch_size, counted.options),
        flop_per_second=counted.flop_per_second,
        bytes_per_second=counted.bytes_per_second,
    )
    return [{**label(counted), **asdict(stage), "status": "counted"} for stage in [*stages, _all(stages)]]


def _all(stages: list[StageFloor]) -> StageFloor:
    names = ("products", "multiply_adds", "bytes", "compute_ms", "memory_ms", "floor_ms")
    return StageFloor(stage=ALL, **{name: sum(getattr(stage, name) for stage in stages) for name in names})
