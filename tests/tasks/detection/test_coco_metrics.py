"""COCO's average precision: the same as pycocotools gives when it is run by hand."""

import contextlib
import copy
import io
import json
import math
import pickle

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from openfastervit.data.coco import CocoImages, find_coco
from openfastervit.data.coco_annotations import read_annotations
from openfastervit.tasks.detection.metrics import CocoMetrics, evaluate_results
from openfastervit.tasks.detection.results import annotations_as_results, read_results, write_results

# COCOeval.summarize prints its figures in this order.
NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", None, None, "ar100", None, None, None]


IMAGES = 24


@pytest.fixture
def paths(sample_data, tmp_path):
    """Some of the photographs of COCO's validation set, those with crowds first."""
    whole = find_coco(sample_data / "coco-tiny", "val")
    content = json.loads(whole.annotations.read_text())
    crowded = {annotation["image_id"] for annotation in content["annotations"] if annotation["iscrowd"]}
    content["images"] = sorted(content["images"], key=lambda image: image["id"] not in crowded)[:IMAGES]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    (tmp_path / "some.json").write_text(json.dumps(content))
    return whole._replace(annotations=tmp_path / "some.json")


def jittered(paths, masks=True):
    """Detections as a network gives them, from objects moved a little, some lost and some mistaken."""
    source = CocoImages(*paths, masks=masks, crowds=True)
    generator = torch.Generator().manual_seed(1)
    outputs, targets = [], []
    for index in range(len(source)):
        target = source.target(index)
        count = len(target["labels"])
        keep = torch.rand(count, generator=generator) < 0.8
        mistaken = torch.rand(count, generator=generator) < 0.1
        sides = (target["boxes"][:, 2:] - target["boxes"][:, :2]).repeat(1, 2)
        shift = int(torch.randint(-2, 3, (1,), generator=generator))
        output = {
            "boxes": target["boxes"] + 0.08 * sides * torch.randn(count, 4, generator=generator),
            "scores": torch.rand(count, generator=generator),
            "labels": torch.where(mistaken, torch.randint(1, 81, (count,), generator=generator), target["labels"]),
        }
        if masks:
            output["masks"] = target["masks"].roll(shift, dims=2).unsqueeze(1) * 0.9
        outputs.append({name: value[keep] for name, value in output.items()})
        targets.append(source.about(index))
    return source, outputs, targets


def by_hand(annotations, results, kind, images=None):
    """pycocotools as its documentation has it; COCO's server takes the areas of masks from the masks."""
    results = copy.deepcopy(results)
    for result in results:
        result.pop("bbox" if kind == "segm" else "segmentation", None)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        if images is not None:
            evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def named(**evaluations):
    """The figures of evaluations by hand, as ours are called."""
    figures = {}
    for name, evaluation in evaluations.items():
        stats = zip(NAMES, evaluation.stats, strict=True)
        figures |= {f"{name}_{figure}": math.nan if value == -1 else value for figure, value in stats if figure}
    return figures


def test_equal_to_pycocotools_by_hand(paths, tmp_path, capsys):
    source, outputs, targets = jittered(paths)
    metrics = CocoMetrics(paths.annotations, source.category_ids, masks=True)
    for start in range(0, len(outputs), 3):
        metrics.update(outputs[start : start + 3], targets[start : start + 3])
    figures = metrics.compute()
    evaluations = {kind: by_hand(paths.annotations, metrics.results, kind) for kind in ("bbox", "segm")}
    expected = named(box=evaluations["bbox"], mask=evaluations["segm"])
    assert figures == pytest.approx({**expected, "images": IMAGES}, abs=1e-12, nan_ok=True)
    assert 0.2 < figures["box_ap"] < 0.9  # neither all right nor all wrong: it could differ
    assert 0.2 < figures["mask_ap"] < 0.9
    # Written, read and scored as a file they give the same.
    write_results(tmp_path / "results.json", metrics.results)
    assert evaluate_results(paths.annotations, tmp_path / "results.json").compute() == figures
    assert read_results(tmp_path / "results.json") == metrics.results
    assert capsys.readouterr().out == ""

    rows = metrics.per_class()
    assert [row.name for row in rows] == list(source.classes)
    for column, kind in (("box_ap", "bbox"), ("mask_ap", "segm")):
        precision = evaluations[kind].eval["precision"]
        found = [getattr(row, column) for row in rows]
        assert np.nanmean(found) == pytest.approx(figures[column], abs=1e-12)
        for place, value in enumerate(found):
            values = precision[:, :, place, 0, 2]
            assert value == pytest.approx(values.mean() if values.min() > -1 else math.nan, nan_ok=True)


