"""A network's products on CPUs by oneDNN, with what follows each of them in the same kernel.

Eager PyTorch hands float32 matrix products to a BLAS: on some processors that reaches a third of what oneDNN does. It
also writes every product to memory before the GELU or the sum behind it reads it again. The operators used here are
those that ``torch.compile`` uses on CPUs; no compilation is needed.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from openfastervit.inference.fused import FusedConv2d, FusedLinear
from openfastervit.layers import PositionMLP


def available(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the operators, and the processor arithmetic of that type."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.float32:
        return True
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float16 and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def pack(network: nn.Module) -> nn.Module:
    """Replace the linear layers and convolutions of a network, in place, by ones of oneDNN. For inference alone.

    The weights lie as the kernels want them: the network can be neither copied nor saved any more.

    Args:
        network: On the CPU, in a type that is ``available``.
    """
    for parent in list(network.modules()):
        if isinstance(parent, PositionMLP):  # it takes its weights itself, in a precision of its own
            continue
        for name, child in parent.named_children():
            # A subclass may compute something else, and what a parametrisation computes is no plain weight.
            if type(child) in (nn.Linear, FusedLinear):
                setattr(parent, name, _PackedLinear(cast(nn.Linear, child)))
            elif type(child) in (nn.Conv2d, FusedConv2d) and _plain(cast(nn.Conv2d, child)):
                setattr(parent, name, _PackedConv2d(cast(nn.Conv2d, child)))
    return network


def _plain(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


class _PackedLinear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.activation = getattr(linear, "activation", "none")
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.algorithm = "none" if self.activation == "gelu" else ""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is not None and self.activation == "none":
            fused: Any = torch.ops.mkldnn._linear_pointwise.binary
            return cast(Tensor, fused(x, residual, self.weight, self.bias, "add"))
        fused = torch.ops.mkldnn._linear_pointwise
        x = fused(x, self.weight, self.bias, self.activation, [], self.algorithm)
        return x if residual is None else residual + x


class _PackedConv2d(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.activation = getattr(conv, "activation", "none")
        self.algorithm = "none" if self.activation == "gelu" else ""
        self.geometry = list(cast("tuple[int, ...]", conv.padding)), list(conv.stride), list(conv.dilation), conv.groups
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *self.geometry)
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None and self.activation == "none":
            fused: Any = torch.ops.mkldnn._convolution_pointwise.binary
            residual = residual.contiguous(memory_format=torch.channels_last)
            return cast(
                Tensor,
                fused(x, residual, self.weight, self.bias, *self.geometry, "add", 1.0, None, [], None),
            )
        fused = torch.ops.mkldnn._convolution_pointwise
        x = fused(x, self.weight, self.bias, *self.geometry, self.activation, [], self.algorithm)
        return x if residual is None else residual + x
