"""Hierarchical attention, one part at a time: what each does for accuracy.

::

    python -m studies.hat_parts --scale cpu --data imagenette-128 --out runs/hat-parts

The same recipe and seeds for all; a column of the table tells what each variant is compared with. Runs that were
interrupted go on, those that are done are not done again. The table and the plot are written after each run.
"""

import sys
from typing import Any

from studies.common.at_once import Failures
from studies.common.command_line import Options, parser, read_options, run_study
from studies.common.comparison import compare, write_rows
from studies.common.plot import draw_comparison
from studies.hat_parts.parts import SCALES, VARIANTS


def main(arguments: list[str] | None = None) -> int:
    """Train what is not trained yet, and write the table and the plot."""
    names = [variant.name for variant in VARIANTS]
    options = read_options("hat_parts", names, arguments, parser("hat_parts", __doc__))
    return run_study(lambda: _study(options))


def _study(options: Options) -> Failures:
    table = options.out / "results.csv"

    def write(rows: list[dict[str, Any]]) -> None:
        write_rows(table, rows)
        draw_comparison(rows, table.with_suffix(".png"))

    failures = compare(VARIANTS, SCALES[options.scale], options, after_each=write)
    print(f"{table} and {table.with_suffix('.png')}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
