"""Locally-grouped and globally-subsampled attention (Twins-SVT, arXiv 2104.13840, section 3.2).

Shapes: ``B`` batch, ``C`` channels, ``H x W`` the map, ``h x w`` a window, ``r`` the reduction of keys and values.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openfastervit.layers.drop_path import DropPath
from openfastervit.layers.mixer import TokenMixer, check_whole, drop_path_rates, geometry_dtype
from openfastervit.layers.position import grid_geometry
from openfastervit.layers.transformer import MLP, TransformerLayer, init_linear, scale_or_identity
from openfastervit.layers.windows import crop, map_to_windows, outside, pad_to_windows, window_counts, windows_to_map


class TwinsAttention(TokenMixer):
    """A stage of Twins-SVT blocks, a map in and a map out, for any height and width.

    Odd blocks attend inside windows (LSA), where no token attends to padding. In even blocks (GSA) every token attends
    to a map that a strided convolution has made smaller. Positions are conditional: a depthwise 3x3 convolution is
    added after the first block (the positional encoding generator); attention has no bias.

    Args:
        dim: Channels ``C``.
        num_heads: Heads; must divide ``dim``.
        window_size: Side of a window of LSA, or ``(height, width)``.
        reduction: ``r``: GSA has a key for each ``r x r`` cells. The paper has 2 at stride 16, 1 at stride 32.
        depth: Number of blocks.
        mlp_ratio: Hidden channels of the MLPs over ``dim``.
        layer_scale: Initial value of the layer scales, or None for none.
        drop_path: Stochastic depth rate, one for all blocks or one a block. A mask is drawn for each window in odd
            blocks, as everywhere in this package, and for each image in even ones.

    Raises:
        ValueError: If an option is out of range: the message names it.
    """

    window_size: tuple[int, int]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int | Sequence[int] = 7,
        reduction: int = 2,
        depth: int = 2,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float | Sequence[float] = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, depth=depth, window_size=window_size)
        rates = drop_path_rates(drop_path, depth)
        check_whole("reduction", reduction, 1)
        blocks: list[nn.Module] = []
        for i in range(depth):
            if i % 2 == 0:
                layer = TransformerLayer(
                    dim,
                    num_heads=num_heads,
                    mlp_ratio=mlp_ratio,
                    layer_scale=layer_scale,
                    drop_path=rates[i],
                    biased=False,
                    device=device,
                    dtype=dtype,
                )
                blocks.append(LocallyGrouped(layer))
            else:
                blocks.append(
                    GloballySubsampled(
                        dim,
                        num_heads=num_heads,
                        reduction=reduction,
                        mlp_ratio=mlp_ratio,
                        layer_scale=layer_scale,
                        drop_path=rates[i],
                        device=device,
                        dtype=dtype,
                    )
                )
        self.blocks = nn.ModuleList(blocks)
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``.

        Raises:
            ValueError: If ``x`` is not a map of ``dim`` channels.
        """
        self._check(x)
        for i, block in enumerate(self.blocks):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, self.window_size, use_reentrant=False)
            else:
                x = block(x, self.window_size)
            if i == 0:
                x = x + self.position(x)
        return x


class LocallyGrouped(nn.Module):
    """Attention inside windows and an MLP (LSA)."""

    def __init__(self, layer: TransformerLayer) -> None:
        super().__init__()
        self.window = layer

    def forward(self, x: Tensor, window: tuple[int, int]) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        height, width = x.shape[2], x.shape[3]
        counts = window_counts(height, width, window)
        x = pad_to_windows(x, window, counts)
        hidden: Tensor | None = None
        if height != x.shape[2] or width != x.shape[3]:
            hidden = outside(height, width, window, counts, x.device).unsqueeze(1)
        geometry = grid_geometry(window[0], window[1], geometry_dtype(x), x.device)
        x = self.window(map_to_windows(x, window, counts), geometry, 0, hidden)
        return crop(windows_to_map(x, window, counts), height, width)


class GloballySubsampled(nn.Module):
    """Attention of every token to a smaller map, and an MLP (GSA)."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        reduction: int,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.reduction = reduction
        self.norm1 = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.q = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.reduce: nn.Module = nn.Identity()
        self.reduce_norm: nn.Module = nn.Identity()
        if reduction > 1:
            self.reduce = nn.Conv2d(dim, dim, reduction, stride=reduction, device=device, dtype=dtype)
            self.reduce_norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.kv = nn.Linear(dim, 2 * dim, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.norm2 = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.mlp = MLP(dim, hidden_dim=int(dim * mlp_ratio), device=device, dtype=dtype)
        self.scale1 = scale_or_identity(dim, layer_scale, device=device, dtype=dtype)
        self.scale2 = scale_or_identity(dim, layer_scale, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, window: tuple[int, int]) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``; the window is not used."""
        height, width = x.shape[2], x.shape[3]
        x = x.flatten(2).transpose(1, 2)
        x = x + self.drop_path(self.scale1(self._attend(self.norm1(x), height, width)))
        x = x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
        return x.transpose(1, 2).unflatten(2, (height, width))

    def _attend(self, x: Tensor, height: int, width: int) -> Tensor:
        """``(B, H*W, C) -> (B, H*W, C)``."""
        batch, tokens, channels = x.shape
        head_dim = channels // self.num_heads
        q = self.q(x).view(batch, tokens, self.num_heads, head_dim).transpose(1, 2)
        if self.reduction > 1:
            r = self.reduction
            x = x.transpose(1, 2).unflatten(2, (height, width))
            x = F.pad(x, (0, -width % r, 0, -height % r))  # the last cells may lie partly on zeros
            x = self.reduce_norm(self.reduce(x).flatten(2).transpose(1, 2))
        kv = self.kv(x).view(batch, x.shape[1], 2, self.num_heads, head_dim).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, channels))