def test_only_images_that_were_seen(paths):
    source, outputs, targets = jittered(paths, masks=False)
    metrics = CocoMetrics(paths.annotations, source.category_ids, masks=False)
    metrics.update(outputs[10:20], targets[10:20])
    figures = metrics.compute()
    seen = [target["image_id"] for target in targets[10:20]]
    assert metrics.image_ids == seen
    expected = named(box=by_hand(paths.annotations, metrics.results, "bbox", seen))
    assert figures == pytest.approx({**expected, "images": 10}, abs=1e-12, nan_ok=True)
    # Over all images, those that were not seen count as missed.
    whole = evaluate_results(paths.annotations, metrics.results)
    assert whole.compute()["box_ap"] < figures["box_ap"] / 2
    assert math.isnan(whole.per_class()[0].mask_ap)


def test_parts_merged_are_the_whole(paths):
    source, outputs, targets = jittered(paths)
    whole, first, second = (CocoMetrics(paths.annotations, source.category_ids, masks=True) for _ in range(3))
    whole.update(outputs, targets)
    first.update(outputs[::2], targets[::2])
    first.compute()  # what was found of a part is not kept
    second.update(outputs[1::2], targets[1::2])
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.compute() == whole.compute()
    with pytest.raises(ValueError, match=r"image \d+ comes twice"):
        first.merge(second)
    with pytest.raises(ValueError, match="with other settings"):
        first.merge(CocoMetrics(paths.annotations, source.category_ids, masks=False))


def test_pickled_without_annotations(paths):
    metrics = evaluate_results(paths.annotations, [])
    size = len(pickle.dumps(metrics))
    metrics.compute()
    assert len(pickle.dumps(metrics)) == size < 10_000


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_truth_itself_is_perfect(sample_data, split):
    annotations = find_coco(sample_data / "coco-tiny", split).annotations
    truth = read_annotations(annotations, masks=True)
    assert any(annotation["iscrowd"] for annotation in truth.annotations)
    results = annotations_as_results(truth, masks=True)
    assert len(results) == len(json.loads(annotations.read_text())["annotations"])
    figures = evaluate_results(annotations, results).compute()
    assert figures.pop("images") == 80
    assert figures == pytest.approx(dict.fromkeys(figures, 1.0), abs=1e-9)


SIZE = {"height": 50, "width": 50}


def scene(folder, *annotations, **changes):
    """An annotation file of one image."""
    good = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", **SIZE}, {"id": 2, "file_name": "b.jpg", **SIZE}],
        "annotations": [{**good, "id": number, **given} for number, given in enumerate(annotations)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        **changes,
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def test_a_crowd_takes_no_object_away(tmp_path):
    """The region overlaps one object enough to take it; that one's detection takes the next, whose own is left over."""

    def rows(top, bottom, **more):
        corners = [0, top, 10, top, 10, bottom, 0, bottom]
        return {"bbox": [0, top, 10, bottom - top], "segmentation": [corners], **more}

    annotations = scene(tmp_path, rows(0, 8, iscrowd=1), rows(0, 10), rows(2, 12), rows(30, 40))
    results = annotations_as_results(read_annotations(annotations, masks=True), masks=True)
    figures = evaluate_results(annotations, results).compute()
    assert figures["box_ap"] == figures["mask_ap"] == pytest.approx(1)
    # The crowd counts for nothing: without it, or with more found in it, it is the same.
    crowd, *singles = results
    for given in (singles, [*singles, crowd, crowd, {**crowd, "bbox": [0, 1, 5, 5]}]):
        assert evaluate_results(annotations, given).compute()["box_ap"] == pytest.approx(1)
    # By COCO's rules it would not be so if the crowd came first.
    first = [{**result, "score": 1.0} for result in results]
    assert max(evaluate_results(annotations, first).compute()[name] for name in ("box_ap", "mask_ap")) < 0.999


def test_ids_from_zero_and_ids_that_come_twice(tmp_path):
    """pycocotools takes an object whose id is 0 for one that was not found, and mixes up those that share one."""
    other = {"bbox": [20, 20, 10, 10]}
    for ids in ((0, 1), (7, 7)):
        annotations = scene(tmp_path, {"id": ids[0]}, {**other, "id": ids[1]})
        results = annotations_as_results(read_annotations(annotations, masks=False), masks=False)
        assert evaluate_results(annotations, results).compute()["box_ap"] == pytest.approx(1)


def test_without_detections_or_objects(tmp_path):
    annotations = scene(tmp_path, {})
    metrics = CocoMetrics(annotations, [1, 2], masks=True)
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    metrics.update([nothing], [{"image_id": torch.tensor(1)}])
    figures = metrics.compute()
    assert figures["box_ap"] == figures["mask_ap"] == figures["box_ar100"] == 0
    assert math.isnan(figures["box_ap_large"])  # there is no such object
    assert [row.box_ap for row in metrics.per_class()] == pytest.approx([0, math.nan], nan_ok=True)
    # An image without objects: nothing is defined, found or not.
    metrics = CocoMetrics(annotations, [1, 2], masks=False)
    found = {"boxes": torch.ones(1, 4), "scores": torch.ones(1), "labels": torch.ones(1, dtype=torch.int64)}
    metrics.update([found], [{"image_id": 2}])
    figures = metrics.compute()
    assert figures.pop("images") == 1
    assert all(math.isnan(value) for value in figures.values())


def test_categories_by_label(tmp_path):
    annotations = scene(tmp_path, {"category_id": 2})
    found = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "scores": torch.ones(1), "labels": torch.tensor([1])}
    for category_ids, expected in (([2, 1], 1), ([1, 2], 0), ([2], 1), ([2, 77], 1)):
        metrics = CocoMetrics(annotations, category_ids, masks=False)
        metrics.update([found], [{"image_id": 1}])
        assert metrics.compute()["box_ap"] == pytest.approx(expected)
    assert [row.name for row in metrics.per_class()] == ["dog", "category 77"]


