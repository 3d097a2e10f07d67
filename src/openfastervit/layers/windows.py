"""Maps, windows and carrier grids: how tokens move between them.

Shapes: ``B`` batch, ``C`` channels, ``H x W`` the map, ``h x w`` a window, ``n_h x n_w`` windows on the map,
``c`` carrier side. Every size is an argument; nothing is guessed from a tensor's length, so maps need not be square.

Windows on a map and carriers in a grid are the same thing: row-major cells of ``n_h x n_w`` blocks of ``h x w``.
``split`` and ``join`` move between the grid's order and the blocks'.
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


def split(x: Tensor, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    """Cut a grid of cells into blocks: ``(B, n_h*h, n_w*w, C) -> (B*n_h*n_w, h*w, C)``, blocks in row-major order."""
    batch, _, _, channels = x.shape
    if exporting():
        x = x.flatten(1, 2).index_select(1, block_order(window, counts, x.device))
        return x.flatten(0, 1).view(batch * counts[0] * counts[1], window[0] * window[1], channels)
    x = x.view(batch, counts[0], window[0], counts[1], window[1], channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch * counts[0] * counts[1], window[0] * window[1], channels)


def join(x: Tensor, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    """Undo ``split``: ``(B*n_h*n_w, h*w, C) -> (B, n_h*h, n_w*w, C)``."""
    batch, channels = x.shape[0] // (counts[0] * counts[1]), x.shape[2]
    height, width = counts[0] * window[0], counts[1] * window[1]
    if exporting():
        x = x.flatten(0, 1).view(batch, height * width, channels)
        x = x.index_select(1, _grid_order(window, counts, x.device))
        return x.view(batch, height, width, channels)
    x = x.view(batch, counts[0], counts[1], window[0], window[1], channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)


# Splitting an axis of open size makes torch.export fix which sizes are 1 and which divide which. Gathering by position
# leaves all of them open, and costs more: only exported graphs do it.


def block_order(window: tuple[int, int], counts: tuple[int, int], device: torch.device) -> Tensor:
    """Position on the grid of each cell in block order: ``(n_h*n_w*h*w,)``."""
    cells = window[0] * window[1]
    k = torch.arange(counts[0] * counts[1] * cells, device=device)
    block, cell = k // cells, k % cells
    row = block // counts[1] * window[0] + cell // window[1]
    column = block % counts[1] * window[1] + cell % window[1]
    return row * (counts[1] * window[1]) + column


def _grid_order(window: tuple[int, int], counts: tuple[int, int], device: torch.device) -> Tensor:
    """Position in block order of each cell of the grid: ``(n_h*n_w*h*w,)``, the inverse of ``block_order``."""
    width = counts[1] * window[1]
    k = torch.arange(counts[0] * window[0] * width, device=device)
    row, column = k // width, k % width
    block = row // window[0] * counts[1] + column // window[1]
    return block * (window[0] * window[1]) + row % window[0] * window[1] + column % window[1]


def pad_to_windows(x: Tensor, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    """Pad a map with zeros at the right and the bottom to whole windows: ``(B, C, H, W) -> (B, C, n_h*h, n_w*w)``."""
    height, width = counts[0] * window[0], counts[1] * window[1]
    if exporting():
        rows = torch.arange(height, device=x.device)
        columns = torch.arange(width, device=x.device)
        inside = ((rows < x.shape[2])[:, None] & (columns < x.shape[3])[None, :]).to(x.dtype)
        x = x.index_select(2, rows.clamp(max=x.shape[2] - 1)).index_select(3, columns.clamp(max=x.shape[3] - 1))
        return x * inside
    pad_h, pad_w = height - x.shape[2], width - x.shape[3]
    if pad_h > 0 or pad_w > 0:
        x = F.pad(x, (0, pad_w, 0, pad_h))
    return x


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Undo the padding: the top left ``H x W`` of a map."""
    if exporting():
        x = x.index_select(2, torch.arange(height, device=x.device))
        return x.index_select(3, torch.arange(width, device=x.device))
    if x.shape[2] != height or x.shape[3] != width:
        x = x[:, :, :height, :width]
    return x


def outside(height: int, width: int, window: tuple[int, int], counts: tuple[int, int], device: torch.device) -> Tensor:
    """Which cells of each window are padding of an ``H x W`` map: ``(n_h*n_w, h*w)`` of booleans."""
    rows = torch.arange(counts[0] * window[0], device=device) >= height
    columns = torch.arange(counts[1] * window[1], device=device) >= width
    padding = rows[:, None] | columns[None, :]
    return split(padding[None, :, :, None], window, counts)[:, :, 0]


def map_to_windows(x: Tensor, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    """Cut a map into windows: ``(B, C, n_h*h, n_w*w) -> (B*n_h*n_w, h*w, C)``."""
    return split(x.permute(0, 2, 3, 1), window, counts)


def windows_to_map(tokens: Tensor, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    """Join windows into a map, channels last in memory: ``(B*n_h*n_w, h*w, C) -> (B, C, n_h*h, n_w*w)``."""
    return join(tokens, window, counts).permute(0, 3, 1, 2)


def carriers_to_windows(carriers: Tensor, carrier_size: int, counts: tuple[int, int]) -> Tensor:
    """Hand each window its carriers: row-major grid ``(B, c*n_h * c*n_w, C) -> (B*n_h*n_w, c*c, C)``."""
    batch, _, channels = carriers.shape
    grid = carriers.view(batch, carrier_size * counts[0], carrier_size * counts[1], channels)
    return split(grid, (carrier_size, carrier_size), counts)


def carriers_to_grid(carriers: Tensor, carrier_size: int, counts: tuple[int, int]) -> Tensor:
    """Put carriers in row-major order over the whole grid: ``(B*n_h*n_w, c*c, C) -> (B, c*n_h * c*n_w, C)``."""
    return join(carriers.contiguous(), (carrier_size, carrier_size), counts).flatten(1, 2)


def spread_carriers(carriers: Tensor, carrier_size: int, window: tuple[int, int]) -> Tensor:
    """Nearest upsampling of each window's carriers to its cells: ``(B*n_h*n_w, c*c, C) -> (B*n_h*n_w, h*w, C)``.

    Cell ``i`` of an axis takes carrier ``floor(i * c / h)``.
    """
    rows = torch.arange(window[0], device=carriers.device) * carrier_size // window[0]
    columns = torch.arange(window[1], device=carriers.device) * carrier_size // window[1]
    cells = (rows[:, None] * carrier_size + columns[None, :]).reshape(-1)
    return carriers[:, cells]
