"""How far a run is: what a checkpoint keeps beside weights, and what the log tells."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Sums:
    """Totals over the epoch so far, of this process; on the first process, those of a resumed run's past too."""

    updates: float = 0
    images: float = 0
    unreadable: float = 0
    seconds: float = 0
    data_seconds: float = 0
    losses: dict[str, Any] = field(default_factory=dict)
    """Sums over updates, kept where they are computed: reading them waits for the GPU."""

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of an update."""
        for name, value in losses.items():
            value = value.detach().double()
            self.losses[name] = self.losses[name] + value if name in self.losses else value

    def plain(self) -> dict[str, Any]:
        """The totals as numbers."""
        losses = {name: float(value) for name, value in self.losses.items()}
        return {**{name: value for name, value in vars(self).items() if name != "losses"}, "losses": losses}

    @classmethod
    def total(cls, parts: list[dict[str, Any]]) -> "Sums":
        """The totals over all processes, from what ``plain`` gave on each; times are those of the slowest."""
        names = sorted({name for part in parts for name in part["losses"]})
        return cls(
            updates=sum(part["updates"] for part in parts),
            images=sum(part["images"] for part in parts),
            unreadable=sum(part["unreadable"] for part in parts),
            seconds=max(part["seconds"] for part in parts),
            data_seconds=max(part["data_seconds"] for part in parts),
            losses={name: sum(part["losses"].get(name, 0.0) for part in parts) for name in names},
        )

    @classmethod
    def from_plain(cls, plain: dict[str, Any], device: torch.device) -> "Sums":
        """What ``plain`` told."""
        losses = {
            name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in plain["losses"].items()
        }
        return cls(**{**plain, "losses": losses})


@dataclass
class Progress:
    """Where a run stands, between two updates."""

    epoch: int = 0
    """Epochs that are done, evaluation included."""
    batch: int = 0
    """Batches of the present epoch that are done, on each process."""
    updates: int = 0
    """Of the weights, in all."""
    rate: float = 0.0
    """The learning rate of the last one."""
    skipped: int = 0
    """Updates left out because gradients overflowed (fp16)."""
    skipped_in_a_row: int = 0
    best: float = -math.inf
    """The best validation figure so far."""
    best_update: int = -1
    """The update it was measured after."""

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
