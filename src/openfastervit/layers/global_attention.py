"""Full attention: every token of the map attends to every other. Its cost grows with the square of the map."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openfastervit.layers.hat import AttentionBlock, Level
from openfastervit.layers.mixer import TokenMixer, drop_path_rates, geometry_dtype
from openfastervit.layers.position import grid_geometry
from openfastervit.layers.transformer import init_linear


class GlobalAttention(TokenMixer):
    """A stage of full attention, a map in and a map out, for any height and width: one window as large as the map.

    Positions are those of hierarchical attention's windows, normalised by the map.

    Args:
        dim: Channels ``C``.
        num_heads: Heads; must divide ``dim``.
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
        depth: int = 2,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float | Sequence[float] = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, depth=depth, window_size=None)
        rates = drop_path_rates(drop_path, depth)
        self.blocks = nn.ModuleList(
            AttentionBlock(
                dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                layer_scale=layer_scale,
                drop_path=rates[i],
                device=device,
                dtype=dtype,
            )
            for i in range(depth)
        )
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``.

        Raises:
            ValueError: If ``x`` is not a map of ``dim`` channels.
        """
        self._check(x)
        height, width = x.shape[2], x.shape[3]
        geometry = grid_geometry(height, width, geometry_dtype(x), x.device)
        levels = [Level((height, width), (1, 1), geometry, None)]
        carriers: list[Tensor] = []
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x, carriers = checkpoint(block, x, carriers, levels, use_reentrant=False)
            else:
                x, carriers = block(x, carriers, levels)
        return x.transpose(1, 2).unflatten(2, (height, width))
