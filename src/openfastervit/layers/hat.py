"""Hierarchical attention: windows attend inside themselves, and to each other through carrier tokens.

Each window of a map is summarised by ``c x c`` carrier tokens. In every block the carriers of all windows first attend
to one another (global reach at little cost), then each window attends over its own tokens together with its carriers
(FasterViT, arXiv 2306.06189, section 3.4).

Shapes: ``B`` batch, ``C`` channels, ``H x W`` the map, ``h x w`` a window, ``n_h x n_w`` windows on the map,
``c`` carrier side, so ``K = c * c`` carriers a window and a grid of ``c*n_h x c*n_w`` carriers a map.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openfastervit.layers.attention import MOST_TOKENS, has_kernels
from openfastervit.layers.carriers import CARRIER_POOLINGS, CarrierInitialiser, CarrierPooling
from openfastervit.layers.map_attention import block_on_map
from openfastervit.layers.mixer import TokenMixer, drop_path_rates, geometry_dtype, is_whole, window_pair
from openfastervit.layers.position import AbsolutePosition, GridGeometry, grid_geometry
from openfastervit.layers.transformer import MLPLayer, TransformerLayer, init_linear
from openfastervit.layers.windows import (
    carriers_to_grid,
    carriers_to_windows,
    crop,
    exporting,
    map_to_windows,
    outside,
    pad_to_windows,
    spread_carriers,
    window_counts,
    windows_to_map,
)

PARTS = ("carrier_attention", "carrier_position", "carrier_bias", "window_position", "window_bias")
"""What ``without`` can leave out of a block."""


class Level(NamedTuple):
    """How a grid of tokens is cut into windows: the map itself, its carriers, or their carriers."""

    window: tuple[int, int]
    counts: tuple[int, int]
    geometry: GridGeometry
    """Of a window."""
    hidden: Tensor | None
    """``(n, 1, K + N)``, true for padding that no token may attend to; None hides nothing."""


class AttentionBlock(nn.Module):
    """One block of a stage: carriers attend across the map, then every window attends inside itself.

    Args:
        dim: Channels ``C``.
        num_heads: Heads; must divide ``dim``.
        carrier_size: ``c``, or 0 for a block without carriers: plain attention inside windows.
        carrier_levels: 2 for carriers of carriers.
        mlp_ratio: Hidden channels of the MLPs over ``dim``.
        layer_scale: Initial value of the layer scales, or None for none.
        propagate_carriers: Add the carriers back to their window's tokens at the end (a stage's last block).
        drop_path: Rate of both attention steps. The mask of the carriers is drawn for each image, that of the
            windows for each window.
        without: Parts left out, of ``PARTS``.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        carrier_size: int = 0,
        carrier_levels: int = 1,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        propagate_carriers: bool = False,
        drop_path: float = 0.0,
        without: Collection[str] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        without = frozenset(without)
        self.carrier_size = carrier_size
        self.propagate_carriers = propagate_carriers

        def position(part: str) -> AbsolutePosition | None:
            return None if part in without else AbsolutePosition(dim, device=device, dtype=dtype)

        def layer(bias: str) -> TransformerLayer:
            return TransformerLayer(
                dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                layer_scale=layer_scale,
                drop_path=drop_path,
                biased=bias not in without,
                device=device,
                dtype=dtype,
            )

        self.window_position = position("window_position")
        self.window = layer("window_bias")
        self.carrier_position: AbsolutePosition | None = None
        self.carrier: TransformerLayer | MLPLayer | None = None
        self.super_position: AbsolutePosition | None = None
        self.super_carrier: TransformerLayer | None = None
        if carrier_size > 0:
            self.carrier_position = position("carrier_position")
            if "carrier_attention" in without:
                self.carrier = MLPLayer(
                    dim,
                    mlp_ratio=mlp_ratio,
                    layer_scale=layer_scale,
                    propagated=propagate_carriers,
                    drop_path=drop_path,
                    device=device,
                    dtype=dtype,
                )
            else:
                self.carrier = layer("carrier_bias")
            if carrier_levels == 2:
                self.super_position = position("carrier_position")
                self.super_carrier = layer("carrier_bias")

    def forward(self, x: Tensor, carriers: list[Tensor], levels: list[Level]) -> tuple[Tensor, list[Tensor]]:
        """Windows and carriers to the same.

        Args:
            x: Windows ``(B*n_h*n_w, h*w, C)``.
            carriers: Empty for plain attention inside windows; the carriers ``(B, c*n_h * c*n_w, C)``; or these and
                their own carriers. In row-major order over their grids.
            levels: The windows of the map, of its carriers, and of theirs, as many as there are and one more. The
                last one's is a single window over its whole grid.
        """
        if self.window_position is not None:
            x = self.window_position(x, levels[0].geometry)
        if self.carrier is not None:
            if len(carriers) > 0:
                c, window, counts = self.carrier_size, levels[0].window, levels[0].counts
                carriers = self._exchange(carriers, levels)
                x = torch.cat((carriers_to_windows(carriers[0], c, counts), x), dim=1)
                x = self.window(x, levels[0].geometry, c * c, levels[0].hidden)
                local, x = x[:, : c * c], x[:, c * c :]
                if self.propagate_carriers:
                    x = x + self.carrier.scale1(spread_carriers(local, c, window))
                carriers[0] = carriers_to_grid(local, c, counts)
                return x, carriers
        return self.window(x, levels[0].geometry, 0, levels[0].hidden), carriers

    def _exchange(self, carriers: list[Tensor], levels: list[Level]) -> list[Tensor]:
        """Carriers attend to one another: all to all, or inside windows of their own together with their carriers."""
        assert self.carrier is not None
        t, level = carriers[0], levels[1]
        if len(carriers) == 1:
            if self.carrier_position is not None:
                t = self.carrier_position(t, level.geometry)
            return [self.carrier(t, level.geometry, 0)]
        c, top = self.carrier_size, levels[2]
        assert self.super_carrier is not None
        s = carriers[1]
        if self.super_position is not None:
            s = self.super_position(s, top.geometry)
        s = self.super_carrier(s, top.geometry, 0)
        height, width = c * levels[0].counts[0], c * levels[0].counts[1]
        t = pad_to_windows(t.transpose(1, 2).unflatten(2, (height, width)), level.window, level.counts)
        t = map_to_windows(t, level.window, level.counts)
        if self.carrier_position is not None:
            t = self.carrier_position(t, level.geometry)
        t = torch.cat((carriers_to_windows(s, c, level.counts), t), dim=1)
        t = self.carrier(t, level.geometry, c * c, level.hidden)
        s = carriers_to_grid(t[:, : c * c], c, level.counts)
        t = crop(windows_to_map(t[:, c * c :], level.window, level.counts), height, width)
        return [t.flatten(2).transpose(1, 2), s]


