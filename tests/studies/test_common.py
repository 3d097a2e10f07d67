"""What the studies share: runs, their table, seeds and verdicts."""

import csv
import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from openfastervit.training.run_folder import RunFolder
from openfastervit.training.trainer import Stopped, Trainer
from studies.common import at_once
from studies.common.at_once import train_all
from studies.common.command_line import parser, read_options, run_study
from studies.common.comparison import Scale, Variant, compare
from studies.common.outcome import costs, read_outcome
from studies.common.runs import Run, is_done, seeds_of
from studies.common.small_data import few_images
from studies.common.spread import NO_DIFFERENCE, TOO_FEW, spread, verdict
from studies.common.table import read_table, write_table

ROOT = Path(__file__).parents[2]
TINY = {
    "img_size": 64,
    "window_sizes": [7, 7, 2, 2],
    "dim": 8,
    "stem_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
}
SETTINGS = {"model_options": TINY, "img_size": [64], "batch_size": 16, "workers": 0, "device": "cpu"}
SETTINGS |= {"epochs": 1, "warmup_epochs": 0.0}


def a_run(photos: Path, name: str = "a", seed: int = 0, **settings: object) -> Run:
    return Run(name, seed, str(ROOT / "recipes/imagenette_pocket.yaml"), {**SETTINGS, "data": str(photos), **settings})


def test_ranges_that_overlap_tell_nothing() -> None:
    assert verdict([70.1, 70.5, 71.0], [69.0, 70.0, 70.2]) == NO_DIFFERENCE
    assert verdict([70.1, 70.5], [69.0, 70.1]) == NO_DIFFERENCE, "touching is overlapping"
    assert verdict([70.2, 70.5], [69.0, 70.1]) == "better"
    assert verdict([69.0, 70.0], [70.1, 70.2]) == "worse"
    assert verdict([80.0], [70.0, 70.1]) == verdict([80.0, 80.1], [70.0]) == TOO_FEW
    assert spread([1.0, 2.0, 6.0]) == spread([6.0, 1.0, 2.0])
    assert (spread([1.0, 2.0, 6.0]).mean, spread([1.0, 2.0, 6.0]).least, spread([1.0, 2.0, 6.0]).most) == (3, 1, 6)


def test_chance_alone_sets_three_seeds_apart_one_time_in_ten() -> None:
    told = [
        verdict(chosen, [value for value in range(6) if value not in chosen])
        for chosen in itertools.combinations(range(6), 3)
    ]
    assert (len(told), told.count("better"), told.count("worse"), told.count(NO_DIFFERENCE)) == (20, 1, 1, 18)


def test_a_table_is_replaced_whole(tmp_path: Path) -> None:
    table = tmp_path / "new" / "results.csv"
    write_table(table, [{"a": 1, "b": "x, y"}, {"a": 2, "c": ""}])
    assert read_table(table) == [{"a": "1", "b": "x, y", "c": ""}, {"a": "2", "b": "", "c": ""}]
    with pytest.raises(ValueError, match="dict contains fields not in fieldnames"):
        write_table(table, [{"a": 1, "d": 2}], ["a"])
    assert len(read_table(table)) == 2
    assert [path.name for path in table.parent.iterdir()] == ["results.csv"]


def test_few_images(photos: Path, tmp_path: Path) -> None:
    few = few_images(photos, tmp_path, train=3, val=100)
    names = sorted(str(path.relative_to(few)) for path in few.rglob("*.jpg"))
    assert [sum(name.startswith(f"{split}/class1/") for name in names) for split in ("train", "val")] == [3, 6]
    assert all((few / name).read_bytes() == (photos / name).read_bytes() for name in names)
    with pytest.raises(ValueError, match="no folder train/"):
        few_images(photos / "val", tmp_path, train=1, val=1)


