"""Where tokens stand: an absolute embedding and a relative attention bias, both learnt functions of coordinates.

Coordinates are normalised by the grid itself, so the same parameters serve a grid of any height and width (the
log-spaced continuous bias of Swin V2, arXiv 2111.09883, section 3.3). Nothing here is stored: what follows from a
size is computed from that size, once a stage and call.

Shapes: ``N = h * w`` tokens of an ``h x w`` grid in row-major order, ``C`` channels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 512
"""Hidden units of every position MLP."""


class GridGeometry(NamedTuple):
    """What position MLPs need to know of an ``h x w`` grid."""

    coordinates: Tensor
    """``(N, 2)``: (row, column) of each token, in [-1, 1]."""
    offsets: Tensor
    """``((2h-1) * (2w-1), 2)``: each offset between two tokens, log-spaced."""
    offset_index: Tensor
    """``(N * N,)``: for each (query, key) the row of its offset in ``offsets``."""


def _axis_coordinates(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    half = max(size // 2, 1)  # on an axis of one cell the coordinate is 0
    return (torch.arange(size, dtype=dtype, device=device) - size // 2) / half


def _axis_offsets(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    offset = torch.arange(2 * size - 1, dtype=dtype, device=device) - (size - 1)
    offset = 8 * offset / max(size - 1, 1)
    return torch.sign(offset) * torch.log2(offset.abs() + 1) / 3  # log2(8)


def _axis_index(size: int, device: torch.device) -> Tensor:
    cell = torch.arange(size, device=device)
    return cell[:, None] - cell[None, :] + (size - 1)


def _pairs(rows: Tensor, columns: Tensor) -> Tensor:
    shape = (rows.shape[0], columns.shape[0])
    return torch.stack((rows[:, None].expand(shape), columns[None, :].expand(shape)), dim=-1).reshape(-1, 2)


def grid_geometry(height: int, width: int, dtype: torch.dtype, device: torch.device) -> GridGeometry:
    """Geometry of an ``h x w`` grid. ``dtype`` should be float32 or float64: bfloat16 cannot tell offsets apart."""
    rows, columns = _axis_index(height, device), _axis_index(width, device)
    index = rows[:, None, :, None] * (2 * width - 1) + columns[None, :, None, :]
    return GridGeometry(
        _pairs(_axis_coordinates(height, dtype, device), _axis_coordinates(width, dtype, device)),
        _pairs(_axis_offsets(height, dtype, device), _axis_offsets(width, dtype, device)),
        index.reshape(-1),
    )


class PositionMLP(nn.Module):
    """``Linear(2, 512) -> ReLU -> Linear(512, out, no bias)`` on coordinates, in the precision of the coordinates.

    Autocast and low-precision parameters are set aside: 16 * sigmoid of a bfloat16 value moves in steps of 0.06.
    """

    def __init__(
        self, out_features: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, HIDDEN, device=device, dtype=dtype)
        self.fc2 = nn.Linear(HIDDEN, out_features, bias=False, device=device, dtype=dtype)

    def _mlp(self, points: Tensor) -> Tensor:
        dtype = points.dtype
        hidden = F.relu(F.linear(points, self.fc1.weight.to(dtype), self.fc1.bias.to(dtype)))
        return F.linear(hidden, self.fc2.weight.to(dtype))

    def forward(self, points: Tensor) -> Tensor:
        """``(P, 2) -> (P, out)``."""
        if torch.jit.is_scripting():
            return self._mlp(points)
        else:
            device = points.device.type
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return self._mlp(points)
            return self._mlp(points)


class AbsolutePosition(nn.Module):
    """Position embedding of a grid's tokens, added to them at the start of a block."""

    def __init__(self, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.mlp = PositionMLP(dim, device=device, dtype=dtype)

    def forward(self, x: Tensor, geometry: GridGeometry) -> Tensor:
        """``(B, N, C) -> (B, N, C)``: the tokens with their embedding added."""
        return x + self.mlp(geometry.coordinates).to(x.dtype)


class RelativePositionBias(nn.Module):
    """Additive attention bias ``16 * sigmoid(mlp(offset))``, one value a head."""

    def __init__(
        self, num_heads: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.mlp = PositionMLP(num_heads, device=device, dtype=dtype)

    def table(self, geometry: GridGeometry) -> Tensor:
        """The bias of each offset and head, ``((2h-1) * (2w-1), heads)``."""
        return 16 * torch.sigmoid(self.mlp(geometry.offsets))

    def forward(self, geometry: GridGeometry, num_carriers: int) -> Tensor:
        """Bias ``(heads, K + N, K + N)`` of a grid's tokens behind ``K`` carriers, whose rows and columns are 0."""
        table = self.table(geometry)
        tokens = geometry.coordinates.shape[0]
        bias = table[geometry.offset_index].view(tokens, tokens, -1).permute(2, 0, 1)
        if num_carriers > 0:
            bias = F.pad(bias, (num_carriers, 0, num_carriers, 0))
        return bias
