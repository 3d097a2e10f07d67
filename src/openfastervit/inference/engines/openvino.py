"""OpenVINO on CPUs: float32, bfloat16 and int8.

A batch is cut into small chunks that run side by side, one stream a core: a chunk's activations stay in a core's
cache, and no core waits for another inside a layer. An engine built for single images uses all cores for each instead.
"""

from typing import TYPE_CHECKING, Any

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
from openfastervit.inference.graphs import to_openvino
from openfastervit.inference.openvino_core import may_pin, openvino_core
from openfastervit.inference.quantise import quantise_openvino

if TYPE_CHECKING:
    import openvino

CHUNK_PIXELS = 4 * 224 * 224
"""Pixels of a chunk at most, unless a single image has more: measured best from 2 to 8 images of 224 x 224."""

_TYPES: dict[str, str] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


class OpenVINOEngine:
    """A compiled OpenVINO model. See ``Engine``.

    Args:
        model: From images ``(B, C, H, W)`` to logits, any batch; quantised for int8. It is not changed.
        settings: What it is compiled for.
        streams: Chunks that run side by side; by default one a core, but no more than images in a batch.
        convolution_kernels: Run float32 matrix products on the kernels of 1 x 1 convolutions.

    Raises:
        EngineError: If the CPU has no such arithmetic.
    """

    name = "openvino"

    def __init__(
        self,
        model: "openvino.Model",
        settings: Settings,
        *,
        streams: int | None = None,
        convolution_kernels: bool = True,
    ) -> None:
        import openvino
        import openvino.properties as properties
        import openvino.properties.hint as hint

        self.precision: Precision = settings.precision
        self.device = torch.device("cpu")
        self._channels = int(model.inputs[0].get_partial_shape()[1].get_length())
        self._size = settings.size
        streams = streams or min(settings.cores, settings.batch_size)
        height, width = settings.size
        share = -(-settings.batch_size // streams)
        self._chunk = max(1, min(share, CHUNK_PIXELS // (height * width)))
        fixed = model.clone()
        fixed.reshape([self._chunk, self._channels, height, width])
        if settings.precision == "fp32" and convolution_kernels:
            _use_convolution_kernels(fixed)
        self._compiled: Any = openvino_core().compile_model(
            fixed,
            "CPU",
            {
                properties.num_streams(): streams,
                properties.inference_num_threads(): settings.cores,
                hint.enable_cpu_pinning(): may_pin(settings.cores),
                hint.inference_precision(): getattr(openvino.Type, arithmetic(settings.precision)),
            },
        )
        self._queue: Any = openvino.AsyncInferQueue(self._compiled, streams)
        self._queue.set_callback(_keep)

    def __call__(self, images: Tensor) -> Tensor:
        check_batch(images, self._channels, self._size, self.name)
        if self._queue is None:
            raise EngineError(f"the engine {self.name!r} is closed")
        pixels = images.detach().to("cpu", torch.float32).contiguous().numpy()
        rows: list[Any] = [None] * -(-len(pixels) // self._chunk)
        for i in range(len(rows)):
            chunk = pixels[i * self._chunk : (i + 1) * self._chunk]
            if len(chunk) < self._chunk:  # the compiled model knows its batch
                rest = np.zeros((self._chunk - len(chunk), *chunk.shape[1:]), chunk.dtype)
                chunk = np.concatenate((chunk, rest))
            self._queue.start_async({0: chunk}, (rows, i, chunk), share_inputs=True)
        self._queue.wait_all()
        return torch.from_numpy(np.concatenate(rows)[: len(pixels)])

    def close(self) -> None:
        self._queue = self._compiled = None


def build(network: nn.Module, settings: Settings) -> OpenVINOEngine:
    """A network of torch's as an engine.

    Raises:
        EngineError: For int8 without calibration images.
    """
    arithmetic(settings.precision)  # before the work
    model = to_openvino(deployable(network, settings.size), settings.size)
    if settings.precision == "int8":
        if settings.calibration is None:
            raise EngineError("the engine 'openvino' needs calibration images for int8: Settings(calibration=...)")
        model = quantise_openvino(model, settings.calibration)
    return OpenVINOEngine(model, settings)


def arithmetic(precision: Precision) -> str:
    """OpenVINO's name of the type that a precision computes in; for int8, of what is not quantised.

    Raises:
        EngineError: If the CPU has no such arithmetic: OpenVINO would silently take another.
    """
    able = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "int8":
        return "bf16" if "BF16" in able else "f32"
    if precision != "fp32" and precision.upper() not in able:
        raise EngineError(f"this CPU has no {precision} arithmetic for OpenVINO; it has {', '.join(sorted(able))}")
    return _TYPES[precision]


def _keep(request: Any, place: tuple[list[Any], int, Any]) -> None:
    rows, i, _ = place
    rows[i] = request.get_output_tensor(0).data.copy()


def _use_convolution_kernels(model: "openvino.Model") -> None:
    """Let all float32 matrix products with weights run on the kernels of 1 x 1 convolutions, which are faster.

    OpenVINO gives a product another kernel where nothing element-wise follows it. A clamp at the limits of float32
    changes no finite value and is carried out inside the product.
    """
    from openvino import opset13

    limit = float(np.finfo(np.float32).max)
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.input_value(1).get_node().get_type_name() != "Constant":
            continue
        output = node.output(0)
        targets = list(output.get_target_inputs())
        if len(targets) == 1 and _adds_constant(targets[0].get_node()):
            output = targets[0].get_node().output(0)
            targets = list(output.get_target_inputs())
        if any(target.get_node().get_type_name() in ("Gelu", "Result") for target in targets):
            continue
        clamped = opset13.clamp(output, -limit, limit)
        for target in targets:
            target.replace_source_output(clamped.output(0))
    model.validate_nodes_and_infer_types()


def _adds_constant(node: Any) -> bool:
    inputs = (node.input_value(i).get_node().get_type_name() for i in range(node.get_input_size()))
    return node.get_type_name() == "Add" and "Constant" in inputs
