"""Detection and segmentation on two processes."""

import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

import openfastervit_cli
from openfastervit.training.tables import read_table
from tests.distributed.launch import run_jobs
from tests.shapes import BACKBONE, RCNN, UPERNET, write_coco, write_semantic

COMMON: dict[str, Any] = {
    "model_options": BACKBONE,
    "drop_path": 0.0,
    "epochs": 1,
    "warmup_epochs": 0.0,
    "batch_size": 2,
    "lr": 0.002,
    "lr_batch": 4,
    "workers": 0,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, each on two processes: a detector's and a segmenter's."""
    folder = tmp_path_factory.mktemp("dense")
    coco, scenes = write_coco(folder / "coco", val=5), write_semantic(folder / "scenes", val=5)
    detection = {"data": str(coco), "min_sizes": [96], "max_size": 160, "head_options": RCNN}
    # Crops of several windows: with one, carriers take no part, and DDP would wait for their gradients.
    segmentation = {"data": str(scenes), "crop_size": [128], "head_options": UPERNET}
    jobs = [
        {"do": "train", "task": "detection", "out": str(folder / "detector"), "recipe": {**COMMON, **detection}},
        {"do": "train", "task": "segmentation", "out": str(folder / "segmenter"), "recipe": {**COMMON, **segmentation}},
    ]
    for told in run_jobs(folder, 2, jobs):
        assert len(told) == 2
        assert all("error" not in one for one in told), told
    return folder


@pytest.mark.parametrize(("kind", "metric"), [("detector", "val_box_ap"), ("segmenter", "val_miou")])
def test_every_image_is_judged_once(runs: Path, kind: str, metric: str) -> None:
    (row,) = read_table(runs / kind / "metrics.csv")[1]
    assert int(row["step"]) == 2, "eight images, two of each process a step"
    assert int(row["val_images"]) == 5
    assert metric in row


def test_the_detectors_figures_are_those_of_one_process(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What both processes found together, scored from the saved network by one alone."""
    words = ["detect", "evaluate", "--checkpoint", str(runs / "detector"), "--data", str(runs / "coco"), "--json"]
    assert openfastervit_cli.main([*words, "--workers", "0", "--device", "cpu", "--out", str(tmp_path)]) == 0
    figures = json.loads(capsys.readouterr().out)
    (row,) = read_table(runs / "detector" / "metrics.csv")[1]
    for name in ("box_ap", "mask_ap", "box_ar100"):
        assert float(row[f"val_{name}"]) == pytest.approx(figures[name], abs=2e-3)
    found = json.loads((tmp_path / "predictions.json").read_text())
    truth = COCO(str(runs / "coco" / "annotations" / "instances_val2017.json"))
    assert {entry["image_id"] for entry in found} <= set(truth.imgs)


def test_the_segmenters_figures_are_those_of_one_process(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["segment", "evaluate", "--checkpoint", str(runs / "segmenter"), "--data", str(runs / "scenes"), "--json"]
    assert openfastervit_cli.main([*words, "--workers", "0", "--device", "cpu"]) == 0
    figures = json.loads(capsys.readouterr().out)
    (row,) = read_table(runs / "segmenter" / "metrics.csv")[1]
    for name in ("miou", "pixel_accuracy"):
        assert float(row[f"val_{name}"]) == pytest.approx(figures[name], abs=1e-3)
