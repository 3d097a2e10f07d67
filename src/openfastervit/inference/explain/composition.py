"""What carriers hear of one another, and what they read of their windows, composed over the stage's map.

With one level, block ``b`` gives ``A_b R_b``: ``A_b`` is the carriers' attention to one another, row ``k`` of ``R_b``
what carrier ``k`` read of the map in block ``b - 1``, or ``R_0``: the cells it was pooled from.

With two levels (``carrier_levels=2``) carriers attend inside windows of their own, which have carriers too. In block
``b`` let ``T_b`` be the carriers' attention to carriers, ``S_b`` that to their windows' carriers, ``A_b`` that of these
to one another, and row ``s`` of ``P_b`` what such a carrier read of its window's carriers a block earlier, or the
carriers that it was pooled from. What those knew then was ``R_{b-1}``, so the map is

    T_b R_b + S_b A_b P_b R_{b-1},    with R_{-1} = R_0

Shapes: ``B`` batch, ``H x W`` the map, ``G = G_h * G_w`` its carriers, ``K`` carriers and ``N`` tokens a window, ``S``
carriers of carriers. Grids are in row-major order.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.inference.explain.subject import to_one
from openfastervit.layers import Attention, AttentionBlock, HierarchicalAttention, TransformerLayer
from openfastervit.layers.carriers import CarrierPooling
from openfastervit.layers.hat import Level
from openfastervit.layers.windows import (
    carriers_to_windows,
    map_to_windows,
    pad_to_windows,
    window_counts,
    windows_to_map,
)


@dataclass
class Recording:
    """What one stage did in a call; attention is averaged over heads."""

    size: tuple[int, int] = (0, 0)
    """Height and width of its map."""
    levels: list[Level] = field(default_factory=list)
    """How the map is cut into windows, then its carriers, then theirs."""
    carrier: list[Tensor] = field(default_factory=list)
    """A block: among carriers, ``(B, G, G)``, or in windows of their own behind these windows' carriers."""
    super_carrier: list[Tensor] = field(default_factory=list)
    """A block: among carriers of carriers, ``(B, S, S)``; none where there are none."""
    window: list[Tensor] = field(default_factory=list)
    """A block: carriers to their window's tokens ``(B*n_h*n_w, K, N)``, rows summing to 1."""


