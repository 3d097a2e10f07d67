"""Cutting into windows and back, for every height and width."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openfastervit.layers import windows

sides = st.integers(1, 64)
window = st.tuples(st.integers(1, 9), st.integers(1, 9))


def numbered(*shape: int) -> torch.Tensor:
    """Every element different, so that no exchange goes unnoticed."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)


@given(sides, sides, window)
def test_map_round_trip(height: int, width: int, window: tuple[int, int]) -> None:
    x = numbered(2, 3, height, width)
    counts = windows.window_counts(height, width, window)
    padded = windows.pad_to_windows(x, window, counts)
    assert padded.shape[2] % window[0] == padded.shape[3] % window[1] == 0
    assert padded.shape[2] - height < window[0]
    assert padded.shape[3] - width < window[1]
    assert padded.sum() == x.sum()
    tokens = windows.map_to_windows(padded, window, counts)
    assert tokens.shape == (2 * counts[0] * counts[1], window[0] * window[1], 3)
    back = windows.crop(windows.windows_to_map(tokens, window, counts), height, width)
    assert torch.equal(back, x)


@pytest.mark.parametrize("side", range(1, 65))
def test_every_height_and_width(side: int) -> None:
    """All 64 x 64 maps with the released window, not only those a random search finds."""
    for width in range(1, 65):
        x = numbered(1, 1, side, width)
        counts = windows.window_counts(side, width, (7, 7))
        tokens = windows.map_to_windows(windows.pad_to_windows(x, (7, 7), counts), (7, 7), counts)
        assert torch.equal(windows.crop(windows.windows_to_map(tokens, (7, 7), counts), side, width), x)
        grid = numbered(1, 4 * counts[0] * counts[1], 1)
        there = windows.carriers_to_windows(grid, 2, counts)
        assert torch.equal(windows.carriers_to_grid(there, 2, counts), grid)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 4), st.integers(1, 3))
def test_carrier_round_trip(n_h: int, n_w: int, c: int, batch: int) -> None:
    grid = numbered(batch, c * n_h * c * n_w, 2)
    there = windows.carriers_to_windows(grid, c, (n_h, n_w))
    assert there.shape == (batch * n_h * n_w, c * c, 2)
    assert torch.equal(windows.carriers_to_grid(there, c, (n_h, n_w)), grid)


@given(st.integers(1, 4), st.integers(1, 4), window)
def test_windows_hold_their_cells(n_h: int, n_w: int, window: tuple[int, int]) -> None:
    h, w = window
    x = numbered(2, 1, n_h * h, n_w * w)
    tokens = windows.map_to_windows(x, window, (n_h, n_w))
    for b, i, j in itertools.product(range(2), range(n_h), range(n_w)):
        block = x[b, 0, i * h : (i + 1) * h, j * w : (j + 1) * w].reshape(-1)
        assert torch.equal(tokens[(b * n_h + i) * n_w + j, :, 0], block)


@given(st.integers(1, 5), st.integers(1, 5), window)
def test_exported_order_is_the_same(n_h: int, n_w: int, window: tuple[int, int]) -> None:
    """The gathers that exported graphs use move tokens as the reshapes do."""
    x = numbered(2, 3, n_h * window[0], n_w * window[1])
    order = windows.block_order(window, (n_h, n_w), x.device)
    gathered = x.flatten(2)[:, :, order].transpose(1, 2).reshape(-1, window[0] * window[1], 3)
    assert torch.equal(gathered, windows.map_to_windows(x, window, (n_h, n_w)))
    assert torch.equal(order[windows._grid_order(window, (n_h, n_w), x.device)], torch.arange(len(order)))


@given(st.integers(1, 4), window)
def test_spread_is_nearest(c: int, window: tuple[int, int]) -> None:
    carriers = numbered(3, c * c, 2)
    spread = windows.spread_carriers(carriers, c, window)
    for i, j in itertools.product(range(window[0]), range(window[1])):
        source = (i * c // window[0]) * c + j * c // window[1]
        assert torch.equal(spread[:, i * window[1] + j], carriers[:, source])
