"""A network replayed from CUDA graphs: the GPU is told once what to do for a batch, and then only to do it again.

A small batch keeps a data-centre GPU busy for less time than Python takes to launch its kernels. A CUDA graph holds
all launches of a pass with the addresses that they read and write; replaying it is one launch. So images are copied to
where the graph reads, and what it wrote is copied away before the next replay writes there again.
"""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]

MOST_GRAPHS = 32
"""Batches that there are graphs of at once: a server's that meets all from 1 to 32 captures each of them once."""
WARM_UP_CALLS = 3
"""Before a capture: what a first call allocates, chooses or compiles must be over by then."""

_log = logging.getLogger(__name__)


class CaptureError(RuntimeError):
    """A pass does something that a CUDA graph cannot hold."""


class Replay(Protocol):
    """A captured pass."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` of the captured shape to what the network makes of them: overwritten by the next."""

    def close(self) -> None:
        """Let go of the graph."""


Capture = Callable[[Network, Tensor], Replay]
"""Captures a pass of a network over such images, or raises ``CaptureError``; then the network still runs."""


class GraphedNetwork:
    """A network that is captured in a CUDA graph for each batch size, at its first call, and replayed ever after.

    Where a pass cannot be captured, that is logged once, and the network runs as it is from then on.

    Args:
        network: Images ``(B, C, H, W)`` to one tensor, on the GPU, with no gradients. What it computes must follow from
            the images alone; what it reads must stay where it is.
        device: The GPU.
        dtype: What the network takes. Images of another type, device or layout are converted as they are copied in.
        layout: What the network takes.
        most: Graphs that are kept; the one that was not used for longest goes first.
        capture: Does the capturing; for tests.

    Raises:
        ValueError: If ``most`` is below 1.
    """

    def __init__(
        self,
        network: Network,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.channels_last,
        most: int = MOST_GRAPHS,
        capture: Capture | None = None,
    ) -> None:
        if most < 1:
            raise ValueError(f"most={most}: keep at least 1 graph")
        self._network: Network | None = network
        self._device, self._dtype, self._layout = device, dtype, layout
        self._most = most
        self._capture: Capture | None = CudaCapture(device) if capture is None else capture
        self._graphs: OrderedDict[tuple[int, ...], Replay] = OrderedDict()

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the images that there are graphs for, the one used last at the end."""
        return list(self._graphs)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)``, normalised, to a tensor of the caller's own: later calls leave it alone.

        Raises:
            RuntimeError: If it is closed.
        """
        if self._network is None:
            raise RuntimeError("these graphs are closed")
        shape = tuple(images.shape)
        replay = self._graphs.get(shape)
        if replay is None:
            replay = self._captured(images)
        if replay is None:
            return self._network(self._placed(images))
        self._graphs.move_to_end(shape)
        return replay(images).clone()

    def close(self) -> None:
        """Let go of graphs and network; closing twice is harmless."""
        self._let_go(keep=0)
        self._network = self._capture = None

    def _captured(self, images: Tensor) -> Replay | None:
        """A new graph for images of that shape; None where there can be none."""
        if self._capture is None:
            return None
        assert self._network is not None
        self._let_go(keep=self._most - 1)  # first, so that its memory serves the new one
        try:
            replay = self._capture(self._network, self._placed(images))
        except CaptureError as error:
            _log.warning("no CUDA graphs for this network, it runs without: %s", " ".join(str(error).split()))
            self._let_go(keep=0)
            self._capture = None
            return None
        self._graphs[tuple(images.shape)] = replay
        return replay

    def _let_go(self, *, keep: int) -> None:
        while len(self._graphs) > keep:
            _, replay = self._graphs.popitem(last=False)
            replay.close()

    def _placed(self, images: Tensor) -> Tensor:
        return images.to(self._device, self._dtype).contiguous(memory_format=self._layout)


class CudaCapture:
    """Captures passes on a GPU, on one stream and with one pool of memory for all of them. See ``Capture``.

    Graphs may share a pool because none is replayed while another one runs, and what one of them wrote has been copied
    before the next one starts.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._pool: Any = None

    def __call__(self, network: Network, images: Tensor) -> Replay:
        with torch.cuda.device(self._device):
            if self._stream is None:
                self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
            # Not of the pool: the graphs' own memory is scratch to one another.
            static = torch.empty_like(images, memory_format=torch.preserve_format).copy_(images)
            with _fastest_convolutions():
                self._warm_up(network, static)
                graph, output = self._record(network, static)
        return _CudaReplay(graph, static, output)

    def _warm_up(self, network: Network, static: Tensor) -> None:
        """Calls as the captured one will be. What they raise is the network's own error."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_CALLS):
                network(static)
        current.wait_stream(self._stream)

    def _record(self, network: Network, static: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        try:
            # Other threads, which load images, may allocate and wait meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                output = network(static)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what an operation raises that finds itself captured is its own affair
            torch.cuda.synchronize()
            raise CaptureError(str(error).strip() or type(error).__name__) from error
        finally:
            torch.cuda.set_stream(current)  # a capture that fails to end leaves its own
        return graph, output


class _CudaReplay:
    def __init__(self, graph: torch.cuda.CUDAGraph, static: Tensor, output: Tensor) -> None:
        self._graph, self._static, self._output = graph, static, output

    def __call__(self, images: Tensor) -> Tensor:
        with torch.cuda.device(self._static.device):
            self._static.copy_(images)
            self._graph.replay()
        return self._output

    def close(self) -> None:
        self._graph.reset()


@contextlib.contextmanager
def _fastest_convolutions() -> Iterator[None]:
    """Let cuDNN try its ways for a convolution and remember the fastest: a graph holds one of them for ever."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
