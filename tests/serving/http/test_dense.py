"""A detector and a segmenter behind the real server."""

import base64
import contextlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

import openfastervit_cli
from tests.inference.lively_dense import CATEGORY_IDS, CLASSES
from tests.pocket import picture
from tests.serving.http.running import Running, running, write_detector, write_segmenter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a picture whose camera was turned."""
    folder = tmp_path_factory.mktemp("dense")
    exif = Image.Exif()
    exif[0x0112] = 8
    picture(3, (120, 90)).save(folder / "1.jpg", exif=exif)
    write_detector(folder / "detector.safetensors")
    write_segmenter(folder / "segmenter.safetensors")
    return folder


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[dict[str, Running]]:
    with ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as stack:
        starting = [running(folder / f"{name}.safetensors", "--standby", 0) for name in ("detector", "segmenter")]
        detector, segmenter = pool.map(stack.enter_context, starting)
        yield {"detector": detector, "segmenter": segmenter}


def post(server: Running, folder: Path, **options: Any) -> Any:
    data = (folder / "1.jpg").read_bytes()
    answer = server.http.post("/predict", content=data, headers={"Content-Type": "image/jpeg"}, params=options)
    assert answer.status_code == 200, answer.text
    kind = answer.headers["content-type"]
    described = server.http.get("/openapi.json").json()
    content = described["paths"]["/predict"]["post"]["responses"]["200"]["content"]
    assert kind in content
    if kind == "application/json":
        jsonschema.validate(answer.json(), {**content[kind]["schema"], "components": described["components"]})
    return answer


def test_objects_are_those_of_detect_predict(servers: dict[str, Running], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    checkpoint = str(folder / "detector.safetensors")
    words = ["detect", "predict", str(folder / "1.jpg"), "--checkpoint", checkpoint, "--out", str(out)]
    assert openfastervit_cli.main([*words, "--score-threshold", "0.5"]) == 0
    expected = json.loads(out.read_text())
    found = post(servers["detector"], folder, score_threshold=0.5).json()
    assert (found["width"], found["height"]) == (90, 120)  # upright
    assert len(found["predictions"]) == len(expected) > 1
    for row, result in zip(found["predictions"], expected, strict=True):
        left, top, right, bottom = row["box"]
        assert [left, top, right - left, bottom - top] == pytest.approx(result["bbox"], abs=0.02)
        assert row["score"] == pytest.approx(result["score"], abs=1e-6)
        assert CATEGORY_IDS[row["index"]] == result["category_id"]
        assert CLASSES[row["index"]] == row["class"]
        assert row["mask"] == result["segmentation"]
        assert coco.decode(row["mask"]).shape == (120, 90)


def test_objects_as_they_are_asked_for(servers: dict[str, Running], folder: Path) -> None:
    found = post(servers["detector"], folder, masks="none").json()["predictions"]
    assert found
    assert all("mask" not in row and row["score"] >= 0.3 for row in found)
    assert post(servers["detector"], folder, score_threshold=1).json()["predictions"] == []


def test_labels_are_those_of_segment_predict(servers: dict[str, Running], folder: Path, tmp_path: Path) -> None:
    checkpoint = str(folder / "segmenter.safetensors")
    words = ["segment", "predict", str(folder / "1.jpg"), "--checkpoint", checkpoint, "--out", str(tmp_path)]
    assert openfastervit_cli.main(words) == 0
    expected = np.asarray(Image.open(tmp_path / "1.png"))
    answer = post(servers["segmenter"], folder)
    assert answer.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), expected)
    told = post(servers["segmenter"], folder, format="json").json()
    assert (told["width"], told["height"], told["classes"]) == (90, 120, ["ground", *CLASSES])
    png = io.BytesIO(base64.b64decode(told["png"]))
    np.testing.assert_array_equal(np.asarray(Image.open(png)), expected)
