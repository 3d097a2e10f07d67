"""FP8 linear layers against rounding by search, float64 sums, and torch's own product of such numbers."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openfastervit.inference import float8
from openfastervit.inference.engines.engine import MAX_DIFFERENCE, difference
from openfastervit.inference.float8 import (
    FLOAT8,
    Float8Linear,
    multiply_natively,
    multiply_reference,
    quantise,
    to_float8,
)
from openfastervit.inference.fold import fold
from openfastervit.inference.fused import FusedLinear
from tests.inference.lively import lively
from tests.networks import KINDS, images, tiny

CODES = torch.arange(256, dtype=torch.uint8).view(FLOAT8).double()
NUMBERS = CODES[~CODES.isnan()].unique()
"""All that e4m3 has."""
BF16_STEP = 2.0**-8
GPU = pytest.mark.skipif(
    float8.unavailable("cuda") is not None, reason="FP8 products need a GPU of compute capability 8.9 or later"
)


def linear(inputs: int, outputs: int, activation: str = "none") -> FusedLinear:
    layer = FusedLinear(inputs, outputs, nn.Linear(inputs, outputs), activation)  # type: ignore[arg-type]
    return layer.to(torch.bfloat16).requires_grad_(False)


values = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)


@settings(max_examples=200)
@given(st.lists(st.lists(values, min_size=3, max_size=3), min_size=1, max_size=4))
def test_rows_are_rounded_to_the_nearest_number_and_use_all_of_the_range(rows):
    x = torch.tensor(rows, dtype=torch.float32)
    found, scales = quantise(x)
    assert found.dtype == FLOAT8
    assert scales.shape == (len(rows), 1)
    for row, scale, result in zip(x.double(), scales.double(), found.double(), strict=True):
        wanted = row / scale
        assert not result.isnan().any()
        nearest = (wanted[:, None] - NUMBERS).abs().min(1).values
        # The quotient itself is rounded to float32 first.
        assert ((wanted - result).abs() <= nearest + wanted.abs() * 1e-6).all()
        if row.abs().max() > 1e-30:
            assert result.abs().max() == 448, "the largest value becomes the largest number"
        else:
            assert (row - result * scale).abs().max() <= 1e-30


def test_what_is_no_number_stays_none():
    found, _ = quantise(torch.tensor([[1.0, math.nan, 2.0], [1.0, math.inf, 2.0]]))
    assert found.float().isnan().any(1).all()


@pytest.mark.parametrize("biased", [True, False])
def test_products_are_those_of_the_rounded_numbers(biased):
    x, weight = torch.randn(37, 48).to(torch.bfloat16), torch.randn(32, 48)
    bias = torch.randn(32).to(torch.bfloat16) if biased else None
    rows, row_scales = quantise(x)
    values, scales = quantise(weight)
    exact = (rows.double() * row_scales.double()) @ (values.double() * scales.double()).t()
    exact = exact if bias is None else exact + bias.double()
    found = multiply_reference(rows, row_scales, values, scales.view(1, -1), bias)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=BF16_STEP, atol=1e-4)


@pytest.mark.parametrize("biased", [True, False])
def test_torchs_own_product_is_the_same(biased):
    rows, row_scales = quantise(torch.randn(37, 64))
    values, scales = quantise(torch.randn(48, 64))
    bias = torch.randn(48).to(torch.bfloat16) if biased else None
    given_ = rows, row_scales, values, scales.view(1, -1), bias
    try:
        found = multiply_natively(*given_)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"this torch has no FP8 product on CPUs: {str(error).splitlines()[0]}")
    torch.testing.assert_close(found.float(), multiply_reference(*given_).float(), rtol=2 * BF16_STEP, atol=1e-4)


@GPU
def test_the_gpus_product_is_the_same():
    layer = linear(256, 768, "gelu")
    x = torch.randn(3, 7, 256).to(torch.bfloat16)
    here, there = Float8Linear(layer), Float8Linear(copy.deepcopy(layer).cuda())
    assert (here.native, there.native) == (False, True)
    assert difference(there(x.cuda()).flatten(0, 1).float(), here(x).flatten(0, 1).float()) < 0.01


@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
def test_a_layer_keeps_its_activation_and_its_residual(activation):
    layer = linear(64, 32, activation)
    x, residual = torch.randn(2, 5, 64).to(torch.bfloat16), torch.randn(2, 5, 32).to(torch.bfloat16)
    found = Float8Linear(layer)(x, residual)
    assert found.shape == (2, 5, 32)
    assert found.dtype == torch.bfloat16
    plain = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    plain = {"none": plain, "gelu": F.gelu(plain), "relu": F.relu(plain)}[activation] + residual.double()
    apart = difference(found.flatten()[None].float(), plain.flatten()[None])
    assert 0.003 < apart < 0.06, "as far as numbers of three bits are"


def test_channels_that_have_no_product_are_named():
    with pytest.raises(ValueError, match=r"from 24 to 32 channels.*multiples of 16"):
        Float8Linear(linear(24, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_network_keeps_its_logits(kind):
    for seed in range(2):
        network = lively(kind, seed=seed)
        x = images(160, 96, batch=4)
        halved = fold(network, (160, 96)).to(torch.bfloat16)
        with torch.no_grad():
            expected = network(x)
            rounded = difference(halved(x.to(torch.bfloat16)), expected)
            eighth = to_float8(copy.deepcopy(halved))
            apart = difference(eighth(x.to(torch.bfloat16)), expected)
        assert rounded < apart < MAX_DIFFERENCE["fp8"] / 4


def test_which_layers_are_replaced():
    network = fold(lively(num_classes=16), (160, 96)).to(torch.bfloat16)
    before = {name: module for name, module in network.named_modules() if type(module) is FusedLinear}
    assert to_float8(network) is network
    for name, module in before.items():
        fits = module.in_features % 16 == 0 and module.out_features % 16 == 0
        now = network.get_submodule(name)
        assert (type(now) is Float8Linear) == (fits and name != "fc"), name
    assert type(network.fc) is FusedLinear, "the classifier stays"
    assert sum(type(module) is Float8Linear for module in network.modules()) == 4 * (2 * 2 + 1), "qkv, proj, fc1, fc2"


@pytest.mark.parametrize("native", [False, True])
def test_such_networks_are_one_graph(native):
    network = to_float8(fold(lively(depths=(1, 1, 1, 1)), 64).to(torch.bfloat16))
    x = images(64, 64).to(torch.bfloat16)
    with torch.no_grad():
        expected = network(x).float()
        for module in network.modules():
            if type(module) is Float8Linear:
                module.native = native
        graph = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
        try:
            found = graph(x).float()
        except NotImplementedError as error:
            pytest.skip(f"this torch has no FP8 product on CPUs: {str(error).splitlines()[0]}")
    assert difference(found, expected) < 0.02


def test_networks_without_such_layers_are_named():
    other = tiny(depths=(1, 1, 1, 1), attention=("twins", "twins")).eval()
    with pytest.raises(ValueError, match=r"no linear layer for FP8.*choose bf16"):
        to_float8(fold(other, 64).to(torch.bfloat16))


def test_chips_without_it_are_named(monkeypatch):
    assert "none here" in (float8.unavailable("cpu") or "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    for capability, message in (((8, 0), "8.9 or later, NVIDIA A100 has 8.0"), ((8, 9), None), ((9, 0), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        told = float8.unavailable("cuda")
        assert told is None if message is None else message in (told or "")
