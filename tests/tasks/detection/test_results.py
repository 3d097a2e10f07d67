"""COCO's results: what is written is what was detected, and a wrong file is told from a right one."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as pycoco_mask

from openfastervit.data.coco_annotations import read_annotations
from openfastervit.tasks.detection.results import (
    check_results,
    from_results,
    read_results,
    to_results,
    write_results,
)

GOOD = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
RLE = {"size": [4, 6], "counts": pycoco_mask.encode(np.eye(4, 6, dtype=np.uint8, order="F"))["counts"].decode()}


def detections(boxes, **more):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    return {"boxes": boxes, "scores": torch.linspace(1, 0.1, count), "labels": torch.ones(count, dtype=int), **more}


def written(folder: Path, given) -> Path:
    path = folder / "results.json"
    path.write_text(given if isinstance(given, str) else json.dumps(given))
    return path


side = st.floats(0, 2000, width=32)


@given(st.lists(st.tuples(side, side, side, side, st.floats(0, 1, width=32), st.integers(1, 3)), max_size=8))
def test_boxes_round_trip(rows):
    boxes = [[x, y, x + width, y + height] for x, y, width, height, _, _ in rows]
    output = detections(boxes)
    output["scores"] = torch.tensor([row[4] for row in rows], dtype=torch.float32)
    output["labels"] = torch.tensor([row[5] for row in rows], dtype=torch.int64)
    results = json.loads(json.dumps(to_results(output, 42, [10, 30, 20])))
    assert [result["category_id"] for result in results] == [[10, 30, 20][row[5] - 1] for row in rows]
    for result, (x, y, width, height, _, _) in zip(results, rows, strict=True):
        assert result["bbox"] == pytest.approx([x, y, width, height], abs=0.006, rel=1e-6)
    back = from_results(results, [10, 30, 20])
    assert list(back) == ([42] if rows else [])
    if rows:
        order = output["scores"].argsort(descending=True, stable=True)
        assert torch.equal(back[42]["scores"], output["scores"][order])  # exactly: ties would change the precision
        assert torch.equal(back[42]["labels"], output["labels"][order])
        torch.testing.assert_close(back[42]["boxes"], output["boxes"][order], atol=0.012, rtol=1e-6)
        assert "masks" not in back[42]


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
        elements=st.floats(0, 1, width=32),
    )
)
def test_masks_round_trip(probabilities):
    masks = torch.from_numpy(probabilities).unsqueeze(1)
    output = detections([[0, 0, 5, 5]] * len(masks), masks=masks)
    results = json.loads(json.dumps(to_results(output, 1, [3])))
    expected = [np.asfortranarray(mask > 0.5, dtype=np.uint8) for mask in probabilities]
    for result, mask in zip(results, expected, strict=True):
        rle = pycoco_mask.encode(mask)
        assert result["segmentation"] == {"size": rle["size"], "counts": rle["counts"].decode()}
    assert torch.equal(from_results(results, [3])[1]["masks"], (masks > 0.5).float())


def test_detections_that_are_none_are_left_out():
    output = detections([[0, 0, 5, 5], [0, math.nan, 5, 5], [1, 1, math.inf, 5], [2, 2, 5, 5]])
    output["scores"][3] = math.nan
    assert [result["bbox"] for result in to_results(output, 1, [3])] == [[0, 0, 5, 5]]
    assert to_results(detections([]), 1, [3]) == []
    assert to_results(detections([], masks=torch.zeros(0, 1, 5, 5)), 1, [3]) == []


@pytest.mark.parametrize("label", [0, 2, -1])
def test_labels_without_a_class(label):
    output = detections([[0, 0, 5, 5]])
    output["labels"][0] = label
    with pytest.raises(ValueError, match=f"label {label} on image 8 is none of the 1 classes"):
        to_results(output, 8, [3])


def test_categories_without_a_label():
    with pytest.raises(ValueError, match="category_id 3 is none of the 2 known: 1, 2"):
        from_results([GOOD], [1, 2])


def test_results_without_boxes():
    (output,) = from_results([{**without("bbox"), "segmentation": RLE}], [3]).values()
    assert output["boxes"].tolist() == [[0, 0, 4, 4]]  # those of the mask


def test_files(tmp_path):
    path = tmp_path / "results.json"
    for results in ([], [GOOD], [GOOD, {**GOOD, "segmentation": RLE, "file_name": "ü.jpg"}]):
        write_results(path, iter(results))
        assert json.loads(path.read_text()) == results
        assert read_results(path) == results
    with pytest.raises(ValueError, match="Out of range float"):
        write_results(path, [{**GOOD, "score": math.nan}])
    assert read_results(path) == results  # the old file is whole
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (5, "it is 5, not an object"),
        (without("image_id"), "image_id is None, not a whole number"),
        ({**GOOD, "image_id": "1"}, "image_id is '1', not a whole number"),
        ({**GOOD, "category_id": 1.5}, "category_id is 1.5"),
        ({**GOOD, "category_id": True}, "category_id is True"),
        (without("score"), "score is None"),
        ({**GOOD, "score": math.nan}, "score is nan"),
        ({**GOOD, "score": 10**400}, "score is 1000"),
        (without("bbox"), "neither bbox nor segmentation"),
        ({**GOOD, "bbox": [1, 2, 3]}, r"bbox is \[1, 2, 3\], not four"),
        ({**GOOD, "bbox": [1, 2, 3, math.inf]}, "not four finite"),
        ({**GOOD, "bbox": [5, 5, -3, 4]}, "negative width or height"),
        ({**GOOD, "segmentation": [[1, 2, 3, 4, 5, 6]]}, "no compressed RLE"),
        ({**GOOD, "segmentation": {**RLE, "counts": [24]}}, "no compressed RLE"),
        ({**GOOD, "segmentation": {**RLE, "size": [4]}}, "no compressed RLE"),
        ({**GOOD, "segmentation": {**RLE, "size": [4, -6]}}, r"size \[4, -6\]"),
        ({**GOOD, "segmentation": {**RLE, "size": [4, 7]}}, "24 pixels of 28"),
        ({**GOOD, "segmentation": {**RLE, "counts": "~~~"}}, "no string of run lengths"),
    ],
)
def test_wrong_entries_are_named(tmp_path, entry, message):
    path = written(tmp_path, [GOOD, GOOD, entry])
    with pytest.raises(ValueError, match=rf"results.json: entry 2 \(from 0\): .*{message}"):
        read_results(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [("[{", "is not JSON"), ({"annotations": []}, "holds a dict, not a list of detections")],
)
def test_files_that_are_no_results(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        read_results(written(tmp_path, given))
    with pytest.raises(FileNotFoundError, match="no file"):
        read_results(tmp_path / "nowhere.json")


def test_results_against_annotations(tmp_path):
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 4, "width": 6} for number in (1, 2)]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 3, "name": "cat"}]}))
    truth = read_annotations(path, masks=False)
    masked = {**GOOD, "segmentation": RLE}
    check_results([GOOD, masked], truth, masks=False)
    check_results([masked], truth, masks=True)
    for entry, masks, message in (
        ({**GOOD, "image_id": 9}, False, "image_id 9 is none of the 2 images"),
        ({**GOOD, "category_id": 4}, False, "category_id 4 is none of the categories"),
        (GOOD, True, "it has no segmentation"),
        ({**GOOD, "segmentation": {**RLE, "size": [6, 4]}}, False, r"its mask is of size \[6, 4\], the image \[4, 6\]"),
        ({**GOOD, "score": None}, False, "score is None"),
    ):
        with pytest.raises(ValueError, match=rf"mine: entry 1 \(from 0\): {message}|mine: entry 1 .*{message}"):
            check_results([masked, entry], truth, masks=masks, where="mine")
