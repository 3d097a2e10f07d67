"""The table of load and faults is that of the committed results."""

import csv

from tests.conftest import REPOSITORY

RESULTS = REPOSITORY / "studies" / "results" / "serving_load.csv"
DOCUMENT = REPOSITORY / "docs" / "serving.md"
MARKER = "<!-- studies/results/serving_load.csv -->"
COLUMNS = ("answered_per_second", "share_of_offered", "share_of_engine", "p50_ms", "p99_ms", "p99_batches")


def told() -> str:
    _, marker, after = DOCUMENT.read_text(encoding="utf-8").partition(MARKER)
    assert marker
    return after.lstrip().split("\n\n")[0]


def cell(name: str, value: str) -> str:
    if value in ("", "nan"):
        return ""
    number = float(value)
    if name.startswith("share"):
        return f"{100 * number:.0f} %"
    return f"{number:.2f}" if name == "p99_batches" else f"{number:.0f}"


def test_the_table() -> None:
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in told().splitlines()[2:]]
    with RESULTS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert lines == [[row["phase"], *(cell(name, row[name]) for name in COLUMNS), row["met"]] for row in rows]


def test_the_run_was_as_long_as_was_promised() -> None:
    with RESULTS.open(newline="", encoding="utf-8") as file:
        rows = {row["phase"]: row for row in csv.DictReader(file)}
    assert float(rows["4 times the engine's rate"]["seconds"]) >= 300
    assert len(rows) == 9
    assert not [row["met"] for row in rows.values() if row["met"] not in ("", "yes")]
