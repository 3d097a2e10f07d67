import csv
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import openfastervit
from openfastervit.demo import folder, job, run
from openfastervit.demo.digits import load
from openfastervit.demo.report import PAGE
from openfastervit.inference import Prediction, Predictor
from openfastervit.models import read_metadata
from tests.demo.conftest import SHORT, watched

FILES = {"report.html", "model.safetensors", "predictions.csv", "metrics.csv", "summary.json", "images"}


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_files_are_there_and_nothing_else(short_run):
    assert {path.name for path in short_run.out.iterdir()} == FILES
    assert short_run.summary.report == short_run.out / "report.html"
    assert not short_run.summary.interrupted


def test_tables_tell_what_happened(short_run):
    results = short_run.results
    (epoch,) = rows(short_run.out / "metrics.csv")
    assert (epoch["epoch"], epoch["steps"]) == ("1", "22")
    assert float(epoch["loss"]) == pytest.approx(results.epochs[0].loss, rel=1e-5)
    predictions = rows(short_run.out / "predictions.csv")
    assert [int(row["scan"]) for row in predictions] == list(results.digits.held_out)
    assert [int(row["label"]) for row in predictions] == list(results.digits.labels[results.digits.held_out])
    for row in predictions:
        shares = [float(row[f"p{digit}"]) for digit in range(10)]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert int(row["predicted"]) == np.argmax(shares)


def test_summary_tells_what_was_measured_and_where(short_run):
    summary = json.loads((short_run.out / "summary.json").read_text(encoding="utf-8"))
    predictions = rows(short_run.out / "predictions.csv")
    correct = sum(row["label"] == row["predicted"] for row in predictions)
    assert summary["top1"] == pytest.approx(correct / 360) == short_run.summary.top1
    assert summary["misread"] == 360 - correct
    assert (summary["held_out_images"], summary["training_images"]) == (360, 1437)
    assert (summary["seed"], summary["epochs_planned"], summary["steps"]) == (0, 1, 22)
    assert summary["command"] == "fastervit demo --seed 0 --epochs 1"
    assert summary["interrupted"] is False
    assert set(summary["seconds"]) == {"preparation", "training", "evaluation", "speed", "total"}
    assert summary["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert summary["hardware"]["cores"] >= 1
    assert [size["side"] for size in summary["throughput"]["sizes"]] == [128, 256]
    assert [len(size["hierarchical"]) for size in summary["throughput"]["sizes"]] == [2, 2]
    assert len(summary["carrier_attention"]) == 3


def test_predict_agrees_with_the_demo(short_run):
    """The files of the page, read by the tool people use, give the report's own predictions."""
    found = list(
        Predictor.from_checkpoint(short_run.out / "model.safetensors", device="cpu").predict(
            sorted((short_run.out / "images").iterdir()), topk=10
        )
    )
    assert len(found) == PAGE
    by_scan = {int(row["scan"]): row for row in rows(short_run.out / "predictions.csv")}
    for prediction in found:
        assert isinstance(prediction, Prediction)
        label, scan = (part.partition("-")[2] for part in prediction.path.stem.split("_"))
        row = by_scan[int(scan)]
        assert row["label"] == label
        assert prediction.classes[0] == row["predicted"]
        for name, score in zip(prediction.classes, prediction.scores, strict=True):
            assert score == pytest.approx(float(row[f"p{name}"]), abs=1e-4)


def test_checkpoint_alone_rebuilds_the_network(short_run):
    path = short_run.out / "model.safetensors"
    metadata = read_metadata(path)
    model = openfastervit.create_model(metadata["model"], checkpoint=path, **metadata["overrides"])
    assert sum(p.numel() for p in model.parameters()) == short_run.results.parameters
    assert metadata["classes"] == list("0123456789")


def test_images_are_the_scans_themselves(short_run):
    digits = load()
    for path in (short_run.out / "images").iterdir():
        label, scan = (int(part.partition("-")[2]) for part in path.stem.split("_"))
        assert scan in digits.held_out
        assert digits.labels[scan] == label
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), digits.scans[scan])


def test_same_seed_same_network_whatever_else_goes_on(short_run, tmp_path):
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    torch.set_num_threads(2)
    with watched() as seen:
        run(tmp_path / "again", **{**SHORT, "sides": (128,)})
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    assert signal.getsignal(signal.SIGINT) is handler
    first, again = (load_file(out / "model.safetensors") for out in (short_run.out, tmp_path / "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert np.array_equal(seen[0].evaluation.probabilities, short_run.results.evaluation.probabilities)
    for ours, theirs in zip(seen[0].looking.blocks, short_run.results.looking.blocks, strict=True):
        assert torch.equal(ours.maps, theirs.maps)


def test_another_seed_another_network_and_old_files_are_replaced(short_run, tmp_path, capsys):
    out = tmp_path / "report"
    (out / "images").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    (out / "images" / "holiday.png").write_text("mine too")
    (out / "images" / "digit-3_scan-9999.png").write_text("of an earlier run")
    (out / "report.html").write_text("of an earlier run")
    run(out, seed=1, epochs=1, sides=(128,), repeats=1)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"Made {out / 'report.html'}")
    assert {path.name for path in out.iterdir()} == FILES | {"notes.txt"}
    assert (out / "images" / "holiday.png").read_text() == "mine too"
    assert len(list((out / "images").glob("digit-*.png"))) == PAGE
    assert "earlier" not in (out / "report.html").read_text(encoding="utf-8")
    first, other = (load_file(folder / "model.safetensors") for folder in (short_run.out, out))
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_last_line_says_what_was_made_and_how_good_it_is(short_run, capsys):
    job._say(short_run.out, short_run.results)
    line = capsys.readouterr().out.splitlines()[-1]
    assert str(short_run.summary.report) in line
    assert f"top-1 {100 * short_run.summary.top1:.2f}" in line


@pytest.fixture
def no_training(monkeypatch, short_run):
    """The demo without what takes time."""
    model = job.build()
    monkeypatch.setattr(job, "_work", lambda *_, **__: (model, short_run.results))


@pytest.mark.usefixtures("no_training")
def test_a_failure_while_writing_leaves_the_old_report_whole(tmp_path, monkeypatch):
    out = tmp_path / "report"
    run(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def fail(*_: object) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(folder, "render", fail)
    with pytest.raises(OSError, match="no space left"):
        run(out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    with pytest.raises(OSError, match="no space left"):
        run(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"epochs": 0}, "epochs=0"), ({"epochs": -3}, "epochs=-3"), ({"seed": -1}, "seed=-1"), ({"seed": 2**63}, "seed=")],
)
def test_numbers_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "report", **arguments)
    assert not (tmp_path / "report").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "report").write_text("mine")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        run(tmp_path / "report")
    assert (tmp_path / "report").read_text() == "mine"


def test_without_scikit_learn_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'openfastervit\[demo\]'"):
        run(tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_importing_the_package_needs_none_of_it():
    code = "import openfastervit, sys; sys.exit(any(m in sys.modules for m in ('sklearn', 'matplotlib', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
