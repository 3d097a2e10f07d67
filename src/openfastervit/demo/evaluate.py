"""What the network makes of images it never saw."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BATCH = 120


@dataclass(frozen=True)
class Evaluation:
    """Predictions for labelled images."""

    labels: NDArray[np.int64]
    """``(n,)``."""
    probabilities: NDArray[np.float64]
    """``(n, classes)``, rows summing to 1."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """``(n,)``: the likeliest class."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidence(self) -> NDArray[np.float64]:
        """``(n,)``: the probability of the predicted class."""
        return self.probabilities.max(axis=1)

    @property
    def wrong(self) -> NDArray[np.int64]:
        """Positions of the images read wrongly, the most confident mistakes first."""
        found = np.flatnonzero(self.predicted != self.labels)
        return found[np.argsort(-self.confidence[found], kind="stable")]

    @property
    def top1(self) -> float:
        """Share of images read correctly."""
        return 1 - len(self.wrong) / len(self.labels)

    def confusion(self) -> NDArray[np.int64]:
        """``(classes, classes)``: how often the digit of a row was read as that of a column."""
        classes = self.probabilities.shape[1]
        pairs = np.bincount(self.labels * classes + self.predicted, minlength=classes**2)
        return pairs.reshape(classes, classes)

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval for ``top1``: what so few images can tell of the network."""
        n, p, z = len(self.labels), self.top1, 1.96
        centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return max(0.0, centre - half), min(1.0, centre + half)


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: NDArray[np.int64]) -> Evaluation:
    """Predict images ``(n, 1, H, W)``; the model must be in evaluation mode."""
    logits = torch.cat([model(batch) for batch in images.split(BATCH)])
    return Evaluation(labels, logits.double().softmax(dim=1).numpy())
