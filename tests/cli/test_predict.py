"""``fastervit predict``: what it says, writes, and does with broken images and interruptions."""

import csv
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.data import create_transform

from openfastervit.inference import Predictor
from tests.cli.conftest import Run
from tests.pocket import CLASSES, INPUT, OPTIONS, pocket, write_broken, write_checkpoint, write_photos


def by_hand(path: Path) -> list[tuple[str, float]]:
    """Classes and probabilities, best first: Pillow, timm's transform, the network."""
    transform = create_transform(
        (3, 64, 64), mean=INPUT["mean"], std=INPUT["std"], interpolation="bicubic", crop_pct=0.9
    )
    with Image.open(path) as image, torch.no_grad():
        scores = pocket()(transform(image.convert("RGB"))[None])[0].softmax(0).tolist()
    return sorted(zip(CLASSES, scores, strict=True), key=lambda pair: -pair[1])


def images_in(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.png"), *folder.glob("sub/*.jpg")])


def test_the_screen_shows_the_best_classes(fastervit: Run, checkpoint: Path, photos: Path):
    image = photos / "0.png"
    outcome = fastervit("predict", image, "--checkpoint", checkpoint, "--topk", 2)
    best = by_hand(image)[:2]
    assert outcome == (0, f"{image}\n" + "".join(f"  {score:8.2%}  {name}\n" for name, score in best), "")


@pytest.mark.parametrize("to_file", [True, False])
def test_csv(fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path, to_file: bool):
    out = tmp_path / "rows.csv"
    args = ["--out", out] if to_file else ["--format", "csv"]
    outcome = fastervit("predict", photos, "--checkpoint", checkpoint, "--topk", 2, "--batch-size", 2, *args)
    assert outcome.code == 0
    if to_file:
        assert outcome.out == ""
        assert outcome.err == f"fastervit: 5 images classified; rows in {out}\n"
    rows = list(csv.DictReader((out.read_text() if to_file else outcome.out).splitlines()))
    assert [Path(row["image"]) for row in rows] == images_in(photos)
    for row in rows:
        for rank, (name, score) in enumerate(by_hand(Path(row["image"]))[:2], start=1):
            assert row[f"class_{rank}"] == name == CLASSES[int(row[f"index_{rank}"])]
            assert float(row[f"score_{rank}"]) == pytest.approx(score, abs=1e-5)
        assert len(row) == 7


@pytest.mark.parametrize("args", [["--out", "rows.jsonl"], ["--out", "rows", "--format", "jsonl"]])
def test_json_lines(
    fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]
):
    monkeypatch.chdir(tmp_path)
    assert fastervit("predict", photos, "--checkpoint", checkpoint, *args).code == 0
    rows = [json.loads(line) for line in (tmp_path / args[1]).read_text().splitlines()]
    assert [Path(row["image"]) for row in rows] == images_in(photos)
    for row in rows:
        expected = by_hand(Path(row["image"]))
        assert [(p["class"], p["index"]) for p in row["predictions"]] == [(n, CLASSES.index(n)) for n, _ in expected]
        assert [p["score"] for p in row["predictions"]] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_a_dash_is_standard_output(fastervit: Run, checkpoint: Path, photos: Path):
    dash = fastervit("predict", photos, "--checkpoint", checkpoint, "--out", "-")
    assert dash == fastervit("predict", photos, "--checkpoint", checkpoint, "--format", "csv")
    assert dash.out.startswith("image,class_1,")


def test_a_broken_image_is_named_and_the_rest_go_on(fastervit: Run, checkpoint: Path, tmp_path: Path):
    images = write_photos(tmp_path / "photos")
    whole = fastervit("predict", tmp_path / "photos", "--checkpoint", checkpoint, "--format", "csv")
    write_broken(images[1])
    (tmp_path / "photos" / "3.png").write_text("no image")
    out = tmp_path / "rows.csv"
    outcome = fastervit("predict", tmp_path / "photos", "--checkpoint", checkpoint, "--out", out)
    assert outcome.code == 3
    assert "Traceback" not in outcome.err
    first, second, total = outcome.err.splitlines()
    assert first.startswith(f"fastervit: error: {images[1]}: it does not decode (")
    assert second == f"fastervit: error: {images[3]}: it is not an image, or of a kind unknown here"
    assert total == f"fastervit: error: 2 of 5 images could not be read; rows in {out}"
    left = [line for line in whole.out.splitlines() if not line.startswith((str(images[1]), str(images[3])))]
    assert out.read_text().splitlines() == left


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_one_broken_image_is_one_line(fails, checkpoint: Path, tmp_path: Path, suffix: str):
    broken = write_broken(tmp_path / f"broken.{suffix}", suffix)
    fails("predict", broken, "--checkpoint", checkpoint, code=3, says=[str(broken), "it does not decode"])


def test_a_grayscale_network_takes_colour_photographs(fastervit: Run, photos: Path, tmp_path: Path):
    told = {**INPUT, "size": [1, 64, 64], "mean": [0.5], "std": [0.25]}
    gray = write_checkpoint(
        tmp_path / "gray.safetensors", pocket(in_chans=1), overrides={**OPTIONS, "in_chans": 1}, input=told
    )
    assert fastervit("predict", photos, "--checkpoint", gray).code == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--topk", "0"], ["topk=0", "at least 1"]),
        (["--batch-size", "0"], ["batch_size=0", "at least 1"]),
        (["--img-size", "16"], ["img_size=16", "at least 32"]),
        (["--img-size", "64", "20"], ["img_size=[64, 20]", "at least 32"]),
        (["--device", "abacus"], ["device='abacus'", "cpu"]),
        (["--model", "fastervit_1"], ["is a fastervit_0, not a fastervit_1", "leave the model's name out"]),
        (["--model", "fastervit"], ["unknown model 'fastervit'", "did you mean"]),
        (["--out", "rows.xlsx"], ["--out rows.xlsx", ".csv", "--format"]),
    ],
)
def test_values_out_of_range(fails, checkpoint: Path, photos: Path, args: list[str], says: list[str]):
    fails("predict", photos, "--checkpoint", checkpoint, *args, says=says)


def test_nothing_to_read(fails, checkpoint: Path, tmp_path: Path):
    nowhere = tmp_path / "nowhere"
    fails("predict", nowhere, "--checkpoint", checkpoint, says=[f"no image or folder at {nowhere}", "check the path"])
    fails("predict", tmp_path, "--checkpoint", checkpoint, says=[f"no images in {tmp_path}", ".png"])


def test_a_folder_is_no_file(fails, checkpoint: Path, photos: Path, tmp_path: Path):
    args = ("predict", photos, "--checkpoint")
    fails(*args, checkpoint, "--out", tmp_path, says=[f"--out {tmp_path} is a folder", "predictions.csv"])
    fails(*args, tmp_path, says=[f"{tmp_path} is a folder", "checkpoint file"])


def test_ctrl_c_keeps_the_rows_so_far(
    fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = fastervit("predict", photos, "--checkpoint", checkpoint, "--format", "csv").out.splitlines()
    predict = Predictor.predict

    def interrupted(self, *args, **kwargs):
        for i, result in enumerate(predict(self, *args, **kwargs)):
            if i == 2:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(Predictor, "predict", interrupted)
    out = tmp_path / "rows.csv"
    outcome = fastervit("predict", photos, "--checkpoint", checkpoint, "--out", out)
    assert outcome == (130, "", f"fastervit: interrupted after 2 of 5 images; rows in {out}\n")
    assert out.read_text().splitlines() == whole[:3]


def test_a_long_run_shows_its_progress_and_ends_at_ctrl_c(checkpoint: Path, photos: Path, tmp_path: Path):
    """The real thing: `python -m openfastervit`, a terminal for its messages, a signal as from the keyboard."""
    many, out = tmp_path / "many", tmp_path / "rows.csv"
    many.mkdir()
    for i in range(20_000):
        (many / f"{i:05}.png").symlink_to(photos / "0.png")
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "openfastervit", "predict", many, "--checkpoint", checkpoint, "--out", out],
        stdout=subprocess.PIPE,
        stderr=other_end,
        env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"},
        text=True,
    )
    os.close(other_end)
    part = tmp_path / "rows.csv.part"
    deadline = time.monotonic() + 90
    while not (part.exists() and part.read_text().count("\n") > 100):
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
    assert "interrupted after" in shown
    header, *rows = out.read_text().splitlines()
    assert header.startswith("image,class_1,")
    assert 99 < len(rows) < 20_000
    assert [row.split(",")[0] for row in rows] == [str(many / f"{i:05}.png") for i in range(len(rows))]
    assert len({row.partition(",")[2] for row in rows}) == 1
    assert out.read_text().endswith("\n")
    assert not part.exists()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # the other end is closed
        return b""
