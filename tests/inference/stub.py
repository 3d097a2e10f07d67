"""An engine that costs next to nothing, so that what is around it can be tested by the hundred thousand.

``python -m tests.inference.stub`` is the command ``fastervit`` with it.
"""

import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import openfastervit_cli
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


class Measured(Stub):
    """Writes the resident memory of this process, in bytes, to a file: a line for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self._file = Path(os.environ["STUB_MEMORY"]).open("w", buffering=1)  # noqa: SIM115

    def __call__(self, images: Tensor) -> Tensor:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self._file.write(f"{pages * os.sysconf('SC_PAGE_SIZE')}\n")
        return super().__call__(images)


def build_measured(network: nn.Module, settings: Settings) -> Stub:
    return Measured()


def register() -> None:
    """Put the engines into the table."""
    ENGINES["stub"] = EngineKind("tests.inference.stub:build", ("fp32", "int8"))
    ENGINES["stub-slow"] = EngineKind("tests.inference.stub:build_slow", ("fp32",))
    ENGINES["stub-measured"] = EngineKind("tests.inference.stub:build_measured", ("fp32",))


if __name__ == "__main__":
    register()
    sys.exit(openfastervit_cli.main())
