"""The study of fuzzing: its targets on inputs of known outcome, a short run, and the committed one."""

import csv
import importlib.util
import os
from pathlib import Path

import pytest

from studies.fuzzing import targets
from studies.fuzzing.__main__ import main
from studies.fuzzing.seeds import write_seeds
from studies.fuzzing.targets import CheckpointReader, EscapedError, Sentinel
from tests.conftest import REPOSITORY

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="fuzzing needs atheris: pip install atheris"
)


def test_seeds_bring_nothing_up(tmp_path: Path) -> None:
    assert write_seeds("decoder", tmp_path / "images") > 30
    assert write_seeds("checkpoint", tmp_path / "checkpoints") > 20
    sentinel = Sentinel()
    for path in sorted((tmp_path / "images").iterdir()):
        targets.decode(path.read_bytes())
    read = CheckpointReader(tmp_path)
    for path in sorted((tmp_path / "checkpoints").iterdir()):
        read(path.read_bytes())
    sentinel.check()


def test_what_no_reader_may_do_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the runs show nothing: errors that are not documented, programs that are started."""

    def fail(*args: object, **options: object) -> None:
        raise KeyError("unexpected")

    monkeypatch.setattr(targets, "read_checkpoint", fail)
    with pytest.raises(KeyError):
        CheckpointReader(tmp_path)(b"{}")
    sentinel = Sentinel()
    os.system("exit 0")
    with pytest.raises(EscapedError, match=r"os\.system"):
        sentinel.check()
    sentinel.check()


@needs_atheris
@pytest.mark.parametrize("target", ["decoder", "checkpoint"])
def test_a_short_run(target: str, tmp_path: Path) -> None:
    out = tmp_path / "fuzzing.csv"
    words = [target, "--seconds", "60", "--runs", "300", "--corpus", str(tmp_path / "corpus"), "--out", str(out)]
    assert main(words) == 0
    with out.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["target"] == target
    assert int(row["executions"]) >= 300
    assert int(row["features"]) > 0
    assert row["findings"] == "0"


def test_the_committed_runs_found_nothing_that_is_left() -> None:
    with (REPOSITORY / "studies" / "results" / "fuzzing.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["target"]: row for row in csv.DictReader(file)}  # the last of each
    assert set(rows) == {"decoder", "checkpoint"}
    for row in rows.values():
        assert int(row["seconds"]) >= 590
        assert row["findings"] == "0"
