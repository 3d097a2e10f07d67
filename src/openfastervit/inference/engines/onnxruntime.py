"""ONNX Runtime, on CPUs and on NVIDIA's GPUs."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openfastervit.inference.engines.engine import (
    EngineError,
    Precision,
    Settings,
    check_batch,
    deployable,
)
from openfastervit.inference.graphs import save_onnx, to_onnx, to_precision


class OnnxRuntimeEngine:
    """An ONNX model, from images or 8-bit pixels to logits, in a session. See ``Engine``.

    Args:
        model: The file, or what it holds.
        precision: Of its products.
        device: "cpu", "cuda", "cuda:1".
        threads: Of the CPU; by default as many as torch uses.

    Raises:
        EngineError: If the device is not to be had, or the model does not load.
    """

    name = "onnxruntime"

    def __init__(
        self,
        model: bytes | str | os.PathLike[str],
        precision: Precision = "fp32",
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        import onnxruntime

        self.precision: Precision = precision
        self.device = torch.device(device)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL  # a chain of layers has one path
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors: the rest is about its own choices
        source = model if isinstance(model, bytes) else os.fspath(model)
        try:
            self._session: Any = onnxruntime.InferenceSession(source, options, providers=self._providers())
        except _refusals() as error:
            named = "this model" if isinstance(source, bytes) else source
            raise EngineError(f"ONNX Runtime does not take {named}: {error}") from error
        (images,) = self._session.get_inputs()
        (self._logits,) = (output.name for output in self._session.get_outputs())
        self._images: str = images.name
        self._type = torch.uint8 if images.type == "tensor(uint8)" else torch.float32
        self._channels, self._height, self._width = images.shape[1:]

    def _providers(self) -> list[Any]:
        import onnxruntime

        if self.device.type == "cpu":
            return ["CPUExecutionProvider"]
        if self.device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            return [("CUDAExecutionProvider", {"device_id": self.device.index or 0, "use_tf32": 0})]
        raise EngineError(
            f"the engine 'onnxruntime' installed here does not run on {str(self.device)!r}; for NVIDIA's GPUs install "
            "onnxruntime-gpu in the place of onnxruntime, else choose device='cpu' or an engine of torch"
        )

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        self._check(images)
        if self._session is None:
            raise EngineError(f"the engine {self.name!r} is closed")
        images = images.detach().to(self.device, self._type).contiguous()
        if self.device.type != "cpu":
            return self._on_gpu(images)
        (logits,) = self._session.run([self._logits], {self._images: images.numpy()})
        return torch.from_numpy(logits)

    def _check(self, images: Tensor) -> None:
        if self._type == torch.uint8:
            if not isinstance(images, Tensor) or images.dtype != torch.uint8:
                found = images.dtype if isinstance(images, Tensor) else type(images).__name__
                raise ValueError(f"{self.name}: this model normalises images itself: give uint8 pixels, not {found}")
            images = images.new_empty(images.shape, dtype=torch.float32, device="meta")
        height, width = self._height, self._width
        if not isinstance(height, int):  # the name of an open size
            has_size = isinstance(images, Tensor) and images.dim() == 4
            height, width = images.shape[2:] if has_size else (32, 32)
        check_batch(images, self._channels, (height, width), self.name)

    def _on_gpu(self, images: Tensor) -> Tensor:
        """From one tensor in the GPU's memory to another: nothing passes through the CPU's."""
        binding = self._session.io_binding()
        where = ("cuda", self.device.index or 0)
        kind = np.uint8 if self._type == torch.uint8 else np.float32
        binding.bind_input(self._images, *where, kind, tuple(images.shape), images.data_ptr())
        (classes,) = self._session.get_outputs()[0].shape[1:]
        logits = torch.empty(len(images), classes, device=self.device)
        binding.bind_output(self._logits, *where, np.float32, tuple(logits.shape), logits.data_ptr())
        torch.cuda.current_stream(self.device).synchronize()  # it runs on a stream of its own
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return logits

    def close(self) -> None:
        self._session = None


def _refusals() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises of a model; its errors have no common class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    return tuple(getattr(state, kind) for kind in kinds)


def build(network: nn.Module, settings: Settings) -> OnnxRuntimeEngine:
    """A network of torch's as an engine.

    Raises:
        EngineError: For int8 without calibration images.
        GraphError: If the network has no ONNX graph.
    """
    floating: Precision = "fp32" if settings.precision == "int8" else settings.precision
    graph = to_onnx(to_precision(deployable(network, settings.size).cpu(), floating), settings.size)
    if settings.precision == "int8":
        import onnx_ir

        from openfastervit.inference.quantise_onnx import quantise_onnx

        if settings.calibration is None:
            raise EngineError("the engine 'onnxruntime' needs calibration images for int8: Settings(calibration=...)")
        model = quantise_onnx(onnx_ir.to_proto(graph), settings.calibration).SerializeToString()
        return OnnxRuntimeEngine(model, settings.precision, device=settings.device, threads=settings.cores)
    with tempfile.TemporaryDirectory(prefix="openfastervit-") as folder:  # a file may have weights of any size
        path = Path(folder) / "network.onnx"
        save_onnx(graph, path)
        return OnnxRuntimeEngine(path, settings.precision, device=settings.device, threads=settings.cores)
