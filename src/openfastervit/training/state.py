"""A run's whole state, to and from a checkpoint: weights, their average, optimiser, progress.

Weights are safetensors files that any tool reads; the rest is a torch file of plain data and tensors, read without
unpickling code. What is saved is whole, whatever the network is spread over, and is loaded into any way of spreading.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from openfastervit.models.checkpoints import write_safetensors
from openfastervit.training.averaging import WeightAverage
from openfastervit.training.parallel import Processes, full_state, load_full_state
from openfastervit.training.progress import Progress, Sums

WEIGHTS, AVERAGE, STATE = "model.safetensors", "ema.safetensors", "training_state.pt"
"""Files of a checkpoint."""


@dataclass
class RunState:
    """What changes as a run goes on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    processes: Processes
    progress: Progress
    sums: Sums
    step_images: int
    """Images of one step over all processes: what places in the order of an epoch are counted in."""
    accumulate: int
    """Steps of one update."""
    images: int
    """Training images: what the order of an epoch is drawn from."""

    @property
    def result(self) -> str:
        """The file of a checkpoint that holds the network to use."""
        return WEIGHTS if self.average is None else AVERAGE

    def files(self, metadata: str) -> dict[str, Callable[[Path], None]]:
        """Writers of a checkpoint's files; to be called on all processes, of use on the first.

        Args:
            metadata: Text that goes into the safetensors files.
        """
        weights, optimizer = full_state(self.model, self.optimizer)
        parts = self.processes.gather([self.sums.plain()])
        self.sums = Sums.from_plain(Sums.total(parts).plain(), self.processes.device)
        scaler = self.processes.accelerator.scaler
        state = {
            "optimizer": optimizer,
            "scaler": None if scaler is None else scaler.state_dict(),
            "progress": self.progress.state(),
            "sums": self.sums.plain(),
            "processes": self.processes.count,
            "step_images": self.step_images,
            "images": self.images,
            "update_images": self.step_images * self.accumulate,
        }
        if not self.processes.is_main:
            self.sums = Sums()  # the first process has them all
        files: dict[str, Callable[[Path], None]] = {
            WEIGHTS: lambda path: write_safetensors(weights, path, metadata),
            STATE: lambda path: torch.save(state, path),
        }
        if self.average is not None:
            averages = self.average.module.state_dict()
            files[AVERAGE] = lambda path: write_safetensors(averages, path, metadata)
        return files

    def not_finite(self) -> str | None:
        """The name of a weight or statistic, in this process's share, that has NaN or infinity in it."""
        values = {name: value for name, value in self.model.state_dict().items() if value.is_floating_point()}
        shares = [value.to_local() if isinstance(value, DTensor) else value for value in values.values()]
        verdicts = torch.stack([share.isfinite().all() for share in shares]).tolist()
        return next((name for name, good in zip(values, verdicts, strict=True) if not good), None)

    def load(self, checkpoint: Path | None) -> None:
        """Take the state from a checkpoint's folder, which the first process alone reads; None elsewhere.

        Raises:
            ValueError: If an update, or the data, had another number of images.
        """
        state: dict[str, Any] = {}
        weights: dict[str, Tensor] = {}
        averages: dict[str, Tensor] = {}
        if checkpoint is not None:
            state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
            weights = safetensors.torch.load_file(checkpoint / WEIGHTS)
            if self.average is not None:
                averages = safetensors.torch.load_file(checkpoint / AVERAGE)
        shared = self.processes.broadcast({key: value for key, value in state.items() if key != "optimizer"})
        here = self.step_images * self.accumulate
        if shared["update_images"] != here:
            raise ValueError(
                f"an update of this run has {shared['update_images']} images (batch_size x processes x accumulate), "
                f"here it would have {here}; start as many processes as before, or change --batch-size or --accumulate"
            )
        if shared["images"] != self.images:
            raise ValueError(
                f"the run was started with {shared['images']} training images, here are {self.images}; give the same "
                "data, or start a new run from its last.safetensors with weights"
            )
        load_full_state(self.processes, self.model, self.optimizer, weights, state.get("optimizer", {}))
        if self.average is not None:
            averages = self.processes.broadcast_tensors(averages, self.average.module.state_dict())
            self.average.module.load_state_dict(averages)
        scaler = self.processes.accelerator.scaler
        if scaler is not None and shared["scaler"] is not None:
            scaler.load_state_dict(shared["scaler"])
        self.progress = Progress(**shared["progress"])
        self.progress.batch = self.progress.batch * shared["step_images"] // self.step_images
        if self.processes.is_main:
            # Means are over the updates of all processes: what is done weighs as if as many had done it.
            past = dict(shared["sums"])
            more = self.processes.count / shared["processes"]
            past["updates"] *= more
            past["losses"] = {name: value * more for name, value in past["losses"].items()}
            self.sums = Sums.from_plain(past, self.processes.device)
