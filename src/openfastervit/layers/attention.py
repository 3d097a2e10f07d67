"""Multi-head attention with an additive bias, and the switch to attention by kernels for GPUs."""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_TOKENS = 256
"""Of a sequence that kernels take; torch's attention is made for longer ones."""

_log = logging.getLogger(__name__)


class Attention(nn.Module):
    """Multi-head self-attention; logits ``q k^T / sqrt(head_dim) + bias``.

    Args:
        dim: Channels ``C``.
        num_heads: Heads; must divide ``dim``.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}; choose a divisor of dim")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)

    def _heads(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values: ``(B, N, C)`` to three of ``(B, heads, N, head_dim)``."""
        batch, tokens, channels = x.shape
        # Five axes would do as well, but OpenVINO mixes up tokens and heads there where these are equally many.
        qkv = self.qkv(x).view(batch, tokens, 3 * self.num_heads, channels // self.num_heads)
        return qkv.transpose(1, 2).chunk(3, dim=1)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(B, N, C) -> (B, N, C)`` with a bias ``(heads, N, N)``.

        Or with one ``(n, 1 or heads, 1 or N, N)``, where ``n`` divides ``B``: sequence ``b`` takes row ``b % n``.
        """
        batch, tokens, channels = x.shape
        q, k, v = self._heads(x)
        mask: Tensor | None = None
        if bias is not None:
            mask = _for_each(bias, batch).to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, channels))

    @torch.jit.unused
    def on_map(
        self,
        x: Tensor,
        carriers: Tensor | None,
        table: Tensor | None,
        *,
        window: tuple[int, int],
        carrier_size: int,
    ) -> tuple[Tensor, Tensor | None]:
        """The same inside windows of a map, together with their carriers, by kernels: see ``use_kernels``.

        Args:
            x: A map of whole windows, ``(B, n_h*h, n_w*w, C)``.
            carriers: ``(B, c*n_h, c*n_w, C)``, in row-major order over their grid, or None.
            table: Relative position bias ``(heads, 2h-1, 2w-1)``, or None.
            window: ``(h, w)``.
            carrier_size: ``c``, 0 without carriers.

        Returns:
            Map and carriers, of the same shapes.
        """
        from openfastervit.kernels.window_attention import window_attention  # where Triton may be missing

        y, u = window_attention(
            self.qkv(x),
            None if carriers is None else self.qkv(carriers),
            table,
            num_heads=self.num_heads,
            window=window,
            carrier_size=carrier_size,
        )
        return self.proj(y), None if u is None else self.proj(u)

    @torch.jit.unused
    def weights(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The attention ``forward`` pays: ``(B, heads, N, N)``, rows (queries) summing to 1. For looking at."""
        q, k, _ = (part.float() for part in self._heads(x))
        logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if bias is not None:
            logits = logits + _for_each(bias, len(x)).float()
        return logits.softmax(dim=-1)


def _for_each(bias: Tensor, batch: int) -> Tensor:
    """A bias with an axis for the sequences: of one entry where all share it, else of ``batch``."""
    if bias.dim() == 3:
        return bias.unsqueeze(0)
    return bias if bias.shape[0] == 1 else bias.repeat(batch // bias.shape[0], 1, 1, 1)


# --- The switch -----------------------------------------------------------------------------------------------------


def use_kernels(module: nn.Module, enabled: bool = True) -> int:
    """Let hierarchical attention run on Triton kernels, forward and backward, on GPUs that have them.

    Tokens and carriers then stay where they lie: nothing is cut into windows or joined. Results differ by rounding
    alone. Where Triton or the chip is missing the plain path goes on, which one line in the log says; so it does in
    float64, with masked padding, in TorchScript and in exported graphs.

    Args:
        module: A network, or a part of one. Changed in place; copies keep the choice.
        enabled: False for the plain path.

    Returns:
        How many stages of attention were switched.
    """
    # Compiled graphs take its answer as it is. Said here, since saying it imports the compiler, which takes a second.
    torch.compiler.assume_constant_result(has_kernels)
    stages = [stage for stage in module.modules() if isinstance(getattr(stage, "kernels", None), bool)]
    for stage in stages:
        stage.kernels = enabled  # type: ignore[assignment]
    return len(stages)


def has_kernels(device: str) -> bool:
    """Whether kernels run on a device; where they do not, the log has said so once."""
    return _has_kernels(device)


@functools.lru_cache
def _has_kernels(device: str) -> bool:
    from openfastervit.kernels import unavailable

    reason = unavailable(device)
    if reason is not None:
        _log.warning("attention without kernels: %s", reason)
    return reason is None
