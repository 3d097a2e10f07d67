import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix

from openfastervit.demo.evaluate import Evaluation, evaluate
from openfastervit.demo.network import INPUT, build


def random(n: int = 200) -> Evaluation:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, n)
    logits = generator.normal(size=(n, 10))
    logits[np.arange(n), labels] += 2
    probabilities = np.exp(logits)
    return Evaluation(labels, probabilities / probabilities.sum(axis=1, keepdims=True))


def test_counts_agree_with_scikit_learn():
    found = random()
    assert found.top1 == pytest.approx(accuracy_score(found.labels, found.predicted))
    assert np.array_equal(found.confusion(), confusion_matrix(found.labels, found.predicted, labels=range(10)))
    assert found.confusion().sum() == 200


def test_mistakes_come_most_confident_first():
    found = random()
    assert (found.labels[found.wrong] != found.predicted[found.wrong]).all()
    assert len(found.wrong) == round(200 * (1 - found.top1))
    assert (np.diff(found.confidence[found.wrong]) <= 0).all()


@pytest.mark.parametrize("correct", [0, 1, 356, 359, 360])
def test_interval_is_wilsons(correct):
    labels = np.zeros(360, dtype=np.int64)
    probabilities = np.zeros((360, 10))
    probabilities[:correct, 0] = probabilities[correct:, 1] = 1
    expected = binomtest(correct, 360).proportion_ci(method="wilson")
    assert Evaluation(labels, probabilities).interval() == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_images_are_predicted_in_order():
    model = build().eval()
    images = torch.randn(130, *INPUT["size"])
    found = evaluate(model, images, np.zeros(130, dtype=np.int64))
    assert found.probabilities.shape == (130, 10)
    assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(130))
    with torch.no_grad():
        expected = model(images[125:127]).softmax(dim=1)
    assert found.probabilities[125:127] == pytest.approx(expected.numpy(), abs=1e-6)
