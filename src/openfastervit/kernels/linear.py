"""A linear layer with what is around it, in one launch: layer norm before, activation, residual and table behind.

A network of attention on a GPU is many small launches, each of which reads and writes whole activations. Here a layer
norm is computed by the program that multiplies, while its rows are in the cache, and what follows the product is done
before the product is written: the activations are read once and written once.

Shapes: ``M`` rows (tokens of all sequences), ``K`` channels in, ``N`` channels out, ``P`` rows of a table (positions).
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

__all__ = ["CONFIGS", "Activation", "Config", "default_config", "linear", "linear_reference"]


# --- The operation --------------------------------------------------------------------------------------------------


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_eps: float | None = None,
    activation: Activation = "none",
    residual: Tensor | None = None,
    table: Tensor | None = None,
    table_rows: tuple[int, int, int] | None = None,
    out: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """``activation(norm(x) @ weight.T + bias) + residual + table[row]``. For inference: there is no backward pass.

    Products are summed in float32, and everything behind them is computed in it.

    Args:
        x: ``(M, K)`` of float32, bfloat16 or float16. Rows may lie apart, channels side by side.
        weight: ``(N, K)``, as that of ``nn.Linear``.
        bias: ``(N,)``, of the type of ``x`` or float32.
        norm_eps: Epsilon of a layer norm over ``K`` without factor and shift, which belong into ``weight`` and
            ``bias``; None for no norm. The rows are normalised in float32 and rounded to the type of ``x``.
        activation: ``"none"``, ``"relu"`` or ``"gelu"`` (with the error function).
        residual: ``(M, N)``, added behind the activation.
        table: ``(P, N)``, of the type of ``x`` or float32; one row of it is added to each row.
        table_rows: ``(split, first, second)``: row ``m`` below ``split`` takes row ``m % first`` of the table, another
            takes row ``first + (m - split) % second``. By default ``m % P``.
        out: ``(M, N)`` to write to. It may be ``residual``, but share no memory with anything else.
        config: How to cut the product, by default ``default_config(M, N, K)``.

    Returns:
        ``out``, or a new tensor ``(M, N)`` of the type of ``x``.

    Raises:
        ValueError: If shapes, types or devices do not go together, or kernels cannot run there.
    """
    rows = _check(x, weight, bias, activation, residual, table, table_rows, out)
    m, k, n = x.shape[0], x.shape[1], weight.shape[0]
    out = x.new_empty((m, n)) if out is None else out
    check_tensors("linear", x, [("weight", weight), ("residual", residual), ("out", out)],
                  [("bias", bias), ("table", table)])  # fmt: skip
    config = default_config(m, n, k, dtype=x.dtype) if config is None else config
    check_config(config)
    _check_places(x, weight, bias, residual, table, out, config)
    if m == 0:
        return out
    with torch.cuda.device_of(x):
        _linear[(triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n),)](
            x,
            weight,
            x if bias is None else bias.contiguous(),
            x if residual is None else residual,
            x if table is None else table,
            out,
            m,
            *rows,
            0.0 if norm_eps is None else norm_eps,
            N=n,
            K=k,
            X_ROW=x.stride(0),
            WEIGHT_ROW=weight.stride(0),
            RESIDUAL_ROW=0 if residual is None else residual.stride(0),
            TABLE_ROW=0 if table is None else table.stride(0),
            OUT_ROW=out.stride(0),
            HAS_NORM=norm_eps is not None,
            HAS_BIAS=bias is not None,
            ACTIVATION=activation,
            HAS_RESIDUAL=residual is not None,
            HAS_TABLE=table is not None,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            GROUP=GROUP,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return out


def linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_eps: float | None = None,
    activation: Activation = "none",
    residual: Tensor | None = None,
    table: Tensor | None = None,
    table_rows: tuple[int, int, int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The same in plain torch, of any floating point type."""
    split, first, second = _check(x, weight, bias, activation, residual, table, table_rows, out)
    if norm_eps is not None:
        x = F.layer_norm(x, x.shape[1:], eps=norm_eps)
    y = activated(F.linear(x, weight, bias), activation)
    if residual is not None:
        y = residual + y
    if table is not None:
        row = torch.arange(len(x), device=x.device)
        y = y + table[torch.where(row < split, row % first, first + (row - split) % second)]
    return y if out is None else out.copy_(y)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    table: Tensor | None,
    table_rows: tuple[int, int, int] | None,
    out: Tensor | None,
) -> tuple[int, int, int]:
    """``table_rows``, with its default filled in, once the shapes go together; ``ValueError`` where they do not."""
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"x must be (M, K) with K of at least 1, not {list(x.shape)}")
    if weight.dim() != 2 or weight.shape[1] != x.shape[1] or weight.shape[0] == 0:
        raise ValueError(f"weight must be (N, {x.shape[1]}) with N of at least 1, not {list(weight.shape)}")
    m, n = x.shape[0], weight.shape[0]
    check_activation(activation)
    check_shape("bias", bias, (n,))
    check_shape("residual", residual, (m, n))
    check_shape("out", out, (m, n))
    if table is None:
        if table_rows is not None:
            raise ValueError(f"table_rows={table_rows} says where to read in a table, but table is None")
        return 0, 1, 1
    if table.dim() != 2 or table.shape[1] != n or table.shape[0] == 0:
        raise ValueError(f"table must be (P, {n}) with P of at least 1, not {list(table.shape)}")
    split, first, second = (m, len(table), 1) if table_rows is None else table_rows
    if split < 0 or min(first, second) < 1:
        raise ValueError(f"table_rows={table_rows} must be (at least 0, at least 1, at least 1)")
    read = max(first if split > 0 else 0, first + second if split < m else 0)
    if read > len(table):
        raise ValueError(f"table_rows={table_rows} reads {read} rows, table has {len(table)}")
    return split, first, second


