"""The average of the weights, beside timm's."""

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from openfastervit.training.averaging import WeightAverage
from tests.pocket import pocket


def stepped(network: nn.Module, step: int) -> None:
    """Change all parameters, and by a forward pass the statistics of batch norm."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        network.train()(torch.randn(2, 3, 64, 64, generator=generator))


def test_it_is_timms() -> None:
    network = pocket()
    ours, theirs = WeightAverage(network, 0.9), ModelEmaV3(network, decay=0.9)
    for step in range(5):
        stepped(network, step)
        ours.update(network, step + 1)
        theirs.update(network)
    expected = theirs.module.state_dict()
    found = ours.module.state_dict()
    assert {name for name in expected if name.endswith("running_var")}, "no statistics to compare"
    assert {name for name in expected if name.endswith("num_batches_tracked")}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
        if value.is_floating_point():
            assert not torch.equal(found[name], network.state_dict()[name]), name


def test_warmup_follows_its_formula() -> None:
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(network.weight)
    average = WeightAverage(network, 0.6, warmup=True)
    expected = 0.0
    for update in range(1, 12):
        nn.init.constant_(network.weight, update)
        average.update(network, update)
        decay = min(0.6, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-12)
    assert (1 + 11) / (10 + 11) < 0.6 < (1 + 20) / (10 + 20)


def test_it_neither_learns_nor_follows_by_itself() -> None:
    network = pocket()
    average = WeightAverage(network.train(), 0.5)
    before = {name: value.clone() for name, value in average.module.state_dict().items()}
    stepped(network, 0)
    assert not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    torch.testing.assert_close(average.module.state_dict(), before, rtol=0, atol=0)
