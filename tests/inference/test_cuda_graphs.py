"""Replayed networks: the bookkeeping with captures that are made up, and real captures where there is a GPU."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openfastervit.inference.cuda_graphs import CaptureError, CudaCapture, GraphedNetwork
from openfastervit.inference.engines.engine import difference
from openfastervit.inference.fold import fold
from tests.networks import images, tiny

CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU of NVIDIA's")


class Captures:
    """As graphs behave: one place that images are read from, one that answers are written to, again and again."""

    def __init__(self, fails_at=()):
        self.made, self.open, self.replays, self.fails_at = [], 0, 0, fails_at

    def __call__(self, network, images):
        if len(images) in self.fails_at:
            raise CaptureError("operation not permitted\nwhen stream is capturing")
        self.made.append(tuple(images.shape))
        self.open += 1
        return Replay(self, network, images)


class Replay:
    def __init__(self, captures, network, images):
        self.captures, self.network = captures, network
        self.static = torch.full_like(images, float("nan"))
        self.output = torch.empty_like(network(images))
        self.closed = False

    def __call__(self, images):
        assert not self.closed
        self.captures.replays += 1
        self.static.copy_(images)
        self.output.copy_(self.network(self.static))
        return self.output

    def close(self):
        assert not self.closed, "closed twice"
        self.closed = True
        self.captures.open -= 1


def double(x):
    return x.flatten(1).sum(1, keepdim=True) * 2


def batch(size, number=0):
    return torch.full((size, 1, 2, 3), float(number)) + torch.arange(size).view(-1, 1, 1, 1)


@settings(max_examples=100)
@given(st.lists(st.integers(1, 6), max_size=30), st.integers(1, 4))
def test_each_call_has_its_own_answer(sizes, most):
    captures = Captures()
    graphed = GraphedNetwork(double, device=CPU, most=most, capture=captures)
    answers = [graphed(batch(size, number)) for number, size in enumerate(sizes)]
    for number, (size, answer) in enumerate(zip(sizes, answers, strict=True)):  # later calls have not touched it
        assert torch.equal(answer, double(batch(size, number)))
    assert captures.replays == len(sizes)
    # The list of what was used last, kept by hand.
    recent, made = [], 0
    for size in sizes:
        made += size not in recent
        recent = [*(other for other in recent if other != size), size][-most:]
    assert [shape[0] for shape in graphed.shapes] == recent
    assert len(captures.made) == made
    assert captures.open == len(recent) <= most
    graphed.close()
    graphed.close()
    assert captures.open == 0
    with pytest.raises(RuntimeError, match="closed"):
        graphed(batch(1))


@settings(max_examples=50)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(1, 4))
def test_without_graphs_the_network_runs_and_it_is_told_once(sizes, bad):
    captures = Captures(fails_at=(bad,))
    graphed = GraphedNetwork(double, device=CPU, capture=captures)
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("openfastervit.inference.cuda_graphs")
    logger.addHandler(handler)
    try:
        for number, size in enumerate(sizes):
            assert torch.equal(graphed(batch(size, number)), double(batch(size, number)))
    finally:
        logger.removeHandler(handler)
    if bad not in sizes:
        assert lines == []
        return
    assert lines == [
        "no CUDA graphs for this network, it runs without: operation not permitted when stream is capturing"
    ]
    assert captures.open == 0
    assert captures.replays == sizes.index(bad), "none after the one that failed"


def test_what_the_network_takes():
    """Images of any type and layout come as the network wants them, captured or not."""
    seen = []

    def look(x):
        seen.append((x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
        return x.float().sum((1, 2, 3))

    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    for captures in (Captures(), Captures(fails_at=(2,))):
        graphed = GraphedNetwork(look, device=CPU, dtype=torch.bfloat16, capture=captures)
        for _ in range(2):
            torch.testing.assert_close(graphed(x), x.to(torch.bfloat16).float().sum((1, 2, 3)))
    assert set(seen) == {(torch.bfloat16, True)}


def test_errors_of_the_network_are_its_own():
    def broken(x):
        raise ValueError("images are 3 x 3")

    graphed = GraphedNetwork(broken, device=CPU, capture=Captures())
    with pytest.raises(ValueError, match="3 x 3"):
        graphed(batch(1))
    with pytest.raises(ValueError, match="most=0"):
        GraphedNetwork(double, device=CPU, most=0)


@GPU
def test_captured_networks_are_the_network():
    device = torch.device("cuda")
    network = tiny(depths=(1, 1, 1, 1)).eval()
    folded = fold(network, 64).to(device)
    graphed = GraphedNetwork(folded, device=device, most=2)
    x = {size: images(64, 64, batch=size) for size in (1, 3, 4)}
    answers = [(size, graphed(x[size] + number / 10)) for number, size in enumerate((1, 3, 1, 4, 3, 1, 1))]
    for number, (size, answer) in enumerate(answers):
        with torch.no_grad():
            assert difference(answer, folded((x[size] + number / 10).to(device))) < 1e-3
    assert len(graphed.shapes) == 2
    graphed.close()


@GPU
def test_what_cannot_be_captured_runs_without(caplog):
    class Asks(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum().item() > 0 else x * 3  # waits for the GPU: not in a graph

    device = torch.device("cuda")
    graphed = GraphedNetwork(Asks(), device=device, capture=CudaCapture(device))
    stream = torch.cuda.current_stream()
    for value, factor in ((1.0, 2), (-1.0, 3), (2.0, 2)):
        x = torch.full((2, 1, 2, 2), value)
        assert torch.equal(graphed(x).cpu(), x * factor)
    assert len(caplog.records) == 1
    assert torch.cuda.current_stream() == stream
