"""What the training loop needs to know of a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from openfastervit.data.loader import PlacedImages, Unreadable


@dataclass
class Batch:
    """Images with what is to be learned of them."""

    images: Any
    """``(B, C, H, W)``, or whatever the task's network takes."""
    targets: Any
    """Labels ``(B,)``, or whatever the task's loss takes."""
    names: Sequence[str]
    """One an image, for messages to people."""
    unreadable: Sequence[Unreadable] = field(default_factory=list)
    """Images that could not be read, and are not among ``images``."""

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device, channels_last: bool = False) -> "Batch":
        """The batch on a device; copies from pinned memory do not block."""
        layout = torch.channels_last if channels_last else torch.preserve_format
        images = _moved(self.images, device, layout)
        return Batch(images, _moved(self.targets, device, torch.preserve_format), self.names, self.unreadable)

    def pin_memory(self) -> "Batch":
        """Called by torch's loaders: page-locked memory, from where copies to a GPU are fast."""
        return Batch(_pinned(self.images), _pinned(self.targets), self.names, self.unreadable)


def _moved(value: Any, device: torch.device, layout: torch.memory_format) -> Any:
    if isinstance(value, Tensor):
        if value.ndim != 4:
            return value.to(device, non_blocking=True)
        return value.to(device, non_blocking=True, memory_format=layout)
    if isinstance(value, Mapping):
        return {key: _moved(item, device, layout) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_moved(item, device, layout) for item in value]
    return value


def _pinned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, Mapping):
        return {key: _pinned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_pinned(item) for item in value]
    return value


class Metrics(Protocol):
    """Counts over an evaluation."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Count one batch."""

    def merge(self, other: Any) -> None:
        """Add what another process counted."""

    def compute(self) -> dict[str, float]:
        """The figures, by name."""


class Task(Protocol):
    """A task: what is trained, on what, and how it is judged.

    The loop calls ``augment``, the network with ``inputs(batch)``, then ``losses``; in evaluation ``predict``, then the
    ``metrics``. To add a task, write a module in ``tasks/`` with a class that has these methods, settings for it, and a
    recipe class in ``training/recipe.py`` that joins them with the loop's settings.
    """

    name: str
    metric: str
    """The figure that tells which checkpoint is the best; more is better."""
    metric_told: str
    """How the best figure is told to people: a format for one number, such as "top-1 {:.2f} %"."""
    training_images: PlacedImages
    validation_images: PlacedImages

    def build(self) -> nn.Module:
        """The network, with its first weights, on the CPU."""

    def collate(self, samples: Sequence[Any]) -> Batch:
        """A batch from what the data sets give; called in the loader's processes."""

    def augment(self, batch: Batch) -> Batch:
        """What is done to a whole training batch, on the device. Draws from the global generators."""

    def sample(self, batch: Batch) -> Tensor:
        """The images of a batch as the network sees them, for people: ``(N, C, H, W)``, normalised.

        What is to be learned may be drawn on them. ``metadata``'s "input" tells mean and deviation.
        """

    def captions(self, batch: Batch) -> list[str]:
        """A few words on what is to be learned of each image of the sample, for people."""

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """The network's arguments."""

    def losses(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Named losses; their sum is trained on."""

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """What a network in evaluation mode makes of a batch, as the metrics take it."""

    def new_metrics(self) -> Metrics:
        """Metrics that have counted nothing."""

    def logits(self, outputs: Any) -> Tensor | None:
        """``(B, K)`` that MESA may compare with a teacher's, or None where the task has none."""

    def backbone(self, model: nn.Module) -> nn.Module:
        """The part whose batch norm may be frozen."""

    def head(self, model: nn.Module) -> nn.Module:
        """The part, or a list of the parts, that a frozen backbone leaves to be trained."""

    def metadata(self, model: nn.Module) -> dict[str, Any]:
        """Plain data for the checkpoint: what is needed to use it."""
