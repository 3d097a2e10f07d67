"""``fastervit export`` of detectors and segmenters, and predicting with what it wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from openfastervit.inference.dense_file import DenseFile
from openfastervit.models.checkpoints import metadata_text, write_safetensors
from tests.cli.conftest import Run, names
from tests.inference.lively_dense import (
    BACKBONE,
    CATEGORY_IDS,
    CLASSES,
    COLOURS,
    RCNN_OPTIONS,
    SEGMENTER_OPTIONS,
    rcnn,
    segmenter,
)
from tests.pocket import picture, write_broken

TOLD: dict[str, Any] = {"model": "fastervit_0", "overrides": BACKBONE, "classes": CLASSES}


def write(model: nn.Module, path: Path, told: dict[str, Any]) -> Path:
    """A checkpoint as training leaves it."""
    write_safetensors(dict(model.state_dict()), path, metadata_text(model, told))
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a Mask R-CNN in it."""
    folder = tmp_path_factory.mktemp("runs") / "detector"
    told = {
        **TOLD,
        "task": "detection",
        "head": "mask-rcnn",
        "head_options": RCNN_OPTIONS,
        "category_ids": CATEGORY_IDS,
        "input": {**COLOURS, "min_size": 96, "max_size": 128},
    }
    folder.mkdir()
    write(rcnn("mask-rcnn"), folder / "best.safetensors", told)
    return folder


@pytest.fixture(scope="module")
def upernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a segmenter."""
    told = {
        **TOLD,
        "classes": ("ground", *CLASSES),
        "task": "segmentation",
        "head": "upernet",
        "head_options": SEGMENTER_OPTIONS["upernet"],
        "input": {**COLOURS, "crop_size": [96, 128], "eval_size": None},
    }
    file = tmp_path_factory.mktemp("checkpoints") / "segmenter.safetensors"
    return write(segmenter("upernet"), file, told)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such as the networks take without scaling them, and one that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        picture(number, (128, 96)).save(folder / f"{number}.png")
    write_broken(folder / "broken.png")
    return folder


def test_a_detector(fastervit: Run, detector: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "detector.onnx"
    done = fastervit(
        *("export", "--checkpoint", detector, "--to", "onnx", "--out", out),
        *("--calibration", pictures, "--calibration-images", 4),
    )
    assert (done.code, done.out) == (0, f"{out}\n")
    broken, random, real = done.err.splitlines()
    assert broken.startswith(f"fastervit: error: {pictures / 'broken.png'}: ")
    assert random.startswith("fastervit: random images of 96 x 128: 100.0% of 200 detections agree, boxes within ")
    assert real.startswith("fastervit: real images of 96 x 128: 100.0% of 300 detections agree, boxes within ")
    assert ", masks within " in real
    assert names(out.parent) == ["detector.onnx"]

    found = []
    for checkpoint in (detector, out):
        results = tmp_path / "results.json"
        options = ("--out", results, "--score-threshold", "0.3", "--device", "cpu")
        assert fastervit("detect", "predict", pictures, "--checkpoint", checkpoint, *options).code == 3
        found.append(json.loads(results.read_text()))
    assert len(found[0]) == len(found[1]) > 30
    key = lambda row: (row["file_name"], row["category_id"], [round(side, 1) for side in row["bbox"]])  # noqa: E731
    for one, other in zip(*(sorted(rows, key=key) for rows in found), strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.02)
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert {"segmentation", "category_id", "image_id"} <= other.keys()


def test_a_segmenter(fastervit: Run, fails: Callable[..., str], upernet: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "segmenter.xml"
    done = fastervit("export", "--checkpoint", upernet, "--to", "openvino", "--out", out, "--calibration", pictures)
    assert (done.code, done.out) == (0, f"{out}\n")
    _, random, real, hint = done.err.splitlines()
    for line, kind in ((random, "random"), (real, "real")):
        assert line.startswith(f"fastervit: {kind} images of 96 x 128: scores differ from the network's by at most ")
        assert "; the best class of pixels agrees on " in line
    assert "INFERENCE_PRECISION_HINT" in hint
    assert names(tmp_path) == ["segmenter.bin", "segmenter.xml"]

    for checkpoint, folder in ((upernet, "plain"), (out, "exported")):
        options = ("--checkpoint", checkpoint, "--out", tmp_path / folder, "--device", "cpu")
        assert fastervit("segment", "predict", pictures, *options).code == 3
    assert names(tmp_path / "plain") == names(tmp_path / "exported")
    for number in range(3):
        plain, exported = (np.asarray(Image.open(tmp_path / kind / f"{number}.png")) for kind in ("plain", "exported"))
        assert plain.shape == (96, 128)
        assert (plain == exported).mean() > 0.999

    fails(
        *("detect", "predict", pictures / "0.png", "--checkpoint", out),
        says=["was exported for segmentation, not detection", "use `fastervit segment predict`"],
    )


def test_a_size_and_a_precision(fastervit: Run, upernet: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.onnx"
    args = ("--to", "onnx", "--out", out, "--size", 64, 80, "--precision", "fp16")
    assert fastervit("export", "--checkpoint", upernet, *args).code == 0
    about = DenseFile(out, "segmentation").about
    assert (about.size, about.precision, about.classes) == ((64, 80), "fp16", ("ground", *CLASSES))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--to", "torch", "--out", "a.pt2"], ["to='torch'", "detectors are exported to onnx and openvino alone"]),
        (["--to", "tensorrt", "--out", "a.engine"], ["to='tensorrt'", "onnx and openvino alone"]),
        (["--to", "onnx", "--out", "a.onnx", "--precision", "fp16"], ["detectors are exported in fp32 alone"]),
        (["--to", "onnx", "--out", "a.onnx", "--dynamic-size"], ["--dynamic-size is for classifiers", "leave it out"]),
        (["--to", "onnx", "--out", "a.onnx", "--preprocessing"], ["--preprocessing is for classifiers"]),
        (["--to", "onnx", "--out", "a.onnx", "--model", "fastervit_0"], ["--model is for classifiers"]),
        (["--to", "onnx", "--out", "a.onnx", "--size", "100"], ["100 x 100", "multiples of 32, such as 128 x 128"]),
        (["--to", "onnx", "--out", "a.xml"], ["a.xml does not end in .onnx"]),
    ],
)
def test_refusals(
    fails: Callable[..., str],
    detector: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    says: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    fails("export", "--checkpoint", detector, *args, says=says)
    assert list(tmp_path.iterdir()) == []


def test_unreadable_pictures_alone(fastervit: Run, detector: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    broken = write_broken(tmp_path / "pictures" / "broken.png")
    out = tmp_path / "detector.onnx"
    done = fastervit("export", "--checkpoint", detector, "--to", "onnx", "--out", out, "--calibration", broken.parent)
    assert done.code == 1
    first, second = done.err.splitlines()
    assert first.startswith(f"fastervit: error: {broken}: ")
    assert second == f"fastervit: error: none of the images in {broken.parent} can be read"
    assert not out.exists()
