"""The study of hostile input: the same bodies from the same seed, and a short run against the real server."""

import csv
from pathlib import Path

import pytest

from studies.hostile_input.__main__ import main
from studies.hostile_input.requests import KINDS, bodies
from tests.conftest import REPOSITORY


def test_the_same_seed_gives_the_same_bodies() -> None:
    first, again, other = (list(bodies(3 * len(KINDS), seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert {kind for kind, _ in first} == set(KINDS)


@pytest.mark.timeout(280)
def test_a_short_run(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "found.csv"), "--images", str(3 * len(KINDS))]) == 0
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = {row["kind"]: row for row in csv.DictReader(file)}
    assert set(rows) == {*KINDS, "wrong keys", "the server's processes"}
    assert rows["good"]["statuses"] == "200: 3"
    assert rows["wrong keys"]["statuses"] == "401: 40"


def test_the_committed_run_held() -> None:
    with (REPOSITORY / "studies" / "results" / "hostile_input.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["requests"]) for row in rows[:-2]) >= 5000
    assert {row["verdict"] for row in rows} == {"held"}
