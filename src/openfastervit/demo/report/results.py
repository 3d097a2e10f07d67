"""All that a run found, for the report and the files beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from openfastervit.demo.digits import Digits
from openfastervit.demo.evaluate import Evaluation
from openfastervit.demo.looking import Looking
from openfastervit.demo.network import Stage
from openfastervit.demo.throughput import Timing
from openfastervit.demo.train import Epoch

PAGE = 40
"""Held-out images that are shown with their predictions, and saved as files: the first ones."""


@dataclass(frozen=True)
class Results:
    """What a run did and found."""

    digits: Digits
    evaluation: Evaluation
    """Of ``digits.held_out``, in that order."""
    epochs: Sequence[Epoch]
    planned_epochs: int
    steps_per_epoch: int
    interrupted: bool
    seed: int
    command: str
    stages: Sequence[Stage]
    parameters: int
    looking: Looking
    timings: Sequence[Timing]
    """Empty where the run was interrupted before."""
    seconds: dict[str, float]
    """How long each part took, and ``"total"``."""
    hardware: dict[str, str | int]
    versions: dict[str, str]
    finished: datetime

    @property
    def trained(self) -> str:
        """How much of the training was done, in words."""
        planned = f"{self.planned_epochs} epoch{'s' if self.planned_epochs > 1 else ''}"
        if not self.epochs:
            return f"0 of {planned}"
        last = self.epochs[-1]
        if last.steps < self.steps_per_epoch:
            return f"{last.number - 1} of {planned} and {last.steps} of {self.steps_per_epoch} steps of the next"
        return planned if last.number == self.planned_epochs else f"{last.number} of {planned}"
