"""The kernels of ``window_attention``, forward and backward, and how they are launched."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from openfastervit.kernels.dot import dot

TILE = 64
"""Queries and keys of a block, at most. Up to so many tokens a sequence is one block, and nothing is computed twice."""
_LEAST_TILE = 16
"""Of Triton's products."""
_FORWARD_PROGRAMS, _BACKWARD_PROGRAMS = 1024, 512
"""Programs that fill a large GPU: with more windows a program takes several, and reads their bias once."""


class Layout(NamedTuple):
    """How sequences lie in a map and a grid of carriers."""

    heads: int
    width: int
    """``D``."""
    window: tuple[int, int]
    counts: tuple[int, int]
    carrier_size: int
    """``c``; 0 without carriers."""

    @property
    def carriers(self) -> int:
        """Of a window."""
        return self.carrier_size**2

    @property
    def tokens(self) -> int:
        """``T``."""
        return self.carriers + self.window[0] * self.window[1]


# --- Launching ------------------------------------------------------------------------------------------------------


def launch(
    qkv: Tensor,
    carriers: Tensor | None,
    table: Tensor | None,
    out: Tensor,
    carriers_out: Tensor | None,
    layout: Layout,
    scale: float,
    *,
    logsum: Tensor | None = None,
) -> None:
    """Compute into ``out`` and ``carriers_out``, laid out as the input is, with a third of its channels."""
    qkv, carriers = _side_by_side(qkv), None if carriers is None else _side_by_side(carriers)
    sequences = qkv.shape[0] * layout.counts[0] * layout.counts[1]
    tile = _tile(layout)
    blocks = triton.cdiv(layout.tokens, tile)
    each = _windows_each(sequences, layout.heads * blocks, _FORWARD_PROGRAMS)
    table = None if table is None else table.float().contiguous()
    _forward[(triton.cdiv(sequences, each), layout.heads, blocks)](
        *_places(qkv, carriers),
        *_places(out, carriers_out),
        qkv if table is None else table,
        qkv if logsum is None else logsum,
        sequences,
        each,
        *layout.counts,
        scale,
        HAS_TABLE=table is not None,
        HAS_LOGSUM=logsum is not None,
        TILE=tile,
        **_constants(layout),
        # Channels that do not lie on 16 bytes are loaded one by one, which takes registers.
        num_warps=8 if tile == TILE and (blocks > 1 or layout.width % 8) else 4,
        num_stages=1,
    )


def launch_backward(
    grads: tuple[Tensor, Tensor | None],
    inputs: tuple[Tensor, Tensor | None],
    results: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, Tensor],
    table: Tensor | None,
    logsum: Tensor,
    layout: Layout,
    scale: float,
) -> Tensor | None:
    """Compute into ``gradients``, of tokens and carriers; return the gradient of the bias ``(A, T, T)`` in float32."""
    has_carriers = inputs[1] is not None
    qkv, carriers = _side_by_side(inputs[0]), _side_by_side(inputs[1]) if inputs[1] is not None else None
    sequences = qkv.shape[0] * layout.counts[0] * layout.counts[1]
    tile = _tile(layout)
    blocks = triton.cdiv(layout.tokens, tile)
    each = _windows_each(sequences, layout.heads * blocks * blocks, _BACKWARD_PROGRAMS)
    groups = triton.cdiv(sequences, each)
    table = None if table is None else table.float().contiguous()
    # Each group of windows has a sum of its own: they are added in one order, and the result is the same every time.
    bias = None
    if table is not None:
        bias = qkv.new_empty((groups, layout.heads, layout.tokens, layout.tokens), dtype=torch.float32)
    tensors = (
        *_places(qkv, carriers),
        *_places(results[0], results[1] if has_carriers else None),
        *_places(_side_by_side(grads[0]), _side_by_side(grads[1]) if grads[1] is not None else None),
        *_places(gradients[0], gradients[1] if has_carriers else None),
        qkv if table is None else table,
        logsum,
        qkv if bias is None else bias,
        sequences,
    )
    numbers = (*layout.counts, scale)
    constants = {"HAS_TABLE": table is not None, "TILE": tile, **_constants(layout), "num_stages": 1}
    constants["num_warps"] = 8 if tile == TILE else 4  # with fewer, a large tile's registers do not suffice
    if blocks == 1:
        _backward_of_one_block[(groups, layout.heads)](*tensors, each, *numbers, **constants)
    else:
        _backward_of_keys[(sequences, layout.heads, blocks)](*tensors, 1, *numbers, **constants)
        _backward_of_queries[(sequences, layout.heads, blocks)](*tensors, 1, *numbers, **constants)
        if bias is not None:
            _backward_of_bias[(groups, layout.heads, blocks * blocks)](*tensors, each, *numbers, **constants)
    return None if bias is None else bias.sum(dim=0)


