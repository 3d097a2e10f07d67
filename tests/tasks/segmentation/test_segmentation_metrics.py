import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score
from torch import Tensor
from torch.nn import functional as F

from openfastervit.tasks.segmentation.metrics import SegmentationMetrics, predicted_labels


def maps(seed: int, images: int, classes: int, used: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Predicted classes that are often right, and labels, of images of several sizes; about a tenth is ignored."""
    random = torch.Generator().manual_seed(seed)
    predicted, labels = [], []
    for image in range(images):
        size = (3 + image % 4, 5 + image % 3)
        truth = torch.randint(used or classes, size, generator=random)
        other = torch.randint(used or classes, size, generator=random)
        predicted.append(torch.where(torch.rand(size, generator=random) < 0.6, truth, other))
        labels.append(truth.masked_fill(torch.rand(size, generator=random) < 0.1, 255))
    return predicted, labels


def counted(predicted: list[Tensor], labels: list[Tensor], classes: int) -> SegmentationMetrics:
    metrics = SegmentationMetrics(classes)
    metrics.update(predicted, labels)
    return metrics


def by_hand(predicted: list[Tensor], labels: list[Tensor], classes: int) -> tuple[dict[str, float], list[list[float]]]:
    """The definitions, read aloud, pixel by pixel."""
    truth: dict[int, set[tuple[int, int, int]]] = {c: set() for c in range(classes)}
    found: dict[int, set[tuple[int, int, int]]] = {c: set() for c in range(classes)}
    pixels = 0
    for image, (some, of) in enumerate(zip(predicted, labels, strict=True)):
        for row in range(of.shape[0]):
            for column in range(of.shape[1]):
                if of[row, column] == 255:
                    continue
                pixels += 1
                truth[int(of[row, column])].add((image, row, column))
                if some[row, column] != 255:
                    found[int(some[row, column])].add((image, row, column))
    rows = []
    for c in range(classes):
        both, either = truth[c] & found[c], truth[c] | found[c]
        iou = len(both) / len(either) if either else math.nan
        rows.append([iou, len(both) / len(truth[c]) if truth[c] else math.nan, len(truth[c])])
    ious = [row[0] for row in rows if not math.isnan(row[0])]
    accuracies = [row[1] for row in rows if not math.isnan(row[1])]
    right = sum(len(truth[c] & found[c]) for c in range(classes))
    figures = {
        "miou": sum(ious) / len(ious) if ious else math.nan,
        "mean_accuracy": sum(accuracies) / len(accuracies) if accuracies else math.nan,
        "pixel_accuracy": right / pixels if pixels else math.nan,
        "images": len(labels),
    }
    return figures, rows


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**30),
    images=st.integers(1, 5),
    classes=st.integers(1, 7),
    used=st.integers(1, 7),
    unpredicted=st.booleans(),
)
def test_figures_are_those_counted_pixel_by_pixel(seed: int, images: int, classes: int, used: int, unpredicted: bool):
    predicted, labels = maps(seed, images, classes, min(used, classes))
    if unpredicted:
        predicted[0][0] = 255
    metrics = counted(predicted, labels, classes)
    figures, rows = by_hand(predicted, labels, classes)
    assert metrics.compute() == pytest.approx(figures, nan_ok=True)
    np.testing.assert_allclose([row[1:] for row in metrics.per_class()], rows)
    assert [row.name for row in metrics.per_class()] == [str(c) for c in range(classes)]
    assert metrics.unpredicted == (int((labels[0][0] != 255).sum()) if unpredicted else 0)


@pytest.mark.parametrize(("classes", "used"), [(4, 4), (19, 19), (30, 12)])
def test_figures_are_those_of_scikit_learn(classes: int, used: int):
    predicted, labels = maps(1, 40, classes, used)
    metrics = counted(predicted, labels, classes)
    flat_labels, flat_predicted = (torch.cat([m.flatten() for m in each]).numpy() for each in (labels, predicted))
    valid = flat_labels != 255
    pair = flat_labels[valid], flat_predicted[valid]
    assert np.array_equal(metrics.confusion, confusion_matrix(*pair, labels=range(classes)))
    figures = metrics.compute()
    present = np.unique(np.concatenate(pair))
    assert len(present) == used
    assert figures["miou"] == pytest.approx(jaccard_score(*pair, labels=present, average="macro"))
    assert figures["mean_accuracy"] == pytest.approx(recall_score(*pair, labels=np.unique(pair[0]), average="macro"))
    assert figures["pixel_accuracy"] == pytest.approx(accuracy_score(*pair))
    ious = jaccard_score(*pair, labels=range(classes), average=None, zero_division=0)
    for row, iou in zip(metrics.per_class(), ious, strict=True):
        assert row.iou == pytest.approx(iou) if row.pixels else math.isnan(row.iou)


def test_a_class_that_is_only_predicted_counts_in_miou_and_not_in_mean_accuracy():
    metrics = counted([torch.tensor([[0, 1]])], [torch.tensor([[0, 0]])], 3)
    assert metrics.compute() == {"miou": 0.25, "mean_accuracy": 0.5, "pixel_accuracy": 0.5, "images": 1}
    rows = metrics.per_class()
    assert (rows[1].iou, rows[1].pixels) == (0, 0)
    assert math.isnan(rows[1].accuracy)
    assert math.isnan(rows[2].iou)


def test_ignored_pixels_count_for_nothing_whatever_is_predicted_there():
    labels = torch.tensor([[0, 255], [255, 1]])
    right = counted([torch.tensor([[0, 1], [2, 1]])], [labels], 3)
    assert right.compute() == {"miou": 1, "mean_accuracy": 1, "pixel_accuracy": 1, "images": 1}
    nothing = counted([labels.clamp(max=1)], [torch.full((2, 2), 255)], 3).compute()
    assert nothing["images"] == 1
    assert all(math.isnan(nothing[name]) for name in ("miou", "mean_accuracy", "pixel_accuracy"))


@pytest.mark.parametrize("classes", [2, 16, 17, 40])
@pytest.mark.parametrize("size", [(6, 9), (12, 18), (31, 7), (3, 4)])
def test_scores_are_scaled_to_the_labels_before_the_best_is_taken(classes: int, size: tuple[int, int]):
    scores = torch.randn(classes, 6, 9)
    labels = torch.randint(classes, size)
    scaled = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
    assert torch.equal(predicted_labels(scores, size), scaled.argmax(0))
    assert torch.equal(
        counted([scores], [labels], classes).confusion, counted([scaled.argmax(0)], [labels], classes).confusion
    )


def test_among_equal_scores_the_first_class_counts_and_not_a_number_is_no_prediction():
    scores = torch.zeros(20, 2, 2)
    scores[17, 0, 0] = math.nan
    scores[3, 0, 1] = scores[18, 0, 1] = 5
    scores[:, 1, 1] = -math.inf
    assert predicted_labels(scores).tolist() == [[255, 3], [0, 0]]
    metrics = counted([scores], [torch.tensor([[17, 3], [0, 255]])], 20)
    assert metrics.unpredicted == 1
    assert metrics.compute()["pixel_accuracy"] == pytest.approx(2 / 3)
    assert metrics.per_class()[17].iou == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_precision_count(dtype: torch.dtype):
    scores = torch.randn(5, 4, 4).to(dtype)
    labels = torch.randint(5, (8, 8))
    wide = scores if dtype == torch.float64 else scores.float()
    expected = F.interpolate(wide[None], (8, 8), mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(counted([scores], [labels], 5).confusion, counted([expected], [labels], 5).confusion)


def test_every_form_of_a_batch_counts_the_same():
    scores, labels = torch.randn(3, 4, 5, 6), torch.randint(4, (3, 5, 6))
    labels[0, 0] = 255
    forms: list[tuple[Any, Any]] = [
        (scores, labels),
        (list(scores), list(labels)),
        (scores.argmax(1), [{"labels": m} for m in labels]),
        (scores.argmax(1).byte(), labels.byte()),
        (scores.argmax(1).int(), labels.short()),
    ]
    results = []
    for outputs, targets in forms:
        metrics = SegmentationMetrics(("a", "b", "c", "d"))
        metrics.update(outputs, targets)
        results.append(metrics)
    for metrics in results[1:]:
        assert torch.equal(metrics.confusion, results[0].confusion)
        assert metrics.images == 3


@given(parts=st.lists(st.integers(0, 3), min_size=12, max_size=12), seed=st.integers(0, 9))
def test_any_split_over_processes_gives_the_same_figures(parts: list[int], seed: int):
    predicted, labels = maps(seed, 12, 5)
    whole = counted(predicted, labels, 5)
    processes = [SegmentationMetrics(5) for _ in range(4)]
    for part, some, of in zip(parts, predicted, labels, strict=True):
        processes[part].update([some], [of])
    merged = SegmentationMetrics(5)
    for process in processes:
        merged.merge(process)
    summed = SegmentationMetrics(5)
    states = [process.state() for process in processes]
    summed.load_state({name: torch.stack([state[name] for state in states]).sum(dim=0) for name in states[0]})
    for split in (merged, summed):
        assert split.compute() == whole.compute()
        np.testing.assert_array_equal(split.per_class(), whole.per_class())


def test_counting_goes_on_after_inference_mode_and_a_state_is_a_copy():
    predicted, labels = maps(0, 4, 3)
    with torch.inference_mode():
        metrics = SegmentationMetrics(3)
        metrics.update(predicted[:2], labels[:2])
        state = metrics.state()
        restored = SegmentationMetrics(3)
        restored.load_state(state)
    for half in (metrics, restored):
        half.update(predicted[2:], labels[2:])
        assert half.compute() == counted(predicted, labels, 3).compute()
    assert int(state["images"]) == 2


def test_a_batch_with_a_fault_counts_for_nothing():
    metrics = SegmentationMetrics(3)
    with pytest.raises(ValueError, match="labels: 3 is none of the 3 classes, which are 0 to 2, nor 255"):
        metrics.update(torch.zeros(2, 2, 2).long(), [torch.zeros(2, 2).long(), torch.full((2, 2), 3)])
    assert metrics.images == 0
    with pytest.raises(ValueError, match="no image was evaluated"):
        metrics.compute()


@pytest.mark.parametrize(
    ("outputs", "targets", "told"),
    [
        (torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2).long(), r"scores of shape \[4, 2, 2\] are not \(3, h, w\)"),
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2).long(), r"scores of shape \[2, 2\] are not"),
        (torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2), r"labels of shape \[2, 2\] and type torch.float32"),
        (torch.zeros(1, 3, 2, 2), torch.zeros(1, 4).long(), r"labels of shape \[4\]"),
        (torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), -1), "labels: -1 is none"),
        (torch.full((1, 2, 2), 7), torch.zeros(1, 2, 2).long(), "predicted classes: 7 is none"),
        (torch.zeros(1, 2, 3).long(), torch.zeros(1, 2, 2).long(), r"predicted classes of shape \[2, 3\] do not fit"),
        (torch.zeros(1, 2, 2).bool(), torch.zeros(1, 2, 2).long(), "predicted classes of shape .* torch.bool"),
        (torch.zeros(2, 3, 2, 2), torch.zeros(1, 2, 2).long(), "shorter"),
    ],
)
def test_what_does_not_fit_is_named(outputs: Tensor, targets: Tensor, told: str):
    with pytest.raises(ValueError, match=told):
        SegmentationMetrics(3).update(outputs, targets)


def test_other_classes_and_states_are_refused():
    with pytest.raises(ValueError, match="1 to 255 classes"):
        SegmentationMetrics(0)
    with pytest.raises(ValueError, match="1 to 255 classes"):
        SegmentationMetrics(256)
    with pytest.raises(ValueError, match="metrics of 2 classes cannot be added to metrics of 2"):
        SegmentationMetrics(("a", "b")).merge(SegmentationMetrics(("b", "a")))
    metrics = SegmentationMetrics(3)
    with pytest.raises(ValueError, match=r"confusion has shape \[2, 3\], not \[3, 4\]"):
        metrics.load_state(SegmentationMetrics(2).state())
    with pytest.raises(ValueError, match="a state of images is not one of these metrics"):
        metrics.load_state({"images": torch.tensor(1)})
