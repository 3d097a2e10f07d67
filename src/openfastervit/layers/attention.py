"""Multi-head attention with an additive bias."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