def _side_by_side(x: Tensor) -> Tensor:
    """Channels without gaps; what autograd hands over may be expanded."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _places(tokens: Tensor, carriers: Tensor | None) -> tuple[Any, ...]:
    """Both tensors, each with its strides. Without carriers the tokens stand in, and are not read as such."""
    other = tokens if carriers is None else carriers
    return tokens, *tokens.stride()[:3], other, *other.stride()[:3]


def _tile(layout: Layout) -> int:
    return min(TILE, max(_LEAST_TILE, triton.next_power_of_2(layout.tokens)))


def _windows_each(sequences: int, programs_each: int, enough: int) -> int:
    """Windows that a program takes, so that there still are programs enough."""
    return max(1, sequences * programs_each // enough)


def _constants(layout: Layout) -> dict[str, Any]:
    return {
        "A": layout.heads,
        "D": layout.width,
        "D_TILE": max(_LEAST_TILE, triton.next_power_of_2(layout.width)),
        "WINDOW_H": layout.window[0],
        "WINDOW_W": layout.window[1],
        "C": layout.carrier_size,
        "T": layout.tokens,
    }


# --- Kernels --------------------------------------------------------------------------------------------------------
#
# ``x_ptr, x_b, x_h, x_w`` are a map and its strides, ``xc_...`` the grid of carriers; ``t`` are places in a sequence,
# carriers first. ``A, D, T, C`` and the window are constants, so that divisions by them are cheap.


@triton.jit
def _places_of(t, row, column, x_h, x_w, xc_h, xc_w, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, C: tl.constexpr):
    """Where places of a sequence lie: in the map, if they are tokens, and in the grid, if they are carriers."""
    cell = t - C * C
    in_map = (row * WINDOW_H + cell // WINDOW_W) * x_h + (column * WINDOW_W + cell % WINDOW_W) * x_w
    in_grid = in_map
    if C > 0:
        in_grid = (row * C + t // C) * xc_h + (column * C + t % C) * xc_w
    return in_map, in_grid


@triton.jit
def _read(
    x_ptr, xc_ptr, in_map, in_grid, t, first, D: tl.constexpr, D_TILE: tl.constexpr, T: tl.constexpr, C: tl.constexpr
):
    """``(TILE, D_TILE)``: channels ``first`` to ``first + D`` of places of a sequence; beyond both, 0."""
    d = tl.arange(0, D_TILE)
    is_token = (t >= C * C) & (t < T)
    x = tl.load(x_ptr + in_map[:, None] + (first + d)[None, :], mask=is_token[:, None] & (d < D)[None, :], other=0.0)
    if C > 0:
        is_carrier = t < C * C
        of_grid = tl.load(
            xc_ptr + in_grid[:, None] + (first + d)[None, :], mask=is_carrier[:, None] & (d < D)[None, :], other=0.0
        )
        x = tl.where(is_carrier[:, None], of_grid, x)
    return x


@triton.jit
def _write(
    x_ptr,
    xc_ptr,
    in_map,
    in_grid,
    t,
    first,
    values,
    D: tl.constexpr,
    D_TILE: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
):
    d = tl.arange(0, D_TILE)
    values = values.to(x_ptr.dtype.element_ty)
    is_token = (t >= C * C) & (t < T)
    tl.store(x_ptr + in_map[:, None] + (first + d)[None, :], values, mask=is_token[:, None] & (d < D)[None, :])
    if C > 0:
        is_carrier = t < C * C
        tl.store(xc_ptr + in_grid[:, None] + (first + d)[None, :], values, mask=is_carrier[:, None] & (d < D)[None, :])


@triton.jit
def _bias(
    table_ptr, head, queries, keys, HAS_TABLE: tl.constexpr, TILE: tl.constexpr, WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """``(TILE, TILE)``: the bias of queries and keys, minus infinity for keys beyond the sequence."""
    bias = tl.zeros((TILE, TILE), dtype=tl.float32)
    if HAS_TABLE:
        q, k = queries - C * C, keys - C * C
        row = q[:, None] // WINDOW_W - k[None, :] // WINDOW_W + (WINDOW_H - 1)
        column = q[:, None] % WINDOW_W - k[None, :] % WINDOW_W + (WINDOW_W - 1)
        offset = row * (2 * WINDOW_W - 1) + column
        tokens = (q >= 0)[:, None] & (queries < T)[:, None] & (k >= 0)[None, :] & (keys < T)[None, :]
        table = table_ptr + head * ((2 * WINDOW_H - 1) * (2 * WINDOW_W - 1))
        bias = tl.load(table + offset, mask=tokens, other=0.0)
    return tl.where((keys < T)[None, :], bias, float("-inf"))


@triton.jit
def _forward(
    x_ptr, x_b, x_h, x_w, xc_ptr, xc_b, xc_h, xc_w,
    y_ptr, y_b, y_h, y_w, yc_ptr, yc_b, yc_h, yc_w,
    table_ptr, logsum_ptr, sequences, each, n_h, n_w, scale,
    HAS_TABLE: tl.constexpr, HAS_LOGSUM: tl.constexpr, TILE: tl.constexpr, A: tl.constexpr, D: tl.constexpr,
    D_TILE: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head, in ``each`` windows one after the other."""
    head = tl.program_id(1)
    queries = tl.program_id(2) * TILE + tl.arange(0, TILE)
    keys = tl.arange(0, TILE)
    if T <= TILE:
        bias = _bias(table_ptr, head, queries, keys, HAS_TABLE, TILE, WINDOW_H, WINDOW_W, C, T)
    begin = tl.program_id(0) * each
    for sequence in range(begin, tl.minimum(begin + each, sequences)):
        image = (sequence // (n_h * n_w)).to(tl.int64)
        row, column = sequence // n_w % n_h, sequence % n_w
        x, xc = x_ptr + image * x_b, xc_ptr + image * xc_b
        q_map, q_grid = _places_of(queries, row, column, x_h, x_w, xc_h, xc_w, WINDOW_H, WINDOW_W, C)
        q = _read(x, xc, q_map, q_grid, queries, head * D, D, D_TILE, T, C)
        highest = tl.full((TILE,), float("-inf"), dtype=tl.float32)
        total = tl.zeros((TILE,), dtype=tl.float32)
        gathered = tl.zeros((TILE, D_TILE), dtype=tl.float32)
        for start in range(0, T, TILE):
            if T > TILE:
                bias = _bias(table_ptr, head, queries, start + keys, HAS_TABLE, TILE, WINDOW_H, WINDOW_W, C, T)
            k_map, k_grid = _places_of(start + keys, row, column, x_h, x_w, xc_h, xc_w, WINDOW_H, WINDOW_W, C)
            k = _read(x, xc, k_map, k_grid, start + keys, (A + head) * D, D, D_TILE, T, C)
            v = _read(x, xc, k_map, k_grid, start + keys, (2 * A + head) * D, D, D_TILE, T, C)
            logits = dot(q, tl.trans(k)) * scale + bias
            higher = tl.maximum(highest, tl.max(logits, axis=1))
            weights = tl.exp(logits - higher[:, None])
            shrink = tl.exp(highest - higher)
            total = total * shrink + tl.sum(weights, axis=1)
            gathered = gathered * shrink[:, None] + dot(weights.to(v.dtype), v)
            highest = higher
        y, yc = y_ptr + image * y_b, yc_ptr + image * yc_b
        y_map, y_grid = _places_of(queries, row, column, y_h, y_w, yc_h, yc_w, WINDOW_H, WINDOW_W, C)
        _write(y, yc, y_map, y_grid, queries, head * D, gathered / total[:, None], D, D_TILE, T, C)
        if HAS_LOGSUM:
            place = (sequence * A + head).to(tl.int64) * T + queries
            tl.store(logsum_ptr + place, highest + tl.log(total), mask=queries < T)


@triton.jit
def _weights(q, k, bias, logsum, scale):
    """Attention weights, computed anew."""
    return tl.exp(dot(q, tl.trans(k)) * scale + bias - logsum[:, None])


@triton.jit
def _logsum(logsum_ptr, sequence, head, queries, A: tl.constexpr, T: tl.constexpr):
    """Of queries beyond the sequence plus infinity, which makes their weights 0."""
    place = (sequence * A + head).to(tl.int64) * T + queries
    return tl.load(logsum_ptr + place, mask=queries < T, other=float("inf"))


@triton.jit
def _backward_of_one_block(
    x_ptr, x_b, x_h, x_w, xc_ptr, xc_b, xc_h, xc_w,
    y_ptr, y_b, y_h, y_w, yc_ptr, yc_b, yc_h, yc_w,
    g_ptr, g_b, g_h, g_w, gc_ptr, gc_b, gc_h, gc_w,
    dx_ptr, dx_b, dx_h, dx_w, dxc_ptr, dxc_b, dxc_h, dxc_w,
    table_ptr, logsum_ptr, dbias_ptr, sequences, each, n_h, n_w, scale,
    HAS_TABLE: tl.constexpr, TILE: tl.constexpr, A: tl.constexpr, D: tl.constexpr,
    D_TILE: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """All gradients of one head, in ``each`` windows one after the other."""
    head = tl.program_id(1)
    t = tl.arange(0, TILE)
    bias = _bias(table_ptr, head, t, t, HAS_TABLE, TILE, WINDOW_H, WINDOW_W, C, T)
    dbias = tl.zeros((TILE, TILE), dtype=tl.float32)
    begin = tl.program_id(0) * each
    for sequence in range(begin, tl.minimum(begin + each, sequences)):
        image = (sequence // (n_h * n_w)).to(tl.int64)
        row, column = sequence // n_w % n_h, sequence % n_w
        x, xc = x_ptr + image * x_b, xc_ptr + image * xc_b
        x_map, x_grid = _places_of(t, row, column, x_h, x_w, xc_h, xc_w, WINDOW_H, WINDOW_W, C)
        q = _read(x, xc, x_map, x_grid, t, head * D, D, D_TILE, T, C)
        k = _read(x, xc, x_map, x_grid, t, (A + head) * D, D, D_TILE, T, C)
        v = _read(x, xc, x_map, x_grid, t, (2 * A + head) * D, D, D_TILE, T, C)
        y_map, y_grid = _places_of(t, row, column, y_h, y_w, yc_h, yc_w, WINDOW_H, WINDOW_W, C)
        y = _read(y_ptr + image * y_b, yc_ptr + image * yc_b, y_map, y_grid, t, head * D, D, D_TILE, T, C)
        g_map, g_grid = _places_of(t, row, column, g_h, g_w, gc_h, gc_w, WINDOW_H, WINDOW_W, C)
        g = _read(g_ptr + image * g_b, gc_ptr + image * gc_b, g_map, g_grid, t, head * D, D, D_TILE, T, C)
        weights = _weights(q, k, bias, _logsum(logsum_ptr, sequence, head, t, A, T), scale)
        dv = dot(tl.trans(weights.to(g.dtype)), g)
        delta = tl.sum(g.to(tl.float32) * y.to(tl.float32), axis=1)
        dlogits = weights * (dot(g, tl.trans(v)) - delta[:, None])
        dbias += dlogits
        scaled = (dlogits * scale).to(q.dtype)
        dq = dot(scaled, k)
        dk = dot(tl.trans(scaled), q)
        dx, dxc = dx_ptr + image * dx_b, dxc_ptr + image * dxc_b
        d_map, d_grid = _places_of(t, row, column, dx_h, dx_w, dxc_h, dxc_w, WINDOW_H, WINDOW_W, C)
        _write(dx, dxc, d_map, d_grid, t, head * D, dq, D, D_TILE, T, C)
        _write(dx, dxc, d_map, d_grid, t, (A + head) * D, dk, D, D_TILE, T, C)
        _write(dx, dxc, d_map, d_grid, t, (2 * A + head) * D, dv, D, D_TILE, T, C)
    if HAS_TABLE:
        place = (tl.program_id(0) * A + head).to(tl.int64) * T * T + t[:, None] * T + t[None, :]
        tl.store(dbias_ptr + place, dbias, mask=(t < T)[:, None] & (t < T)[None, :])


@triton.jit
def _backward_of_keys(
    x_ptr, x_b, x_h, x_w, xc_ptr, xc_b, xc_h, xc_w,
    y_ptr, y_b, y_h, y_w, yc_ptr, yc_b, yc_h, yc_w,
    g_ptr, g_b, g_h, g_w, gc_ptr, gc_b, gc_h, gc_w,
    dx_ptr, dx_b, dx_h, dx_w, dxc_ptr, dxc_b, dxc_h, dxc_w,
    table_ptr, logsum_ptr, dbias_ptr, sequences, each, n_h, n_w, scale,
    HAS_TABLE: tl.constexpr, TILE: tl.constexpr, A: tl.constexpr, D: tl.constexpr,
    D_TILE: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values, from all queries of its sequence."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    keys = tl.program_id(2) * TILE + tl.arange(0, TILE)
    image = (sequence // (n_h * n_w)).to(tl.int64)
    row, column = sequence // n_w % n_h, sequence % n_w
    x, xc = x_ptr + image * x_b, xc_ptr + image * xc_b
    k_map, k_grid = _places_of(keys, row, column, x_h, x_w, xc_h, xc_w, WINDOW_H, WINDOW_W, C)
    k = _read(x, xc, k_map, k_grid, keys, (A + head) * D, D, D_TILE, T, C)
    v = _read(x, xc, k_map, k_grid, keys, (2 * A + head) * D, D, D_TILE, T, C)
    dk = tl.zeros((TILE, D_TILE), dtype=tl.float32)
    dv = tl.zeros((TILE, D_TILE), dtype=tl.float32)
    for start in range(0, T, TILE):
        t = start + tl.arange(0, TILE)
        q_map, q_grid = _places_of(t, row, column, x_h, x_w, xc_h, xc_w, WINDOW_H, WINDOW_W, C)
        q = _read(x, xc, q_map, q_grid, t, head * D, D, D_TILE, T, C)
        y_map, y_grid = _places_of(t, row, column, y_h, y_w, yc_h, yc_w, WINDOW_H, WINDOW_W, C)
        y = _read(y_ptr + image * y_b, yc_ptr + image * yc_b, y_map, y_grid, t, head * D, D, D_TILE, T, C)
        g_map, g_grid = _places_of(t, row, column, g_h, g_w, gc_h, gc_w, WINDOW_H, WINDOW_W, C)
        g = _read(g_ptr + image * g_b, gc_ptr + image * gc_b, g_map, g_grid, t, head * D, D, D_TILE, T, C)
        bias = _bias(table_ptr, head, t, keys, HAS_TABLE, TILE, WINDOW_H, WINDOW_W, C, T)
        weights = _weights(q, k, bias, _logsum(logsum_ptr, sequence, head, t, A, T), scale)
        dv += dot(tl.trans(weights.to(g.dtype)), g)
        delta = tl.sum(g.to(tl.float32) * y.to(tl.float32), axis=1)
        dlogits = weights * (dot(g, tl.trans(v)) - delta[:, None])
        dk += dot(tl.trans((dlogits * scale).to(q.dtype)), q)
    dx, dxc = dx_ptr + image * dx_b, dxc_ptr + image * dxc_b
    d_map, d_grid = _places_of(keys, row, column, dx_h, dx_w, dxc_h, dxc_w, WINDOW_H, WINDOW_W, C)
    _write(dx, dxc, d_map, d_grid, keys, (A + head) * D, dk, D, D_TILE, T, C)
    _write(dx, dxc, d_map, d_grid, keys, (2 * A + head) * D, dv, D, D_TILE, T, C)


@triton.jit
def _backward_of_queries(
    x_ptr, x_b, x_h, x_w, xc_ptr, xc_b, xc_h, xc_w,
    y_ptr, y_b, y_h, y_w, yc_ptr, yc_b, yc_h, yc_w,
    g_ptr, g_b, g_h, g_w, gc_ptr, gc_b, gc_h, gc_w,
    dx_ptr, dx_b, dx_h, dx_w, dxc_ptr, dxc_b, dxc_h, dxc_w,
    table_ptr, logsum_ptr, dbias_ptr, sequences, each, n_h, n_w, scale,
    HAS_TABLE: tl.constexpr, TILE: tl.constexpr, A: tl.constexpr, D: tl.constexpr,
    D_TILE: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries, from all keys of its sequence."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    t = tl.program_id(2) * TILE + tl.arange(0, TILE)
    image = (sequence // (n_h * n_w)).to(tl.int64)
    row, column = sequence // n_w % n_h, sequence % n_w
    x, xc = x_ptr + image * x_b, xc_ptr + image * xc_b
    q_map, q_grid = _places_of(t, row, column, x_h, x_w, xc_h, xc_w, WINDOW_H, WINDOW_W, C)
    q = _read(x, xc, q_map, q_grid, t, head * D, D, D_TILE, T, C)
    y_map, y_grid = _places_of(t, row, column, y_h, y_w, yc_h, yc_w, WINDOW_H, WINDOW_W, C)
    y = _read(y_ptr + image * y_b, yc_ptr + image * yc_b, y_map, y_grid, t, head * D, D, D_TILE, T, C)
    g_map, g_grid = _places_of(t, row, column, g_h, g_w, gc_h, gc_w, WINDOW_H, WINDOW_W, C)
    g = _read(g_ptr + image * g_b, gc_ptr + image * gc_b, g_map, g_grid, t, head * D, D, D_TILE, T, C)
    logsum = _logsum(logsum_ptr, sequence, head, t, A, T)
    delta = tl.sum(g.to(tl.float32) * y.to(tl.float32), axis=1)
    dq = tl.zeros((TILE, D_TILE), dtype=tl.float32)
    for start in range(0, T, TILE):
        keys = start + tl.arange(0, TILE)
        k_map, k_grid = _places_of(keys, row, column, x_h, x_w, xc_h, xc_w, WINDOW_H, WINDOW_W, C)
        k = _read(x, xc, k_map, k_grid, keys, (A + head) * D, D, D_TILE, T, C)
        v = _read(x, xc, k_map, k_grid, keys, (2 * A + head) * D, D, D_TILE, T, C)
        bias = _bias(table_ptr, head, t, keys, HAS_TABLE, TILE, WINDOW_H, WINDOW_W, C, T)
        weights = _weights(q, k, bias, logsum, scale)
        dlogits = weights * (dot(g, tl.trans(v)) - delta[:, None])
        dq += dot((dlogits * scale).to(k.dtype), k)
    d_map, d_grid = _places_of(t, row, column, dx_h, dx_w, dxc_h, dxc_w, WINDOW_H, WINDOW_W, C)
    _write(dx_ptr + image * dx_b, dxc_ptr + image * dxc_b, d_map, d_grid, t, head * D, dq, D, D_TILE, T, C)


@triton.jit
def _backward_of_bias(
    x_ptr, x_b, x_h, x_w, xc_ptr, xc_b, xc_h, xc_w,
    y_ptr, y_b, y_h, y_w, yc_ptr, yc_b, yc_h, yc_w,
    g_ptr, g_b, g_h, g_w, gc_ptr, gc_b, gc_h, gc_w,
    dx_ptr, dx_b, dx_h, dx_w, dxc_ptr, dxc_b, dxc_h, dxc_w,
    table_ptr, logsum_ptr, dbias_ptr, sequences, each, n_h, n_w, scale,
    HAS_TABLE: tl.constexpr, TILE: tl.constexpr, A: tl.constexpr, D: tl.constexpr,
    D_TILE: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of the bias, summed over ``each`` windows."""
    head = tl.program_id(1)
    blocks: tl.constexpr = (T + TILE - 1) // TILE
    t = tl.program_id(2) // blocks * TILE + tl.arange(0, TILE)
    keys = tl.program_id(2) % blocks * TILE + tl.arange(0, TILE)
    bias = _bias(table_ptr, head, t, keys, HAS_TABLE, TILE, WINDOW_H, WINDOW_W, C, T)
    dbias = tl.zeros((TILE, TILE), dtype=tl.float32)
    begin = tl.program_id(0) * each
    for sequence in range(begin, tl.minimum(begin + each, sequences)):
        image = (sequence // (n_h * n_w)).to(tl.int64)
        row, column = sequence // n_w % n_h, sequence % n_w
        x, xc = x_ptr + image * x_b, xc_ptr + image * xc_b
        q_map, q_grid = _places_of(t, row, column, x_h, x_w, xc_h, xc_w, WINDOW_H, WINDOW_W, C)
        k_map, k_grid = _places_of(keys, row, column, x_h, x_w, xc_h, xc_w, WINDOW_H, WINDOW_W, C)
        q = _read(x, xc, q_map, q_grid, t, head * D, D, D_TILE, T, C)
        k = _read(x, xc, k_map, k_grid, keys, (A + head) * D, D, D_TILE, T, C)
        v = _read(x, xc, k_map, k_grid, keys, (2 * A + head) * D, D, D_TILE, T, C)
        y_map, y_grid = _places_of(t, row, column, y_h, y_w, yc_h, yc_w, WINDOW_H, WINDOW_W, C)
        y = _read(y_ptr + image * y_b, yc_ptr + image * yc_b, y_map, y_grid, t, head * D, D, D_TILE, T, C)
        g_map, g_grid = _places_of(t, row, column, g_h, g_w, gc_h, gc_w, WINDOW_H, WINDOW_W, C)
        g = _read(g_ptr + image * g_b, gc_ptr + image * gc_b, g_map, g_grid, t, head * D, D, D_TILE, T, C)
        weights = _weights(q, k, bias, _logsum(logsum_ptr, sequence, head, t, A, T), scale)
        delta = tl.sum(g.to(tl.float32) * y.to(tl.float32), axis=1)
        dbias += weights * (dot(g, tl.trans(v)) - delta[:, None])
    place = (tl.program_id(0) * A + head).to(tl.int64) * T * T + t[:, None] * T + keys[None, :]
    tl.store(dbias_ptr + place, dbias, mask=(t < T)[:, None] & (keys < T)[None, :])
