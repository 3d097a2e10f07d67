"""``fastervit predict``: what it says, writes, and does with broken images."""

import csv
import importlib.util
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from pyarrow import parquet
from timm.data import create_transform

from openfastervit.inference.engines import ENGINES, EngineKind
from tests.cli.conftest import Run, names
from tests.inference import stub
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
        (["--out", "rows.xlsx"], ["--out rows.xlsx", ".csv", ".parquet", "--format"]),
        (["--workers", "0"], ["workers=0", "at least 1"]),
        (["--engine", "warp"], ["engine='warp' is unknown", "torch-folded"]),
        (["--precision", "int8", "--engine", "torch-eager"], ["'torch-eager' has no precision 'int8'", "fp32"]),
        (["--calibration", "."], ["--calibration is for --precision int8"]),
        (["--overwrite"], ["--overwrite is for a file"]),
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


def test_parquet_has_what_csv_has(fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path):
    args = ("predict", photos, "--checkpoint", checkpoint, "--out")
    fastervit(*args, tmp_path / "rows.csv")
    outcome = fastervit(*args, tmp_path / "rows.parquet")
    assert outcome == (0, "", f"fastervit: 5 images classified; rows in {tmp_path / 'rows.parquet'}\n")
    rows = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [{key: str(value) for key, value in row.items()} for row in rows] == list(csv.DictReader(file))


def test_parquet_needs_pyarrow_and_a_file(
    fails, checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    args = ("predict", photos, "--checkpoint", checkpoint, "--format", "parquet")
    fails(*args, says=["standard output", "--out FILE.parquet"])
    fails(*args, "--out", "-", says=["standard output", "--out FILE.parquet"])
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    fails(*args, "--out", tmp_path / "rows.parquet", says=["pip install 'openfastervit[parquet]'"])
    assert names(tmp_path) == []


def test_a_pipe_is_written_to_not_replaced(fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    args = ("predict", photos, "--checkpoint", checkpoint, "--format", "csv")
    assert fastervit(*args, "--out", pipe).code == 0
    reader.join(timeout=10)
    assert received == [fastervit(*args).out]
    assert pipe.is_fifo()
    assert names(tmp_path) == ["pipe"]


@pytest.mark.parametrize("engine", ["torch-eager", "torch-folded"])
@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_engines_agree(fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path, engine: str, batch_size: int):
    out = tmp_path / "rows.jsonl"
    args = ("--engine", engine, "--batch-size", batch_size, "--out", out, "--workers", 2, "--device", "cpu")
    assert fastervit("predict", photos, "--checkpoint", checkpoint, *args).code == 0
    for line in out.read_text().splitlines():
        row = json.loads(line)
        best = [score for _, score in by_hand(Path(row["image"]))]
        assert [found["score"] for found in row["predictions"]] == pytest.approx(best, abs=1e-5)


def test_bfloat16_is_near(fastervit: Run, checkpoint: Path, photos: Path):
    outcome = fastervit("predict", photos, "--checkpoint", checkpoint, "--precision", "bf16", "--format", "jsonl")
    for line in outcome.out.splitlines():
        row = json.loads(line)
        scores = dict(by_hand(Path(row["image"])))
        for found in row["predictions"]:
            assert found["score"] == pytest.approx(scores[found["class"]], abs=0.03)


@pytest.mark.parametrize("given", [False, True])
def test_int8_is_calibrated_on_what_is_told(
    fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
):
    seen = []
    monkeypatch.setitem(ENGINES, "stub", EngineKind("tests.inference.stub:build", ("int8",)))
    monkeypatch.setattr(stub, "build", lambda network, settings: seen.append(settings) or stub.Stub())
    others = write_photos(tmp_path / "others", 3)
    write_broken(others[0])
    args = ["--calibration", tmp_path / "others"] if given else []
    args += ["--engine", "stub", "--precision", "int8", "--out", tmp_path / "rows.csv"]
    assert fastervit("predict", photos, "--checkpoint", checkpoint, *args).code == 0
    (settings,) = seen
    transform = create_transform(
        (3, 64, 64), mean=INPUT["mean"], std=INPUT["std"], interpolation="bicubic", crop_pct=0.9
    )
    expected = []
    for path in others[1:] if given else images_in(photos):
        with Image.open(path) as image:
            expected.append(transform(image.convert("RGB")))
    torch.testing.assert_close(settings.calibration, torch.stack(expected))
