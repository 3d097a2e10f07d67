"""The studies of detection and segmentation run from end to end at their smallest."""

import csv
import json
from pathlib import Path

import pytest

import studies.camvid.__main__ as camvid
import studies.coco_tiny.__main__ as coco_tiny
from openfastervit.tasks.detection.metrics import evaluate_results
from studies.coco_tiny.subset import largest_objects, write_subset
from tests.shapes import write_coco, write_semantic


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_detection(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "coco")
    words = ["--scale", "smoke", "--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert coco_tiny.main([*words, "--workers", "0"]) == 0
    rows = rows_of(tmp_path / "out" / "results.csv")
    assert [(row["part"], row["split"]) for row in rows] == [
        ("ground_truth", "train"),
        ("ground_truth", "val"),
        ("overfit", "train"),
        ("epoch", "val"),
    ]
    assert [(row["box_ap"], row["mask_ap"]) for row in rows[:2]] == [("1.0", "1.0")] * 2
    for row in rows[2:]:
        assert 0 <= float(row["box_ap"]) <= 1
        assert row["processor"]
        assert row["command"].startswith("python -m studies.coco_tiny --scale smoke")
    written = (tmp_path / "out" / "overfit" / "last.safetensors").read_bytes()
    assert coco_tiny.main([*words, "--workers", "0"]) == 0, "what is done is not done again"
    assert (tmp_path / "out" / "overfit" / "last.safetensors").read_bytes() == written


def test_the_subset_is_of_photographs_with_large_objects(tmp_path: Path) -> None:
    content = {
        "images": [{"id": number, "width": 100, "height": 100} for number in range(4)],
        "annotations": [
            {"image_id": 0, "bbox": [0, 0, 50, 50], "iscrowd": 0},
            {"image_id": 0, "bbox": [0, 0, 5, 5], "iscrowd": 0},
            {"image_id": 1, "bbox": [0, 0, 20, 20], "iscrowd": 0},
            {"image_id": 2, "bbox": [0, 0, 90, 90], "iscrowd": 1},
        ],
    }
    assert largest_objects(content, 2) == [1, 0]
    data = write_coco(tmp_path / "coco")
    whole = data / "annotations" / "instances_train2017.json"
    part = json.loads(write_subset(whole, tmp_path / "part.json", 3).read_text())
    assert len(part["images"]) == 3
    assert {entry["image_id"] for entry in part["annotations"]} == {image["id"] for image in part["images"]}


def test_ground_truth_that_is_moved_scores_less(tmp_path: Path) -> None:
    """The row of 1.0 could be something else."""
    data = write_coco(tmp_path / "coco")
    file = data / "annotations" / "instances_val2017.json"
    moved = [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": [entry["bbox"][0] + 4, *entry["bbox"][1:]],
            "score": 1.0,
        }
        for entry in json.loads(file.read_text())["annotations"]
    ]
    assert 0.2 < evaluate_results(file, moved, masks=False).compute()["box_ap"] < 0.9


def test_segmentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_semantic(tmp_path / "scenes", test=2)
    words = ["--scale", "smoke", "--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert camvid.main([*words, "--workers", "0"]) == 0
    rows = rows_of(tmp_path / "out" / "results.csv")
    assert [(row["split"], row["look"]) for row in rows] == [
        (split, look) for split in ("val", "test") for look in camvid.LOOKS
    ]
    for row in rows:
        assert 0 <= float(row["miou"]) <= 1
        assert row["iou_red"] != ""
        assert row["images"] == "2"
    curve = rows_of(tmp_path / "out" / "curve.csv")
    assert len(curve) == 1
    assert float(curve[0]["val_miou"]) >= 0
    assert "mIoU" in capsys.readouterr().out


def test_a_scale_that_is_unknown_is_wrong_usage(tmp_path: Path) -> None:
    for study in (coco_tiny, camvid):
        with pytest.raises(SystemExit):
            study.main(["--scale", "huge", "--data", str(tmp_path), "--out", str(tmp_path)])
        assert study.main(["--scale", "smoke", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 2