def test_a_run_that_is_done_is_not_done_again(photos: Path, tmp_path: Path) -> None:
    run = a_run(photos)
    assert not is_done(run, tmp_path)
    told: list[int] = []
    for _ in range(2):
        assert (
            train_all([run], tmp_path, command=["study"], after_each=lambda failures: told.append(len(failures))) == {}
        )
    assert (is_done(run, tmp_path), told, seeds_of("a", tmp_path)) == (True, [0, 0], [0])
    outcome = read_outcome(run.folder(tmp_path))
    assert outcome is not None
    assert (outcome.epochs, outcome.images) == (1, 80)
    assert outcome.environment["command"] == ["study"]
    with (run.folder(tmp_path) / "metrics.csv").open(newline="") as file:
        assert outcome.top1 == [float(row["val_top1"]) for row in csv.DictReader(file)]
    assert costs(run.folder(tmp_path))["parameters"] > 10_000

    moved = a_run(photos, data=str(tmp_path), workers=1, batch_size=8)
    assert is_done(moved, tmp_path), "where it runs does not make it another run"
    for other in (a_run(photos, epochs=2), a_run(photos, model_options={**TINY, "dim": 16})):
        with pytest.raises(ValueError, match="give another --out"):
            is_done(other, tmp_path)


def test_what_was_interrupted_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop after the first of two epochs, then the same command: it ends as one that never stopped."""
    whole = a_run(photos, epochs=2)
    train_all([whole], tmp_path / "whole", command=[])

    end_epoch = Trainer._end_epoch

    def stopping(self: Trainer, metrics: dict[str, float]) -> None:
        end_epoch(self, metrics)
        raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_end_epoch", stopping)
        with pytest.raises(Stopped):
            train_all([whole], tmp_path / "cut", command=[])
    assert read_outcome(whole.folder(tmp_path / "cut")) is None
    assert train_all([whole], tmp_path / "cut", command=[]) == {}
    results = [(whole.folder(tmp_path / name) / "last.safetensors").read_bytes() for name in ("whole", "cut")]
    assert results[0] == results[1]


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_the_others_go_on_where_one_fails(photos: Path, tmp_path: Path, at_a_time: int) -> None:
    runs = [a_run(photos, "no-batch", batch_size=1000), a_run(photos)]
    failures = train_all(runs, tmp_path, command=[], at_once=at_a_time)
    assert list(failures) == ["no-batch-seed0"]
    assert "lower batch_size" in failures["no-batch-seed0"]
    assert "lower batch_size" in (tmp_path / "no-batch-seed0.log").read_text()
    assert is_done(runs[1], tmp_path)
    if at_a_time == 2:
        alone = tmp_path / "alone"
        train_all(runs[1:], alone, command=[])
        weights = [(runs[1].folder(out) / "last.safetensors").read_bytes() for out in (tmp_path, alone)]
        assert weights[0] == weights[1], "a process of its own trains the same network"


def test_wrong_settings_are_told_before_anything_starts(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown setting 'lernrate'"):
        train_all([a_run(photos), a_run(photos, "b", lernrate=1)], tmp_path, command=[])
    assert list(tmp_path.iterdir()) == []


def test_how_a_study_ends(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> at_once.Failures:
        raise Stopped(signal.SIGTERM)

    def wrong() -> at_once.Failures:
        raise ValueError("--data x is no folder")

    def interrupted() -> at_once.Failures:
        raise KeyboardInterrupt

    studies = (dict, stopped, interrupted, wrong, lambda: {"a-seed1": "no memory"})
    assert [run_study(study) for study in studies] == [0, 143, 130, 2, 1]
    told = capsys.readouterr().err
    assert "--data x is no folder" in told
    assert "failed: a-seed1: no memory" in told


def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def options(*more: str):
        arguments = ["--scale", "smoke", "--data", "d", "--out", str(tmp_path), *more]
        return read_options("x", ("a", "b"), arguments, parser("x", "What it is.\nMore."))

    plain = options()
    assert (plain.seeds, plain.only, plain.at_once) == ((0, 1), ("a", "b"), 1)
    assert " ".join(plain.command) == "python -m studies.x --scale smoke --data DATA --out OUT"
    asked = options("--seeds", "4", "--only", "b", "--threads", "2")
    assert (asked.seeds, asked.only, asked.command[-4:]) == ((4,), ("b",), ["--seeds", "4", "--threads", "2"])
    for wrong in (["--only", "c"], ["--seeds", "1", "1"], ["--at-once", "0"]):
        with pytest.raises(SystemExit):
            options(*wrong)
    told = capsys.readouterr().err
    assert "there is a, b" in told
    assert "each seed once" in told


def test_a_comparison_tells_of_all_runs(photos: Path, tmp_path: Path) -> None:
    scale = Scale(ROOT / "recipes/imagenette_pocket.yaml", SETTINGS)
    variants = [
        Variant("base", facts={"change": "none"}),
        Variant("thin", {"model_options": {"dim": 4}}, "base", {"change": "half the width"}),
        Variant("broken", {"batch_size": 1000}, "base", {"change": "too large"}),
    ]
    arguments = ["--scale", "smoke", "--data", str(photos), "--out", str(tmp_path), "--device", "cpu"]
    options = read_options("x", [variant.name for variant in variants], arguments, parser("x", ""))
    tables: list[list[dict]] = []
    failures = compare(variants, scale, options, after_each=tables.append)
    assert sorted(failures) == ["broken-seed0", "broken-seed1"]
    assert [len(table) for table in tables] == [1, 2, 3, 3, 3, 3, 3], "after each run, and at the end"
    base, thin, broken = tables[-1]
    assert (base["compared_with"], thin["compared_with"]) == ("", "base")
    for row in (base, thin):
        top1 = [read_outcome(tmp_path / f"{row['variant']}-seed{seed}").top1[-1] for seed in (0, 1)]
        assert [float(value) for value in row["top1_each_seed"].split()] == pytest.approx(top1, abs=0.01)
        assert float(row["top1"]) == pytest.approx(sum(top1) / 2, abs=0.01)
        assert (float(row["top1_min"]), float(row["top1_max"])) == pytest.approx((min(top1), max(top1)), abs=0.01)
        assert row["processor"]
        assert row["revision"]
        assert row["scale"] == "smoke"
        assert (row["epochs"], row["failed"]) == (1, "")
    assert thin["verdict"] in ("better", "worse", NO_DIFFERENCE)
    assert thin["parameters"] < base["parameters"]
    assert thin["multiply_adds_in_64"] < thin["multiply_adds"], "position biases are computed once a pass"
    assert "lower batch_size" in broken["failed"]
    assert "parameters" not in broken
    recipes = [yaml.safe_load((tmp_path / f"{name}-seed1" / "recipe.yaml").read_text()) for name in ("base", "thin")]
    assert {name for name in recipes[0] if recipes[0][name] != recipes[1][name]} == {"model_options"}


STUDY = """
import sys
from pathlib import Path
from studies.common.at_once import train_all
from studies.common.command_line import run_study
from tests.studies.test_common import a_run

photos, out = map(Path, sys.argv[1:])
sys.exit(run_study(lambda: train_all([a_run(photos, epochs=5000)], out, command=[], at_once=2)))
"""


@pytest.mark.slow
def test_a_signal_lets_all_save(photos: Path, tmp_path: Path) -> None:
    with (tmp_path / "told").open("wb") as told:
        study = subprocess.Popen(
            [sys.executable, "-c", STUDY, str(photos), str(tmp_path / "out")], cwd=ROOT, stdout=told, stderr=told
        )
        try:
            table = tmp_path / "out" / "a-seed0" / "metrics.csv"
            until = time.monotonic() + 200
            while not table.exists():
                assert time.monotonic() < until
                assert study.poll() is None, (tmp_path / "told").read_text()
                time.sleep(0.1)
            study.send_signal(signal.SIGTERM)
            assert study.wait(60) == 128 + signal.SIGTERM
        finally:
            study.kill()
    assert "the same command goes on" in (tmp_path / "told").read_text()
    with RunFolder.resume(table.parent) as folder:  # nobody holds it any more
        assert folder.newest() is not None
