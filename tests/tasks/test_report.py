import csv
import io
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openfastervit.tasks import pictures
from openfastervit.tasks.metrics import CONFUSION_CLASSES, ClassificationMetrics
from openfastervit.tasks.report import REPORT_FILES, write_report


def evaluated(classes: int | list[str], images: int = 60) -> ClassificationMetrics:
    metrics = ClassificationMetrics(classes)
    count = len(metrics.classes)
    metrics.update(torch.randn(images, count), torch.randint(count - 1, (images,)))
    return metrics


def table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))


def decoded(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def test_all_figures_are_written(tmp_path: Path):
    names = ["tench, Tinca tinca", 'a "quoted" one', "Größe", "never seen"]
    metrics = evaluated(names)
    written = write_report(tmp_path / "new" / "folder", metrics, about={"checkpoint": "model.safetensors"})
    folder = tmp_path / "new" / "folder"
    assert written == [folder / name for name in REPORT_FILES]
    assert sorted(folder.iterdir()) == sorted(written)

    told = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert {key: told[key] for key in metrics.compute()} == metrics.compute()
    assert told["about"] == {"checkpoint": "model.safetensors"}
    assert told["classes"] == 4
    assert [row["name"] for row in told["per_class"]] == names
    assert told["per_class"][3]["top1"] is None  # no image is of this class
    assert sum(row["images"] for row in told["reliability"]) == 60

    head, *rows = table(folder / "per_class.csv")
    assert head == ["name", "images", "top1", "top5", "precision", "recall", "f1"]
    assert [row[0] for row in rows] == names
    assert float(rows[0][2]) == pytest.approx(metrics.per_class()[0].top1, rel=1e-5)
    assert rows[3][2] == ""

    head, *rows = table(folder / "confusion.csv")
    assert head[1:] == [row[0] for row in rows] == names
    assert [[int(cell) for cell in row[1:]] for row in rows] == metrics.confusion.tolist()


def test_undefined_figures_are_valid_json(tmp_path: Path):
    metrics = ClassificationMetrics(2)
    metrics.update(torch.full((1, 2), torch.nan), torch.tensor([0]))
    write_report(tmp_path, metrics)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    told = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert told["loss"] is None
    assert told["unpredicted"] == 1


def test_names_that_are_no_text_come_back(tmp_path: Path):
    names = ["caf\udce9", "$\\frac{$", "鳥\n", "plain"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(tmp_path, evaluated(names))
    assert [row[0] for row in table(tmp_path / "per_class.csv")[1:]] == names
    told = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in told["per_class"]] == names


@pytest.mark.parametrize("classes", [1, 2, 20, 40, 41, 1000, pytest.param(1999, marks=pytest.mark.slow)])
def test_pictures_have_room_for_every_class_and_its_name(classes: int):
    names = [f"{index} Widest Names Want Room, and some are much too long" for index in range(classes)]
    confusion = np.eye(classes, dtype=np.int64) * 5
    confusion[:, -1] += 12_345_678
    confusion[-1] = 0
    confusion[-1, -1] = 5
    pixels = decoded(pictures.confusion_png(confusion, names))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()  # nothing is cut off
    darkest = (pixels == (8, 48, 107)).all(axis=-1)  # a share of 100 %, in the last column
    longest = max(darkest.sum(axis=0))
    assert longest >= classes  # a pixel or more for each class


def test_a_reliability_diagram_has_a_bar_a_bin():
    metrics = ClassificationMetrics(2, bins=4)
    metrics.update(torch.tensor([[0.0, 0.3], [0.0, 3.0]]), torch.tensor([1, 1]))  # bins 3 and 4, all right
    pixels = decoded(pictures.reliability_png(metrics.reliability(), metrics.compute()["ece"]))
    blue = (pixels == (31, 119, 180)).all(axis=-1)
    widest = blue.sum(axis=1).max()
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()
    assert 0.4 < widest / pixels.shape[1] < 0.5  # half of the axis, which takes most of the picture


def test_the_most_frequent_confusions_are_listed_first():
    confusion = np.diag([9, 9, 9])
    confusion[2, 0], confusion[0, 1] = 3, 1
    shares = confusion / confusion.sum(axis=1, keepdims=True)
    assert pictures._worst(confusion, shares, ["a", "b", "c"]) == ["3 (25 %)  c → a", "1 (10 %)  a → b"]


def test_without_matplotlib_there_are_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "confusion.png").write_bytes(b"of an earlier evaluation")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    written = write_report(tmp_path, evaluated(3))
    assert [path.name for path in written] == ["per_class.csv", "confusion.csv", "evaluation.json"]
    assert sorted(tmp_path.iterdir()) == sorted(written)


def test_too_many_classes_have_no_confusion_matrix(tmp_path: Path):
    (tmp_path / "confusion.csv").write_text("of an earlier evaluation")
    names = [path.name for path in write_report(tmp_path, evaluated(CONFUSION_CLASSES + 1))]
    assert "per_class.csv" in names
    assert not (tmp_path / "confusion.csv").exists()
    assert not (tmp_path / "confusion.png").exists()


def test_a_failure_leaves_the_old_files_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_report(tmp_path, evaluated(3))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, evaluated(3))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_is_written_of_no_images_or_of_what_is_not_plain(tmp_path: Path):
    with pytest.raises(ValueError, match="no image was evaluated"):
        write_report(tmp_path / "report", ClassificationMetrics(3))
    with pytest.raises(ValueError, match=r"about=.* is not plain data"):
        write_report(tmp_path / "report", evaluated(3), about={"model": object()})
    assert not (tmp_path / "report").exists()