class HierarchicalAttention(TokenMixer):
    """A stage of hierarchical attention, a map in and a map out, for any height and width.

    The map is padded with zeros at the right and the bottom to whole windows, and cropped again at the end; the
    padding takes part in attention unless it is masked. A map of a single window has no other window to hear of:
    carriers are skipped.

    Args:
        dim: Channels ``C``.
        num_heads: Heads; must divide ``dim``.
        window_size: Side of a window, or ``(height, width)``.
        carrier_size: ``c``: each window has ``c * c`` carriers. At most the window's side.
        depth: Number of blocks.
        hierarchical: False leaves out the carriers: plain attention inside windows.
        mlp_ratio: Hidden channels of the MLPs over ``dim``.
        layer_scale: Initial value of the layer scales, or None for none.
        propagate_carriers: Add the carriers to their window's tokens after the last block.
        drop_path: Stochastic depth rate, one for all blocks or one a block.
        carrier_levels: 1: all carriers attend to one another, at a cost that grows with the square of the map. 2:
            where their grid is larger than a window they attend inside windows of their own, which have carriers, too,
            and those attend to one another. The windows of carriers have at most the side of ``window_size``, and
            their padding is masked. Up to a window of carriers their carriers are idle, get no gradient, and the
            result is that of one level; the topmost ones attend all to all. Not in the released networks.
        carrier_pooling: How first carriers are averaged, ``"released"`` or ``"aligned"``: see ``CarrierInitialiser``.
        mask_padding: No token attends to the padding, and first carriers average over the map alone; one with nothing
            but padding starts at 0 and is heard all the same. Not in the released networks.
        without: Parts left out, for ablations: any of ``"carrier_attention"`` (carriers keep their MLP),
            ``"carrier_position"``, ``"carrier_bias"``, ``"window_position"``, ``"window_bias"``.

    Raises:
        ValueError: If an option is out of range: the message names it.
    """

    window_size: tuple[int, int]
    kernels: bool
    """Whether blocks run on kernels where they can; see ``use_kernels``."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int | Sequence[int] = 7,
        carrier_size: int = 2,
        depth: int = 2,
        hierarchical: bool = True,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        propagate_carriers: bool = False,
        drop_path: float | Sequence[float] = 0.0,
        carrier_levels: int = 1,
        carrier_pooling: CarrierPooling = "released",
        mask_padding: bool = False,
        without: Collection[str] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, depth=depth, window_size=window_size)
        rates = drop_path_rates(drop_path, depth)
        if hierarchical and (not is_whole(carrier_size) or carrier_size < 1):
            raise ValueError(
                f"carrier_size={carrier_size!r} is less than 1, or no whole number; hierarchical=False leaves out the "
                "carriers"
            )
        check_carrier_options(carrier_levels, carrier_pooling, mask_padding, without)
        self.carrier_size = carrier_size if hierarchical else 0
        self.carrier_levels = carrier_levels
        self.carrier_pooling = carrier_pooling
        self.mask_padding = mask_padding
        self.kernels = False
        self.without = left_out(without)
        self.set_window_size(self.window_size)
        self.carrier_init: CarrierInitialiser | None = None
        self.super_init: CarrierInitialiser | None = None
        if hierarchical:
            self.carrier_init = CarrierInitialiser(
                dim, carrier_size=carrier_size, pooling=carrier_pooling, device=device, dtype=dtype
            )
            if carrier_levels == 2:
                self.super_init = CarrierInitialiser(
                    dim, carrier_size=carrier_size, pooling="aligned", device=device, dtype=dtype
                )
        self.blocks = nn.ModuleList(
            AttentionBlock(
                dim,
                num_heads=num_heads,
                carrier_size=self.carrier_size,
                carrier_levels=carrier_levels,
                mlp_ratio=mlp_ratio,
                layer_scale=layer_scale,
                propagate_carriers=hierarchical and propagate_carriers and i == depth - 1,
                drop_path=rates[i],
                without=self.without,
                device=device,
                dtype=dtype,
            )
            for i in range(depth)
        )
        self.apply(init_linear)

    @torch.jit.ignore
    def set_window_size(self, window_size: int | Sequence[int]) -> None:
        """Use another window, square or not, with the same parameters: positions are relative to the window.

        Raises:
            ValueError: If a window has fewer cells along an axis than carriers.
        """
        window = window_pair(window_size)
        if self.carrier_size > min(window):
            raise ValueError(
                f"carrier_size={self.carrier_size} is larger than the window {window[0]} x {window[1]}; "
                f"choose at most {min(window)}"
            )
        self.window_size = window

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``.

        Raises:
            ValueError: If ``x`` is not a map of ``dim`` channels.
        """
        self._check(x)
        height, width = x.shape[2], x.shape[3]
        window = self.window_size
        counts = window_counts(height, width, window)
        x = pad_to_windows(x, window, counts)
        carriers, levels = self._begin(x, height, width, counts)
        if self.kernels and not torch.jit.is_scripting():
            if self._on_kernels(x, levels):
                return crop(self._on_map(x, carriers, levels), height, width)
        x = map_to_windows(x, window, counts)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x, carriers = checkpoint(block, x, carriers, levels, use_reentrant=False)
            else:
                x, carriers = block(x, carriers, levels)
        return crop(windows_to_map(x, window, counts), height, width)

    def _begin(self, x: Tensor, height: int, width: int, counts: tuple[int, int]) -> tuple[list[Tensor], list[Level]]:
        """Of a padded map the first carriers, and how both are cut."""
        window, c = self.window_size, self.carrier_size
        dtype, device = geometry_dtype(x), x.device
        hierarchical = False
        if self.carrier_init is not None:
            hierarchical = counts[0] * counts[1] > 1
        padding: Tensor | None = None
        if self.mask_padding:
            if exporting() or height != x.shape[2] or width != x.shape[3]:
                padding = outside(height, width, window, counts, device)
        levels = [
            Level(
                window,
                counts,
                grid_geometry(window[0], window[1], dtype, device),
                None if padding is None else _hidden(padding, c * c if hierarchical else 0),
            )
        ]
        carriers: list[Tensor] = []
        if self.carrier_init is not None:
            if hierarchical:
                inside: Tensor | None = None
                if padding is not None:
                    inside = windows_to_map(~padding.unsqueeze(2), window, counts)
                t = self.carrier_init(x, window, counts, inside)
                carriers.append(t)
                grid = (c * counts[0], c * counts[1])
                if self.super_init is not None:
                    if grid[0] > window[0] or grid[1] > window[1]:
                        inner, above = self._super_carriers(t, grid)
                        levels.append(inner)
                        carriers.append(above)
                        grid = (c * inner.counts[0], c * inner.counts[1])
                levels.append(Level(grid, (1, 1), grid_geometry(grid[0], grid[1], dtype, device), None))
        return carriers, levels

    @torch.jit.unused
    def _on_kernels(self, x: Tensor, levels: list[Level]) -> bool:
        """Whether kernels take such a map: short sequences, one level of carriers, no masks, not float64."""
        tokens = levels[0].window[0] * levels[0].window[1] + self.carrier_size**2
        plain = len(levels) > 2 or levels[0].hidden is not None or x.dtype == torch.float64 or tokens > MOST_TOKENS
        return not plain and not exporting() and has_kernels(str(x.device))

    @torch.jit.unused
    def _on_map(self, x: Tensor, carriers: list[Tensor], levels: list[Level]) -> Tensor:
        """All blocks on a padded map, ``(B, C, n_h*h, n_w*w)`` to the same, with kernels."""
        x = x.permute(0, 2, 3, 1).contiguous()
        t = carriers[0] if carriers else None
        for block in self.blocks:
            if self.grad_checkpointing:
                x, t = checkpoint(block_on_map, cast(AttentionBlock, block), x, t, levels, use_reentrant=False)
            else:
                x, t = block_on_map(cast(AttentionBlock, block), x, t, levels)
        return x.permute(0, 3, 1, 2)

    def _super_carriers(self, t: Tensor, grid: tuple[int, int]) -> tuple[Level, Tensor]:
        """How a grid of carriers ``(B, G_h*G_w, C)`` is cut into windows, and the first carriers of these."""
        assert self.super_init is not None
        counts = window_counts(grid[0], grid[1], self.window_size)
        # As many windows as there must be, none larger than they must be: the least padding.
        window = ((grid[0] + counts[0] - 1) // counts[0], (grid[1] + counts[1] - 1) // counts[1])
        padding = outside(grid[0], grid[1], window, counts, t.device)
        inside = windows_to_map(~padding.unsqueeze(2), window, counts)
        t = pad_to_windows(t.transpose(1, 2).unflatten(2, grid), window, counts)
        geometry = grid_geometry(window[0], window[1], geometry_dtype(t), t.device)
        hidden: Tensor | None = None
        if exporting() or grid[0] != t.shape[2] or grid[1] != t.shape[3]:
            hidden = _hidden(padding, self.carrier_size * self.carrier_size)
        return Level(window, counts, geometry, hidden), self.super_init(t, window, counts, inside)


def _hidden(padding: Tensor, num_carriers: int) -> Tensor:
    """``(n, N) -> (n, 1, K + N)``: carriers are seen always."""
    seen = torch.zeros((padding.shape[0], num_carriers), dtype=torch.bool, device=padding.device)
    return torch.cat((seen, padding), dim=1).unsqueeze(1)


def check_carrier_options(
    carrier_levels: int, carrier_pooling: str, mask_padding: bool, without: Collection[str]
) -> None:
    """Raise ``ValueError`` for options of hierarchical attention that are out of range, or do not go together."""
    if not is_whole(carrier_levels) or carrier_levels not in (1, 2):
        raise ValueError(f"carrier_levels={carrier_levels!r} is neither 1 nor 2")
    if carrier_pooling not in CARRIER_POOLINGS:
        raise ValueError(f'carrier_pooling={carrier_pooling!r} is neither "released" nor "aligned"')
    if mask_padding not in (True, False):
        raise ValueError(f"mask_padding={mask_padding!r} is neither True nor False")
    parts = left_out(without)
    if carrier_levels == 2 and "carrier_attention" in parts:
        raise ValueError(
            f"without={without!r} and carrier_levels=2: carriers that do not attend have no use for carriers of their "
            "own; give one of the two"
        )


def left_out(without: Collection[str]) -> frozenset[str]:
    """What ``without`` names; ``ValueError`` for what is no part."""
    parts = (without,) if isinstance(without, str) else tuple(without)
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"without={without!r}: {part!r} is no part that can be left out; {', '.join(PARTS)} are")
    return frozenset(parts)
