"""A folded FasterViT on kernels: the same logits but for rounding, from fewer and larger launches.

A stage of attention keeps its tokens in one matrix, the map's in the order of the map and the carriers' behind them in
the order of their grid. Layer norms, projections and MLPs are products over all of its rows at once, and attention
reads windows and carriers from it where they lie: nothing is cut, joined or put in another order from the stage's first
block to its last. Position embeddings are added where the block before writes its result.

Shapes: ``B`` images, ``C`` channels, ``H x W`` a map of whole windows, ``G`` carriers an image,
``M = B * (H*W + G)`` rows.
"""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.inference.fold import FoldedDownsample, FoldedFasterViT
from openfastervit.inference.folded_attention import FoldedAttention, FoldedBlock, FoldedLayer
from openfastervit.inference.fused import FusedConv2d
from openfastervit.inference.kernel_layers import Choices, KernelConv2d, KernelLinear, RowTable, fits, new_choices
from openfastervit.kernels.window_attention import offsets
from openfastervit.kernels.window_attention_kernels import Layout, launch
from openfastervit.layers.attention import MOST_TOKENS
from openfastervit.layers.windows import block_order


@torch.no_grad()
def with_kernels(network: FoldedFasterViT, *, choices: Choices | None = None) -> FoldedFasterViT:
    """A copy whose layers run on kernels where these are faster, which is measured at the first call with a shape.

    Args:
        network: Folded for one size, in float32 and not yet in the precision that it will run in: biases of attention
            stay in float32.
        choices: How to choose; by default by measuring.

    Raises:
        ValueError: If the network was folded for any size.
    """
    if network.size is None:
        raise ValueError("the network was folded for any size; kernels need one: fold(model, size)")
    network = copy.deepcopy(network)
    choices = new_choices() if choices is None else choices
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            replacement: nn.Module | None = None
            if isinstance(child, FoldedAttention) and _takes_kernels(child):
                replacement = _KernelAttention(child, choices)
            elif isinstance(child, FoldedDownsample) and fits(child.conv):
                replacement = KernelConv2d(child.conv, choices, norm=child.norm)
            elif isinstance(child, FusedConv2d) and not isinstance(parent, KernelConv2d) and fits(child):
                replacement = KernelConv2d(child, choices)
            if replacement is not None:
                setattr(parent, name, replacement)
    return network


def _takes_kernels(stage: FoldedAttention) -> bool:
    """Whether windows are short enough; torch's attention is made for longer ones."""
    return stage.window[0] * stage.window[1] + stage.carrier_size**2 <= MOST_TOKENS


class _KernelAttention(nn.Module):
    """What ``FoldedAttention`` does to maps of one size."""

    reverse: Tensor
    """Of each carrier of the grid its place in the order of windows."""

    def __init__(self, stage: FoldedAttention, choices: Choices) -> None:
        super().__init__()
        assert stage.counts is not None
        assert stage.map_size is not None
        self.window, self.counts, self.map_size = stage.window, stage.counts, stage.map_size
        self.carrier_size = stage.carrier_size
        self.carrier_init = stage.carrier_init
        c = stage.carrier_size
        self.grid = (c * self.counts[0], c * self.counts[1])
        device = next(stage.parameters()).device
        # The inverse of a permutation; without carriers it is empty.
        reverse = block_order((c, c), self.counts, device).argsort() if c else torch.empty(0, dtype=torch.long)
        self.register_buffer("reverse", reverse, persistent=False)
        blocks = cast("list[FoldedBlock]", list(stage.blocks))
        self.blocks = nn.ModuleList(_KernelBlock(block, self, choices) for block in blocks)
        positions = [self._positions(block) for block in blocks]
        self.first = _Positions(positions[0])
        self.others = nn.ModuleList(_Positions(values) for values in positions[1:])

    def _positions(self, block: FoldedBlock) -> Tensor:
        """Embeddings ``(H*W + G, C)`` of a map's tokens and of its carriers."""
        (h, w), (n_h, n_w) = self.window, self.counts
        position = cast(Tensor, block.position).view(1, h, 1, w, -1)
        values = position.expand(n_h, h, n_w, w, -1).reshape(n_h * h * n_w * w, -1)
        if not self.carrier_size:
            return values
        of_carriers = cast(Tensor, cast(Any, block.carrier_positions).position)
        return torch.cat((values, of_carriers[self.reverse]))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        batch, channels = x.shape[0], x.shape[1]
        height, width = (n * side for n, side in zip(self.counts, self.window, strict=True))
        below, right = height - self.map_size[0], width - self.map_size[1]
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
        split, cells, carriers = len(rows), height * width, self.grid[0] * self.grid[1]
        if self.carrier_init is not None:
            by_window = cast(Tensor, self.carrier_init(x, self.counts))
            # Carriers come in the order of windows; their grid's is what the whole stage keeps.
            rows = torch.cat((rows, by_window.index_select(1, self.reverse).reshape(-1, channels)))
        rows = RowTable(cast(Tensor, self.first.values), split, cells, carriers).add(rows)
        for i, block in enumerate(self.blocks):
            following = None
            if i < len(self.others):
                following = RowTable(cast(Tensor, self.others[i].values), split, cells, carriers)
            rows = block(rows, batch, following)
        x = rows[:split].view(batch, height, width, channels)
        return x[:, : self.map_size[0], : self.map_size[1]].permute(0, 3, 1, 2)