def test_annotations_that_cannot_be_used_count_for_nothing(tmp_path):
    wrong = [
        {"bbox": [5, 5, 0, 9]},
        {"bbox": [99, 5, 9, 9]},
        {"category_id": 8},
        {"image_id": 8},
        {"bbox": [math.nan] * 4},
    ]
    masks = [{"segmentation": []}, {"segmentation": {"size": [9, 9], "counts": [81]}}]
    annotations = scene(tmp_path, {}, *wrong, *masks)
    with pytest.warns(UserWarning, match="7 of 8 annotations") as told:
        metrics = evaluate_results(
            annotations, annotations_as_results(read_annotations(annotations, masks=True), masks=True)
        )
    assert len(told) == 1
    assert told[0].filename == __file__
    figures = metrics.compute()
    assert figures["box_ap"] == figures["mask_ap"] == pytest.approx(1)


def test_areas_of_masks_are_those_of_the_masks(tmp_path):
    """A thin diagonal that is not there: wrong among the small objects, whatever the size of its box."""
    square = {"bbox": [0, 0, 40, 40], "segmentation": [[0, 0, 40, 0, 40, 40, 0, 40]], "area": 1600, "iscrowd": 0}
    thin = [[0, 0, 2, 0, 50, 48, 50, 50, 48, 50, 0, 2]]
    annotations = scene(tmp_path, {**square, "id": 5}, {"segmentation": thin, "bbox": [0, 0, 50, 50]})
    right, wrong = annotations_as_results(read_annotations(annotations, masks=True), masks=True)
    annotations = scene(tmp_path, {**square, "id": 5})
    results = [{**right, "score": 0.5}, {**wrong, "score": 0.9}]
    figures = evaluate_results(annotations, results).compute()
    expected = named(
        **{name: by_hand(annotations, results, kind) for name, kind in (("box", "bbox"), ("mask", "segm"))}
    )
    assert figures == pytest.approx({**expected, "images": 2}, nan_ok=True)
    assert figures["mask_ap_medium"] == pytest.approx(1)
    assert figures["box_ap_medium"] < 1


def test_what_is_refused(tmp_path, monkeypatch):
    annotations = scene(tmp_path, {})
    metrics = CocoMetrics(annotations, [1, 2], masks=True)
    with pytest.raises(ValueError, match="no image was evaluated"):
        metrics.compute()
    found = {"boxes": torch.ones(1, 4), "scores": torch.ones(1), "labels": torch.ones(1, dtype=torch.int64)}
    with pytest.raises(ValueError, match="there are none for image 1"):
        metrics.update([found], [{"image_id": 1}])
    with pytest.raises(ValueError, match="1 outputs, but 2 targets"):
        metrics.update([found], [{"image_id": 1}, {"image_id": 2}])
    metrics = CocoMetrics(annotations, [1, 2], masks=False)
    metrics.update([{**found, "masks": torch.ones(1, 1, 50, 50)}], [{"image_id": 3}])
    assert "segmentation" not in metrics.results[0]
    with pytest.raises(ValueError, match="has no image with the id 3"):
        metrics.compute()
    with pytest.raises(ValueError, match="comes twice"):
        metrics.update([found], [{"image_id": 3}])
    with pytest.raises(ValueError, match="one comes twice"):
        CocoMetrics(annotations, [1, 1], masks=False)
    entry = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}
    with pytest.raises(ValueError, match=r"entry 0 .*no segmentation"):
        evaluate_results(annotations, [entry], masks=True)
    with pytest.raises(ValueError, match=r"results: entry 1 .*image_id 5 is none of the 2 images"):
        evaluate_results(annotations, [entry, {**entry, "image_id": 5}])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'openfastervit\[detection\]'"):
        CocoMetrics(annotations, [1], masks=False)
