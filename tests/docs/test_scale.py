"""docs/scale.md: its command does what is said, and its figures are those of the committed results."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

import openfastervit_cli
from studies.common.table import read_table
from tests.conftest import REPOSITORY
from tests.docs.reader import commands
from tests.pocket import picture, write_checkpoint

DOCUMENT = REPOSITORY / "docs" / "scale.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
RESULTS = REPOSITORY / "studies" / "results" / "scale_cpu.csv"
WORKERS_OF_A_MACHINE = 64
NOT_YET = "Not yet measured."


def after(marker: str) -> str:
    """The paragraph or table after a comment."""
    return TEXT.partition(f"<!-- {marker} -->")[2].strip().split("\n\n")[0]


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def measured() -> list[dict[str, str]]:
    return read_table(RESULTS) if RESULTS.exists() else []


def test_figures_are_those_of_the_results():
    rows = measured()
    if not rows:
        assert after("studies/results/scale_cpu.csv") == NOT_YET
        return
    assert cells(after("studies/results/scale_cpu.csv")) == [
        [
            row["what"],
            row["workers"],
            row["images_per_second"],
            f"{row['lowest']} to {row['highest']}",
            row["per_worker"],
            row["times_one_worker"],
        ]
        for row in rows
    ]
    assert rows[0]["command"] in TEXT


def test_hours_and_costs_follow():
    """From the cluster's rate for each worker, when there are most."""
    rows = [row for row in measured() if row["what"] == "cluster"]
    if not rows:
        assert after("on paper") == NOT_YET
        return
    rate = float(max(rows, key=lambda row: int(row["workers"]))["per_worker"])
    hours = 1e9 / (3600 * rate)
    expected = [
        [
            str(machines),
            f"{machines * WORKERS_OF_A_MACHINE}",
            f"{hours / machines / WORKERS_OF_A_MACHINE:.0f}",
            f"{hours / WORKERS_OF_A_MACHINE:.0f} P",
        ]
        for machines in (1, 10, 100)
    ]
    assert cells(after("on paper")) == expected


def test_what_is_not_measured_has_no_figure():
    """Nothing but the tables speaks of images a second."""
    assert "A GPU (`--device cuda`): not yet measured." in TEXT
    if not measured():
        assert re.findall(r"[\d.]+ images/s", TEXT) == []


@pytest.mark.early  # Ray takes seconds to start
@pytest.mark.timeout(600)
def test_the_command_does_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        picture(number).save(tmp_path / "photos" / f"{number}.jpg")
    (command,) = commands(DOCUMENT)
    assert openfastervit_cli.main(shlex.split(command)[1:]) == 0
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == ["job.json", "rows"]
    rows = pd.read_parquet(tmp_path / "rows" / "rows")
    assert rows["image"].tolist() == [f"photos/{number}.jpg" for number in range(3)]
