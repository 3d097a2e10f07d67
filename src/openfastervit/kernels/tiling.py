"""What kernels of tiled products share: sizes of tiles, what follows a product, and checks of what goes in."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from openfastervit.kernels import availability

TYPES = (torch.float32, torch.bfloat16, torch.float16)
Activation = Literal["none", "relu", "gelu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

GROUP = 8
"""Rows of tiles that are worked on together, so that the weights they share are still in the chip's cache."""


# --- Sizes of tiles -------------------------------------------------------------------------------------------------


class Config(NamedTuple):
    """How a product is cut. Sides are powers of two of at least 16; what is beyond the matrices is masked."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


CONFIGS = (
    Config(128, 256, 64, 8, 3),
    Config(128, 128, 64, 8, 3),
    Config(128, 128, 32, 8, 4),
    Config(128, 64, 64, 4, 3),
    Config(128, 64, 32, 4, 4),
    Config(64, 128, 64, 4, 3),
    Config(64, 64, 64, 4, 4),
    Config(64, 64, 32, 4, 4),
    Config(128, 32, 32, 4, 4),
    Config(32, 64, 64, 4, 4),
    Config(16, 64, 64, 4, 4),
    Config(16, 32, 128, 4, 3),
)
"""Worth trying on Ampere and Hopper, in bfloat16 and float16."""

_LARGEST = 128 * 128
"""Of a tile by default. Larger ones run out of registers where much follows the product."""

FULL_PRECISION = Config(64, 64, 16, 8, 2)
"""For float32: its products have no tensor cores, and its tiles take twice the memory."""

_PROCESSORS = 132
"""Of an H100 or H200."""
_SQUARE = 64
"""Loading one row or column of a tile for one step costs as much time as so many of its products."""
_STEP = 8
"""What a step costs beside its products, in elements of K."""


def default_config(m: int, n: int, k: int, *, dtype: torch.dtype = torch.bfloat16) -> Config:
    """The one of ``CONFIGS`` that should be fastest by a rough count; measuring knows better.

    Counted are the products of whole tiles, padding included, and what they load: those of all tiles, shared by the
    chip's processors, or those of one tile where there are fewer tiles than processors.
    """
    if dtype == torch.float32:
        return FULL_PRECISION

    def cost(config: Config) -> float:
        tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n)
        steps = triton.cdiv(k, config.block_k) * (config.block_k + _STEP)
        area = config.block_m * config.block_n + _SQUARE * (config.block_m + config.block_n)
        return max(1.0, tiles / _PROCESSORS) * steps * area

    return min((config for config in CONFIGS if config.block_m * config.block_n <= _LARGEST), key=cost)


def check_config(config: Config) -> None:
    """``ValueError`` unless the sides are powers of two of at least 16, and warps and stages numbers of them."""
    for name, side in zip(config._fields[:3], config[:3], strict=True):
        if side < 16 or side & (side - 1):
            raise ValueError(f"config has {name}={side}; take a power of two of at least 16")
    if config.num_warps not in (1, 2, 4, 8, 16) or config.num_stages < 1:
        raise ValueError(f"config={config!r} needs num_warps of 1, 2, 4, 8 or 16 and num_stages of at least 1")


# --- What goes in ---------------------------------------------------------------------------------------------------


def check_tensors(
    function: str, x: Tensor, alike: Iterable[tuple[str, Tensor | None]], either: Iterable[tuple[str, Tensor | None]]
) -> None:
    """``ValueError`` unless a kernel can run on these tensors.

    Args:
        function: The name of what they are given to.
        x: Its first argument, which says device and type.
        alike: Names and tensors that must be of the type of ``x``.
        either: Those that may be of float32, too.
    """
    if x.dtype not in TYPES:
        raise ValueError(f"x is {x.dtype}; kernels take float32, bfloat16 and float16, use {function}_reference")
    alike, either = list(alike), list(either)
    for name, tensor in [("x", x), *alike, *either]:
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}; move one of them")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient and {function} has no backward pass; use torch.no_grad()")
    for name, tensor in alike:
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, x {x.dtype}; they must be of one type")
    for name, tensor in either:
        if tensor is not None and tensor.dtype not in (x.dtype, torch.float32):
            raise ValueError(f"{name} is {tensor.dtype}; it must be of the type of x, {x.dtype}, or float32")
    reason = availability.unavailable(x.device)
    if reason is not None:
        raise ValueError(f"x is on {x.device}: {reason}")


def check_activation(activation: str) -> None:
    """``ValueError`` unless it is one of ``ACTIVATIONS``."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is none of {', '.join(ACTIVATIONS)}")


def check_counts(x: str, elements: int) -> None:
    """``ValueError`` where a kernel would count more elements than 32 bits can."""
    if elements >= 2**31:
        raise ValueError(f"{x} is too large: a tile of it spans {elements} elements, and 2**31 - 1 are the most")


def check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    """``ValueError`` unless a tensor is of a shape, or None."""
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be {list(shape)}, not {list(tensor.shape)}")


# --- What follows a product -----------------------------------------------------------------------------------------


def activated(x: Tensor, activation: Activation) -> Tensor:
    """The activation in plain torch."""
    if activation == "none":
        return x
    return F.gelu(x) if activation == "gelu" else F.relu(x)


_INTERPRETED = tl.constexpr(availability.interpreted())
_SQRT_HALF = tl.constexpr(math.sqrt(0.5))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of a block in float32."""
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0)
    if ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.math.erf(x * _SQRT_HALF))
    return x


@triton.jit
def rounded(x, TYPE: tl.constexpr):
    """A block in float32 as one of another type, rounded to nearest, ties to even.

    The interpreter cuts bits off instead where the type is bfloat16. There they are made zeros before.
    """
    if _INTERPRETED and tl.bfloat16 == TYPE:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
        x = tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)
    return x.to(TYPE)
