"""Shifted windows (Swin, arXiv 2103.14030, section 3.2): in every other block the windows lie half a window further on.

Shapes: ``B`` batch, ``C`` channels, ``H x W`` the map, ``h x w`` a window, ``n`` windows an image, ``N = h * w``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openfastervit.layers.mixer import TokenMixer, drop_path_rates, geometry_dtype
from openfastervit.layers.position import GridGeometry, grid_geometry
from openfastervit.layers.transformer import TransformerLayer, init_linear
from openfastervit.layers.windows import crop, map_to_windows, pad_to_windows, split, window_counts, windows_to_map


class ShiftedWindowAttention(TokenMixer):
    """A stage of Swin blocks, a map in and a map out, for any height and width.

    Odd blocks attend inside windows, even ones inside windows that lie half a window to the bottom and the right, which
    are cut off at the borders. Along an axis that one window covers nothing is shifted. The map is padded to whole
    windows; no token attends to the padding. The position bias is the log-spaced continuous one of Swin V2, as
    everywhere in this package, so that a window of any size will do.

    Args:
        dim: Channels ``C``.
        num_heads: Heads; must divide ``dim``.
        window_size: Side of a window, or ``(height, width)``.
        depth: Number of blocks.
        mlp_ratio: Hidden channels of the MLPs over ``dim``.
        layer_scale: Initial value of the layer scales, or None for none.
        drop_path: Stochastic depth rate, one for all blocks or one a block. A mask is drawn for each window, as
            everywhere in this package; Swin draws one for each image.

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
        depth: int = 2,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float | Sequence[float] = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, depth=depth, window_size=window_size)
        rates = drop_path_rates(drop_path, depth)
        self.blocks = nn.ModuleList(
            _Block(
                TransformerLayer(
                    dim,
                    num_heads=num_heads,
                    mlp_ratio=mlp_ratio,
                    layer_scale=layer_scale,
                    drop_path=rates[i],
                    device=device,
                    dtype=dtype,
                ),
                shifted=i % 2 == 1,
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
        window = self.window_size
        counts = window_counts(height, width, window)
        geometry = grid_geometry(window[0], window[1], geometry_dtype(x), x.device)
        straight = _hidden(height, width, window, counts, (0, 0), x.device)
        shift = window[0] // 2 if counts[0] > 1 else 0, window[1] // 2 if counts[1] > 1 else 0
        shifted = _hidden(height, width, window, counts, shift, x.device)
        x = pad_to_windows(x, window, counts)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, window, counts, shift, geometry, straight, shifted, use_reentrant=False)
            else:
                x = block(x, window, counts, shift, geometry, straight, shifted)
        return crop(x, height, width)


class _Block(nn.Module):
    def __init__(self, layer: TransformerLayer, *, shifted: bool) -> None:
        super().__init__()
        self.window = layer
        self.shifted = shifted

    def forward(
        self,
        x: Tensor,
        window: tuple[int, int],
        counts: tuple[int, int],
        shift: tuple[int, int],
        geometry: GridGeometry,
        straight: Tensor | None,
        shifted: Tensor | None,
    ) -> Tensor:
        """``(B, C, n_h*h, n_w*w)`` to the same; ``straight`` and ``shifted`` hide tokens of either kind of window."""
        if self.shifted:
            x = torch.roll(x, [-shift[0], -shift[1]], dims=[2, 3])
        x = self.window(map_to_windows(x, window, counts), geometry, 0, shifted if self.shifted else straight)
        x = windows_to_map(x, window, counts)
        if self.shifted:
            x = torch.roll(x, [shift[0], shift[1]], dims=[2, 3])
        return x


def _hidden(
    height: int,
    width: int,
    window: tuple[int, int],
    counts: tuple[int, int],
    shift: tuple[int, int],
    device: torch.device,
) -> Tensor | None:
    """Which tokens a token may not attend to once the padded map is rolled by ``shift``: ``(n, N, N)``, or None.

    Rolling brings tokens from opposite borders into one window. Those that shared no window before do not attend to
    each other, and none of the map does to the padding.
    """
    if shift == (0, 0) and height == counts[0] * window[0] and width == counts[1] * window[1]:
        return None
    rows = _band(height, window[0], counts[0], shift[0], device)
    columns = _band(width, window[1], counts[1], shift[1], device)
    label = rows[:, None] * (counts[1] + 2) + columns[None, :]
    label = label.masked_fill((rows[:, None] < 0) | (columns[None, :] < 0), -1)
    label = split(label[None, :, :, None], window, counts)[:, :, 0]
    return label[:, :, None] != label[:, None, :]


def _band(length: int, window: int, count: int, shift: int, device: torch.device) -> Tensor:
    """For each position of a padded and rolled axis the shifted window it is in, and -1 for padding."""
    position = torch.arange(count * window, device=device)
    band = (position + (window - shift)) // window
    return torch.roll(band.masked_fill(position >= length, -1), -shift)