def _check_places(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    table: Tensor | None,
    out: Tensor,
    config: Config,
) -> None:
    """``ValueError`` where a matrix does not lie as the kernel reads it, or ``out`` lies in the place of another."""
    matrices = [("x", x), ("weight", weight), ("residual", residual), ("table", table), ("out", out)]
    for name, tensor in matrices:
        if tensor is None:
            continue
        if tensor.stride(1) != 1 and tensor.shape[1] > 1:
            raise ValueError(f"{name} has channels {tensor.stride(1)} elements apart; make it contiguous")
        check_counts(name, (len(tensor) if name in ("weight", "table") else config.block_m) * tensor.stride(0))
    if len(out) > 1 and out.stride(0) < out.shape[1]:
        raise ValueError(f"out has rows of {out.shape[1]} elements, {out.stride(0)} apart; they overlap one another")
    for name, tensor in [*matrices[:-1], ("bias", bias)]:
        if tensor is None or (tensor is residual and _same_place(out, tensor)):
            continue
        if _overlap(out, tensor):
            raise ValueError(f"out shares memory with {name}; only residual itself may be written to")


def _same_place(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.stride() == b.stride()


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one or two axes share an element; both have channels side by side."""
    if a.numel() == 0 or b.numel() == 0:
        return False
    begin_a, begin_b = a.data_ptr(), b.data_ptr()
    if begin_a + _extent(a) <= begin_b or begin_b + _extent(b) <= begin_a:
        return False
    # Columns of one matrix beside one another: their rows lie between one another.
    row = a.stride(0) * a.element_size()
    if a.dim() == b.dim() == 2 and row > 0 and row == b.stride(0) * b.element_size():
        gap, (width_a, width_b) = (begin_b - begin_a) % row, (t.shape[1] * t.element_size() for t in (a, b))
        return not (width_a <= gap and gap + width_b <= row)
    return True


def _extent(x: Tensor) -> int:
    """Bytes from the first element of a tensor to behind its last."""
    last = sum((side - 1) * stride for side, stride in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size()


# --- The kernel -----------------------------------------------------------------------------------------------------
#
# Sizes and strides but M are constants: with them the compiler knows how many elements it may load at once.


@triton.jit
def _linear(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, table_ptr, out_ptr, rows, split, first, second, eps,
    N: tl.constexpr, K: tl.constexpr,
    X_ROW: tl.constexpr, WEIGHT_ROW: tl.constexpr, RESIDUAL_ROW: tl.constexpr, TABLE_ROW: tl.constexpr,
    OUT_ROW: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A tile of the output."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    tile_m, tile_n = tl.swizzle2d(program // tiles_n, program % tiles_n, tiles_m, tiles_n, GROUP)
    # A whole activation may have more elements than 32 bits can count, a tile of it has not.
    start = (tile_m * BLOCK_M).to(tl.int64)
    i = tl.arange(0, BLOCK_M)
    row = tile_m * BLOCK_M + i
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    x_tile = x_ptr + start * X_ROW + i[:, None] * X_ROW
    in_rows, in_columns = (row < rows)[:, None], (n < N)[None, :]

    mean = tl.zeros((BLOCK_M,), dtype=tl.float32)
    rstd = tl.zeros((BLOCK_M,), dtype=tl.float32)
    if HAS_NORM:
        # Mean and sum of squares about it, block by block (Chan, Golub and LeVeque, 1979): exact and read once.
        squares = tl.zeros((BLOCK_M,), dtype=tl.float32)
        for begin in range(0, K, BLOCK_K):
            k = begin + ks
            x = tl.load(x_tile + k[None, :], mask=in_rows & (k < K)[None, :], other=0.0).to(tl.float32)
            count = tl.minimum(K - begin, BLOCK_K)
            of_block = tl.sum(x, axis=1) / count
            about = tl.where((k < K)[None, :], x - of_block[:, None], 0.0)
            step = of_block - mean
            mean += step * (count / (begin + count))
            squares += tl.sum(about * about, axis=1) + step * step * (begin * (count / (begin + count)))
        rstd = tl.rsqrt(squares / K + eps)

    product = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for begin in range(0, K, BLOCK_K):
        k = begin + ks
        x = tl.load(x_tile + k[None, :], mask=in_rows & (k < K)[None, :], other=0.0)
        if HAS_NORM:
            x = rounded((x.to(tl.float32) - mean[:, None]) * rstd[:, None], x_ptr.dtype.element_ty)
            if K % BLOCK_K != 0:
                x = tl.where((k < K)[None, :], x, 0.0).to(x_ptr.dtype.element_ty)
        weight = tl.load(
            weight_ptr + n[None, :] * WEIGHT_ROW + k[:, None], mask=in_columns & (k < K)[:, None], other=0.0
        )
        product += dot(x, weight)

    if HAS_BIAS:
        product += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    product = activate(product, ACTIVATION)
    inside = in_rows & in_columns
    if HAS_RESIDUAL:
        residual = residual_ptr + start * RESIDUAL_ROW + i[:, None] * RESIDUAL_ROW + n[None, :]
        product += tl.load(residual, mask=inside, other=0.0).to(tl.float32)
    if HAS_TABLE:
        table_row = tl.where(row < split, row % first, first + (row - split) % second)
        table = table_ptr + table_row[:, None] * TABLE_ROW + n[None, :]
        product += tl.load(table, mask=inside, other=0.0).to(tl.float32)
    out = out_ptr + start * OUT_ROW + i[:, None] * OUT_ROW + n[None, :]
    tl.store(out, rounded(product, out_ptr.dtype.element_ty), mask=inside)
