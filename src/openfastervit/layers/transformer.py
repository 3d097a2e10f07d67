"""Attention and MLP with their norms: what every block of attention is made of.

Shapes: ``B`` sequences of ``N`` tokens of ``C`` channels, behind ``K`` carriers where a block has them, ``T = K + N``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.layers.attention import Attention
from openfastervit.layers.drop_path import DropPath
from openfastervit.layers.position import GridGeometry, RelativePositionBias


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
        """``(..., C) -> (..., C)``."""
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


def scale_or_identity(
    dim: int,
    init_value: float | None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A layer scale, or the identity where its initial value is None."""
    if init_value is None:
        return nn.Identity()
    return LayerScale(dim, init_value=init_value, device=device, dtype=dtype)


class TransformerLayer(nn.Module):
    """``x += scale1(attention(norm1(x)))``, ``x += scale2(mlp(norm2(x)))``, each branch with drop path.

    Args:
        dim: Channels ``C``.
        num_heads: Heads; must divide ``dim``.
        mlp_ratio: Hidden channels of the MLP over ``dim``.
        layer_scale: Initial value of both layer scales, or None for none.
        drop_path: Stochastic depth rate of both branches.
        biased: False leaves out the relative position bias.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        biased: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.bias: RelativePositionBias | None = None
        if biased:
            self.bias = RelativePositionBias(num_heads, device=device, dtype=dtype)
        self.attn = Attention(dim, num_heads=num_heads, device=device, dtype=dtype)
        self.norm2 = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.mlp = MLP(dim, hidden_dim=int(dim * mlp_ratio), device=device, dtype=dtype)
        self.scale1 = scale_or_identity(dim, layer_scale, device=device, dtype=dtype)
        self.scale2 = scale_or_identity(dim, layer_scale, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, geometry: GridGeometry, num_carriers: int, hidden: Tensor | None = None) -> Tensor:
        """``(B, K + N, C) -> (B, K + N, C)``: ``N`` tokens on the grid of ``geometry`` behind ``K`` carriers.

        Args:
            x: The tokens, carriers first.
            geometry: Of the tokens' grid.
            num_carriers: ``K``.
            hidden: ``(n, 1 or T, T)``, true where a token (the last axis) is hidden from a query. ``n`` divides ``B``,
                and sequence ``b`` takes row ``b % n``. None hides nothing.
        """
        bias: Tensor | None = None
        if self.bias is not None:
            bias = self.bias(geometry, num_carriers)
        if hidden is not None:
            lowest = torch.zeros(hidden.shape, device=x.device).masked_fill(hidden, float("-inf"))[:, None]
            bias = lowest if bias is None else bias + lowest
        x = x + self.drop_path(self.scale1(self.attn(self.norm1(x), bias)))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


class MLPLayer(nn.Module):
    """``x += scale2(mlp(norm2(x)))``: a ``TransformerLayer`` without its attention, called alike, for ablations.

    Args:
        dim: Channels ``C``.
        mlp_ratio: Hidden channels of the MLP over ``dim``.
        layer_scale: Initial value of the layer scale, or None for none.
        propagated: Keep ``scale1``, which is not used here, for carriers that are added to their windows.
        drop_path: Stochastic depth rate.
    """

    def __init__(
        self,
        dim: int,
        *,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        propagated: bool = False,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.mlp = MLP(dim, hidden_dim=int(dim * mlp_ratio), device=device, dtype=dtype)
        self.scale1 = scale_or_identity(dim, layer_scale if propagated else None, device=device, dtype=dtype)
        self.scale2 = scale_or_identity(dim, layer_scale, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, geometry: GridGeometry, num_carriers: int, hidden: Tensor | None = None) -> Tensor:
        """``(B, T, C) -> (B, T, C)``; no token hears of another."""
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
