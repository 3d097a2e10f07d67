"""Blocks of hierarchical attention on the map itself: what ``use_kernels`` switches to.

The same numbers as ``AttentionBlock`` gives, the same random draws included, but tokens stay in the order of the map,
and carriers in that of their grid: only the kernel knows of windows.

Shapes: ``B`` batch, ``C`` channels, ``n_h x n_w`` windows of ``h x w`` tokens, ``c`` carrier side.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from openfastervit.layers.attention import MOST_TOKENS
from openfastervit.layers.transformer import TransformerLayer

if TYPE_CHECKING:
    from openfastervit.layers.hat import AttentionBlock, Level


def block_on_map(
    block: "AttentionBlock", x: Tensor, carriers: Tensor | None, levels: "list[Level]"
) -> tuple[Tensor, Tensor | None]:
    """What ``AttentionBlock.forward`` does.

    Args:
        block: Of a stage with at most one level of carriers.
        x: The padded map ``(B, n_h*h, n_w*w, C)``.
        carriers: ``(B, c*n_h * c*n_w, C)`` in row-major order, or None for plain attention inside windows.
        levels: The windows of the map, and of its carriers.
    """
    (h, w), (n_h, n_w) = levels[0].window, levels[0].counts
    if block.window_position is not None:
        position = block.window_position.mlp(levels[0].geometry.coordinates).to(x.dtype).view(h, 1, w, -1)
        x = (x.unflatten(2, (n_w, w)).unflatten(1, (n_h, h)) + position).flatten(3, 4).flatten(1, 2)
    if carriers is None or block.carrier is None:
        x, _ = _layer_on_map(block.window, x, None, levels[0], 0)
        return x, carriers
    c, grid = block.carrier_size, levels[1].window
    if block.carrier_position is not None:
        carriers = block.carrier_position(carriers, levels[1].geometry)
    if isinstance(block.carrier, TransformerLayer) and grid[0] * grid[1] <= MOST_TOKENS:
        t, _ = _layer_on_map(block.carrier, carriers.unflatten(1, grid), None, levels[1], 0)
    else:
        t = cast(Tensor, block.carrier(carriers, levels[1].geometry, 0)).unflatten(1, grid)
    x, local = _layer_on_map(block.window, x, t, levels[0], c)
    assert local is not None
    if block.propagate_carriers:
        x = x + cast(Tensor, block.carrier.scale1(_spread(local, c, (h, w), (n_h, n_w))))
    return x, local.flatten(1, 2)


def _layer_on_map(
    layer: TransformerLayer, x: Tensor, carriers: Tensor | None, level: "Level", c: int
) -> tuple[Tensor, Tensor | None]:
    """What ``TransformerLayer.forward`` does to windows, on a map and its grid of carriers."""
    table: Tensor | None = None
    if layer.bias is not None:
        (h, w) = level.window
        table = layer.bias.table(level.geometry).transpose(0, 1).unflatten(1, (2 * h - 1, 2 * w - 1))
    y, u = layer.attn.on_map(
        layer.norm1(x),
        None if carriers is None else layer.norm1(carriers),
        table,
        window=level.window,
        carrier_size=c,
    )
    x, carriers = _added(layer, layer.scale1, (x, carriers), (y, u), level, c)
    y = layer.mlp(layer.norm2(x))
    u = None if carriers is None else layer.mlp(layer.norm2(carriers))
    return _added(layer, layer.scale2, (x, carriers), (y, u), level, c)


def _added(
    layer: TransformerLayer,
    scale: Any,
    before: tuple[Tensor, Tensor | None],
    branch: tuple[Tensor, Tensor | None],
    level: "Level",
    c: int,
) -> tuple[Tensor, Tensor | None]:
    """The branch scaled, dropped in some windows, and added."""
    x, carriers = before
    y, u = scale(branch[0]), None if branch[1] is None else scale(branch[1])
    drop = layer.drop_path
    if drop.drop_prob > 0 and drop.training:
        mask = drop.draw([x.shape[0] * level.counts[0] * level.counts[1], 1, 1], y)
        mask = mask.view(x.shape[0], *level.counts, 1)
        y = y * _over_windows(mask, level.window)
        u = None if u is None else u * _over_windows(mask, (c, c))
    return x + y, None if carriers is None or u is None else carriers + u


def _over_windows(values: Tensor, window: tuple[int, int]) -> Tensor:
    """A value a window, ``(B, n_h, n_w, 1)``, for each of its cells: ``(B, n_h*h, n_w*w, 1)``."""
    return values.repeat_interleave(window[0], dim=1).repeat_interleave(window[1], dim=2)


def _spread(t: Tensor, c: int, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    """Nearest upsampling of a grid of carriers to the map: ``(B, c*n_h, c*n_w, C) -> (B, n_h*h, n_w*w, C)``."""
    rows, columns = (
        torch.arange(n * side, device=t.device) // side * c + torch.arange(n * side, device=t.device) % side * c // side
        for n, side in zip(counts, window, strict=True)
    )
    return t.index_select(1, rows).index_select(2, columns)
