"""Folded networks on kernels, in Triton's interpreter where there is no GPU, against the networks they are made of."""

import copy
import logging

import pytest
import torch
from torch import nn

from openfastervit.inference.float8 import Float8Linear, to_float8
from openfastervit.inference.fold import fold
from openfastervit.inference.kernel_layers import Choices, KernelConv2d, KernelLinear, RowTable
from openfastervit.inference.kernel_network import with_kernels
from openfastervit.kernels import unavailable
from tests.networks import DISTINCT, HAT, SCALED, images, tiny

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(unavailable(DEVICE) is not None, reason=str(unavailable(DEVICE)))

KERNELS = Choices(None)


@pytest.mark.parametrize("name", DISTINCT)
@pytest.mark.parametrize("size", [(128, 128), (64, 128)])
def test_the_same_logits(name: str, size: tuple[int, int]) -> None:
    model = tiny(name, dim=8, stem_dim=8).eval()
    x = images(*size, batch=1)
    network = with_kernels(fold(model, size), choices=KERNELS).to(DEVICE)
    with torch.no_grad():
        torch.testing.assert_close(network(x.to(DEVICE)).cpu(), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"carrier_size": 1}, {"window_sizes": (7, 7, 4, 2), "carrier_size": 3}])
def test_other_windows_and_carriers(options: dict[str, object]) -> None:
    model = tiny(SCALED, **options).eval()
    x = images(128, 96, batch=1)
    network = with_kernels(fold(model, (128, 96)), choices=KERNELS).to(DEVICE)
    with torch.no_grad():
        torch.testing.assert_close(network(x.to(DEVICE)).cpu(), model(x), rtol=1e-4, atol=1e-5)
        maps = network.forward_maps(x.to(DEVICE))
        for found, expected in zip(maps, fold(model, (128, 96)).forward_maps(x), strict=True):
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_more_carriers_than_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their attention is torch's; so it is at 1024 x 1024, here with a lower bound."""
    monkeypatch.setattr("openfastervit.inference.kernel_network.MOST_TOKENS", 10)
    model = tiny(HAT, window_sizes=(7, 7, 2, 2), carrier_size=1).eval()
    x = images(128, 128, batch=1)
    network = with_kernels(fold(model, 128), choices=KERNELS)
    assert any(getattr(module, "long", False) for module in network.modules())
    with torch.no_grad():
        torch.testing.assert_close(network.to(DEVICE)(x.to(DEVICE)).cpu(), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    """No further from float32 than the folded network in the same type is."""
    model = tiny(SCALED).eval()
    x = images(128, 128, batch=1)
    folded = fold(model, 128)
    network = with_kernels(folded, choices=KERNELS).to(DEVICE, dtype)
    tables = [module.values for name, module in network.named_modules() if name.endswith("table")]
    assert tables
    assert all(values.dtype == torch.float32 for values in tables)
    with torch.no_grad():
        expected = model(x)
        found = network(x.to(DEVICE, dtype)).float().cpu()
        plain = copy.deepcopy(folded).to(dtype)(x.to(dtype)).float()
    apart, allowed = ((value - expected).norm() / expected.norm() for value in (found, plain))
    assert float(apart) < 1.5 * float(allowed)


def test_float8() -> None:
    """Linear layers of another precision keep their own kernels."""
    model = tiny(HAT).eval()
    x = images(128, 128, batch=1)
    network = to_float8(with_kernels(fold(model, 128), choices=KERNELS).to(torch.bfloat16))
    assert any(
        isinstance(module.layer, Float8Linear) for module in network.modules() if isinstance(module, KernelLinear)
    )
    with torch.no_grad():
        expected = model(x)
        found = network(x.bfloat16()).float()
    assert float((found - expected).norm() / expected.norm()) < 0.15


def test_the_folded_network_is_left_alone() -> None:
    folded = fold(tiny(HAT).eval(), 224)
    before = [type(module) for module in folded.modules()]
    with_kernels(folded, choices=KERNELS)
    assert [type(module) for module in folded.modules()] == before


def test_a_network_for_any_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fold\(model, size\)"):
        with_kernels(fold(tiny(HAT).eval()))


def test_choices_by_measuring() -> None:
    """The faster way is taken from then on, and each kind of layer is measured once, whatever the number of blocks."""
    model = tiny(HAT).eval()
    x = images(128, 128, batch=1)
    calls: list[str] = []

    def measure(way: object) -> float:
        name = way.__code__.co_names[-1]  # type: ignore[attr-defined]
        calls.append(name)
        return {"_kernel": 2.0, "_plain": 1.0}[name]

    choices = Choices(measure)
    network = with_kernels(fold(model, 128), choices=choices).to(DEVICE)
    with torch.no_grad():
        found = network(x.to(DEVICE))
        measured = len(calls)
        network(x.to(DEVICE))
    layers = sum(isinstance(module, (KernelLinear, KernelConv2d)) for module in network.modules())
    assert len(calls) == measured == 2 * len(choices.made) < 2 * layers
    assert set(choices.made.values()) == {"torch"}
    with torch.no_grad():
        torch.testing.assert_close(found.cpu(), model(x), rtol=1e-4, atol=1e-5)


def test_a_kernel_that_does_not_run_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    choices = Choices(lambda way: float(way().sum()))

    def broken() -> torch.Tensor:
        raise RuntimeError("out of resource: shared memory\nRequired: 1")

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(choices("a layer", broken, lambda: torch.ones(2)), torch.ones(2))
    assert caplog.messages == ["no kernel for a layer: out of resource: shared memory"]


def test_rows_of_a_table() -> None:
    """As written out: cells of each map, then carriers of each image."""
    values = torch.arange(5.0)[:, None].expand(5, 2)
    x = torch.zeros(2 * 3 + 2 * 2, 2)
    found = RowTable(values, split=6, first=3, second=2).add(x)
    assert found[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 3, 4]


def test_strange_convolutions_stay() -> None:
    """One of groups, as carriers are made by, is torch's."""
    network = with_kernels(fold(tiny(HAT).eval(), 224), choices=KERNELS)
    kept = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert kept
    assert not any(module.conv in kept for module in network.modules() if isinstance(module, KernelConv2d))