class _KernelBlock(nn.Module):
    """Carriers attend to one another, then each window inside itself."""

    def __init__(self, block: FoldedBlock, stage: _KernelAttention, choices: Choices) -> None:
        super().__init__()
        k = stage.carrier_size**2
        bias = cast(Tensor, block.bias)[:, k:, k:]
        heads = block.attend.num_heads
        width = block.attend.head_dim
        layout = Layout(heads, width, stage.window, stage.counts, stage.carrier_size)
        self.attend = _KernelLayer(block.attend, _table_of(bias, stage.window), layout, choices)
        self.carriers_attend: _KernelLayer | None = None
        self.spread: nn.Module | None = None
        if block.carriers_attend is not None:
            of_windows = cast(Tensor, cast(Any, block.carrier_positions).bias)
            bias = of_windows[:, stage.reverse][:, :, stage.reverse]
            layout = Layout(heads, width, stage.grid, (1, 1), 0)
            self.carriers_attend = _KernelLayer(
                block.carriers_attend, _table_of(bias, stage.grid), layout, choices, bias
            )
            if block.propagate:
                self.spread = _Spread(block.carrier_scale, stage)

    def forward(self, rows: Tensor, batch: int, following: RowTable | None) -> Tensor:
        """``(M, C) -> (M, C)``, with the next block's positions added."""
        if self.carriers_attend is not None:
            layout = self.attend.layout
            split = batch * layout.counts[0] * layout.counts[1] * layout.window[0] * layout.window[1]
            rows[split:] = self.carriers_attend(rows[split:], batch, None)
        rows = self.attend(rows, batch, following)
        return rows if self.spread is None else cast(Tensor, self.spread(rows, batch))


class _KernelLayer(nn.Module):
    """Attention and MLP of a block, each with its norm and its way past.

    Args:
        layer: What it is made of.
        table: Relative position bias of its windows.
        layout: Of its windows and their carriers.
        choices: Of the network.
        bias: The same bias for each query and key, for windows too long for the kernel.
    """

    def __init__(
        self, layer: FoldedLayer, table: Tensor, layout: Layout, choices: Choices, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.layout = layout
        self.table = _Float32(table)
        self.long = layout.tokens > MOST_TOKENS
        self.register_buffer("bias", bias.contiguous() if self.long and bias is not None else None, persistent=False)
        self.qkv = KernelLinear(layer.qkv, choices, norm_eps=layer.eps1)
        self.proj = KernelLinear(layer.proj, choices)
        self.fc1 = KernelLinear(layer.fc1, choices, norm_eps=layer.eps2)
        self.fc2 = KernelLinear(layer.fc2, choices)

    def forward(self, rows: Tensor, batch: int, following: RowTable | None) -> Tensor:
        """``(M, C) -> (M, C)``: a map's rows, then those of its carriers, where the windows have carriers."""
        rows = self.proj(self._attended(self.qkv(rows), batch), rows)
        return cast(Tensor, self.fc2(self.fc1(rows), rows, following))

    def _attended(self, qkv: Tensor, batch: int) -> Tensor:
        layout = self.layout
        channels = layout.heads * layout.width
        if self.long:
            q, k, v = qkv.view(batch, -1, 3, layout.heads, layout.width).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=cast(Tensor, self.bias)[None], scale=1.0)
            return y.transpose(1, 2).reshape(-1, channels)
        height, width = (n * side for n, side in zip(layout.counts, layout.window, strict=True))
        split = batch * height * width
        out = qkv.new_empty((len(qkv), channels))
        carriers, of_carriers = None, None
        if layout.carrier_size:
            grid = [n * layout.carrier_size for n in layout.counts]
            carriers, of_carriers = qkv[split:].view(batch, *grid, -1), out[split:].view(batch, *grid, -1)
        tokens, of_tokens = qkv[:split].view(batch, height, width, -1), out[:split].view(batch, height, width, -1)
        # 1 / sqrt(head_dim) is in the queries' weights.
        launch(tokens, carriers, self.table.values, of_tokens, of_carriers, layout, 1.0)
        return out


class _Spread(nn.Module):
    """Adds carriers, scaled, to the cells of their windows: the end of a stage that propagates them."""

    def __init__(self, scale: nn.Module, stage: _KernelAttention) -> None:
        super().__init__()
        self.scale = scale
        self.size = (stage.counts[0] * stage.window[0], stage.counts[1] * stage.window[1])
        self.grid = stage.grid
        c, device = stage.carrier_size, stage.reverse.device
        rows, columns = (
            torch.arange(n * side, device=device) // side * c + torch.arange(n * side, device=device) % side * c // side
            for n, side in zip(stage.counts, stage.window, strict=True)
        )
        self.register_buffer("cells", (rows[:, None] * self.grid[1] + columns).flatten(), persistent=False)

    def forward(self, rows: Tensor, batch: int) -> Tensor:
        """``(M, C)`` to the map's rows ``(B*H*W, C)``: the carriers end here."""
        split = batch * self.size[0] * self.size[1]
        carriers = cast(Tensor, self.scale(rows[split:])).view(batch, self.grid[0] * self.grid[1], -1)
        return rows[:split] + carriers.index_select(1, cast(Tensor, self.cells)).flatten(0, 1)


class _Positions(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values.contiguous(), persistent=False)


class _Float32(nn.Module):
    """A constant that stays float32 where the network becomes something else: near 16, bfloat16 has steps of 0.06."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values.float().contiguous(), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> "_Float32":
        self.values = self.values.to(fn(self.values).device)
        return self


def _table_of(bias: Tensor, window: tuple[int, int]) -> Tensor:
    """The bias ``(heads, N, N)`` of a window's queries and keys as that of their offsets, ``(heads, 2h-1, 2w-1)``."""
    heads = len(bias)
    table = bias.new_zeros((heads, (2 * window[0] - 1) * (2 * window[1] - 1)))
    table[:, offsets(window, bias.device).flatten()] = bias.flatten(1)
    return table.view(heads, 2 * window[0] - 1, 2 * window[1] - 1)
