"""PyTorch, four ways: as the network is, folded, compiled, and packaged ahead of time.

- ``torch-eager``: the network as it is; what every other engine is compared with.
- ``torch-folded``: the folded network, without compilation: ready at once.
- ``torch-compiled``: the folded network through ``torch.compile``, its weights frozen into the code.
- ``torch-packaged``: the same compiled ahead of time, loaded from a package without tracing anything.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from openfastervit.inference.graphs import to_program


class TorchEngine:
    """A callable of PyTorch's as an engine. See ``Engine``."""

    def __init__(
        self,
        name: str,
        call: Callable[[Tensor], Tensor],
        settings: Settings,
        channels: int,
        *,
        fixed_batch: bool = False,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.name = name
        self.precision: Precision = settings.precision
        self.device = torch.device(settings.device)
        self._call: Callable[[Tensor], Tensor] | None = call
        self._settings = settings
        self._channels = channels
        self._fixed_batch = fixed_batch
        self._layout = layout

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        check_batch(images, self._channels, self._settings.size, self.name)
        if self._call is None:
            raise EngineError(f"the engine {self.name!r} is closed")
        images = images.to(self.device, DTYPES[self.precision])
        if not self._fixed_batch:
            return self._call(images.contiguous(memory_format=self._layout)).float()
        pieces = images.split(self._settings.batch_size)
        return torch.cat([self._of_batch(piece) for piece in pieces])

    def _of_batch(self, images: Tensor) -> Tensor:
        """Up to a batch by a graph that takes whole ones: nothing is compiled anew for another number of images."""
        assert self._call is not None
        missing = self._settings.batch_size - len(images)
        whole = torch.cat((images, images.new_zeros(missing, *images.shape[1:]))) if missing else images
        return self._call(whole.contiguous(memory_format=self._layout))[: len(images)].float()

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


def compiled(network: nn.Module, settings: Settings) -> TorchEngine:
    """The folded network through ``torch.compile``, for batches of ``settings.batch_size``. Compiling takes minutes."""
    call = _placed(deployable(network, settings.size), settings)
    graph = torch.compile(call, fullgraph=True, dynamic=False, options=_inductor_options(settings))
    engine = TorchEngine("torch-compiled", graph, settings, in_channels(network), fixed_batch=True)
    engine(torch.zeros(settings.batch_size, in_channels(network), *settings.size))  # compile now, not at the first call
    return engine


def packaged(network: nn.Module, settings: Settings) -> TorchEngine:
    """The folded network compiled ahead of time for any batch, then loaded from its package."""
    with tempfile.TemporaryDirectory(prefix="openfastervit-") as folder:
        path = package(network, settings, Path(folder) / "network.pt2")
        call: Any = torch._inductor.aoti_load_package(str(path))
    # The package reads memory as in tracing, whatever strides say.
    return TorchEngine("torch-packaged", call, settings, in_channels(network), layout=torch.contiguous_format)


def package(network: nn.Module, settings: Settings, path: Path, *, metadata: dict[str, str] | None = None) -> Path:
    """Write the folded network, compiled for the device of the settings, as ``path`` (``.pt2``).

    ``torch._inductor.aoti_load_package(path)`` loads it where neither this package nor its source is.
    """
    call = _placed(deployable(network, settings.size), settings)
    program = to_program(call, settings.size)
    configs: dict[str, Any] = _inductor_options(settings)
    if metadata:
        configs["aot_inductor.metadata"] = metadata
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
    return path


def _inductor_options(settings: Settings) -> dict[str, Any]:
    """Weights become constants of the code: packed for oneDNN on CPUs."""
    options: dict[str, Any] = {"freezing": True}
    if torch.device(settings.device).type == "cuda":
        options["max_autotune"] = True
    return options
