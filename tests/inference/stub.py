"""An engine that costs next to nothing, so that what is around it can be tested by the hundred thousand."""

import time

import torch
from torch import Tensor, nn

from openfastervit.inference.engines import ENGINES, EngineKind, Precision, Settings


class Stub:
    """Logits of three classes: the means of the colours, whatever the network says."""

    name = "stub"
    precision: Precision = "fp32"
    device = torch.device("cpu")

    def __init__(self, pause: float = 0.0) -> None:
        self.batches: list[int] = []
        self.closed = False
        self._pause = pause

    def __call__(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        time.sleep(self._pause)
        return images.mean(dim=(2, 3)) * torch.tensor([1.0, 2.0, 3.0])

    def close(self) -> None:
        self.closed = True


def build(network: nn.Module, settings: Settings) -> Stub:
    return Stub()


def build_slow(network: nn.Module, settings: Settings) -> Stub:
    """One that gives a test the time to end the process in the middle."""
    return Stub(pause=0.02)


def register() -> None:
    """Put the engines ``stub`` and ``stub-slow`` into the table."""
    ENGINES["stub"] = EngineKind("tests.inference.stub:build", ("fp32", "int8"))
    ENGINES["stub-slow"] = EngineKind("tests.inference.stub:build_slow", ("fp32",))