@contextmanager
def recording(stage: HierarchicalAttention) -> Iterator[Recording]:
    """Record what a stage does, by hooks that are gone afterwards, whatever happens."""
    record = Recording()
    carriers = stage.carrier_size**2

    def see_map(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        record.size = inputs[0].shape[2], inputs[0].shape[3]

    def see_levels(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        record.levels = inputs[2]

    def see(where: list[Tensor]) -> Any:
        def hook(attention: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(attention, Attention)
            where.append(attention.weights(*inputs).mean(dim=1))

        return hook

    def see_window(attention: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(attention, Attention)
        record.window.append(to_one(attention.weights(*inputs).mean(dim=1)[:, :carriers, carriers:]))

    with ExitStack() as stack:
        stack.callback(stage.register_forward_pre_hook(see_map).remove)
        for block in stage.blocks:
            assert isinstance(block, AttentionBlock)
            if not isinstance(block.carrier, TransformerLayer):  # no carriers, or they do not attend to one another
                continue
            stack.callback(block.register_forward_pre_hook(see_levels).remove)
            stack.callback(block.carrier.attn.register_forward_pre_hook(see(record.carrier)).remove)
            stack.callback(block.window.attn.register_forward_pre_hook(see_window).remove)
            if block.super_carrier is not None:
                stack.callback(block.super_carrier.attn.register_forward_pre_hook(see(record.super_carrier)).remove)
        yield record


def compose(stage: HierarchicalAttention, record: Recording) -> Iterator[tuple[Tensor, Tensor]]:
    """A block: maps ``(B, G_h, G_w, H, W)`` summing to 1, and the share of padding ``(B, G_h, G_w)``."""
    height, width = record.size
    window, c = stage.window_size, stage.carrier_size
    counts = window_counts(height, width, window)
    grid = c * counts[0], c * counts[1]

    def feed(attention: Tensor, block: int) -> Tensor:
        """From attention to carriers ``(B, Q, G)`` to the map ``(B, Q, H, W)``, by what these know in a block."""
        if block == 0:
            read = pooling_footprint((counts[0] * window[0], counts[1] * window[1]), grid, stage.carrier_pooling)
            read = read[:, :, :height, :width].flatten(0, 1).flatten(1).to(attention)
            if stage.mask_padding:
                read = to_one(read)
            return (attention @ read).view(*attention.shape[:2], height, width)
        # (B, queries, keys) -> the keys by window, as (B*n_h*n_w, K, queries): a product inside each window.
        by_window = carriers_to_windows(attention.transpose(1, 2), c, counts)
        maps = windows_to_map(record.window[block - 1].transpose(1, 2) @ by_window, window, counts)
        return maps[:, :, :height, :width]

    for block, attention in enumerate(record.carrier):
        if not record.super_carrier:
            maps = feed(attention, block)
        else:
            to_carriers, to_supers, _ = _unfold(attention, grid, record.levels[1], c)
            if block == 0:
                pooled = _super_footprint(grid, record.levels[1], c).to(attention)
            else:
                pooled = to_one(_unfold(record.carrier[block - 1], grid, record.levels[1], c)[2])
            through = to_supers @ record.super_carrier[block] @ pooled
            maps = feed(to_carriers, block) + feed(through, max(block - 1, 0))
        padding = (1 - maps.sum(dim=(2, 3))).clamp(0, 1)
        batch = maps.shape[0]
        yield to_one(maps.flatten(2)).view(batch, *grid, height, width), padding.view(batch, *grid)


def _unfold(attention: Tensor, grid: tuple[int, int], level: Level, c: int) -> tuple[Tensor, Tensor, Tensor]:
    """Attention in windows of carriers as that of whole grids, 0 between what shares no window.

    Returns:
        Carriers to carriers ``(B, G, G)``, carriers to carriers of carriers ``(B, G, S)``, and these to carriers
        ``(B, S, G)``.
    """
    windows, supers = level.counts[0] * level.counts[1], c * c
    cells, upper = grid[0] * grid[1], windows * supers
    attention = attention.view(-1, windows, *attention.shape[1:])
    device = attention.device
    # The place of each token of a window: in the grid of carriers of carriers, then in that of carriers, and last the
    # place of all padding, which is cut off again.
    of_super = carriers_to_windows(torch.arange(upper, device=device).view(1, upper, 1), c, level.counts)[..., 0]
    numbers = torch.arange(1, cells + 1, device=device).view(1, 1, *grid)
    of_carrier = map_to_windows(pad_to_windows(numbers, level.window, level.counts), level.window, level.counts)[..., 0]
    of_carrier = torch.where(of_carrier > 0, of_carrier - 1, cells) + upper
    place = torch.cat((of_super, of_carrier), dim=1)
    whole = attention.new_zeros(attention.shape[0], upper + cells + 1, upper + cells + 1)
    whole[:, place[:, :, None], place[:, None, :]] = attention
    whole = whole[:, :-1, :-1]
    return whole[:, upper:, upper:], whole[:, upper:, :upper], whole[:, :upper, upper:]


def _super_footprint(grid: tuple[int, int], level: Level, c: int) -> Tensor:
    """The carriers that each carrier of carriers averages: ``(S, G)``; 0 for one whose part is all padding."""
    size = level.counts[0] * level.window[0], level.counts[1] * level.window[1]
    footprint = pooling_footprint(size, (c * level.counts[0], c * level.counts[1]), "aligned")
    return to_one(footprint[:, :, : grid[0], : grid[1]].flatten(0, 1).flatten(1))


def pooling_footprint(size: tuple[int, int], grid: tuple[int, int], pooling: CarrierPooling = "released") -> Tensor:
    """What ``CarrierInitialiser`` pools: ``(G_h, G_w, H, W)``, for each carrier its weights on an ``H x W`` map.

    Args:
        size: The map, ``(H, W)``: whole windows.
        grid: Its carriers, ``(G_h, G_w)``.
        pooling: As the option ``carrier_pooling``.
    """
    axis = _released if pooling == "released" else _aligned
    rows, columns = (axis(*lengths) for lengths in zip(size, grid, strict=True))
    return torch.einsum("gy,hx->ghyx", rows, columns)


def _released(length: int, cells: int) -> Tensor:
    stride = length // cells
    kernel = length - (cells - 1) * stride
    start = torch.arange(cells)[:, None] * stride
    position = torch.arange(length)[None, :]
    return ((position >= start) & (position < start + kernel)).float() / kernel


def _aligned(length: int, cells: int) -> Tensor:
    # Position i of a window belongs to carrier floor(i * c / h). So it is on the whole axis: h / c = length / cells.
    owner = torch.arange(length) * cells // length
    member = F.one_hot(owner, cells).T.float()
    return member / member.sum(dim=1, keepdim=True)
