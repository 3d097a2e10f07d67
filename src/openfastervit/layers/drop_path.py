"""Stochastic depth (arXiv 1603.09382)."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a residual branch for some samples of the first axis in training, and scale the rest by ``1 / keep``."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        if not 0 <= drop_prob < 1:
            raise ValueError(f"drop path rate {drop_prob} is outside [0, 1)")
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """``(B, ...) -> (B, ...)``: one draw for each index of the first axis."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        return x * self.draw([x.shape[0]] + [1] * (x.dim() - 1), x)

    def draw(self, shape: list[int], like: Tensor) -> Tensor:
        """0 for what is dropped, ``1 / keep`` for what stays, of a shape."""
        keep = 1 - self.drop_prob
        return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(keep) / keep

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"
