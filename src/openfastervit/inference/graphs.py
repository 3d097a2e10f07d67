"""A network as a graph: of ``torch.export``, of ONNX, of OpenVINO. The batch is open; height and width may be."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from openfastervit.inference.engines.engine import DTYPES, Precision, in_channels
from openfastervit.layers import HierarchicalAttention, TokenMixer

if TYPE_CHECKING:
    import onnx_ir
    import openvino

OPEN_SIDES = (33, 16384)
"""Heights and widths that a graph of open size takes: at 32 and below, sizes decide which operations run.

A program of ``torch.export`` for a network with carriers also wants more than one window, and says so where there is
one: it checks what was assumed in tracing. ONNX and OpenVINO graphs of it are right at one window too."""
ONE_FILE = 1_900_000_000
"""Bytes of weights that an ONNX file holds itself."""
OPSET = 20
"""Of ONNX: the first with GELU."""


class GraphError(ValueError):
    """A network cannot be made a graph: the message says why."""


def to_program(
    network: nn.Module,
    size: tuple[int, int] | None,
    *,
    trace_size: tuple[int, int] = (224, 224),
    dtype: torch.dtype | None = None,
) -> ExportedProgram:
    """A network in evaluation mode as ``torch.export`` sees it, for any batch.

    Args:
        network: From images to logits, as ``deployable`` makes it.
        size: Height and width of the images; None for any.
        trace_size: What an open size is traced at; a FasterViT must have several windows there.
        dtype: Of the images, where it is not that of the weights.

    Raises:
        GraphError: If the network's operations depend on a size that should be open.
    """
    parameter = next(network.parameters())
    height, width = size or trace_size
    example = torch.zeros(
        2, in_channels(network), height, width, device=parameter.device, dtype=dtype or parameter.dtype
    )
    dims: dict[int, Dim] = {0: Dim("batch", min=1, max=65536)}
    if size is None:
        dims |= {2: Dim("height", min=OPEN_SIDES[0], max=OPEN_SIDES[1])}
        dims |= {3: Dim("width", min=OPEN_SIDES[0], max=OPEN_SIDES[1])}
    try:
        with torch.no_grad():
            return torch.export.export(network, (example,), dynamic_shapes=(dims,))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of the tracer, of its constraints, or of an operation with sizes it cannot have
        open_axes = "batch" if size is not None else "batch, height and width"
        raise GraphError(
            f"{type(network).__name__} has no graph with open {open_axes}: {str(error).splitlines()[0]}; "
            + ("give the images' size" if size is None else "use an engine of torch")
        ) from error


def to_precision(network: nn.Module, precision: Precision) -> nn.Module:
    """A network whose weights and products have a precision, images and logits staying float32. Changes ``network``.

    Raises:
        ValueError: For int8, which a conversion of types does not make.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision={precision!r} is not one of floating point: {', '.join(DTYPES)}")
    return network.float() if precision == "fp32" else _Cast(network.to(DTYPES[precision]), DTYPES[precision])


class _Cast(nn.Module):
    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.network(images.to(self.dtype))).float()


def to_openvino(
    network: nn.Module, size: tuple[int, int] | None, *, dtype: torch.dtype = torch.float32
) -> "openvino.Model":
    """A network as an OpenVINO model in float32, for any batch. Its input is ``images``, or ``pixels`` if 8-bit.

    Raises:
        GraphError: If its operations depend on a size that should be open.
    """
    import openvino

    _check_open(network, size)
    program = to_program(network.to(DTYPES["fp32"]), size, dtype=dtype)
    model = openvino.convert_model(program)
    height, width = size or (-1, -1)
    model.reshape({model.inputs[0]: openvino.PartialShape([-1, in_channels(network), height, width])})
    model.inputs[0].get_tensor().set_names({input_name(dtype)})
    model.outputs[0].get_tensor().set_names({"logits"})
    return model


