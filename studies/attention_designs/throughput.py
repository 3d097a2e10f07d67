"""How fast the designs run: all in turns, so that the machine's drift meets all alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openfastervit.benchmarking.cases import Case, Row
from openfastervit.benchmarking.measure import Plan, measure
from openfastervit.benchmarking.worker import Machine
from openfastervit.inference.engines import Precision
from studies.attention_designs.designs import DESIGNS
from studies.common.table import read_table, write_table

ENGINE = "torch-eager"
"""The network as it was trained: nothing is folded or compiled, for any of them."""


@dataclass(frozen=True)
class Speed:
    """What is measured at a scale."""

    precision: Precision
    batch_size: int
    plan: Plan
    released: Mapping[str, Any]
    """Options of ``fastervit_0`` at 224 pixels, measured without training; none for as released."""


SPEEDS: Mapping[str, Speed] = {
    "smoke": Speed(
        "fp32",
        1,
        Plan(repeats=2, seconds=0.02, tail=False),
        {"dim": 8, "stem_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2]},
    ),
    "cpu": Speed("fp32", 8, Plan(repeats=9, seconds=1.0, tail=False), {}),
    "gpu": Speed("fp16", 256, Plan(repeats=9, seconds=1.0, tail=False), {}),
}


def speeds(scale: str, trained: Mapping[str, Any], path: Path, *, device: str, threads: int | None) -> dict[str, dict]:
    """Columns of each design: images a second, their quartiles, multiply-adds.

    Args:
        scale: Its name.
        trained: Options of the network that is trained, but for the design.
        path: A CSV where they are kept; what is measured there is not measured again.
        device: cpu or cuda.
        threads: Of the processor; None for as many as torch uses.
    """
    if not path.exists():
        speed = SPEEDS[scale]
        machine = Machine(device, threads)
        found: dict[str, Row] = {}
        cases = [
            Case(f"{size}/{design}", "fastervit_0", False, ENGINE, speed.precision, speed.batch_size, side, side, given)
            for size, side, options in (("trained", trained["img_size"], trained), ("released", 224, speed.released))
            for design in DESIGNS
            for given in [{**options, "attention": design}]
        ]
        for rows in measure(cases, machine, speed.plan):
            found |= {row.model: row for row in rows}
        write_table(path, [_columns(design, found) for design in DESIGNS])
    return {row.pop("variant"): row for row in read_table(path)}


def _columns(design: str, found: Mapping[str, Row]) -> dict[str, Any]:
    columns: dict[str, Any] = {"variant": design}
    for prefix, size in (("", "trained"), ("fastervit_0_", "released")):
        row = found[f"{size}/{design}"]
        for name in ("images_per_second", "images_per_second_q1", "images_per_second_q3"):
            columns[f"{prefix}{name}"] = "" if getattr(row, name) is None else f"{getattr(row, name):.5g}"
        columns[f"{prefix}measured"] = row.status
    row = found[f"trained/{design}"]
    return columns | {
        "engine": row.engine,
        "speed_precision": row.precision,
        "speed_batch_size": row.batch_size,
        "repeats": row.repeats,
        "threads": row.threads,
    }
