"""Layers of a folded network that run on a kernel of ours or on torch's, whichever is faster where they are.

Shapes: ``M`` rows of tokens, ``B`` images, ``C`` channels.
"""

import logging
from collections.abc import Callable, Hashable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.inference.fused import FusedConv2d, FusedLinear
from openfastervit.kernels.availability import interpreted
from openfastervit.kernels.convolution import convolution, pack_weight
from openfastervit.kernels.linear import linear
from openfastervit.layers import LayerNorm2d

_log = logging.getLogger(__name__)

Way = Callable[[], Tensor]
Measure = Callable[[Way], float]
"""Milliseconds of a call."""


class Choices:
    """For each layer and shape: the kernel or torch, by measuring once. Layers that are alike share the answer.

    Args:
        measure: None for kernels everywhere, as in Triton's interpreter, whose speed says nothing.
    """

    def __init__(self, measure: Measure | None) -> None:
        self._measure = measure
        self.made: dict[Hashable, str] = {}
        """``"kernel"`` or ``"torch"`` for each kind of layer, its shapes and its type."""

    def __call__(self, key: Hashable, kernel: Way, plain: Way) -> Tensor:
        """The result of one of them. Neither may change what it reads: both are called many times."""
        if key not in self.made:
            if self._measure is None:
                return kernel()
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                return plain()  # nothing can be measured now, nor compiled
            self.made[key] = self._faster(key, kernel, plain, self._measure)
        return kernel() if self.made[key] == "kernel" else plain()

    def _faster(self, key: Hashable, kernel: Way, plain: Way, measure: Measure) -> str:
        try:
            times = {"kernel": measure(kernel), "torch": measure(plain)}
        except (RuntimeError, ValueError) as error:  # a kernel that does not fit this chip; torch's does
            _log.warning("no kernel for %s: %s", key, str(error).partition("\n")[0])
            return "torch"
        _log.info("%s: kernel %.4f ms, torch %.4f ms", key, times["kernel"], times["torch"])
        return min(times, key=lambda name: times[name])


def milliseconds(call: Way) -> float:
    """Of one call on the GPU, replayed from a CUDA graph, as engines do."""
    import triton.testing

    call()  # compiles
    torch.cuda.synchronize()
    return float(triton.testing.do_bench_cudagraph(call, rep=10))


def new_choices() -> Choices:
    """Choices by measuring; kernels alone in Triton's interpreter."""
    return Choices(None if interpreted() else milliseconds)


class RowTable(NamedTuple):
    """Values that are added to tokens by their place: positions of a map's cells, then of its carriers."""

    values: Tensor
    """``(first + second, C)``"""
    split: int
    """Rows below it are a map's, those from it on carriers'."""
    first: int
    """Cells of a map."""
    second: int
    """Carriers of an image, 0 where there are none."""

    def add(self, x: Tensor) -> Tensor:
        """``(M, C)`` with the table's rows added, in torch."""
        channels = x.shape[1]
        parts = [(x[: self.split].view(-1, self.first, channels) + self.values[: self.first]).view(-1, channels)]
        if self.second:
            carriers = x[self.split :].view(-1, self.second, channels) + self.values[self.first :]
            parts.append(carriers.view(-1, channels))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class KernelLinear(nn.Module):
    """``activation(linear(norm(x))) + residual + table[row]``.

    Args:
        layer: With its activation.
        norm_eps: Of a layer norm before it, without factor and shift; None for none.
        choices: Of the network.
    """

    def __init__(self, layer: FusedLinear, choices: Choices, *, norm_eps: float | None = None) -> None:
        super().__init__()
        self.layer: nn.Module = layer
        self.norm_eps = norm_eps
        self.choices = choices

    def forward(self, x: Tensor, residual: Tensor | None = None, table: RowTable | None = None) -> Tensor:
        """``(M, K) -> (M, N)``."""
        layer = self.layer
        if not isinstance(layer, FusedLinear):  # one of another precision has kernels of its own
            return self._plain(x, residual, table)
        shape = (layer.out_features, layer.in_features, layer.activation)
        key = ("linear", tuple(x.shape), x.dtype, shape, self.norm_eps is not None, residual is None, table is None)
        return self.choices(key, lambda: self._kernel(x, residual, table), lambda: self._plain(x, residual, table))

    def _kernel(self, x: Tensor, residual: Tensor | None, table: RowTable | None) -> Tensor:
        layer = cast(FusedLinear, self.layer)
        rows = None
        if table is not None:
            rows = (table.split, table.first, max(table.second, 1))
        return linear(
            x,
            layer.weight,
            layer.bias,
            norm_eps=self.norm_eps,
            activation=layer.activation,
            residual=residual,
            table=None if table is None else table.values,
            table_rows=rows,
        )

    def _plain(self, x: Tensor, residual: Tensor | None, table: RowTable | None) -> Tensor:
        if self.norm_eps is not None:
            x = F.layer_norm(x, (x.shape[-1],), eps=self.norm_eps)
        y = cast(Tensor, self.layer(x, residual))
        return y if table is None else table.add(y)


class KernelConv2d(nn.Module):
    """``activation(conv(norm(x))) + residual`` with a layer norm over the channels of each pixel, or without one.

    Args:
        conv: With its activation, of one group.
        choices: Of the network.
        norm: Before it.
    """

    def __init__(self, conv: FusedConv2d, choices: Choices, *, norm: LayerNorm2d | None = None) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.choices = choices

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, O, H', W')``, channels-last."""
        conv = self.conv
        shape = (tuple(conv.weight.shape), conv.stride, conv.padding, conv.activation)
        key = ("convolution", tuple(x.shape), x.dtype, shape, self.norm is None, residual is None)
        return self.choices(key, lambda: self._kernel(x, residual), lambda: self._plain(x, residual))

    def _kernel(self, x: Tensor, residual: Tensor | None) -> Tensor:
        conv, norm = self.conv, self.norm
        return convolution(
            x,
            pack_weight(conv.weight),  # channels-last already: no copy
            conv.bias,
            stride=conv.stride[0],
            padding=cast(int, conv.padding[0]),
            norm=None if norm is None else (norm.weight, norm.bias, norm.eps),
            activation=conv.activation,
            residual=residual,
            packed=True,
        )

    def _plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return self.conv(x if self.norm is None else self.norm(x), residual)


def fits(conv: FusedConv2d) -> bool:
    """Whether the kernel has such a convolution."""
    (height, width), (down, right) = conv.kernel_size, conv.stride
    return conv.groups == 1 and height == width and down == right and conv.padding in ((0, 0), (1, 1))
