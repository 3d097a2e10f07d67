import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support, top_k_accuracy_score
from torch import Tensor

from openfastervit.tasks.metrics import CONFUSION_CLASSES, ClassificationMetrics


def draw(images: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are right more often than not, float64, and labels that leave the last class out."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(max(1, classes - 1), (images,), generator=random)
    logits = 2 * torch.randn(images, classes, generator=random, dtype=torch.float64)
    logits[torch.arange(images), labels] += 2.5
    return logits, labels


def metrics_of(logits: Tensor, labels: Tensor, bins: int = 15, batch: int = 37) -> ClassificationMetrics:
    metrics = ClassificationMetrics(logits.shape[1], bins)
    for some_logits, some_labels in zip(logits.split(batch), labels.split(batch), strict=True):
        metrics.update(some_logits, some_labels)
    return metrics


def calibration_error(logits: Tensor, labels: Tensor, bins: int) -> float:
    """Equation 3 of arXiv 1706.04599, read aloud."""
    error = 0.0
    for number in range(bins):
        confidences, rights = [], []
        for row, label in zip(logits.softmax(dim=1).tolist(), labels.tolist(), strict=True):
            confidence = max(row)
            if number / bins < confidence <= (number + 1) / bins:
                confidences.append(confidence)
                rights.append(row.index(confidence) == label)
        if rights:
            gap = abs(sum(rights) / len(rights) - sum(confidences) / len(confidences))
            error += len(rights) / len(labels) * gap
    return error


@pytest.mark.parametrize(("images", "classes"), [(1, 6), (200, 3), (500, 10), (300, 100)])
def test_figures_are_those_of_scikit_learn(images: int, classes: int):
    logits, labels = draw(images, classes)
    figures = metrics_of(logits, labels).compute()
    scores, every = logits.softmax(dim=1).numpy(), np.arange(classes)
    assert figures["images"] == images
    assert figures["loss"] == pytest.approx(log_loss(labels, scores, labels=every), rel=1e-9)
    assert figures["top1"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=1, labels=every))
    if classes > 5:
        assert figures["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=5, labels=every))
    else:
        assert figures["top5"] == 100


def test_classes_are_those_of_scikit_learn():
    logits, labels = draw(400, 8)
    logits[:, 6] -= 100  # a class that is there and never predicted; the last is neither
    logits[:, 7] -= 100
    metrics = metrics_of(logits, labels)
    predicted = logits.argmax(dim=1)
    assert torch.equal(metrics.confusion, torch.tensor(confusion_matrix(labels, predicted, labels=range(8))))
    expected = precision_recall_fscore_support(labels, predicted, labels=range(8), zero_division=np.nan)
    rows = metrics.per_class()
    assert [row.name for row in rows] == [str(index) for index in range(8)]
    for name, values in zip(("precision", "recall", "f1", "images"), expected, strict=True):
        np.testing.assert_allclose([getattr(row, name) for row in rows], values, err_msg=name)
    np.testing.assert_allclose([row.top1 for row in rows], 100 * expected[1])
    assert math.isnan(rows[6].precision)
    assert math.isnan(rows[7].top1)
    for index in range(7):
        of_class = labels == index
        share = top_k_accuracy_score(labels[of_class], logits[of_class], k=5, labels=range(8))
        assert rows[index].top5 == pytest.approx(100 * share)


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_calibration_error_is_that_of_the_paper(bins: int):
    logits, labels = draw(300, 5)
    metrics = metrics_of(logits, labels, bins)
    assert metrics.compute()["ece"] == pytest.approx(calibration_error(logits, labels, bins), rel=1e-9)
    rows = metrics.reliability()
    assert sum(row.images for row in rows) == 300
    for row in rows:
        assert row.upper - row.lower == pytest.approx(1 / bins)
        assert row.images == 0 or row.lower < row.confidence <= row.upper


def test_a_confidence_on_the_edge_belongs_to_the_lower_bin():
    metrics = metrics_of(torch.zeros(1, 2), torch.tensor([0]), bins=2)  # softmax: exactly one half
    assert [row.images for row in metrics.reliability()] == [1, 0]
    certain = metrics_of(torch.tensor([[0.0, 1000.0]]), torch.tensor([0]))  # exactly one, and wrong
    assert [row.images for row in certain.reliability()] == [0] * 14 + [1]
    assert certain.compute()["ece"] == 1
    assert math.isnan(certain.reliability()[0].accuracy)


@given(parts=st.lists(st.integers(0, 3), min_size=60, max_size=60), seed=st.integers(0, 9))
def test_any_split_over_processes_gives_the_same_figures(parts: list[int], seed: int):
    logits, labels = draw(60, 7, seed)
    whole = metrics_of(logits, labels)
    place = torch.tensor(parts)
    processes = [metrics_of(logits[place == part], labels[place == part], batch=8) for part in range(4)]

    merged = ClassificationMetrics(7)
    for process in processes:
        merged.merge(process)
    summed = ClassificationMetrics(7)
    states = [process.state() for process in processes]
    summed.load_state({name: torch.stack([state[name] for state in states]).sum(dim=0) for name in states[0]})
    for split in (merged, summed):
        assert split.compute() == pytest.approx(whole.compute(), rel=1e-12)
        assert torch.equal(split.confusion, whole.confusion)
        np.testing.assert_array_equal(split.per_class(), whole.per_class())
        np.testing.assert_allclose(split.reliability(), whole.reliability(), rtol=1e-12)


def test_a_state_is_a_copy():
    metrics = metrics_of(*draw(20, 4))
    before, state = metrics.compute(), metrics.state()
    other = ClassificationMetrics(4)
    other.load_state(state)
    metrics.confusion.zero_()
    for value in state.values():
        value.zero_()
    assert other.compute() == metrics.compute() == before
    assert metrics.confusion.sum() == 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_type_is_computed_in_at_least_32_bits(dtype: torch.dtype):
    logits, labels = draw(200, 10)
    rounded = logits.to(dtype)
    figures, exact = metrics_of(rounded, labels).compute(), metrics_of(rounded.double(), labels).compute()
    assert figures == pytest.approx(exact, rel=1e-5)


def test_gradients_are_not_kept():
    logits, labels = draw(20, 4)
    metrics = metrics_of(logits.requires_grad_(), labels)
    assert not any(value.requires_grad for value in metrics.state().values())


def test_counting_goes_on_after_inference_mode():
    logits, labels = draw(20, 4)
    with torch.inference_mode():
        metrics = metrics_of(logits * 1, labels)
        loaded = ClassificationMetrics(4)
        loaded.load_state(metrics.state())
    for begun in (metrics, loaded):
        begun.update(logits, labels)
        begun.merge(metrics_of(logits, labels))
        assert begun.images == 60


def test_of_equal_logits_the_first_ranks_first():
    logits = torch.zeros(8, 8)
    figures = metrics_of(logits, torch.arange(8)).compute()
    assert figures["top1"] == 100 / 8
    assert figures["top5"] == 100 * 5 / 8


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("column", [0, 3])
def test_images_without_a_softmax_are_wrong(value: float, column: int):
    logits = torch.eye(6)
    logits[3, column] = value
    metrics = metrics_of(logits, torch.arange(6))
    figures = metrics.compute()
    assert figures["top1"] == figures["top5"] == pytest.approx(100 * 5 / 6)
    assert math.isnan(figures["loss"])
    assert math.isnan(figures["ece"])
    assert figures["images"] == 6
    assert metrics.unpredicted == 1
    assert metrics.per_class()[3].images == 1
    assert metrics.per_class()[3].recall == 0
    assert metrics.confusion.sum() == 5
    assert sum(row.images for row in metrics.reliability()) == 5


def test_a_class_ruled_out_is_no_failure():
    logits = torch.tensor([[0.0, 1.0, -math.inf], [0.0, 1.0, -math.inf]])
    metrics = metrics_of(logits, torch.tensor([1, 2]))
    assert metrics.compute()["top1"] == 50
    assert metrics.compute()["loss"] == math.inf
    assert metrics.unpredicted == 0


def test_confusion_is_kept_up_to_a_number_of_classes():
    assert ClassificationMetrics(CONFUSION_CLASSES).confusion.shape == (CONFUSION_CLASSES, CONFUSION_CLASSES)
    logits, labels = draw(50, 21841)
    metrics = metrics_of(logits.float(), labels)
    assert sum(value.numel() for value in metrics.state().values()) < 100_000
    assert sum(row.images for row in metrics.per_class()) == 50
    with pytest.raises(ValueError, match=r"no confusion matrix is kept for 21841 classes, only up to 2000"):
        _ = metrics.confusion


def test_no_images_have_no_figures():
    metrics = ClassificationMetrics(3)
    metrics.update(torch.empty(0, 3), torch.empty(0, dtype=torch.long))
    assert metrics.images == 0
    with pytest.raises(ValueError, match="no image was evaluated"):
        metrics.compute()


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 4), torch.zeros(2).long(), r"shape \[2, 4\] .* not \(B, 3\)"),
        (torch.zeros(3), torch.zeros(3).long(), r"shape \[3\]"),
        (torch.zeros(2, 3).long(), torch.zeros(2).long(), "int64"),
        (torch.zeros(2, 3), torch.zeros(3).long(), r"shape \[3\] .* not \(2,\)"),
        (torch.zeros(2, 3), torch.zeros(2), "float32"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "label 3 is none of the 3 classes, which are 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "label -1"),
    ],
)
def test_what_does_not_fit_is_named(logits: Tensor, labels: Tensor, message: str):
    metrics = ClassificationMetrics(3)
    with pytest.raises(ValueError, match=message):
        metrics.update(logits, labels)
    assert metrics.images == 0


def test_metrics_of_other_classes_or_bins_are_not_added():
    metrics = ClassificationMetrics(["cat", "dog"])
    for other in (ClassificationMetrics(3), ClassificationMetrics(["dog", "cat"])):
        with pytest.raises(ValueError, match="the classes are not the same"):
            metrics.merge(other)
    with pytest.raises(ValueError, match="with 10 bins cannot be added to metrics with 15"):
        metrics.merge(ClassificationMetrics(["cat", "dog"], bins=10))
    with pytest.raises(ValueError, match=r"shape \[3\], not \[2\]"):
        metrics.load_state(ClassificationMetrics(3).state())
    with pytest.raises(ValueError, match="is not one of these metrics"):
        metrics.load_state({"images": torch.zeros(2)})
    with pytest.raises(ValueError, match="classes=0"):
        ClassificationMetrics(0)
    with pytest.raises(ValueError, match="bins=0"):
        ClassificationMetrics(2, bins=0)
