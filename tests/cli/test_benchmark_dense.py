"""``fastervit benchmark --task detection`` and ``--task segmentation``: what they leave, and what they refuse."""

import csv
import json
from pathlib import Path

import pytest

from openfastervit.benchmarking.dense import DENSE_COLUMNS
from tests.cli.conftest import Run

QUICK = ["--repeats", 2, "--seconds", 0.01, "--threads", 1, "--device", "cpu"]
POCKET = "{representation: 8, fpn_channels: 8, mask_channels: 4, box_samples: 16}"


def rows_in(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == list(DENSE_COLUMNS)
        return list(reader)


def test_detection_leaves_a_table_and_its_settings(fastervit: Run, tmp_path: Path) -> None:
    """A FasterViT beside a peer, learning and at work, and a peer that is no backbone."""
    out = tmp_path / "report"
    networks = ["--models", "fastervit_0", "--peers", "test_resnet", "test_vit"]
    outcome = fastervit(
        *("benchmark", "--task", "detection", *networks, "--img-size", 64, 96, *QUICK),
        *("--head-options", POCKET, "--out", out),
    )
    assert outcome.code == 0
    assert outcome.err == f"fastervit: 6 rows; results.csv and settings.json are in {out}\n"
    assert sorted(path.name for path in out.iterdir()) == ["results.csv", "settings.json"]
    rows = rows_in(out)
    assert [(row["mode"], row["backbone"]) for row in rows] == [
        (mode, name) for mode in ("inference", "training") for name in ("fastervit_0", "test_resnet", "test_vit")
    ]
    assert {(row["task"], row["head"], row["batch_size"]) for row in rows} == {("detection", "cascade-mask-rcnn", "1")}
    for row in rows:
        if row["backbone"] == "test_vit":
            assert row["status"].startswith("unsupported: ")
            assert row["images_per_second"] == ""
            continue
        assert row["status"] == "ok"
        assert float(row["images_per_second"]) > 0
        assert float(row["peak_memory_mb"]) > float(row["memory_before_mb"]) > 0
        training = row["mode"] == "training"
        # Of 1000 proposals or a sample of 16, in three stages; masks of 100 detections or a quarter of a sample.
        assert (row["box_head_boxes"], row["mask_head_boxes"]) == (("48", "4") if training else ("3000", "100"))
    assert float(rows[0]["parameters_m"]) > 30 > float(rows[1]["parameters_m"])
    for text in ("fastervit_0", "cascade-mask-rcnn", "training", "64x96", "memory MB", "unsupported: "):
        assert text in outcome.out
    settings = json.loads((out / "settings.json").read_text())
    assert settings["command"].startswith("fastervit benchmark --task detection --models fastervit_0")
    assert settings["head_options"]["box_samples"] == 16
    assert settings["img_size"] == [64, 96]
    assert settings["finished"]
    assert {"torch", "torchvision", "timm", "transformers"} <= set(settings["versions"])
    assert {"processor", "cores"} <= set(settings["hardware"])


def test_segmentation_learns_from_two_images(fastervit: Run, tmp_path: Path) -> None:
    options = ["--img-size", 64, "--head-options", "{hidden_size: 8}", "--precisions", "bf16", "--modes", "training"]
    outcome = fastervit("benchmark", "--task", "segmentation", *options, *QUICK, "--out", tmp_path / "report")
    assert outcome.code == 0
    (row,) = rows_in(tmp_path / "report")
    assert row["status"] == "ok"
    told = [row[name] for name in ("head", "mode", "precision", "batch_size", "height", "width")]
    assert told == ["upernet", "training", "bf16", "2", "64", "64"]
    assert (row["box_head_boxes"], row["detections"]) == ("", "")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--task", "detection", "--head", "upernet"], ["--head 'upernet'", "detection", "cascade-mask-rcnn"]),
        (["--task", "segmentation", "--head", "mask-rcnn"], ["--head 'mask-rcnn'", "mask2former"]),
        (["--task", "detection", "--modes", "dreaming"], ["--modes 'dreaming'", "inference, training"]),
        (["--task", "detection", "--precisions", "int8"], ["--precisions 'int8'", "fp32, bf16"]),
        (["--task", "detection", "--img-size", "16", "64"], ["--img-size 16 64", "at least 32"]),
        (["--task", "detection", "--img-size", "64", "64", "64"], ["--img-size 64 64 64", "height and width"]),
        (["--task", "detection", "--sizes", "224"], ["--sizes is not for --task detection"]),
        (["--task", "segmentation", "--engines", "auto"], ["--engines is not for --task segmentation"]),
        (["--task", "detection", "--published-sizes"], ["--published-sizes is not for --task detection"]),
        (["--head", "upernet"], ["--head is not for --task classification", "name the task"]),
        (["--img-size", "64"], ["--img-size is not for --task classification"]),
        (["--modes", "training"], ["--modes is not for --task classification"]),
        (["--task", "detection", "--batch-sizes", "0"], ["--batch-sizes 0", "at least 1"]),
        (["--task", "detection", "--peers", "resnet_50"], ["resnet_50", "did you mean", "resnet50"]),
    ],
)
def test_values_that_do_not_fit(fails, tmp_path: Path, args: list[str], says: list[str]) -> None:
    fails("benchmark", *args, "--out", tmp_path / "report", says=says)
    assert not (tmp_path / "report").exists()


def test_a_task_that_there_is_not(fails, tmp_path: Path) -> None:
    fails("benchmark", "--task", "detecton", "--out", tmp_path, code=2, says=["--task", "detection"])
