"""First carriers of a map: a depthwise convolution, then average pooling to the carrier grid.

Shapes: ``B`` batch, ``C`` channels, ``H x W`` the map, ``h x w`` a window, ``n_h x n_w`` windows on the map, ``c``
carrier side.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.layers.windows import exporting

CarrierPooling = Literal["released", "aligned"]
CARRIER_POOLINGS: tuple[CarrierPooling, ...] = ("released", "aligned")


class CarrierInitialiser(nn.Module):
    """First carriers of a map: a depthwise 3x3 convolution, then average pooling to the carrier grid.

    Args:
        dim: Channels ``C``.
        carrier_size: ``c``, carriers along each axis of a window.
        pooling: ``"released"``: along an axis of length ``L`` with ``O = c * n`` carriers, pooling has stride
            ``S = L // O`` and kernel ``L - (O - 1) * S``. Where ``c`` does not divide the window, cells overlap, grow
            with ``n`` and drift off their windows: that is how the released networks were trained. ``"aligned"``:
            each carrier averages its own part of its own window, the cells to which ``spread_carriers`` gives it back.

    Raises:
        ValueError: If the pooling is neither.
    """

    def __init__(
        self,
        dim: int,
        *,
        carrier_size: int,
        pooling: CarrierPooling = "released",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if pooling not in CARRIER_POOLINGS:
            raise ValueError(f'carrier_pooling={pooling!r} is neither "released" nor "aligned"')
        self.carrier_size = carrier_size
        self.pooling = pooling
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def forward(
        self, x: Tensor, window: tuple[int, int], counts: tuple[int, int], inside: Tensor | None = None
    ) -> Tensor:
        """``(B, C, n_h*h, n_w*w) -> (B, c*n_h * c*n_w, C)``, carriers in row-major order.

        Args:
            x: The map, padded to whole windows.
            window: ``(h, w)``.
            counts: ``(n_h, n_w)``.
            inside: ``(1, 1, n_h*h, n_w*w)``, 1 on the map and 0 on its padding, to average over the map alone; a
                carrier whose cells are all padding is 0. None averages over the padding, too.
        """
        x = self.conv(x)
        if inside is not None:
            inside = inside.to(x.dtype)
            x = self._pool(x * inside, window, counts)
            x = x / self._pool(inside, window, counts).clamp_min(
                1 / (4 * window[0] * window[1] * counts[0] * counts[1])
            )
        else:
            x = self._pool(x, window, counts)
        return x.flatten(2).transpose(1, 2)

    def _pool(self, x: Tensor, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
        if self.pooling == "aligned":
            return pool_aligned(x, self.carrier_size, window, counts)
        return pool_released(x, self.carrier_size, window, counts)


def pool_released(x: Tensor, carrier_size: int, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    """Overlapping average pooling: ``(B, C, n_h*h, n_w*w) -> (B, C, c*n_h, c*n_w)``."""
    cells_h, cells_w = carrier_size * counts[0], carrier_size * counts[1]
    stride_h, stride_w = window[0] // carrier_size, window[1] // carrier_size  # L // O with L = n * h, O = n * c
    kernel_h = counts[0] * window[0] - (cells_h - 1) * stride_h
    kernel_w = counts[1] * window[1] - (cells_w - 1) * stride_w
    if exporting():
        # An exported average pool fixes its kernel; membership matrices leave the size of the map open.
        rows = _cells(cells_h, stride_h, kernel_h, x)
        columns = _cells(cells_w, stride_w, kernel_w, x)
        return rows @ x @ columns.transpose(0, 1) / (kernel_h * kernel_w)
    return F.avg_pool2d(x, [kernel_h, kernel_w], stride=[stride_h, stride_w])


def _cells(cells: int, stride: int, kernel: int, x: Tensor) -> Tensor:
    """``(cells, L)``: 1 where a position belongs to a cell of the pooling, else 0."""
    start = torch.arange(cells, device=x.device)[:, None] * stride
    position = torch.arange((cells - 1) * stride + kernel, device=x.device)[None, :]
    return ((position >= start) & (position < start + kernel)).to(x.dtype)


def pool_aligned(x: Tensor, carrier_size: int, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    """Averages over each carrier's own part of its window: ``(B, C, n_h*h, n_w*w) -> (B, C, c*n_h, c*n_w)``.

    Row ``i`` of a window belongs to its carriers of row ``floor(i * c / h)``, and so do columns.
    """
    batch, channels = x.shape[0], x.shape[1]
    rows = _parts(carrier_size, window[0], x)
    columns = _parts(carrier_size, window[1], x)
    x = x.reshape(batch * channels * counts[0], window[0], counts[1] * window[1])
    x = (rows @ x).reshape(batch, channels, counts[0] * carrier_size, counts[1], window[1])
    return (x @ columns.transpose(0, 1)).flatten(3)


def _parts(carrier_size: int, length: int, x: Tensor) -> Tensor:
    """``(c, length)``: for each carrier of an axis the weights of its positions, which sum to 1."""
    owner = torch.arange(length, device=x.device) * carrier_size // length
    member = (owner[None, :] == torch.arange(carrier_size, device=x.device)[:, None]).to(x.dtype)
    return member / member.sum(1, keepdim=True)
