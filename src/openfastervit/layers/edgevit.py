"""Local-global-local attention (EdgeViT, arXiv 2205.03436, section 3.2).

Shapes: ``B`` batch, ``C`` channels, ``H x W`` the map, ``r`` the sampling rate of delegates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openfastervit.layers.attention import Attention
from openfastervit.layers.conv import LayerNorm2d
from openfastervit.layers.drop_path import DropPath
from openfastervit.layers.mixer import TokenMixer, check_whole, drop_path_rates
from openfastervit.layers.transformer import MLP, init_linear, scale_or_identity
from openfastervit.layers.windows import crop


class EdgeViTAttention(TokenMixer):
    """A stage of EdgeViT's bottlenecks, a map in and a map out, for any height and width.

    A bottleneck is two blocks here, since it has two MLPs. The first (local aggregation) mixes the neighbourhood of
    each token by a pointwise, a depthwise and a pointwise convolution. In the second, one token of each ``r x r``
    cells, its delegate, attends to the other delegates (global sparse attention), and a depthwise transposed
    convolution and a projection hand what it heard to its cells (local propagation). Positions are conditional: each
    bottleneck begins with a depthwise 3x3 convolution, added to the tokens; attention has no bias. The attention is
    this package's, with a projection before the transposed convolution that the paper does not have.

    Args:
        dim: Channels ``C``.
        num_heads: Heads; must divide ``dim``.
        sampling: ``r``: one delegate for each ``r x r`` cells, the one at their top left. The paper has 2 at stride 16,
            1 at stride 32.
        kernel_size: Of the local aggregation; odd.
        depth: Number of blocks.
        mlp_ratio: Hidden channels of the MLPs over ``dim``.
        layer_scale: Initial value of the layer scales, or None for none.
        drop_path: Stochastic depth rate, one for all blocks or one a block.

    Raises:
        ValueError: If an option is out of range: the message names it.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        sampling: int = 2,
        kernel_size: int = 5,
        depth: int = 2,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float | Sequence[float] = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, depth=depth, window_size=None)
        rates = drop_path_rates(drop_path, depth)
        check_whole("sampling", sampling, 1)
        check_whole("kernel_size", kernel_size, 1)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd")
        blocks: list[nn.Module] = []
        for i in range(depth):
            mixer: nn.Module
            if i % 2 == 0:
                mixer = LocalAggregation(dim, kernel_size=kernel_size, device=device, dtype=dtype)
            else:
                mixer = SparseAttention(dim, num_heads=num_heads, sampling=sampling, device=device, dtype=dtype)
            blocks.append(
                _Block(
                    dim,
                    mixer,
                    positioned=i % 2 == 0,
                    mlp_ratio=mlp_ratio,
                    layer_scale=layer_scale,
                    drop_path=rates[i],
                    device=device,
                    dtype=dtype,
                )
            )
        self.blocks = nn.ModuleList(blocks)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``.

        Raises:
            ValueError: If ``x`` is not a map of ``dim`` channels.
        """
        self._check(x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class _Block(nn.Module):
    """``x += position(x)``, ``x += mixer(norm1(x))``, ``x += mlp(norm2(x))`` on a map."""

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        positioned: bool,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.position: nn.Conv2d | None = None
        if positioned:
            self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)
        self.norm1 = LayerNorm2d(dim, device=device, dtype=dtype)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.mlp = MLP(dim, hidden_dim=int(dim * mlp_ratio), device=device, dtype=dtype)
        self.scale1 = scale_or_identity(dim, layer_scale, device=device, dtype=dtype)
        self.scale2 = scale_or_identity(dim, layer_scale, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        if self.position is not None:
            x = x + self.position(x)
        # Layer scales and MLPs take channels last.
        mixed = self.mixer(self.norm1(x)).permute(0, 2, 3, 1)
        x = x.permute(0, 2, 3, 1)
        x = x + self.drop_path(self.scale1(mixed))
        x = x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
        return x.permute(0, 3, 1, 2)


class LocalAggregation(nn.Module):
    """Pointwise, depthwise and pointwise convolution over each token's neighbourhood."""

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: int = 5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)
        self.depthwise = nn.Conv2d(
            dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, device=device, dtype=dtype
        )
        self.conv2 = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return self.conv2(self.depthwise(self.conv1(x)))


class SparseAttention(nn.Module):
    """Attention among delegates, one for each ``r x r`` cells, and its propagation to these cells."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        sampling: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.sampling = sampling
        self.attn = Attention(dim, num_heads=num_heads, device=device, dtype=dtype)
        self.propagate: nn.Module = nn.Identity()
        self.proj: nn.Module = nn.Identity()
        if sampling > 1:
            self.propagate = nn.ConvTranspose2d(
                dim, dim, sampling, stride=sampling, groups=dim, device=device, dtype=dtype
            )
            self.proj = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        height, width = x.shape[2], x.shape[3]
        delegates = x[:, :, :: self.sampling, :: self.sampling]
        rows, columns = delegates.shape[2], delegates.shape[3]
        heard = self.attn(delegates.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (rows, columns))
        return self.proj(crop(self.propagate(heard), height, width))
