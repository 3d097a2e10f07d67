"""PyTorch, six ways: as the network is, folded, from CUDA graphs, with our kernels, compiled, packaged ahead of time.

- ``torch-eager``: the network as it is; what every other engine is compared with.
- ``torch-folded``: the folded network, without compilation: ready at once.
- ``torch-graphed``: the folded network replayed from CUDA graphs.
- ``torch-kernels``: the same with this project's Triton kernels.
- ``torch-compiled``: the folded network through ``torch.compile``, its weights frozen into the code; on GPUs with
  kernels chosen by measuring, replayed from CUDA graphs.
- ``torch-packaged``: the same compiled ahead of time, loaded from a package without tracing anything.
"""

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from openfastervit.inference import float8, onednn
from openfastervit.inference.cuda_graphs import GraphedNetwork
from openfastervit.inference.engines.engine import (
    EngineError,
    Precision,
    Settings,
    check_batch,
    deployable,
    in_channels,
    working_type,
)
from openfastervit.inference.fold import FoldedFasterViT
from openfastervit.inference.graphs import to_program
from openfastervit.kernels import unavailable
from openfastervit.models import FasterViT


class TorchEngine:
    """A callable of PyTorch's as an engine. See ``Engine``.

    Args:
        name: Of the engine.
        call: Images to logits. A ``GraphedNetwork`` takes images as they come, others in the engine's type and layout.
        settings: What it is built for.
        channels: Of the images.
        fixed_batch: Whether it takes whole batches alone.
        layout: Of the images that it takes.
    """

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
        with _no_tf32(self._settings):
            if not self._fixed_batch:
                return self._logits(images)
            return torch.cat([self._of_batch(piece) for piece in images.split(self._settings.batch_size)])

    def _logits(self, images: Tensor) -> Tensor:
        assert self._call is not None
        if isinstance(self._call, GraphedNetwork):
            return self._call(images)
        images = images.to(self.device, working_type(self.precision))
        return self._call(images.contiguous(memory_format=self._layout)).float()

    def _of_batch(self, images: Tensor) -> Tensor:
        """Up to a batch by a graph that takes whole ones: nothing is compiled anew for another number of images."""
        missing = self._settings.batch_size - len(images)
        whole = torch.cat((images, images.new_zeros(missing, *images.shape[1:]))) if missing else images
        return self._logits(whole)[: len(images)]

    def close(self) -> None:
        if isinstance(self._call, GraphedNetwork):
            self._call.close()
        self._call = None


def _placed(network: nn.Module, settings: Settings) -> nn.Module:
    """A network on its device, in its precision.

    Raises:
        EngineError: If it has not that precision, or the GPU has not.
    """
    if settings.precision != "fp8":
        return network.to(settings.device, working_type(settings.precision))
    missing = float8.unavailable(settings.device)
    if missing is not None and torch.device(settings.device).type != "cpu":  # there it is emulated, for measuring
        raise EngineError(f"{missing}; choose bf16")
    try:
        return float8.to_float8(network.to(settings.device, working_type(settings.precision)))
    except ValueError as error:
        raise EngineError(str(error)) from error


def eager(network: nn.Module, settings: Settings) -> TorchEngine:
    """The network as it is, in evaluation mode, its weights channels-last."""
    plain = copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return TorchEngine("torch-eager", _placed(plain, settings), settings, in_channels(network))


def folded(network: nn.Module, settings: Settings) -> TorchEngine:
    """The network made ready by ``deployable``; on CPUs its products are oneDNN's."""
    call = _placed(deployable(network, settings.size), settings)
    if torch.device(settings.device).type == "cpu" and onednn.available(working_type(settings.precision)):
        call = onednn.pack(call)
    return TorchEngine("torch-folded", call, settings, in_channels(network))


def graphed(network: nn.Module, settings: Settings) -> TorchEngine:
    """The folded network from CUDA graphs, one for each batch size that comes; the settings' is captured now.

    Raises:
        EngineError: If there is no GPU, or it has not that precision.
    """
    _require_gpu("torch-graphed", settings)
    call = _placed(deployable(network, settings.size), settings)
    return _from_graphs("torch-graphed", call, settings, in_channels(network))


def kernels(network: nn.Module, settings: Settings) -> TorchEngine:
    """The folded network with this project's kernels, from CUDA graphs; in Triton's interpreter without those.

    Raises:
        EngineError: If kernels cannot run on the device, the network is another's, or the GPU has not that precision.
    """
    missing = unavailable(settings.device)
    if missing is not None:
        raise EngineError(f"the engine 'torch-kernels' is not to be had: {missing}")
    if not isinstance(network, FasterViT):
        raise EngineError(
            f"the engine 'torch-kernels' runs a FasterViT, this is a {type(network).__name__}; choose torch-graphed"
        )
    from openfastervit.inference.kernel_network import with_kernels  # imports Triton

    call = _placed(with_kernels(cast(FoldedFasterViT, deployable(network, settings.size))), settings)
    if torch.device(settings.device).type == "cuda":
        return _from_graphs("torch-kernels", call, settings, in_channels(network))
    return TorchEngine("torch-kernels", call, settings, in_channels(network))


def _require_gpu(engine: str, settings: Settings) -> None:
    if torch.device(settings.device).type != "cuda" or not torch.cuda.is_available():
        raise EngineError(
            f"the engine {engine!r} runs on NVIDIA's GPUs, and {settings.device!r} is none that torch sees here; "
            "choose torch-folded"
        )


def _from_graphs(
    name: str, network: Callable[[Tensor], Tensor], settings: Settings, channels: int, *, fixed_batch: bool = False
) -> TorchEngine:
    """An engine that replays a network, with a graph for the settings' batch."""
    device, dtype = torch.device(settings.device), working_type(settings.precision)
    graphs = GraphedNetwork(lambda images: network(images).float(), device=device, dtype=dtype)
    engine = TorchEngine(name, graphs, settings, channels, fixed_batch=fixed_batch)
    engine(torch.zeros(settings.batch_size, channels, *settings.size))
    return engine


def compiled(network: nn.Module, settings: Settings) -> TorchEngine:
    """The folded network through ``torch.compile``, for batches of ``settings.batch_size``. Compiling takes minutes.

    On GPUs it is what ``mode="max-autotune"`` makes of it. The CUDA graph is captured here and not by Inductor, whose
    graphs can be called from the thread alone that compiled them.
    """
    call = _placed(deployable(network, settings.size), settings)
    graph = torch.compile(call, fullgraph=True, dynamic=False, options=_inductor_options(settings))
    # Compiled now, not at the first call.
    if torch.device(settings.device).type == "cuda":
        return _from_graphs("torch-compiled", graph, settings, in_channels(network), fixed_batch=True)
    engine = TorchEngine("torch-compiled", graph, settings, in_channels(network), fixed_batch=True)
    engine(torch.zeros(settings.batch_size, in_channels(network), *settings.size))
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


@contextlib.contextmanager
def _no_tf32(settings: Settings) -> Iterator[None]:
    """On GPUs torch lets convolutions in float32 round their inputs to 10 bits, unless it is told not to.

    An engine in fp32 is compared with others to the seventh digit, and computes in float32.
    """
    if settings.precision != "fp32" or torch.device(settings.device).type != "cuda":
        yield
        return
    try:
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # set operation by operation, by somebody who knows why: left so
        yield
        return
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