def to_onnx(network: nn.Module, size: tuple[int, int] | None, *, dtype: torch.dtype = torch.float32) -> "onnx_ir.Model":
    """A network as an ONNX model in the precision of its weights, for any batch.

    Its input is ``images``, or ``pixels`` if 8-bit; its output ``logits``.

    Raises:
        GraphError: If it has operations that ONNX has not, or that depend on a size that should be open.
    """
    import onnx_ir

    _check_open(network, size)
    program = to_program(network, size, dtype=dtype)
    with _quietly():
        try:
            exported = torch.onnx.export(
                program,
                input_names=[input_name(dtype)],
                output_names=["logits"],
                opset_version=OPSET,
                custom_translation_table=_translations(),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = error.__cause__ or error
            raise GraphError(
                f"{type(network).__name__} has no ONNX graph: {str(cause).splitlines()[0]}; use an engine of torch"
            ) from error
    assert exported is not None  # only with dynamo=False
    model = exported.model
    for node in model.graph:
        for value in node.outputs:
            if value not in model.graph.outputs:
                value.shape = None  # in the tracer's names of open sizes; runtimes infer their own
    (images,), (logits,) = model.graph.inputs, model.graph.outputs
    images.shape = onnx_ir.Shape(["batch", in_channels(network), *(size or ("height", "width"))])
    assert logits.shape is not None
    logits.shape = onnx_ir.Shape(["batch", *logits.shape[1:]])
    return model


def _check_open(network: nn.Module, size: tuple[int, int] | None) -> None:
    """Refuse a graph of open size with attention that is not folded: sizes decide which of its operations run.

    Programs of ``torch.export`` check what was assumed in tracing; graphs of ONNX and OpenVINO would just be wrong.
    """
    mixer = next((module for module in network.modules() if isinstance(module, TokenMixer)), None)
    if size is None and mixer is not None:
        options = [f"{name}={value!r}" for name, value in _unfolded_options(mixer)]
        raise GraphError(
            f"{type(mixer).__name__}{' with ' if options else ''}{', '.join(options)} has no graph of open size; give "
            "the images' size"
        )


def _unfolded_options(mixer: TokenMixer) -> list[tuple[str, Any]]:
    """The options of hierarchical attention that keep it from being folded."""
    if not isinstance(mixer, HierarchicalAttention):
        return []
    defaults = {"carrier_levels": 1, "mask_padding": False, "without": frozenset()}
    found = [(name, getattr(mixer, name)) for name, default in defaults.items() if getattr(mixer, name) != default]
    return [(name, sorted(value) if name == "without" else value) for name, value in found]


def input_name(dtype: torch.dtype) -> str:
    """What a graph's input is called."""
    return "pixels" if dtype == torch.uint8 else "images"


def _translations() -> dict[Any, Any]:
    """Operations that torch's exporter to ONNX takes in fewer forms than networks have them."""
    import onnx_ir
    import onnxscript

    op: Any = onnxscript.opset20

    def remainder(dividend: Any, divisor: Any) -> Any:
        """By a number that follows from open sizes, too."""
        return op.Mod(dividend, op.CastLike(divisor, dividend))

    def attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        """With any number of axes before tokens and channels."""
        if dropout_p or is_causal or enable_gqa:
            raise NotImplementedError("attention with dropout, causal or with grouped queries")
        rank, width = len(query.shape), query.shape[-1]
        scale = width**-0.5 if scale is None else scale
        if scale != 1:
            query = op.Mul(query, op.CastLike(op.Constant(value_float=scale), query))
        order = [*range(rank - 2), rank - 1, rank - 2]
        weights = op.MatMul(query, op.Transpose(key, perm=order))
        if attn_mask is not None and attn_mask.dtype is onnx_ir.DataType.BOOL:
            lowest = op.CastLike(op.Constant(value_float=float("-inf")), weights)
            weights = op.Where(attn_mask, weights, lowest)
        elif attn_mask is not None:
            weights = op.Add(weights, attn_mask)
        return op.MatMul(op.Softmax(weights, axis=-1), value)

    return {
        torch.ops.aten.remainder.Scalar: remainder,
        torch.ops.aten.scaled_dot_product_attention.default: attention,
    }


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says of its own making."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def save_onnx(graph: "onnx_ir.Model", path: Path) -> None:
    """Write an ONNX graph; weights above 2 GB, too many for protocol buffers, lie beside it in ``path`` + ``.data``."""
    import onnx_ir

    weights = (value.const_value for value in graph.graph.initializers.values())
    size = sum(weight.nbytes for weight in weights if weight is not None)
    onnx_ir.save(graph, path, external_data=f"{path.name}.data" if size > ONE_FILE else None)
