"""Attention inside windows, where carriers and tokens lie: one launch for all windows of a batch.

A window attends over its ``K = c * c`` carriers and its ``h * w`` tokens. Neither is moved: the tokens are read from a
map in the map's own order, the carriers from their grid in row-major order, and results go back to the same places. So
there is no cutting into windows, no joining of carriers and tokens, and no bias of ``T x T``: the relative position
bias is read from its table of ``(2h-1) x (2w-1)`` offsets. Softmax is in float32 (paper, section 3.4; Swin V2's bias,
arXiv 2111.09883). The backward pass computes the weights anew from the logarithms of their sums, as in
FlashAttention-2 (arXiv 2307.08691).

Shapes: ``B`` images, ``A`` heads of ``D`` channels, ``n_h x n_w`` windows of ``h x w`` tokens, ``c`` carriers along
each axis of a window, ``T = c*c + h*w`` tokens in a sequence.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openfastervit.kernels.window_attention_kernels import Layout, launch, launch_backward

# --- The operation --------------------------------------------------------------------------------------------------


def window_attention(
    qkv: Tensor,
    carriers: Tensor | None,
    table: Tensor | None,
    *,
    num_heads: int,
    window: tuple[int, int],
    carrier_size: int = 0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of each window over its carriers and tokens; differentiable in all three tensors.

    Args:
        qkv: Queries, keys and values of a map of whole windows, ``(B, n_h*h, n_w*w, 3*A*D)``, laid out as
            ``(3, A, D)``; float32, bfloat16 or float16. Any strides, but that channels lie side by side.
        carriers: Those of the carriers, ``(B, c*n_h, c*n_w, 3*A*D)``, in row-major order over their grid; or None.
        table: The relative position bias of each head and offset, ``(A, 2h-1, 2w-1)``, in float32; None for no bias.
            Carriers have none.
        num_heads: ``A``.
        window: ``(h, w)``.
        carrier_size: ``c``; 0 where ``carriers`` is None.
        scale: Of the logits, ``1 / sqrt(D)`` by default.

    Returns:
        What the tokens gather, ``(B, n_h*h, n_w*w, A*D)``, and what the carriers do, ``(B, c*n_h, c*n_w, A*D)``, or
        None.

    Raises:
        ValueError: If shapes do not go together, or the type is another.
    """
    layout = layout_of(qkv, carriers, table, num_heads=num_heads, window=window, carrier_size=carrier_size)
    scale = layout.width**-0.5 if scale is None else scale
    sizes = [num_heads, *window, carrier_size]
    out, carriers_out, _ = _operation(qkv, carriers, table, sizes, scale)
    return out, None if carriers is None else carriers_out


