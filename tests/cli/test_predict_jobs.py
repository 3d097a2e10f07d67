"""``fastervit predict`` as a job: what is left when it is interrupted, going on, and files that are there already."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openfastervit.inference import Predictor
from openfastervit.inference.engines import ENGINES, EngineKind, create_engine
from tests.cli.conftest import Run, names
from tests.pocket import pocket, write_broken, write_checkpoint, write_photos


def test_a_file_appears_when_it_is_complete_and_ctrl_c_is_gone_on_from(
    fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, out = tmp_path / "whole.csv", tmp_path / "rows.csv"
    args = ("predict", photos, "--checkpoint", checkpoint, "--batch-size", 2, "--out")
    fastervit(*args, whole)
    predict = Predictor.predict

    def interrupted(self, *args, **kwargs):
        for i, result in enumerate(predict(self, *args, **kwargs)):
            if i == 3:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", interrupted)
        outcome = fastervit(*args, out)
    again = "the same command goes on from there"
    assert outcome == (130, "", f"fastervit: interrupted after 2 of 5 images; {again}\n")
    assert names(tmp_path) == ["rows.csv.part", "whole.csv", "whole.csv.json"]
    assert whole.read_text().startswith((tmp_path / "rows.csv.part" / "rows").read_text())
    outcome = fastervit(*args, out)
    said = f"fastervit: going on after 2 of 5 images\nfastervit: 5 images classified; rows in {out}\n"
    assert outcome == (0, "", said)
    assert out.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == ["rows.csv", "rows.csv.json", "whole.csv", "whole.csv.json"]


def test_ctrl_c_before_a_batch_leaves_nothing(
    fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "_classify", interrupted)
    outcome = fastervit("predict", photos, "--checkpoint", checkpoint, "--out", tmp_path / "rows.csv")
    assert outcome == (130, "", "fastervit: interrupted after 0 of 5 images\n")
    assert names(tmp_path) == []


def test_a_complete_file_is_left_alone(
    fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "rows.csv"
    args = ("predict", photos, "--checkpoint", checkpoint, "--out", out)
    fastervit(*args)
    before = out.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "from_checkpoint", None)  # is not even loaded
        assert fastervit(*args) == (0, "", f"fastervit: 5 images classified already; rows in {out}\n")
    outcome = fastervit(*args, "--overwrite")
    assert outcome == (0, "", f"fastervit: 5 images classified; rows in {out}\n")
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["--topk", "2"], "topk: 5 there, 2 here"),
        (["--img-size", "96"], "img_size: None there, [96] here"),
        (["--batch-size", "3"], "batch_size: 32 there, 3 here"),
        (["--precision", "bf16"], "precision: fp32 there, bf16 here"),
        (["--engine", "torch-eager"], "engine: auto there, torch-eager here"),
        (["--format", "jsonl"], "format: csv there, jsonl here"),
    ],
)
def test_other_settings_are_refused(
    fails, fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path, changed: list[str], says: str
):
    out = tmp_path / "rows.csv"
    args = ("predict", photos, "--checkpoint", checkpoint, "--out", out)
    fastervit(*args)
    before = out.read_bytes()
    fails(*args, *changed, says=[f"{out} was made with other settings ({says})", "--overwrite", "another --out"])
    assert out.read_bytes() == before
    assert fastervit(*args, *changed, "--overwrite").code == 0
    assert fastervit(*args, *changed).err.endswith(f"5 images classified already; rows in {out}\n")


def test_another_checkpoint_and_other_images_are_refused(fails, fastervit: Run, checkpoint: Path, tmp_path: Path):
    images = write_photos(tmp_path / "photos")
    mine, out = tmp_path / "mine.safetensors", tmp_path / "rows.csv"
    mine.write_bytes(checkpoint.read_bytes())
    args = ("predict", tmp_path / "photos", "--checkpoint", mine, "--out", out)
    fastervit(*args)
    write_checkpoint(mine, pocket(drop_path_rate=0.1), classes=["dog", "elk", "fox"])
    fails(*args, says=["other settings (checkpoint: sha256:", "here)", "--overwrite"])
    mine.write_bytes(checkpoint.read_bytes())
    images[0].rename(images[0].with_name("another.png"))
    fails(*args, says=["other settings (paths: sha256:", "--overwrite"])
    images[1].unlink()
    fails(*args, says=["other settings (images: 5 there, 4 here, paths: sha256:", "--overwrite"])


def test_a_file_of_somebody_else_is_not_replaced(fails, fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path):
    out = tmp_path / "rows.csv"
    out.write_text("precious")
    args = ("predict", photos, "--checkpoint", checkpoint, "--out", out)
    fails(*args, says=[f"{out} is there already", "--overwrite"])
    assert out.read_text() == "precious"
    assert fastervit(*args, "--overwrite").code == 0
    assert out.read_text().startswith("image,")


def test_unreadable_images_are_named_again_and_not_tried_again(
    fastervit: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    images = write_photos(tmp_path / "photos")
    write_broken(images[1])
    (tmp_path / "photos" / "3.png").write_text("no image")
    out = tmp_path / "rows.csv"
    args = ("predict", tmp_path / "photos", "--checkpoint", checkpoint, "--batch-size", 2, "--out")
    whole = fastervit(*args, tmp_path / "whole.csv")
    classify = Predictor._classify
    calls = []

    def fail_third(self, pixels, topk):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return classify(self, pixels, topk)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "_classify", fail_third)
        assert fastervit(*args, out).code == 130
    write_photos(tmp_path / "photos")  # whole again; what is done is done
    resumed = fastervit(*args, out)
    going_on, first, second, total = resumed.err.splitlines()
    assert going_on == "fastervit: going on after 4 of 5 images"
    assert [first, second, total] == whole.err.replace("whole.csv", "rows.csv").splitlines()
    assert resumed.code == 3
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    told = (tmp_path / "rows.csv.unreadable.jsonl").read_text()
    assert told == (tmp_path / "whole.csv.unreadable.jsonl").read_text()
    assert [json.loads(line)["image"] for line in told.splitlines()] == [str(images[1]), str(images[3])]
    assert fastervit(*args, out) == (3, "", "\n".join([first, second, total]) + "\n")
    overwritten = fastervit(*args, out, "--overwrite")
    assert overwritten.code == 0
    assert names(tmp_path) == ["photos", "rows.csv", "rows.csv.json", *names(tmp_path)[3:]]
    assert not (tmp_path / "rows.csv.unreadable.jsonl").exists()


@pytest.mark.parametrize("many", [False, True])
def test_auto_measures_where_it_pays_and_a_job_keeps_its_engine(
    fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: bool
):
    monkeypatch.setattr(sys.modules["openfastervit_cli.predict"], "_MEASURE_FROM", 5 if many else 6)
    monkeypatch.setitem(ENGINES, "stub", EngineKind("tests.inference.stub:build", ("fp32",)))
    asked = []

    def auto(network, settings, tell):
        asked.append(settings.batch_size)
        tell("engine stub: images a second: many")
        return create_engine(network, "stub", settings)

    monkeypatch.setattr("openfastervit.inference.predictor.auto_engine", auto)
    out = tmp_path / "rows.csv"
    args = ("predict", photos, "--checkpoint", checkpoint, "--batch-size", 2, "--out", out)
    classify = Predictor._classify
    calls = iter(range(9))

    def interrupted(self, pixels, topk):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return classify(self, pixels, topk)

    monkeypatch.setattr(Predictor, "_classify", interrupted)
    first = fastervit(*args)
    assert first.code == 130
    assert first.err.startswith("fastervit: engine stub: images a second: many\n") == many
    assert fastervit(*args).code == 0
    assert asked == ([2] if many else [])  # who goes on measures nothing: another engine rounds otherwise
    record = json.loads((tmp_path / "rows.csv.json").read_text())
    assert record["settings"]["engine"] == "auto"
    assert record["chosen"] == {"engine": "stub" if many else "torch-folded"}
    assert fastervit(*args).err == f"fastervit: 5 images classified already; rows in {out}\n"


def test_a_long_run_shows_its_progress_and_ends_at_ctrl_c(checkpoint: Path, photos: Path, tmp_path: Path):
    """The real thing: `python -m openfastervit`, a terminal for its messages, a signal as from the keyboard."""
    many, out = tmp_path / "many", tmp_path / "rows.csv"
    many.mkdir()
    for i in range(20_000):
        (many / f"{i:05}.png").symlink_to(photos / "0.png")
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "openfastervit", "predict", many, "--checkpoint", checkpoint, "--out", out),
            *("--engine", "torch-folded"),
        ],
        stdout=subprocess.PIPE,
        stderr=other_end,
        env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        text=True,
    )
    os.close(other_end)
    part = tmp_path / "rows.csv.part" / "rows"
    deadline = time.monotonic() + 90
    while not (part.exists() and part.read_text().count("\n") > 500):
        assert process.poll() is None, os.read(terminal, 10_000).decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    screen = b""
    while chunk := _read(terminal):
        screen += chunk
    assert process.wait(timeout=60) == 130
    assert process.stdout.read() == ""
    process.stdout.close()
    shown = screen.decode()
    assert "Traceback" not in shown
    assert "/20000" in shown
    assert re.search(r"\d images/s", shown)
    assert re.search(r"\d+:\d\d:\d\d.* left", shown)
    assert "goes on from there" in shown
    header, *rows = part.read_text().splitlines()
    assert header.startswith("image,class_1,")
    assert 499 < len(rows) < 20_000
    assert len(rows) % 32 == 0
    assert [row.split(",")[0] for row in rows] == [str(many / f"{i:05}.png") for i in range(len(rows))]
    assert len({row.partition(",")[2] for row in rows}) == 1
    assert not out.exists()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # the other end is closed
        return b""
