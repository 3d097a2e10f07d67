"""Hierarchical, windowed and full attention from 224 to 2048 pixels: time, memory, multiply-adds.

::

    python -m studies.resolution --scale cpu --out runs/resolution

The same network thrice, made ready for each size and measured in turns: as it is; without carriers; and without
carriers with windows as large as the map. Position biases are computed beforehand, as one would deploy it; full
attention then keeps a number for each pair of tokens, head and block, and where memory does not suffice its row says
so. The table and the plot are written after each size.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import openfastervit
from openfastervit import FasterViT, environment
from openfastervit.benchmarking.cases import Case, Row
from openfastervit.benchmarking.measure import Plan, measure
from openfastervit.benchmarking.memory import available_bytes
from openfastervit.benchmarking.worker import Machine
from openfastervit.inference.engines import Precision
from studies.resolution import formula
from studies.resolution.plot import draw

KINDS = ("hierarchical", "windowed", "full")
SIDES = (224, 448, 672, 896, 1120, 1344, 1568, 1792, 2048)


@dataclass(frozen=True)
class Scale:
    """What is measured."""

    sides: tuple[int, ...]
    batch_size: int
    precision: Precision
    plan: Plan
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of fastervit_0's constructor."""


POCKET = {"dim": 16, "stem_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 4)}
SCALES: dict[str, Scale] = {
    "smoke": Scale((224, 448), 1, "fp32", Plan(repeats=2, seconds=0.1, tail=False), POCKET),
    "cpu": Scale(SIDES, 1, "fp32", Plan(repeats=5, seconds=1.0, tail=False)),
    "gpu": Scale(SIDES, 8, "bf16", Plan(repeats=7, seconds=1.0, tail=False)),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure all, and write the table and the plot."""
    parser = argparse.ArgumentParser(prog="python -m studies.resolution", description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=sorted(SCALES), required=True, help="size of the network, sizes of images")
    parser.add_argument("--out", type=Path, required=True, help="folder of the table and the plot")
    parser.add_argument("--threads", type=int, help="of the processor (default: as many as torch uses)")
    parser.add_argument("--engine", default="torch-folded", help="that runs the networks (default: torch-folded)")
    options = parser.parse_args(arguments)
    scale = SCALES[options.scale]
    device = "cuda" if options.scale == "gpu" else "cpu"
    free = available_bytes() if device == "cpu" else None
    machine = Machine(device, options.threads, memory_limit=None if free is None else int(0.85 * free))
    facts = {
        **environment.hardware(gpus=device != "cpu"),
        **environment.versions(("torch", "timm")),
        "openfastervit": openfastervit.__version__,
        "command": f"python -m studies.resolution --scale {options.scale} --out OUT"
        + (f" --threads {options.threads}" if options.threads else "")
        + (f" --engine {options.engine}" if options.engine != "torch-folded" else ""),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "results.csv"
    lines: list[dict[str, Any]] = []
    for side in scale.sides:
        print(f"== {side} x {side}", file=sys.stderr, flush=True)
        cases = [_case(kind, side, scale, options.engine) for kind in KINDS]
        by_kind = {row.model: row for rows in measure(cases, machine, scale.plan) for row in rows}
        lines += [{**_line(by_kind[case.model], case), **facts} for case in cases]
        _write(table, lines)
        draw(lines, table.with_suffix(".png"))
    print(f"{table} and {table.with_suffix('.png')}")
    return 0


def network_options(kind: str, side: int) -> dict[str, Any]:
    """Of the network's constructor, for one kind of attention at one size."""
    if kind == "hierarchical":
        return {"img_size": side}
    windows = (7, 7, 7, 7) if kind == "windowed" else (7, 7, -(-side // 16), -(-side // 32))
    return {"img_size": side, "hierarchical": (False,) * 4, "window_sizes": windows}


def _case(kind: str, side: int, scale: Scale, engine: str) -> Case:
    options = {**scale.options, **network_options(kind, side)}
    return Case(kind, "fastervit_0", False, engine, scale.precision, scale.batch_size, side, side, options)


def _line(row: Row, case: Case) -> dict[str, Any]:
    """A line of the table: what was measured, what was counted, what the formula says."""
    with torch.device("meta"):
        model = openfastervit.create_model(case.architecture, **case.options)
    assert isinstance(model, FasterViT)
    cost = formula.network(model, case.height, case.width)
    megapixels = case.height * case.width / 1e6
    milliseconds = None if row.images_per_second is None else 1000 / row.images_per_second
    memory = None if row.peak_memory_mb is None else row.peak_memory_mb - (row.memory_before_mb or 0.0)
    counted = formula.counted(model, case.height, case.width)
    return {
        "attention": row.model,
        "side": case.height,
        "engine": case.engine,
        "precision": case.precision,
        "batch_size": case.batch_size,
        "ms_per_image": _round(milliseconds),
        "ms_per_megapixel": _round(None if milliseconds is None else milliseconds / megapixels),
        "images_per_second": _round(row.images_per_second),
        "images_per_second_q1": _round(row.images_per_second_q1),
        "images_per_second_q3": _round(row.images_per_second_q3),
        "memory_mb": _round(memory),
        "memory_mb_per_megapixel": _round(None if memory is None else memory / megapixels / case.batch_size),
        "multiply_adds": counted,
        "multiply_adds_per_pixel": round(counted / megapixels / 1e6),
        "formula_multiply_adds": cost.multiply_adds,
        "formula_multiply_adds_per_pixel": round(cost.multiply_adds / megapixels / 1e6),
        "formula_attention_multiply_adds": cost.attention,
        "formula_bias_mb": _round(cost.bias_bytes / 1e6),
        "repeats": row.repeats,
        "threads": "" if row.threads is None else row.threads,
        "memory_kind": row.memory_kind,
        "status": row.status,
    }


def _round(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}" if value < 1e5 else f"{value:.0f}"


def _write(table: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """The table, replaced whole."""
    part = table.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    part.replace(table)


if __name__ == "__main__":
    sys.exit(main())