def window_attention_reference(
    qkv: Tensor,
    carriers: Tensor | None,
    table: Tensor | None,
    *,
    num_heads: int,
    window: tuple[int, int],
    carrier_size: int = 0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The same in plain torch, of any type: cut, join, attend with a bias of ``T x T``, split, put back."""
    layout = layout_of(qkv, carriers, table, num_heads=num_heads, window=window, carrier_size=carrier_size, plain=True)
    x = _cut(qkv, window, layout.counts)
    if carriers is not None:
        x = torch.cat((_cut(carriers, (carrier_size, carrier_size), layout.counts), x), dim=1)
    q, k, v = x.unflatten(-1, (3, num_heads, layout.width)).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-2, -1) * (layout.width**-0.5 if scale is None else scale)
    if table is not None:
        bias = table.flatten(1)[:, offsets(window, table.device)]
        logits = logits + F.pad(bias, (layout.carriers, 0, layout.carriers, 0)).to(logits.dtype)
    y = (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    out = _joined(y[:, layout.carriers :], window, layout.counts)
    if carriers is None:
        return out, None
    return out, _joined(y[:, : layout.carriers], (carrier_size, carrier_size), layout.counts)


def layout_of(
    qkv: Tensor,
    carriers: Tensor | None,
    table: Tensor | None,
    *,
    num_heads: int,
    window: tuple[int, int],
    carrier_size: int,
    plain: bool = False,
) -> Layout:
    """How the tensors lie, once they go together; ``ValueError`` where they do not."""
    types = (torch.float32, torch.bfloat16, torch.float16)
    if not plain and qkv.dtype not in types:
        raise ValueError(f"qkv is {qkv.dtype}; kernels take float32, bfloat16 and float16, use the plain path")
    if qkv.dim() != 4 or num_heads < 1 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(f"qkv must be (B, H, W, 3 * {num_heads} heads * D), not {list(qkv.shape)}")
    (h, w), (height, width) = window, (qkv.shape[1], qkv.shape[2])
    if min(window) < 1 or height % h or width % w:
        raise ValueError(f"the map is {height} x {width}, not whole windows of {h} x {w}; pad it")
    counts = (height // h, width // w)
    if (carriers is None) != (carrier_size == 0):
        raise ValueError(f"carrier_size={carrier_size}, but carriers are {'not ' if carriers is None else ''}given")
    if carriers is not None:
        expected = (qkv.shape[0], carrier_size * counts[0], carrier_size * counts[1], qkv.shape[3])
        if tuple(carriers.shape) != expected or carriers.dtype != qkv.dtype:
            raise ValueError(
                f"carriers must be {list(expected)} of {qkv.dtype}, not {list(carriers.shape)} of {carriers.dtype}"
            )
    if table is not None and tuple(table.shape) != (num_heads, 2 * h - 1, 2 * w - 1):
        raise ValueError(f"table must be {[num_heads, 2 * h - 1, 2 * w - 1]}, not {list(table.shape)}")
    return Layout(num_heads, qkv.shape[-1] // (3 * num_heads), window, counts, carrier_size)


def _cut(x: Tensor, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    x = x.unflatten(2, (counts[1], window[1])).unflatten(1, (counts[0], window[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _joined(x: Tensor, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    x = x.unflatten(0, (-1, *counts)).unflatten(3, window)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def offsets(window: tuple[int, int], device: torch.device) -> Tensor:
    """For each (query, key) of a window the place of their offset in a table: ``(h*w, h*w)``."""
    rows, columns = (torch.arange(side, device=device) for side in window)
    row = rows[:, None] - rows[None, :] + window[0] - 1
    column = columns[:, None] - columns[None, :] + window[1] - 1
    index = row[:, None, :, None] * (2 * window[1] - 1) + column[None, :, None, :]
    return index.flatten(0, 1).flatten(1)


# --- As operations of torch: what compiles, traces and differentiates does not look inside --------------------------


@torch.library.custom_op("openfastervit::window_attention", mutates_args=())
def _operation(
    qkv: Tensor, carriers: Tensor | None, table: Tensor | None, sizes: list[int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Results of tokens and carriers, and the logarithm of each softmax's sum, ``(B*n, A, T)``, for the way back."""
    layout = _layout(qkv, sizes)
    out, carriers_out, logsum = _empty_results(qkv, carriers, layout)
    launch(qkv, carriers, table, out, carriers_out if carriers is not None else None, layout, scale, logsum=logsum)
    return out, carriers_out, logsum


@_operation.register_fake
def _(
    qkv: Tensor, carriers: Tensor | None, table: Tensor | None, sizes: list[int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(qkv, carriers, _layout(qkv, sizes))


def _empty_results(qkv: Tensor, carriers: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    channels = layout.heads * layout.width
    out = qkv.new_empty((*qkv.shape[:3], channels))
    grid = (0,) if carriers is None else (*carriers.shape[:3], channels)
    sequences = qkv.shape[0] * layout.counts[0] * layout.counts[1]
    logsum = qkv.new_empty((sequences, layout.heads, layout.tokens), dtype=torch.float32)
    return out, qkv.new_empty(grid), logsum


def _layout(qkv: Tensor, sizes: list[int]) -> Layout:
    heads, h, w, carrier_size = sizes
    counts = (qkv.shape[1] // h, qkv.shape[2] // w)
    return Layout(heads, qkv.shape[3] // (3 * heads), (h, w), counts, carrier_size)


@torch.library.custom_op("openfastervit::window_attention_backward", mutates_args=())
def _backward_operation(
    grad: Tensor,
    carriers_grad: Tensor | None,
    qkv: Tensor,
    carriers: Tensor | None,
    table: Tensor | None,
    out: Tensor,
    carriers_out: Tensor,
    logsum: Tensor,
    sizes: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``qkv``, of ``carriers``, and of the table."""
    layout = _layout(qkv, sizes)
    results = _empty_gradients(qkv, carriers, table)
    bias = launch_backward(
        (grad, carriers_grad), (qkv, carriers), (out, carriers_out), results[:2], table, logsum, layout, scale
    )
    if table is not None and bias is not None:
        k = layout.carriers
        of_offsets = results[2].flatten(1).zero_()
        of_offsets.index_add_(1, offsets(layout.window, table.device).flatten(), bias[:, k:, k:].flatten(1))
    return results


@_backward_operation.register_fake
def _(
    grad: Tensor,
    carriers_grad: Tensor | None,
    qkv: Tensor,
    carriers: Tensor | None,
    table: Tensor | None,
    out: Tensor,
    carriers_out: Tensor,
    logsum: Tensor,
    sizes: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(qkv, carriers, table)


def _empty_gradients(qkv: Tensor, carriers: Tensor | None, table: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return (
        qkv.new_empty(qkv.shape),
        qkv.new_empty((0,) if carriers is None else carriers.shape),
        qkv.new_empty((0,) if table is None else table.shape, dtype=torch.float32),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    qkv, carriers, table, ctx.sizes, ctx.scale = inputs
    ctx.save_for_backward(qkv, carriers, table, *output)


def _gradients(ctx: Any, grad: Tensor, carriers_grad: Tensor, logsum_grad: Tensor) -> tuple[Any, ...]:
    qkv, carriers, table, out, carriers_out, logsum = ctx.saved_tensors
    of_carriers = None if carriers is None else carriers_grad
    of_qkv, of_carriers, of_table = _backward_operation(
        grad, of_carriers, qkv, carriers, table, out, carriers_out, logsum, ctx.sizes, ctx.scale
    )
    return (
        of_qkv,
        None if carriers is None else of_carriers,
        None if table is None else of_table.to(table.dtype),
        None,
        None,
    )


_operation.register_autograd(_gradients, setup_context=_setup_context)
