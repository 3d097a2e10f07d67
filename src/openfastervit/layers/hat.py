"""Hierarchical attention: windows attend inside themselves, and to each other through carrier tokens.

Each window of a map is summarised by ``c x c`` carrier tokens. In every block the carriers of all windows first attend
to one another (global reach at little cost), then each window attends over its own tokens together with its carriers
(FasterViT, arXiv 2306.06189, section 3.4).

Shapes: ``B`` batch, ``C`` channels, ``H x W`` the map, ``h x w`` a window, ``n_h x n_w`` windows on the map,
``c`` carrier side, so ``K = c * c`` carriers a window and a grid of ``c*n_h x c*n_w`` carriers a map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openfastervit.layers.attention import Attention
from openfastervit.layers.drop_path import DropPath
from openfastervit.layers.position import AbsolutePosition, GridGeometry, RelativePositionBias, grid_geometry
from openfastervit.layers.windows import (
    carriers_to_grid,
    carriers_to_windows,
    crop,
    exporting,
    map_to_windows,
    pad_to_windows,
    spread_carriers,
    window_counts,
    windows_to_map,
)


def window_pair(window_size: int | Sequence[int], name: str = "window_size") -> tuple[int, int]:
    """``(h, w)`` from a side or a pair. Raises ``ValueError`` where that is not one or two positive integers."""
    pair = tuple(window_size) if isinstance(window_size, Sequence) else (window_size, window_size)
    if len(pair) != 2 or any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in pair):
        raise ValueError(f"{name}={window_size!r} is neither a positive side nor a pair (height, width)")
    return pair


def init_linear(module: nn.Module) -> None:
    """FasterViT's initialisation of a linear layer: weight normal with std 0.02 cut at +-2, bias 0. Others are left."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class MLP(nn.Module):
    """``Linear -> GELU -> Linear``."""

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, C) -> (B, N, C)``."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learnt factor for each channel."""

    def __init__(
        self,
        dim: int,
        *,
        init_value: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.init_value = float(init_value)
        self.gamma = nn.Parameter(torch.full((dim,), self.init_value, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.init_value)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        return x * self.gamma


class TransformerLayer(nn.Module):
    """``x += scale1(attention(norm1(x)))``, ``x += scale2(mlp(norm2(x)))``, each branch with drop path."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.bias = RelativePositionBias(num_heads, device=device, dtype=dtype)
        self.attn = Attention(dim, num_heads=num_heads, device=device, dtype=dtype)
        self.norm2 = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.mlp = MLP(dim, hidden_dim=int(dim * mlp_ratio), device=device, dtype=dtype)
        self.scale1: nn.Module = nn.Identity()
        self.scale2: nn.Module = nn.Identity()
        if layer_scale is not None:
            self.scale1 = LayerScale(dim, init_value=layer_scale, device=device, dtype=dtype)
            self.scale2 = LayerScale(dim, init_value=layer_scale, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, geometry: GridGeometry, num_carriers: int) -> Tensor:
        """``(B, K + N, C) -> (B, K + N, C)``: ``N`` tokens on the grid of ``geometry`` behind ``K`` carriers."""
        bias = self.bias(geometry, num_carriers)
        x = x + self.drop_path(self.scale1(self.attn(self.norm1(x), bias)))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


class CarrierInitialiser(nn.Module):
    """First carriers of a map: a depthwise 3x3 convolution, then overlapping average pooling to the carrier grid.

    Along an axis of length ``L`` with ``O = c * n`` carriers, pooling has stride ``S = L // O`` and kernel
    ``L - (O - 1) * S``. Where ``c`` does not divide the window, cells grow with ``n`` and drift off their windows:
    that is how the released networks were trained.
    """

    def __init__(
        self,
        dim: int,
        *,
        carrier_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.carrier_size = carrier_size
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def forward(self, x: Tensor, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
        """``(B, C, n_h*h, n_w*w) -> (B, c*n_h * c*n_w, C)``, carriers in row-major order."""
        x = self.conv(x)
        c = self.carrier_size
        cells_h, cells_w = c * counts[0], c * counts[1]
        stride_h, stride_w = window[0] // c, window[1] // c  # L // O with L = n * h, O = n * c
        kernel_h = counts[0] * window[0] - (cells_h - 1) * stride_h
        kernel_w = counts[1] * window[1] - (cells_w - 1) * stride_w
        if exporting():
            # An exported average pool fixes its kernel; membership matrices leave the size of the map open.
            rows = _cells(cells_h, stride_h, kernel_h, x)
            columns = _cells(cells_w, stride_w, kernel_w, x)
            x = rows @ x @ columns.transpose(0, 1) / (kernel_h * kernel_w)
        else:
            x = F.avg_pool2d(x, [kernel_h, kernel_w], stride=[stride_h, stride_w])
        return x.flatten(2).transpose(1, 2)


def _cells(cells: int, stride: int, kernel: int, x: Tensor) -> Tensor:
    """``(cells, L)``: 1 where a position belongs to a cell of the pooling, else 0."""
    start = torch.arange(cells, device=x.device)[:, None] * stride
    position = torch.arange((cells - 1) * stride + kernel, device=x.device)[None, :]
    return ((position >= start) & (position < start + kernel)).to(x.dtype)


class AttentionBlock(nn.Module):
    """One block of a stage: carriers attend across the map, then every window attends inside itself.

    Args:
        dim: Channels ``C``.
        num_heads: Heads; must divide ``dim``.
        carrier_size: ``c``, or 0 for a block without carriers: plain attention inside windows.
        mlp_ratio: Hidden channels of the MLPs over ``dim``.
        layer_scale: Initial value of the layer scales, or None for none.
        propagate_carriers: Add the carriers back to their window's tokens at the end (a stage's last block).
        drop_path: Rate of both attention steps. The mask of the carriers is drawn for each image, that of the
            windows for each window.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        carrier_size: int = 0,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        propagate_carriers: bool = False,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.carrier_size = carrier_size
        self.propagate_carriers = propagate_carriers
        self.window_position = AbsolutePosition(dim, device=device, dtype=dtype)
        self.window = TransformerLayer(
            dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            layer_scale=layer_scale,
            drop_path=drop_path,
            device=device,
            dtype=dtype,
        )
        self.carrier_position: AbsolutePosition | None = None
        self.carrier: TransformerLayer | None = None
        if carrier_size > 0:
            self.carrier_position = AbsolutePosition(dim, device=device, dtype=dtype)
            self.carrier = TransformerLayer(
                dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                layer_scale=layer_scale,
                drop_path=drop_path,
                device=device,
                dtype=dtype,
            )

    def forward(
        self,
        x: Tensor,
        carriers: Tensor | None,
        window: tuple[int, int],
        counts: tuple[int, int],
        window_geometry: GridGeometry,
        carrier_geometry: GridGeometry | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Windows ``(B*n_h*n_w, h*w, C)`` and carriers ``(B, c*n_h * c*n_w, C)``, or no carriers: the same out."""
        x = self.window_position(x, window_geometry)
        if self.carrier is not None and self.carrier_position is not None:
            if carriers is not None and carrier_geometry is not None:
                c = self.carrier_size
                carriers = self.carrier_position(carriers, carrier_geometry)
                carriers = self.carrier(carriers, carrier_geometry, 0)
                x = torch.cat((carriers_to_windows(carriers, c, counts), x), dim=1)
                x = self.window(x, window_geometry, c * c)
                local, x = x[:, : c * c], x[:, c * c :]
                if self.propagate_carriers:
                    x = x + self.carrier.scale1(spread_carriers(local, c, window))
                return x, carriers_to_grid(local, c, counts)
        return self.window(x, window_geometry, 0), carriers


class HierarchicalAttention(nn.Module):
    """A stage of hierarchical attention, a map in and a map out, for any height and width.

    The map is padded with zeros at the right and the bottom to whole windows, and cropped again at the end; the
    padding takes part in attention. A map of a single window has no other window to hear of: carriers are skipped.

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

    Raises:
        ValueError: If an option is out of range: the message names it.
    """

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        rates = list(drop_path) if isinstance(drop_path, Sequence) else [float(drop_path)] * depth
        if depth < 1:
            raise ValueError(f"depth={depth} is less than one block")
        if len(rates) != depth:
            raise ValueError(f"drop_path has {len(rates)} rates for depth={depth} blocks; give one a block")
        if hierarchical and carrier_size < 1:
            raise ValueError(f"carrier_size={carrier_size} is less than 1; hierarchical=False leaves out the carriers")
        self.dim = dim
        self.carrier_size = carrier_size if hierarchical else 0
        self.window_size = window_pair(window_size)
        self.set_window_size(self.window_size)
        self.grad_checkpointing = False
        self.carrier_init: CarrierInitialiser | None = None
        if hierarchical:
            self.carrier_init = CarrierInitialiser(dim, carrier_size=carrier_size, device=device, dtype=dtype)
        self.blocks = nn.ModuleList(
            AttentionBlock(
                dim,
                num_heads=num_heads,
                carrier_size=self.carrier_size,
                mlp_ratio=mlp_ratio,
                layer_scale=layer_scale,
                propagate_carriers=hierarchical and propagate_carriers and i == depth - 1,
                drop_path=rates[i],
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
        if x.dim() != 4 or x.shape[1] != self.dim or x.shape[2] < 1 or x.shape[3] < 1:
            raise ValueError(f"expected a map (B, {self.dim}, H, W), got {list(x.shape)}")
        height, width = x.shape[2], x.shape[3]
        window = self.window_size
        counts = window_counts(height, width, window)
        # Coordinates need more digits than bfloat16 has, whatever the precision of the tokens.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        window_geometry = grid_geometry(window[0], window[1], dtype, x.device)
        carriers: Tensor | None = None
        carrier_geometry: GridGeometry | None = None

        x = pad_to_windows(x, window, counts)
        if self.carrier_init is not None:
            if counts[0] * counts[1] > 1:
                c = self.carrier_size
                carriers = self.carrier_init(x, window, counts)
                carrier_geometry = grid_geometry(c * counts[0], c * counts[1], dtype, x.device)
        x = map_to_windows(x, window, counts)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x, carriers = checkpoint(
                    block, x, carriers, window, counts, window_geometry, carrier_geometry, use_reentrant=False
                )
            else:
                x, carriers = block(x, carriers, window, counts, window_geometry, carrier_geometry)
        return crop(windows_to_map(x, window, counts), height, width)
