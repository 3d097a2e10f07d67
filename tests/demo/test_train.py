import pytest
import torch

from openfastervit.demo.network import build
from openfastervit.demo.train import BATCH, Step, rate, steps_per_epoch, train


def small() -> tuple[torch.Tensor, torch.Tensor]:
    """Three batches and a rest of images at which the network is quick."""
    torch.manual_seed(1)
    return torch.randn(3 * BATCH + 5, 1, 64, 64), torch.randint(10, (3 * BATCH + 5,))


def test_rate_rises_then_falls_to_nothing():
    rates = [rate(step, 100, 10) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[0] > 0
    assert rates[10] == 1 == max(rates)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert [rate(step, 1, 0.1) for step in range(1)] == pytest.approx([1 / 1.1])


def test_a_rest_that_fills_no_batch_is_left_out():
    assert [steps_per_epoch(n) for n in (1, BATCH, 2 * BATCH - 1, 3 * BATCH + 5)] == [1, 1, 1, 3]


def test_every_step_is_told_and_counted():
    told: list[Step] = []
    epochs = train(build(), *small(), epochs=2, tell=told.append)
    assert [step.done for step in told] == [1, 2, 3, 4, 5, 6]
    assert [step.epoch for step in told] == [1, 1, 1, 2, 2, 2]
    assert [(epoch.number, epoch.steps) for epoch in epochs] == [(1, 3), (2, 3)]
    assert epochs[1].loss == told[-1].loss
    assert epochs[1].accuracy == told[-1].accuracy
    assert all(epoch.learning_rate > 0 and epoch.seconds > 0 for epoch in epochs)


@pytest.mark.parametrize(("after", "expected"), [(0, []), (2, [(1, 2)]), (3, [(1, 3)]), (4, [(1, 3), (2, 1)])])
def test_stopping_keeps_what_was_done(after, expected):
    told: list[Step] = []
    model = build()
    before = [parameter.clone() for parameter in model.parameters()]
    epochs = train(model, *small(), epochs=2, tell=told.append, stop=lambda: len(told) >= after)
    assert len(told) == after
    assert [(epoch.number, epoch.steps) for epoch in epochs] == expected
    trained = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert any(trained) == (after > 0)


def test_a_few_images_can_be_learnt():
    images = torch.zeros(BATCH, 1, 64, 64) - 1
    labels = torch.arange(BATCH) % 2
    images[labels == 1, :, 16:48, 16:48] = 1
    torch.manual_seed(0)
    epochs = train(build(), images, labels, epochs=12)
    assert epochs[-1].accuracy == 1
    assert epochs[-1].loss < epochs[0].loss / 2
