"""The exponential moving average of a network's weights."""

import copy

import torch
from torch import Tensor, nn

from openfastervit.training.sharding import whole


class WeightAverage:
    """A copy of a network whose weights and statistics follow the trained ones.

    The copy is whole on each process, also where the trained network is sharded: it can be evaluated and saved as it
    is, and teaches (MESA) without communication.

    Args:
        model: The network, not yet wrapped or sharded.
        decay: Of the average, per update.
        warmup: Let the decay grow with the updates, ``min(decay, (1 + t) / (10 + t))``: short runs then forget their
            first weights.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = False) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.warmup = decay, warmup

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Move towards the trained network, which has seen so many updates."""
        decay = min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay
        trained = model.state_dict()
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, average in self.module.state_dict().items():
            value = whole(trained[name])
            if average.is_floating_point():
                averages.append(average)
                values.append(value.to(average.dtype))
            else:
                average.copy_(value)  # counts
        torch._foreach_lerp_(averages, values, 1 - decay)
