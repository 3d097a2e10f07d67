"""Maps, windows and carrier grids: how tokens move between them.

Shapes: ``B`` batch, ``C`` channels, ``H x W`` the map, ``h x w`` a window, ``n_h x n_w`` windows on the map,
``c`` carrier side. Every size is an argument; nothing is guessed from a tensor's length, so maps need not be square.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def exporting() -> bool:
    """Whether ``torch.export`` is tracing, where a size must not decide which operations run."""
    if torch.jit.is_scripting():
        return False
    else:
        return torch.compiler.is_exporting()


def window_counts(height: int, width: int, window: tuple[int, int]) -> tuple[int, int]:
    """Number of windows ``(n_h, n_w)`` that cover an ``H x W`` map, the last ones perhaps partly padding."""
    return (height + window[0] - 1) // window[0], (width + window[1] - 1) // window[1]


def pad_to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Pad a map with zeros at the right and the bottom to whole windows: ``(B, C, H, W) -> (B, C, n_h*h, n_w*w)``."""
    pad_h = -x.shape[2] % window[0]
    pad_w = -x.shape[3] % window[1]
    if exporting() or pad_h > 0 or pad_w > 0:
        x = F.pad(x, (0, pad_w, 0, pad_h))
    return x


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Undo the padding: the top left ``H x W`` of a map."""
    if exporting() or x.shape[2] != height or x.shape[3] != width:
        x = x[:, :, :height, :width]
    return x


def map_to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut a map into windows, row-major on the map and inside: ``(B, C, n_h*h, n_w*w) -> (B*n_h*n_w, h*w, C)``."""
    batch, channels, height, width = x.shape
    n_h, n_w = height // window[0], width // window[1]
    x = x.permute(0, 2, 3, 1).view(batch, n_h, window[0], n_w, window[1], channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch * n_h * n_w, window[0] * window[1], channels)


def windows_to_map(tokens: Tensor, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    """Join windows into a map, channels last in memory: ``(B*n_h*n_w, h*w, C) -> (B, C, n_h*h, n_w*w)``."""
    n_h, n_w = counts
    batch, channels = tokens.shape[0] // (n_h * n_w), tokens.shape[2]
    x = tokens.view(batch, n_h, n_w, window[0], window[1], channels)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, n_h * window[0], n_w * window[1], channels)
    return x.permute(0, 3, 1, 2)


def carriers_to_windows(carriers: Tensor, carrier_size: int, counts: tuple[int, int]) -> Tensor:
    """Hand each window its carriers: row-major grid ``(B, c*n_h*c*n_w, C) -> (B*n_h*n_w, c*c, C)``."""
    n_h, n_w = counts
    batch, _, channels = carriers.shape
    x = carriers.view(batch, n_h, carrier_size, n_w, carrier_size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch * n_h * n_w, carrier_size * carrier_size, channels)


def carriers_to_grid(carriers: Tensor, carrier_size: int, counts: tuple[int, int]) -> Tensor:
    """Put carriers in row-major order over the whole grid: ``(B*n_h*n_w, c*c, C) -> (B, c*n_h*c*n_w, C)``."""
    n_h, n_w = counts
    batch, channels = carriers.shape[0] // (n_h * n_w), carriers.shape[2]
    x = carriers.reshape(batch, n_h, n_w, carrier_size, carrier_size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, n_h * carrier_size * n_w * carrier_size, channels)


def spread_carriers(carriers: Tensor, carrier_size: int, window: tuple[int, int]) -> Tensor:
    """Nearest upsampling of each window's carriers to its cells: ``(B*n_h*n_w, c*c, C) -> (B*n_h*n_w, h*w, C)``.

    Cell ``i`` of an axis takes carrier ``floor(i * c / h)``.
    """
    rows = torch.arange(window[0], device=carriers.device) * carrier_size // window[0]
    columns = torch.arange(window[1], device=carriers.device) * carrier_size // window[1]
    cells = (rows[:, None] * carrier_size + columns[None, :]).reshape(-1)
    return carriers[:, cells]
