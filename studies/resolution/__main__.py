"""Six designs of attention, and carriers at two levels, from 224 pixels to 2048 and beyond: time, memory, exponents.

::

    python -m studies.resolution --scale cpu --out runs/resolution

The same network with each design in stage 2, and with two levels of carriers, measured in turns. As in training
(``torch-eager``), all; made ready for each size (``torch-folded``), those that can be as a whole: position biases are
then computed beforehand, as one would deploy it. Full attention keeps a number for each pair of tokens, head and block,
and where memory does not suffice its row says so. Larger images yet are counted and not run.

With ``--runs``, the networks that ``studies.attention_designs`` left there are judged on images of many sizes, on the
validation images of ``--data``.

The tables and the plot are written after each size. A command that was interrupted goes on when it is given again:
what it measured is not measured again.
"""

import argparse
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
from studies.common.table import read_table, write_table
from studies.resolution import formula
from studies.resolution.designs import DESIGNS, FOLDED, FORMULA, network_options
from studies.resolution.fit import fits
from studies.resolution.judge import judge
from studies.resolution.plot import draw

SIDES = (224, 448, 896, 1344, 2048)
COUNTED = (2560, 4096, 8192)
"""Sides for which multiply-adds are counted and nothing is run."""


@dataclass(frozen=True)
class Scale:
    """What is measured."""

    sides: tuple[int, ...]
    batch_size: int
    precision: Precision
    plan: Plan
    counted: tuple[int, ...] = COUNTED
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of fastervit_0's constructor."""


ENGINES = {"torch-folded": FOLDED, "torch-eager": tuple(DESIGNS)}
FITS = "fits.csv"
POCKET = {"dim": 16, "stem_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 4)}
SCALES: dict[str, Scale] = {
    "smoke": Scale((224, 448), 1, "fp32", Plan(repeats=2, seconds=0.1, tail=False), (), POCKET),
    "cpu": Scale(SIDES, 1, "fp32", Plan(repeats=3, seconds=1.0, tail=False)),
    "gpu": Scale(SIDES, 8, "bf16", Plan(repeats=7, seconds=1.0, tail=False)),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure all, and write the table and the plot."""
    parser = argparse.ArgumentParser(prog="python -m studies.resolution", description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=sorted(SCALES), required=True, help="size of the network, sizes of images")
    parser.add_argument("--out", type=Path, required=True, help="folder of the table and the plot")
    parser.add_argument("--threads", type=int, help="of the processor (default: as many as torch uses)")
    parser.add_argument("--data", type=Path, help="Imagenette, with val/, to judge the networks of --runs on")
    parser.add_argument("--runs", type=Path, help="what studies.attention_designs left")
    options = parser.parse_args(arguments)
    if (options.runs is None) != (options.data is None):
        parser.error("--runs and --data go together: networks, and the images to judge them on")
    scale = SCALES[options.scale]
    device = "cuda" if options.scale == "gpu" else "cpu"
    free = available_bytes() if device == "cpu" else None
    machine = Machine(device, options.threads, memory_limit=None if free is None else int(0.85 * free))
    facts = {
        **environment.hardware(gpus=device != "cpu"),
        **environment.versions(("torch", "timm")),
        "openfastervit": openfastervit.__version__,
        "command": f"python -m studies.resolution --scale {options.scale} --out OUT"
        + (f" --threads {options.threads}" if options.threads else ""),
        "scale": options.scale,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "results.csv"
    lines = _measured(table, facts)
    for side in scale.sides:
        print(f"== {side} x {side}", file=sys.stderr, flush=True)
        for engine, designs in ENGINES.items():  # one after the other: full attention fills the memory on each
            if {(str(side), engine, design) for design in designs} <= {
                (str(line["side"]), line["engine"], line["attention"]) for line in lines
            }:
                continue
            cases = [_case(design, side, scale, engine) for design in designs]
            by_design = {row.model: row for rows in measure(cases, machine, scale.plan) for row in rows}
            lines += [{**_line(by_design[case.model], case), **facts} for case in cases]
            _write(options.out, lines)
    lines += [
        {**_counts(_case(design, side, scale, "")), "status": "counted", **facts}
        for side in scale.counted
        for design in DESIGNS
    ]
    _write(options.out, lines)
    print(f"{table}, {table.with_name(FITS)} and {table.with_suffix('.png')}")
    if options.runs is not None:
        facts["command"] += " --runs RUNS --data DATA"
        print(judge(options.runs, options.data / "val", options.out, facts, smoke=options.scale == "smoke"))
    return 0


def _measured(table: Path, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What this command measured before it was interrupted, with these versions on this hardware."""
    if not table.exists():
        return []
    rows = [row for row in read_table(table) if row["engine"]]
    return [dict(row) for row in rows if all(row.get(name) == str(value) for name, value in facts.items())]


def _write(out: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    table = out / "results.csv"
    write_table(table, lines)
    told = ("processor", "cores", "gpus", "torch", "command", "scale")
    facts = {name: lines[0][name] for name in told if name in lines[0]}
    write_table(out / FITS, [{**row, **facts} for row in fits(lines)])
    draw(lines, table.with_suffix(".png"))


def _case(kind: str, side: int, scale: Scale, engine: str) -> Case:
    options = {**scale.options, **network_options(kind, side)}
    return Case(kind, "fastervit_0", False, engine, scale.precision, scale.batch_size, side, side, options)


def _counts(case: Case) -> dict[str, Any]:
    """What is known of a case without running it: counted, and from the formula where there is one."""
    with torch.device("meta"):
        model = openfastervit.create_model(case.architecture, **case.options)
    assert isinstance(model, FasterViT)
    pixels = case.height * case.width
    counted = formula.counted(model, case.height, case.width)
    found: dict[str, Any] = {
        "attention": case.model,
        "side": case.height,
        "engine": case.engine,
        "precision": case.precision,
        "batch_size": case.batch_size,
        "multiply_adds": counted,
        "multiply_adds_per_pixel": round(counted / pixels),
    }
    if case.model in FORMULA:
        cost = formula.network(model, case.height, case.width)
        found |= {
            "formula_multiply_adds": cost.multiply_adds,
            "formula_multiply_adds_per_pixel": round(cost.multiply_adds / pixels),
            "formula_attention_multiply_adds": cost.attention,
            "formula_bias_mb": _round(cost.bias_bytes / 1e6),
        }
    return found


def _line(row: Row, case: Case) -> dict[str, Any]:
    """A line of the table: what was measured, what was counted, what the formula says."""
    megapixels = case.height * case.width / 1e6
    milliseconds = None if row.images_per_second is None else 1000 / row.images_per_second
    memory = None if row.peak_memory_mb is None else row.peak_memory_mb - (row.memory_before_mb or 0.0)
    return {
        **_counts(case),
        "ms_per_image": _round(milliseconds),
        "ms_per_megapixel": _round(None if milliseconds is None else milliseconds / megapixels),
        "images_per_second": _round(row.images_per_second),
        "images_per_second_q1": _round(row.images_per_second_q1),
        "images_per_second_q3": _round(row.images_per_second_q3),
        "memory_mb": _round(memory),
        "memory_mb_per_megapixel": _round(None if memory is None else memory / megapixels / case.batch_size),
        "repeats": row.repeats,
        "threads": "" if row.threads is None else row.threads,
        "memory_kind": row.memory_kind,
        "status": row.status,
    }


def _round(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}" if value < 1e5 else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(main())
