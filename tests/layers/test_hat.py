"""Hierarchical attention against its definition, written a second time."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from openfastervit import HierarchicalAttention
from openfastervit.layers import Attention, CarrierInitialiser, DropPath, PositionMLP
from openfastervit.layers.position import grid_geometry
from tests.layers.reference import hierarchical_attention
from tests.networks import wake


def stage(dim: int = 8, num_heads: int = 2, **options: object) -> HierarchicalAttention:
    torch.manual_seed(0)
    module = HierarchicalAttention(dim, num_heads, **{"window_size": 3, "carrier_size": 2, **options}).double().eval()
    wake(module)
    return module


@settings(max_examples=25)
@given(
    height=st.integers(1, 8),
    width=st.integers(1, 8),
    window=st.tuples(st.integers(2, 4), st.integers(2, 4)),
    carrier_size=st.integers(1, 2),
    layer_scale=st.sampled_from([None, 1e-5]),
    propagate=st.booleans(),
    hierarchical=st.booleans(),
    pooling=st.sampled_from(["released", "aligned"]),
    masked=st.booleans(),
    levels=st.integers(1, 2),
)
def test_equals_the_definition(
    height: int,
    width: int,
    window: tuple[int, int],
    carrier_size: int,
    layer_scale: float | None,
    propagate: bool,
    hierarchical: bool,
    pooling: str,
    masked: bool,
    levels: int,
) -> None:
    module = stage(
        window_size=window,
        carrier_size=carrier_size,
        layer_scale=layer_scale,
        propagate_carriers=propagate,
        hierarchical=hierarchical,
        carrier_pooling=pooling,
        mask_padding=masked,
        carrier_levels=levels,
    )
    x = torch.randn(2, 8, height, width, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([hierarchical_attention(module, image) for image in x])
        found = module(x)
    assert found.shape == x.shape
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 2), st.sampled_from(["released", "aligned"]), st.booleans()
)
@settings(max_examples=20)
def test_transposing_everything_transposes_the_map(
    height: int, width: int, levels: int, pooling: str, masked: bool
) -> None:
    module = stage(
        propagate_carriers=True, depth=2, carrier_levels=levels, carrier_pooling=pooling, mask_padding=masked
    )
    mirror = copy.deepcopy(module)
    for part in mirror.modules():
        with torch.no_grad():
            if isinstance(part, nn.Conv2d):
                part.weight.copy_(part.weight.transpose(2, 3).clone())
            elif isinstance(part, PositionMLP):
                part.fc1.weight.copy_(part.fc1.weight.flip(1))
    x = torch.randn(1, 8, height, width, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(mirror(x.transpose(2, 3)).transpose(2, 3), module(x), rtol=1e-10, atol=1e-11)


def reach(module: nn.Module, height: int, width: int, cell: tuple[int, int]) -> torch.Tensor:
    """Which cells of the output an input cell can change: ``(H, W)`` of booleans."""
    x = torch.zeros(1, 8, height, width, dtype=torch.float64)
    y = x.clone()
    y[0, :, cell[0], cell[1]] = torch.randn(8, dtype=torch.float64)
    with torch.no_grad():
        return ((module(y) - module(x)).abs().amax(1) > 1e-12)[0]


def test_carriers_carry_across_windows() -> None:
    """With carriers a cell reaches the whole map, without them its own window and no more."""
    assert reach(stage(depth=1), 9, 6, (0, 0)).all()
    alone = reach(stage(depth=2, hierarchical=False), 9, 6, (0, 0))
    assert alone[:3, :3].all()
    assert alone.sum() == 9


def test_one_window_has_no_use_for_carriers() -> None:
    module = stage(window_size=4)
    x = torch.randn(1, 8, 4, 3, dtype=torch.float64)
    expected = module(x)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "carrier" in name:
                parameter.fill_(float("nan"))
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize(
    ("length", "cells", "stride", "kernel"), [(14, 4, 3, 5), (21, 6, 3, 6), (28, 8, 3, 7), (70, 20, 3, 13)]
)
def test_carrier_pooling_is_the_released_one(length: int, cells: int, stride: int, kernel: int) -> None:
    """The worked example of the specification, and how cells grow with the map."""
    pool = CarrierInitialiser(1, carrier_size=2).double()
    with torch.no_grad():
        pool.conv.weight.zero_()
        pool.conv.weight[0, 0, 1, 1] = 1
        pool.conv.bias.zero_()
        x = torch.arange(length, dtype=torch.float64).expand(1, 1, 7, length)
        found = pool(x, (7, 7), (1, length // 7)).view(2, cells)[0]
    expected = torch.tensor([i * stride + (kernel - 1) / 2 for i in range(cells)], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_absolute_coordinates() -> None:
    """A side of 7 runs from -1 to 1, an even side stops short of 1, a side of 1 is 0."""
    geometry = grid_geometry(4, 7, torch.float64, torch.device("cpu"))
    rows, columns = geometry.coordinates.view(4, 7, 2).unbind(-1)
    assert rows[:, 0].tolist() == [-1, -0.5, 0, 0.5]
    torch.testing.assert_close(columns[0], torch.linspace(-1, 1, 7, dtype=torch.float64))
    single = grid_geometry(1, 2, torch.float64, torch.device("cpu"))
    assert single.coordinates[:, 0].tolist() == [0, 0]
    assert single.offsets[:, 0].abs().sum() == 0


def test_largest_offset_is_log_scaled() -> None:
    geometry = grid_geometry(7, 7, torch.float64, torch.device("cpu"))
    assert geometry.offsets.max().item() == pytest.approx(3.169925001442312 / 3)  # log2(9) / log2(8)
    torch.testing.assert_close(geometry.offsets, -geometry.offsets.flip(0))


def test_attention_weights_are_what_attention_does() -> None:
    torch.manual_seed(0)
    attention = Attention(8, num_heads=2).double()
    x, bias = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(2, 5, 5, dtype=torch.float64)
    weights = attention.weights(x, bias).double()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 5, dtype=torch.float64))
    value = attention.qkv(x).view(3, 5, 3, 2, 4)[:, :, 2].transpose(1, 2)
    expected = attention.proj((weights @ value).transpose(1, 2).reshape(3, 5, 8))
    torch.testing.assert_close(attention(x, bias), expected, rtol=1e-5, atol=1e-5)


def test_bias_survives_low_precision() -> None:
    """Cast to bfloat16, a network computes its bias from the rounded parameters, but in float32."""
    module = stage().bfloat16()
    geometry = grid_geometry(3, 3, torch.float32, torch.device("cpu"))
    bias = module.blocks[0].window.bias
    exact = copy.deepcopy(bias).double()(grid_geometry(3, 3, torch.float64, torch.device("cpu")), 0)
    torch.testing.assert_close(bias(geometry, 0).double(), exact, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full = copy.deepcopy(bias).float()
        torch.testing.assert_close(full(geometry, 0).double(), exact, rtol=1e-5, atol=1e-5)


@given(st.floats(0.05, 0.95))
@settings(max_examples=5)
def test_drop_path_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(20000, 3)
    y = DropPath(rate).train()(x)
    assert all(len(row.unique()) == 1 for row in y[:50])
    kept = y[:, 0] > 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - rate)))
    assert abs(kept.double().mean().item() - (1 - rate)) < 5 * (rate * (1 - rate) / 20000) ** 0.5
    assert torch.equal(DropPath(rate).eval()(x), x)


def test_drop_path_draws_carriers_by_image_and_windows_by_window() -> None:
    """Step 2's mask is one an image, step 3's one a window, as in the released training."""
    module = stage(drop_path=0.5, depth=1, window_size=2, carrier_size=1).train()
    shapes: list[tuple[str, int]] = []
    for name, part in module.named_modules():
        if isinstance(part, DropPath):
            part.register_forward_hook(lambda _m, args, _out, name=name: shapes.append((name, args[0].shape[0])))
    module(torch.randn(5, 8, 6, 4, dtype=torch.float64))
    assert {size for name, size in shapes if "carrier" in name} == {5}
    assert {size for name, size in shapes if "window" in name} == {5 * 3 * 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 does not divide dim=8"),
        ({"carrier_size": 4}, "carrier_size=4 is larger than the window 3 x 3"),
        ({"window_size": 0}, "window_size=0"),
        ({"window_size": (3, 3, 3)}, r"window_size=\(3, 3, 3\)"),
        ({"carrier_size": 0}, "carrier_size=0"),
        ({"depth": 0}, "depth=0"),
        ({"depth": 2, "drop_path": [0.1]}, "1 rates for depth=2"),
        ({"drop_path": 1.5}, "1.5"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HierarchicalAttention(8, **{"num_heads": 2, "window_size": 3, **options})
    with pytest.raises(TypeError, match="ct_size"):
        HierarchicalAttention(8, 2, ct_size=2)


@pytest.mark.parametrize("shape", [(2, 9, 8), (2, 4, 9, 9), (8, 9, 9)])
def test_wrong_maps_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a map \(B, 8, H, W\)"):
        stage()(torch.zeros(shape, dtype=torch.float64))


@given(st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=10)
def test_two_levels_are_one_where_carriers_fit_a_window(height: int, width: int) -> None:
    """Up to three windows of 3 with one carrier each, a grid of carriers is no larger than a window."""
    two = stage(carrier_size=1, carrier_levels=2, propagate_carriers=True)
    one = stage(carrier_size=1, propagate_carriers=True)
    one.load_state_dict({key: value for key, value in two.state_dict().items() if "super" not in key})
    x = torch.randn(1, 8, height, width, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(two(x), one(x)) == (height <= 9 and width <= 9)


def test_masked_padding_is_as_if_it_were_not_there() -> None:
    """In one window, a smaller map is one of fewer tokens; unmasked, its padding is heard."""
    x = torch.randn(1, 8, 3, 2, dtype=torch.float64)
    masked, unmasked = stage(mask_padding=True), stage()
    assert not torch.allclose(masked(x), unmasked(x))
    whole = torch.randn(1, 8, 6, 9, dtype=torch.float64)
    assert torch.equal(masked(whole), unmasked(whole))


def test_multiply_adds_grow_with_the_pixels() -> None:
    """With two levels of carriers 16 times the pixels cost 16 times as much; with one, carriers take over."""

    def count(side: int, levels: int) -> int:
        with torch.device("meta"):
            module = HierarchicalAttention(64, 2, window_size=7, carrier_levels=levels, depth=2)
            x = torch.empty(1, 64, side, side)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x)
        return counter.get_total_flops()

    # Maps of stage 2 for images of 1792 and 7168 pixels.
    two, one = ([count(side, levels) for side in (112, 448)] for levels in (2, 1))
    assert math.log(two[1] / two[0], 16) == pytest.approx(1, abs=0.01)
    assert math.log(one[1] / one[0], 16) > 1.3
