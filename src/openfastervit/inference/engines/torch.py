"""PyTorch, four ways: as the network is, folded, compiled, and packaged ahead of time.

- ``torch-eager``: the network as it is; what every other engine is compared with.
- ``torch-folded``: the folded network, without compilation: ready at once.
- ``torch-compiled``: the folded network through ``torch.compile``, its weights frozen into the code.
- ``torch-packaged``: the same compiled ahead of time, loaded from a package without tracing anything.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from openfastervit.inference import onednn
from openfastervit.inference.engines.engine import (
    DTYPES,
    EngineError,
    Precision,
    Settings,
    check_batch,
    deployable,
    in_channels,
)


class TorchEngine:
    """A callable of PyTorch's as an engine. See ``Engine``."""

    def __init__(
        self, name: str, call: Callable[[Tensor], Tensor], settings: Settings, channels: int, *, pad: bool = False
    ) -> None:
        self.name = name
        self.precision: Precision = settings.precision
        self.device = torch.device(settings.device)
        self._call: Callable[[Tensor], Tensor] | None = call
        self._settings = settings
        self._channels = channels
        self._pad = pad

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        check_batch(images, self._channels, self._settings.size, self.name)
        if self._call is None:
            raise EngineError(f"the engine {self.name!r} is closed")
        count = len(images)
        images = images.to(self.device, DTYPES[self.precision])
        if self._pad and count < self._settings.batch_size:  # a compiled graph knows its batch: none is traced anew
            images = torch.cat((images, images.new_zeros(self._settings.batch_size - count, *images.shape[1:])))
        images = images.contiguous(memory_format=torch.channels_last)
        return self._call(images)[:count].float()

    def close(self) -> None:
        self._call = None


def _placed(network: nn.Module, settings: Settings) -> nn.Module:
    return network.to(settings.device, DTYPES[settings.precision])


def eager(network: nn.Module, settings: Settings) -> TorchEngine:
    """The network as it is, in evaluation mode, its weights channels-last."""
    plain = copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return TorchEngine("torch-eager", _placed(plain, settings), settings, in_channels(network))


def folded(network: nn.Module, settings: Settings) -> TorchEngine:
    """The network made ready by ``deployable``; on CPUs its products are oneDNN's."""
    call = _placed(deployable(network, settings.size), settings)
    if torch.device(settings.device).type == "cpu" and onednn.available(DTYPES[settings.precision]):
        call = onednn.pack(call)
    return TorchEngine("torch-folded", call, settings, in_channels(network))
