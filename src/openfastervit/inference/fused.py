"""Layers with what follows them, and the algebra that puts norms and scales into their weights, in float64."""

import copy
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["none", "relu", "gelu"]


class FusedConv2d(nn.Conv2d):
    """``activation(conv(x)) + residual``: what a backend may compute at once."""

    def __init__(self, like: nn.Conv2d, activation: Activation = "none", *, bias: bool = True) -> None:
        super().__init__(
            like.in_channels,
            like.out_channels,
            cast("tuple[int, int]", like.kernel_size),
            stride=cast("tuple[int, int]", like.stride),
            padding=cast("tuple[int, int]", like.padding),
            groups=like.groups,
            bias=bias,
            device=like.weight.device,
            dtype=like.weight.dtype,
        )
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = activate(super().forward(x), self.activation)
        return x if residual is None else residual + x


class FusedLinear(nn.Linear):
    """``activation(linear(x)) + residual``: what a backend may compute at once."""

    def __init__(self, in_features: int, out_features: int, like: nn.Linear, activation: Activation = "none") -> None:
        super().__init__(in_features, out_features, device=like.weight.device, dtype=like.weight.dtype)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = activate(super().forward(x), self.activation)
        return x if residual is None else residual + x


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of any tensor."""
    if activation == "none":
        return x
    return F.gelu(x) if activation == "gelu" else F.relu(x)


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and shift, in float64, that a batch norm is in evaluation mode.

    Raises:
        ValueError: If it has no running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            "a batch norm without running statistics takes them from each batch and cannot be folded; "
            "use track_running_stats=True"
        )
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def fused_convolution(
    conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, activation: Activation = "none"
) -> FusedConv2d:
    """A convolution and the batch norm behind it as one, channels-last."""
    weight = conv.weight.double()
    bias = None if conv.bias is None else conv.bias.double()
    if norm is not None:
        scale, shift = affine(norm)
        weight = weight * scale[:, None, None, None]
        bias = shift if bias is None else bias * scale + shift
    folded = FusedConv2d(conv, activation, bias=bias is not None)
    set_weights(folded, weight, bias)
    return folded.to(memory_format=torch.channels_last)


def fused_linear(
    linear: nn.Linear,
    *,
    in_scale: Tensor | None = None,
    in_shift: Tensor | None = None,
    out_scale: Tensor | None = None,
    activation: Activation = "none",
) -> FusedLinear:
    """``out_scale * linear(in_scale * x + in_shift)`` as one linear layer."""
    weight, bias = float64_weights(linear, in_scale, in_shift, out_scale)
    folded = FusedLinear(linear.in_features, linear.out_features, linear, activation)
    set_weights(folded, weight, bias)
    return folded


def float64_weights(
    linear: nn.Linear,
    in_scale: Tensor | None = None,
    in_shift: Tensor | None = None,
    out_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of ``out_scale * linear(in_scale * x + in_shift)``."""
    weight = linear.weight.double()
    bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.double()
    if in_shift is not None:
        bias = bias + weight @ in_shift.double()
    if in_scale is not None:
        weight = weight * in_scale.double()
    if out_scale is not None:
        weight, bias = weight * out_scale.double()[:, None], bias * out_scale.double()
    return weight, bias


def set_weights(module: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Copy weights into a layer, rounded to its precision."""
    module.weight.copy_(weight)
    if module.bias is not None:
        assert bias is not None
        module.bias.copy_(bias)


def frozen(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode."""
    return copy.deepcopy(module).eval()
