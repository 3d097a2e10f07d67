"""A convolution with what is around it, in one launch: layer norm before, bias, activation and residual behind.

Maps lie channels-last in memory. The convolution is a product whose rows are pixels of the output and whose summed
axis runs over the kernel's cells and the channels: each program gathers the pixels that it needs where they lie
("implicit GEMM"), so that no matrix of neighbourhoods is written. A layer norm over channels needs mean and deviation
of each pixel first, from a small launch before; its factor and shift are applied while pixels are gathered, and padding
is zero behind it.

Shapes: ``B`` images, ``C`` channels in, ``O`` channels out, maps of ``H x W`` and ``H' x W'``, kernels of ``k x k``.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from openfastervit.kernels.dot import dot
from openfastervit.kernels.tiling import (
    CONFIGS,
    GROUP,
    Activation,
    Config,
    activate,
    activated,
    check_activation,
    check_config,
    check_counts,
    check_shape,
    check_tensors,
    default_config,
    rounded,
)

__all__ = ["CONFIGS", "Activation", "Config", "convolution", "convolution_reference", "pack_weight"]

Norm = tuple[Tensor, Tensor, float]
"""Factor ``(C,)``, shift ``(C,)`` and epsilon of a layer norm."""

_FEW = 16
"""Channels below which cells of the kernel share a step of the product: one cell alone would leave most of it empty."""
_MOMENTS_TILE = 4096
"""Elements that a program of ``_pixel_moments`` holds."""


# --- The operation --------------------------------------------------------------------------------------------------


def pack_weight(weight: Tensor) -> Tensor:
    """A weight ``(O, C, k, k)`` as the kernel reads it, ``(O, k, k, C)``; no copy if it is channels-last already."""
    if weight.dim() != 4:
        raise ValueError(f"weight must be (O, C, k, k), not {list(weight.shape)}")
    return weight.permute(0, 2, 3, 1).contiguous()


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 1,
    norm: Norm | None = None,
    activation: Activation = "none",
    residual: Tensor | None = None,
    packed: bool = False,
    config: Config | None = None,
) -> Tensor:
    """``activation(conv(norm(x)) + bias) + residual``. For inference: there is no backward pass.

    Products are summed in float32, and everything behind them is computed in it.

    Args:
        x: ``(B, C, H, W)`` of float32, bfloat16 or float16; made channels-last if it is not.
        weight: ``(O, C, k, k)``, as that of ``nn.Conv2d`` with one group.
        bias: ``(O,)``, of the type of ``x`` or float32.
        stride: Along both axes.
        padding: Zeros on all four sides, behind the norm.
        norm: Factor and shift ``(C,)``, of the type of ``x`` or float32, and epsilon of a layer norm over the channels
            of each pixel. It is computed in float32 and rounded to the type of ``x``.
        activation: ``"none"``, ``"relu"`` or ``"gelu"`` (with the error function).
        residual: ``(B, O, H', W')``, added behind the activation; made channels-last if it is not.
        packed: Whether ``weight`` is what ``pack_weight`` returns, ``(O, k, k, C)``. Then it need not be packed at each
            call.
        config: How to cut the product, by default ``default_config(B*H'*W', O, C)``.

    Returns:
        ``(B, O, H', W')`` of the type of ``x``, channels-last.

    Raises:
        ValueError: If shapes, types or devices do not go together, or kernels cannot run there.
    """
    sizes = _check(x, weight, bias, stride, padding, norm, activation, residual, packed)
    batch, channels, height, width = x.shape
    factor, shift, eps = (None, None, 0.0) if norm is None else norm
    check_tensors("convolution", x, [("weight", weight), ("residual", residual)],
                  [("bias", bias), ("norm[0]", factor), ("norm[1]", shift)])  # fmt: skip
    side = weight.shape[2]
    x = x.contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous() if packed else pack_weight(weight)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    out = torch.empty((batch, len(weight), *sizes), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pixels = batch * sizes[0] * sizes[1]
    depth = channels if channels >= _FEW else channels * side * side
    config = default_config(pixels, len(weight), depth, dtype=x.dtype) if config is None else config
    check_config(config)
    if pixels == 0:
        return out
    images = config.block_m // (sizes[0] * sizes[1]) + 2
    check_counts("x", images * channels * height * width)
    with torch.cuda.device_of(x):
        moments = x if norm is None else _moments(x, eps)
        _convolution[(triton.cdiv(pixels, config.block_m) * triton.cdiv(len(weight), config.block_n),)](
            x,
            weight,
            x if bias is None else bias.contiguous(),
            moments,
            x if factor is None else factor.contiguous(),
            x if shift is None else shift.contiguous(),
            x if residual is None else residual,
            out,
            pixels,
            height,
            width,
            *sizes,
            N=len(weight),
            C=channels,
            SIDE=side,
            STRIDE=stride,
            PADDING=padding,
            FEW=channels < _FEW,
            HAS_NORM=norm is not None,
            HAS_BIAS=bias is not None,
            ACTIVATION=activation,
            HAS_RESIDUAL=residual is not None,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            GROUP=GROUP,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return out


def convolution_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 1,
    norm: Norm | None = None,
    activation: Activation = "none",
    residual: Tensor | None = None,
    packed: bool = False,
) -> Tensor:
    """The same in plain torch, of any floating point type."""
    _check(x, weight, bias, stride, padding, norm, activation, residual, packed)
    if norm is not None:
        factor, shift, eps = norm
        x = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], factor, shift, eps).permute(0, 3, 1, 2)
    weight = weight.permute(0, 3, 1, 2) if packed else weight
    y = activated(F.conv2d(x, weight, bias, stride=stride, padding=padding), activation)
    return y if residual is None else residual + y


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    norm: Norm | None,
    activation: str,
    residual: Tensor | None,
    packed: bool,
) -> tuple[int, int]:
    """``(H', W')``, once the shapes go together; ``ValueError`` where they do not."""
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x must be (B, C, H, W) with no side of 0 but B, not {list(x.shape)}")
    channels = x.shape[1]
    like = f"(O, k, k, {channels})" if packed else f"(O, {channels}, k, k)"
    if weight.dim() != 4 or weight.shape[3 if packed else 1] != channels or 0 in weight.shape:
        raise ValueError(f"weight must be {like}, not {list(weight.shape)}")
    side = weight.shape[2]
    if weight.shape[1 if packed else 3] != side:
        raise ValueError(f"weight must be {like} with as many rows as columns, not {list(weight.shape)}")
    if stride < 1:
        raise ValueError(f"stride={stride} must be at least 1")
    if padding < 0:
        raise ValueError(f"padding={padding} must be at least 0")
    sizes = (x.shape[2] + 2 * padding - side) // stride + 1, (x.shape[3] + 2 * padding - side) // stride + 1
    if min(x.shape[2], x.shape[3]) + 2 * padding < side:
        raise ValueError(f"x is {x.shape[2]} x {x.shape[3]}, smaller than the kernel {side} x {side} with its padding")
    check_activation(activation)
    check_shape("bias", bias, (len(weight),))
    if norm is not None:
        check_shape("norm[0]", norm[0], (channels,))
        check_shape("norm[1]", norm[1], (channels,))
    check_shape("residual", residual, (x.shape[0], len(weight), *sizes))
    return sizes


def _moments(x: Tensor, eps: float) -> Tensor:
    """Mean and inverse deviation of each pixel of a channels-last map: ``(B*H*W, 2)`` in float32."""
    channels, pixels = x.shape[1], x.shape[0] * x.shape[2] * x.shape[3]
    tile = triton.next_power_of_2(channels)
    rows = max(1, _MOMENTS_TILE // tile)
    moments = torch.empty((pixels, 2), dtype=torch.float32, device=x.device)
    _pixel_moments[(triton.cdiv(pixels, rows),)](x, moments, pixels, eps, C=channels, ROWS=rows, TILE=tile, num_warps=4)
    return moments


# --- Kernels --------------------------------------------------------------------------------------------------------
#
# What belongs to the network is constant: with it the compiler knows how many elements it may load at once. Sizes of
# maps are not.


@triton.jit
def _pixel_moments(x_ptr, moments_ptr, pixels, eps, C: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    """Mean of each pixel's channels, and 1 over their standard deviation."""
    start = (tl.program_id(0) * ROWS).to(tl.int64)
    i, c = tl.arange(0, ROWS), tl.arange(0, TILE)
    inside = start + i < pixels
    x = tl.load(x_ptr + start * C + i[:, None] * C + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0)
    x = x.to(tl.float32)
    mean = tl.sum(x, axis=1) / C
    about = tl.where((c < C)[None, :], x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(about * about, axis=1) / C + eps)
    tl.store(moments_ptr + start * 2 + i * 2, mean, mask=inside)
    tl.store(moments_ptr + start * 2 + i * 2 + 1, rstd, mask=inside)


