"""Six designs of attention in one network: accuracy against measured throughput.

::

    python -m studies.attention_designs --scale cpu --data imagenette-128 --out runs/attention-designs

The same stem, widths, depths and MLPs, another token mixer in stage 2; the same recipe and seeds. The paper reports, of
FasterViT-0 on ImageNet-1K and an A100: its own hierarchical attention 82.1 % at 5802 images a second, EdgeViT's 81.0 %
at 5928, Twins' 80.8 % at 6896.

Runs that were interrupted go on, those that are done are not done again. Speed is measured when all are trained and
kept in ``throughput.csv``: remove it to measure again.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from studies.attention_designs.designs import DESIGNS, SCALES, VARIANTS
from studies.attention_designs.plot import draw
from studies.attention_designs.throughput import speeds
from studies.common.at_once import Failures
from studies.common.command_line import Options, parser, read_options, run_study
from studies.common.comparison import compare, rows_of, write_rows


def main(arguments: list[str] | None = None) -> int:
    """Train what is not trained yet, measure, and write the table and the plot."""
    options = read_options("attention_designs", DESIGNS, arguments, parser("attention_designs", __doc__))
    return run_study(lambda: _study(options))


def _study(options: Options) -> Failures:
    scale = SCALES[options.scale]
    table = options.out / "results.csv"
    measured: dict[str, dict[str, Any]] = {}

    def write(rows: list[dict[str, Any]]) -> None:
        rows = [{**row, **measured.get(row["variant"], {})} for row in rows]
        write_rows(table, rows)
        draw(rows, table.with_suffix(".png"))

    failures = compare(VARIANTS, scale, options, after_each=write)
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    trained = scale.settings["model_options"]
    measured = speeds(
        options.scale, trained, Path(options.out) / "throughput.csv", device=device, threads=options.threads
    )
    write(rows_of(VARIANTS, scale, options, failures))
    print(f"{table} and {table.with_suffix('.png')}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
