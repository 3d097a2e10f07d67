"""What a classifier's row measures: a call of a network on an engine."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from openfastervit.benchmarking.peers import build_network
from openfastervit.benchmarking.status import UnsupportedSizeError, is_out_of_memory
from openfastervit.benchmarking.subject import Called, Machine
from openfastervit.inference.engines import Engine, Settings, create_engine
from openfastervit.inference.engines.engine import in_channels

if TYPE_CHECKING:
    from openfastervit.benchmarking.cases import Case

CALIBRATION_IMAGES = 8
"""Random ones: what they are decides int8's ranges, not its speed."""


@contextlib.contextmanager
def open_engine(
    case: "Case", machine: Machine, create: Callable[[nn.Module, str, Settings], Engine] = create_engine
) -> Iterator[Called]:
    """A case's network on its engine, and a call of it on random images.

    Args:
        case: What is measured.
        machine: Where.
        create: What makes the engine of a network, the name in the case, and settings.

    Raises:
        UnsupportedSizeError: If the network does not take images of that size.
        EngineError: If the engine cannot be had.
    """
    network = _network(case)
    channels = in_channels(network)
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Tensor:
        return torch.randn(count, channels, *case.size, generator=generator)

    settings = Settings(
        size=case.size,
        precision=case.precision,
        batch_size=case.batch_size,
        device=machine.device,
        threads=machine.threads,
        calibration=images(CALIBRATION_IMAGES) if case.precision == "int8" else None,
    )
    with contextlib.closing(create(network, case.engine, settings)) as engine:
        batch = images(case.batch_size).to(engine.device)
        del network
        yield Called(_call(engine, batch))


def _call(engine: Engine, batch: Tensor) -> Callable[[], Tensor]:
    """One call, done when it returns."""
    if engine.device.type == "cuda":

        def call() -> Tensor:
            logits = engine(batch)
            torch.cuda.synchronize(engine.device)
            return logits

        return call
    return lambda: engine(batch)


def _network(case: "Case") -> nn.Module:
    """The network, once a pass of one image shows that it takes that size."""
    try:
        network = build_network(case.architecture, case.size, peer=case.peer, options=case.options)
        with torch.inference_mode():
            network(torch.zeros(1, in_channels(network), *case.size))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UnsupportedSizeError(str(error) or type(error).__name__) from error
    return network