@triton.jit
def _convolution(
    x_ptr, weight_ptr, bias_ptr, moments_ptr, factor_ptr, shift_ptr, residual_ptr, out_ptr,
    rows, height, width, out_height, out_width,
    N: tl.constexpr, C: tl.constexpr, SIDE: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    FEW: tl.constexpr, HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A tile of the output, of ``BLOCK_M`` pixels and ``BLOCK_N`` channels."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    tile_m, tile_n = tl.swizzle2d(program // tiles_n, program % tiles_n, tiles_m, tiles_n, GROUP)
    i = tl.arange(0, BLOCK_M)
    row = tile_m * BLOCK_M + i
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    in_rows, in_columns = (row < rows)[:, None], (n < N)[None, :]

    # Where the kernel's first cell lies, for each pixel of the output. A batch of maps may have more elements than 32
    # bits can count; the images of a tile, counted from its first one, have not.
    image, cell = row // (out_height * out_width), row % (out_height * out_width)
    first_image = tile_m * BLOCK_M // (out_height * out_width)
    first_pixel = first_image.to(tl.int64) * (height * width)
    x_ptr += first_pixel * C
    moments_ptr += first_pixel * 2
    top, left = cell // out_width * STRIDE - PADDING, cell % out_width * STRIDE - PADDING
    corner = (image - first_image) * (height * width)

    # A step of the product is a block of channels of one cell; of few channels, a block of cells and channels.
    CELLS: tl.constexpr = SIDE * SIDE
    BLOCKS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    STEPS: tl.constexpr = (CELLS * C + BLOCK_K - 1) // BLOCK_K if FEW else CELLS * BLOCKS
    product = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, STEPS):
        if FEW:
            k = step * BLOCK_K + ks
            c = k % C
            of_kernel = (k // C)[None, :]
            in_k = k < CELLS * C
        else:
            of_kernel = step // BLOCKS
            c = step % BLOCKS * BLOCK_K + ks
            k = of_kernel * C + c
            in_k = c < C
        y = top[:, None] + of_kernel // SIDE
        x = left[:, None] + of_kernel % SIDE
        on_map = (y >= 0) & (y < height) & (x >= 0) & (x < width) & in_rows
        pixel = corner[:, None] + y * width + x
        read = on_map & in_k[None, :]
        values = tl.load(x_ptr + pixel * C + c[None, :], mask=read, other=0.0)
        if HAS_NORM:
            mean = tl.load(moments_ptr + pixel * 2, mask=on_map, other=0.0)
            rstd = tl.load(moments_ptr + pixel * 2 + 1, mask=on_map, other=0.0)
            factor = tl.load(factor_ptr + c, mask=in_k, other=0.0).to(tl.float32)
            shift = tl.load(shift_ptr + c, mask=in_k, other=0.0).to(tl.float32)
            normed = (values.to(tl.float32) - mean) * rstd * factor[None, :] + shift[None, :]
            values = rounded(tl.where(read, normed, 0.0), x_ptr.dtype.element_ty)
        weight = tl.load(weight_ptr + n[None, :] * (CELLS * C) + k[:, None], mask=in_columns & in_k[:, None], other=0.0)
        product += dot(values, weight)

    if HAS_BIAS:
        product += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    product = activate(product, ACTIVATION)
    inside = in_rows & in_columns
    place = (tile_m * BLOCK_M).to(tl.int64) * N + i[:, None] * N + n[None, :]
    if HAS_RESIDUAL:
        product += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, rounded(product, out_ptr.dtype.element_ty), mask=inside)
