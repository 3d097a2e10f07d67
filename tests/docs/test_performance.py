"""The figures of docs/performance.md are those of the committed results, and what it concludes follows from them."""

import csv
import re

import pytest

from studies.gpu_session.floor import floor, products_of
from tests.conftest import REPOSITORY

RESULTS = REPOSITORY / "studies" / "results"
TEXT = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")


def table_after(marker: str) -> list[list[str]]:
    lines = TEXT.partition(f"<!-- {marker} -->")[2].lstrip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def rows_of(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def measured() -> list[dict[str, str]]:
    return rows_of("cpu_performance.csv")


def ceiling(measured: list[dict[str, str]], precision: str) -> float:
    return next(
        float(row["gflop_per_second"])
        for row in measured
        if row["what"] == "ceiling: products" and row["precision"] == precision
    )


def test_ceilings(measured: list[dict[str, str]]) -> None:
    told = table_after("ceilings: studies/results/cpu_performance.csv")
    expected = [
        [f"products, {row['precision']}", f"{row['gflop_per_second']} GFLOP/s"]
        if row["gflop_per_second"]
        else ["copying", f"{row['gbyte_per_second']} GB/s"]
        for row in measured
        if row["what"].startswith("ceiling")
    ]
    assert told == expected


def test_steps(measured: list[dict[str, str]]) -> None:
    told = table_after("steps: studies/results/cpu_performance.csv, batch 16")
    expected = [
        [
            row["what"],
            row["precision"],
            row["images_per_second"],
            row["ratio"],
            f"{row['ratio_q1']} to {row['ratio_q3']}",
            f"{100 * float(row['share_of_ceiling']):.0f} %" if row["share_of_ceiling"] else "",
        ]
        for row in measured
        if row["batch"] == "16"
    ]
    assert told == expected
    told = table_after("steps: studies/results/cpu_performance.csv, batch 1")
    columns = ("what", "precision", "latency_ms", "images_per_second", "ratio")
    assert told == [[row[column] for column in columns] for row in measured if row["batch"] == "1"]


def test_the_floor_follows(measured: list[dict[str, str]]) -> None:
    """Images a second at the ceilings, and as ratios: what the text says of the goals."""
    engine = next(row for row in measured if "(openvino)" in row["what"] and row["batch"] == "16")
    operations = float(engine["gflop_per_second"]) / float(engine["images_per_second"])
    assert f"takes {operations:.1f} GFLOP an image" in TEXT
    floors = [ceiling(measured, precision) / operations for precision in ("fp32", "bf16", "int8")]
    said = re.search(r"the floor is (\d+)\s+images a second in float32, (\d+) in bfloat16 and (\d+) in int8", TEXT)
    assert said is not None
    assert [int(number) for number in said.groups()] == [round(floor) for floor in floors]
    base = float(next(row for row in measured if row["batch"] == "16")["images_per_second"])
    ratios = re.search(r"the floor itself is at ([\d.]+), ([\d.]+) and ([\d.]+)", TEXT)
    assert ratios is not None
    assert [float(ratio) for ratio in ratios.groups()] == pytest.approx([floor / base for floor in floors], abs=0.06)


@pytest.mark.parametrize(
    ("file", "precision", "most"), [("quantisation", "int8", 0.5), ("quantisation_fp8", "fp8", 0.3)]
)
def test_accuracy(file: str, precision: str, most: float) -> None:
    told = table_after(f"accuracy: studies/results/{file}.csv")
    rows = rows_of(f"{file}.csv")
    columns = ("engine", "precision", "top1", "difference_points")
    assert told == [[*(row[column] for column in columns), f"{100 * float(row['agreement']):.1f} %"] for row in rows]
    assert any(row["precision"] == precision for row in rows)
    assert all(float(row["difference_points"]) >= -most for row in rows), f"{precision} loses more than was promised"


def test_the_floor_on_a_gpu() -> None:
    """Counted by the session's own count, whose parts are tested against counts by hand."""
    told = table_after("floor: fastervit_0, 224, batch 128")
    stages = floor(products_of("fastervit_0", 224, 128), flop_per_second=1e15, bytes_per_second=4e12)
    assert told == [
        [
            stage.stage,
            str(stage.products),
            f"{2 * stage.multiply_adds / 1e9:.0f}",
            f"{stage.bytes / 1e6:.0f}",
            f"{2 * stage.multiply_adds / stage.bytes:.0f}",
        ]
        for stage in stages
    ]


def test_nothing_is_told_of_a_gpu_before_it_is_measured() -> None:
    """The table's last column, until the session's tables are committed."""
    if not any(RESULTS.glob("gpu*/goals.csv")):
        section = TEXT.partition("# On a GPU")[2].partition("The floor follows")[0]
        rows = [line.split("|")[3].strip() for line in section.splitlines() if line.startswith("|")][2:]
        assert len(rows) == 6
        assert set(rows) == {"not yet measured"}
