"""Linear layers whose products are of 8-bit floating point numbers (e4m3: 4 bits of exponent, 3 of mantissa).

A weight is scaled by its output channel, an activation by its row, each so that the largest of them becomes the largest
number that e4m3 has; products are summed in float32 and scaled back. Scales of activations are taken from each batch as
it comes: there is nothing to calibrate. GPUs from compute capability 8.9 on have products of such numbers; elsewhere
float32 products give the same ones, slowly: for measuring what the precision costs in accuracy.
"""

from typing import cast

import torch
from torch import Tensor, nn

from openfastervit.inference.fused import Activation, FusedLinear, activate

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
"""448."""
LEAST_CAPABILITY = (8, 9)
"""Of the chip."""
SIDES = 16
"""Channels in and out are multiples of it: what the products' kernels take."""


def unavailable(device: torch.device | str) -> str | None:
    """Why a device has no products of 8-bit floating point numbers; None where it has."""
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return f"FP8 products are of NVIDIA's GPUs, and {device.type!r} is none here"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return (
            f"FP8 products need a GPU of compute capability {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} or later, "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
        )
    return None


class Float8Linear(nn.Module):
    """``activation(linear(x)) + residual`` with products in e4m3; all else, what comes and goes, is bfloat16.

    Args:
        linear: Left as it is; its channels are multiples of 16.

    Raises:
        ValueError: If they are not.
    """

    def __init__(self, linear: FusedLinear) -> None:
        super().__init__()
        if not fits(linear):
            raise ValueError(
                f"a linear layer from {linear.in_features} to {linear.out_features} channels has no FP8 product; both "
                f"must be multiples of {SIDES}"
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.activation: Activation = linear.activation
        values, scales = quantise(linear.weight.detach())
        self.register_buffer("values", values)
        self.register_buffer("scales", scales.view(1, -1))
        bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)
        self.register_buffer("bias", bias)
        self.native = unavailable(linear.weight.device) is None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``(..., in_features) -> (..., out_features)``."""
        values, scales = cast(Tensor, self.values), cast(Tensor, self.scales)
        rows, row_scales = quantise(x.reshape(-1, self.in_features))
        multiply = multiply_natively if self.native else multiply_reference
        y = multiply(rows, row_scales, values, scales, cast("Tensor | None", self.bias))
        y = activate(y.view(*x.shape[:-1], self.out_features), self.activation)
        return y if residual is None else residual + y


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(M, K)`` as e4m3, and the float32 scales ``(M, 1)`` that they are to be multiplied by."""
    largest = torch.linalg.vector_norm(x, torch.inf, 1, keepdim=True, dtype=torch.float32)
    scales = (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (x / scales).to(FLOAT8), scales  # the quotients are of float32, and round to 448 at most


def multiply_natively(rows: Tensor, row_scales: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """The product in one kernel; see ``multiply_reference``."""
    return torch._scaled_mm(
        rows, values.t(), scale_a=row_scales, scale_b=scales, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def multiply_reference(rows: Tensor, row_scales: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Rows ``(M, K)`` and weights ``(N, K)``, both e4m3, with scales ``(M, 1)`` and ``(1, N)``, to ``(M, N)`` bfloat16.

    Products of e4m3 are exact in float32, and are summed in it.
    """
    y = rows.float() @ values.float().t() * row_scales * scales
    return (y if bias is None else y + bias.float()).to(torch.bfloat16)


def fits(linear: nn.Linear) -> bool:
    """Whether a linear layer's channels are ones that FP8 products take."""
    return linear.in_features % SIDES == 0 and linear.out_features % SIDES == 0


def to_float8(network: nn.Module) -> nn.Module:
    """Replace the linear layers of a folded network's attention, in place, by ones with FP8 products.

    Those whose channels are no multiples of 16 stay, and so does the classifier, whose rounding nothing behind it
    averages away.

    Args:
        network: A folded one, in bfloat16, on its device.

    Raises:
        ValueError: If it has no layer to replace.
    """
    classifier = getattr(network, "fc", None)
    replaced = 0
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is FusedLinear and child is not classifier and fits(child):
                setattr(parent, name, Float8Linear(child))
                replaced += 1
    if replaced == 0:
        raise ValueError(
            f"{type(network).__name__} has no linear layer for FP8: they are those of a FasterViT's attention, with "
            f"channels that are multiples of {SIDES}; choose bf16"
        )
    return network
