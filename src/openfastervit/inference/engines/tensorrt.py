"""TensorRT, on NVIDIA's GPUs: an ONNX graph built into a plan for the GPU at hand."""

from typing import Any

import torch
from torch import Tensor, nn

from openfastervit.inference.engines.engine import (
    EngineError,
    Precision,
    Settings,
    check_batch,
    deployable,
    require,
)
from openfastervit.inference.graphs import to_onnx, to_precision

LARGEST_BATCH = 256
"""Of a plan, unless it is built for a larger one: engines cut what is larger into pieces."""


class TensorRTEngine:
    """A plan, from images or 8-bit pixels of one size to logits. See ``Engine``.

    Args:
        plan: What ``build_plan`` made, on a GPU of this kind and with this version of TensorRT: plans fit no other.
        precision: Of its products.
        device: "cuda" or "cuda:1".

    Raises:
        EngineError: If TensorRT or the GPU is not to be had, or the plan is for another.
    """

    name = "tensorrt"

    def __init__(self, plan: bytes, precision: Precision, *, device: str = "cuda") -> None:
        require("tensorrt", "tensorrt", ["tensorrt"])
        import tensorrt

        self.precision: Precision = precision
        self.device = _gpu(device)
        with torch.cuda.device(self.device):
            self._runtime: Any = tensorrt.Runtime(_logger())
            self._plan: Any = self._runtime.deserialize_cuda_engine(plan)
            if self._plan is None:
                raise EngineError(
                    f"this plan does not load with TensorRT {tensorrt.__version__} on "
                    f"{torch.cuda.get_device_name(self.device)}: it was built for another; export it again here"
                )
            self._context: Any = self._plan.create_execution_context()
        self._images, self._logits = (self._plan.get_tensor_name(i) for i in range(2))
        pixels = self._plan.get_tensor_dtype(self._images) == tensorrt.uint8
        self._type = torch.uint8 if pixels else torch.float32
        _, self._channels, height, width = self._plan.get_tensor_shape(self._images)
        self._size = (height, width)
        self._classes: int = self._plan.get_tensor_shape(self._logits)[1]
        self._most: int = self._plan.get_tensor_profile_shape(self._images, 0)[2][0]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        if self._type == torch.uint8:
            if not isinstance(images, Tensor) or images.dtype != torch.uint8:
                found = images.dtype if isinstance(images, Tensor) else type(images).__name__
                raise ValueError(f"{self.name}: this model normalises images itself: give uint8 pixels, not {found}")
            shape = images.new_empty(images.shape, dtype=torch.float32, device="meta")
            check_batch(shape, self._channels, self._size, self.name)
        else:
            check_batch(images, self._channels, self._size, self.name)
        if self._context is None:
            raise EngineError(f"the engine {self.name!r} is closed")
        images = images.detach().to(self.device, self._type).contiguous()
        return torch.cat([self._run(piece) for piece in images.split(self._most)])

    def _run(self, images: Tensor) -> Tensor:
        logits = torch.empty(len(images), self._classes, device=self.device)
        with torch.cuda.device(self.device):
            self._context.set_input_shape(self._images, tuple(images.shape))
            self._context.set_tensor_address(self._images, images.data_ptr())
            self._context.set_tensor_address(self._logits, logits.data_ptr())
            # TensorRT synchronises more on the default stream than on another.
            stream, current = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
            stream.wait_stream(current)
            done = self._context.execute_async_v3(stream.cuda_stream)
            stream.synchronize()  # images must live until then
        if not done:
            raise EngineError(f"TensorRT failed on images {list(images.shape)}; its log above tells more")
        return logits

    def close(self) -> None:
        self._context = self._plan = self._runtime = None


def build(network: nn.Module, settings: Settings) -> TensorRTEngine:
    """A network of torch's as an engine.

    Raises:
        EngineError: If TensorRT or the GPU is not to be had, or it cannot build the network.
        GraphError: If the network has no ONNX graph.
    """
    plan = build_plan(
        deployable(network, settings.size),
        settings.size,
        precision=settings.precision,
        batch_size=settings.batch_size,
        device=settings.device,
    )
    return TensorRTEngine(plan, settings.precision, device=settings.device)


def build_plan(
    network: nn.Module,
    size: tuple[int, int],
    *,
    precision: Precision,
    batch_size: int = 1,
    device: str = "cuda",
    dtype: torch.dtype = torch.float32,
) -> bytes:
    """A plan for the GPU at hand, for batches from 1 to 256, or to ``batch_size`` if that is more.

    Types are the graph's: TensorRT changes none by itself, and float32 means float32, not TF32.

    Args:
        network: As ``deployable`` makes it; changed.
        size: Height and width of the images.
        precision: Of the products: fp32, fp16 or bf16.
        batch_size: The batch it is tuned for.
        device: The GPU.
        dtype: Of the images: float32, or uint8 for a network that takes pixels.

    Raises:
        EngineError: If TensorRT or the GPU is not to be had, or it cannot build the network.
        GraphError: If the network has no ONNX graph.
    """
    require("tensorrt", "tensorrt", ["tensorrt"])
    where = _gpu(device)
    import onnx_ir
    import tensorrt

    if precision == "int8":
        raise EngineError("the engine 'tensorrt' has no precision 'int8'; choose fp16")
    graph = onnx_ir.to_proto(to_onnx(to_precision(network.cpu(), precision), size, dtype=dtype))
    images = graph.graph.input[0]
    shape = [dim.dim_value for dim in images.type.tensor_type.shape.dim[1:]]
    with torch.cuda.device(where):
        builder = tensorrt.Builder(_logger())
        strongly_typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        definition = builder.create_network(strongly_typed)
        parser = tensorrt.OnnxParser(definition, _logger())
        if not parser.parse(graph.SerializeToString()):
            reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
            raise EngineError(f"TensorRT does not take this network: {reasons}")
        config = builder.create_builder_config()
        config.clear_flag(tensorrt.BuilderFlag.TF32)
        profile = builder.create_optimization_profile()
        most = max(batch_size, LARGEST_BATCH)
        profile.set_shape(images.name, (1, *shape), (batch_size, *shape), (most, *shape))
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(definition, config)
    if plan is None:
        raise EngineError("TensorRT could not build this network; its log above tells more")
    return bytes(plan)


def _gpu(device: str) -> torch.device:
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        raise EngineError(f"the engine 'tensorrt' runs on NVIDIA's GPUs, and {device!r} is none here; choose another")
    return torch.device(device)


def _logger() -> Any:
    import tensorrt

    return tensorrt.Logger(tensorrt.Logger.ERROR)
