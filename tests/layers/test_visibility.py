"""Which output tokens change when one input token does, for every design, against its definition."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openfastervit.layers import (
    EdgeViTAttention,
    GlobalAttention,
    HierarchicalAttention,
    ShiftedWindowAttention,
    TwinsAttention,
)
from tests.layers import visibility

DIM, HEADS = 8, 2
SIDES = st.integers(1, 9)
WINDOWS = st.tuples(st.integers(2, 4), st.integers(2, 4))
DEPTHS = st.integers(1, 4)


def changed(module: nn.Module, height: int, width: int) -> visibility.Relation:
    """(output token, input token): whether the output changes with the input."""
    module.double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".bias.mlp." in name:
                parameter.zero_()  # 16 * sigmoid of more would silence some pairs
            elif "weight" in name and "norm" not in name:
                parameter.normal_(0, 0.02 if ".mlp.fc" in name and "position" in name else 0.35, generator=generator)
    tokens = height * width
    x = torch.randn(1, DIM, height, width, dtype=torch.float64, generator=generator)
    moved = x.repeat(tokens, 1, 1, 1)
    for token in range(tokens):
        moved[token, :, token // width, token % width] += torch.randn(DIM, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        difference = (module(moved) - module(x)).abs().amax(1).flatten(1)  # (input token, output token)
    found: visibility.Relation = (difference > 1e-13).numpy().T
    return found


def check(module: nn.Module, height: int, width: int, expected: visibility.Relation) -> None:
    np.testing.assert_array_equal(changed(module, height, width), expected)


@settings(max_examples=10)
@given(SIDES, SIDES, WINDOWS, DEPTHS)
def test_windows(height: int, width: int, window: tuple[int, int], depth: int) -> None:
    module = HierarchicalAttention(DIM, HEADS, window_size=window, depth=depth, hierarchical=False)
    check(module, height, width, visibility.windowed(height, width, window, depth))


@settings(max_examples=15)
@given(SIDES, SIDES, WINDOWS, DEPTHS)
def test_shifted_windows(height: int, width: int, window: tuple[int, int], depth: int) -> None:
    module = ShiftedWindowAttention(DIM, HEADS, window_size=window, depth=depth)
    check(module, height, width, visibility.shifted(height, width, window, depth))


@settings(max_examples=10)
@given(SIDES, SIDES, WINDOWS, st.integers(1, 3), DEPTHS)
def test_twins(height: int, width: int, window: tuple[int, int], reduction: int, depth: int) -> None:
    module = TwinsAttention(DIM, HEADS, window_size=window, reduction=reduction, depth=depth)
    check(module, height, width, visibility.twins(height, width, window, depth))


@settings(max_examples=10)
@given(SIDES, SIDES, st.integers(1, 3), st.sampled_from([1, 3, 5]), DEPTHS)
def test_edgevit(height: int, width: int, sampling: int, kernel_size: int, depth: int) -> None:
    module = EdgeViTAttention(DIM, HEADS, sampling=sampling, kernel_size=kernel_size, depth=depth)
    check(module, height, width, visibility.edgevit(height, width, sampling, kernel_size, depth))


@settings(max_examples=5)
@given(SIDES, SIDES)
def test_full_attention(height: int, width: int) -> None:
    check(GlobalAttention(DIM, HEADS, depth=1), height, width, visibility.everything(height, width))


@settings(max_examples=25)
@given(
    SIDES, SIDES, WINDOWS, st.integers(1, 2), st.integers(1, 2), st.sampled_from(["released", "aligned"]), st.booleans()
)
def test_carriers(
    height: int, width: int, window: tuple[int, int], c: int, depth: int, pooling: Any, exchange: bool
) -> None:
    module = HierarchicalAttention(
        DIM,
        HEADS,
        window_size=window,
        carrier_size=c,
        depth=depth,
        carrier_pooling=pooling,
        without=() if exchange else ("carrier_attention",),
    )
    expected = visibility.hierarchical(height, width, window, c, depth, pooling=pooling, exchange=exchange)
    check(module, height, width, expected)


@settings(max_examples=20)
@given(st.integers(4, 12), st.integers(4, 12), st.integers(2, 3), st.integers(1, 2), st.integers(1, 2))
def test_carriers_of_carriers(height: int, width: int, side: int, c: int, depth: int) -> None:
    module = HierarchicalAttention(
        DIM, HEADS, window_size=side, carrier_size=c, depth=depth, carrier_levels=2, carrier_pooling="aligned"
    )
    expected = visibility.hierarchical(height, width, (side, side), c, depth, pooling="aligned", levels=2)
    check(module, height, width, expected)


@pytest.mark.parametrize("pooling", ["released", "aligned"])
def test_first_carriers_tell_the_poolings_apart(pooling: Any) -> None:
    """In one block without exchange, carriers bring what was pooled: aligned, of their own window and its border."""
    module = HierarchicalAttention(
        DIM, HEADS, window_size=3, carrier_size=2, depth=1, carrier_pooling=pooling, without=("carrier_attention",)
    )
    expected = visibility.hierarchical(3, 18, (3, 3), 2, 1, pooling=pooling, exchange=False)
    check(module, 3, 18, expected)
    heard = expected[17].reshape(3, 18).any(0)  # by the top right token, along the long axis
    assert heard.tolist() == [column >= (14 if pooling == "aligned" else 9) for column in range(18)]
