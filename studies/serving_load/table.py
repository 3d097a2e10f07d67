"""The table of the document, from the CSV.

::

    python -m studies.serving_load.table studies/results/serving_load.csv
"""

import sys
from pathlib import Path

from studies.common.table import read_table

_COLUMNS = {
    "answered_per_second": ("answered", lambda value: f"{value:.0f}"),
    "share_of_offered": ("of those sent", lambda value: f"{100 * value:.0f} %"),
    "share_of_engine": ("of the engine's", lambda value: f"{100 * value:.0f} %"),
    "p50_ms": ("p50, ms", lambda value: f"{value:.0f}"),
    "p99_ms": ("p99, ms", lambda value: f"{value:.0f}"),
    "p99_batches": ("p99, batches", lambda value: f"{value:.2f}"),
}


def markdown(path: Path) -> str:
    """Its rows, as the document shows them."""
    names = ["", *(name for name, _ in _COLUMNS.values()), "met"]
    lines = [names, ["---", *["--:"] * len(_COLUMNS), "---"]]
    for row in read_table(path):
        cells = ["" if row[name] in ("", "nan") else shown(float(row[name])) for name, (_, shown) in _COLUMNS.items()]
        lines.append([row["phase"], *cells, row["met"]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(markdown(Path(sys.argv[1])))
