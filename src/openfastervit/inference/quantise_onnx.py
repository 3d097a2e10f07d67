"""Post-training quantisation of ONNX models to int8, with ONNX Runtime's own tool.

Convolutions and products with weights get 8-bit weights, a scale a channel, and 8-bit inputs, their ranges taken from
real images. Where the class probabilities move too much, the layers that move them most stay in float.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from openfastervit.inference.quantise import LEAST_IMAGES, MAX_LOSS

if TYPE_CHECKING:
    import onnx

_STEP = 4
"""Images that ranges are collected from at once: all inputs of all layers are held in memory for them."""
_LAYERS = ("Conv", "MatMul", "Gemm")


def quantise_onnx(model: "onnx.ModelProto", calibration: Tensor, *, max_loss: float = MAX_LOSS) -> "onnx.ModelProto":
    """A float32 model as one with int8 products and weights, in the QDQ form that runtimes agree on.

    Args:
        model: One input, images or pixels, and one output, logits. It is not changed.
        calibration: Real images ``(n, C, H, W)`` as the model takes them, at least 8; a few hundred are good. Every
            fourth is kept to measure the loss.
        max_loss: Mean total variation distance between the probabilities of both models that is accepted, 0 to 1.

    Raises:
        ValueError: If there are too few images, or no choice of layers keeps the loss within ``max_loss``.
    """
    import onnx

    if len(calibration) < LEAST_IMAGES:
        raise ValueError(f"{len(calibration)} calibration images are too few; give at least {LEAST_IMAGES}, better 300")
    calibration = calibration.detach().cpu().contiguous()
    held_out = torch.arange(len(calibration)) % 4 == 3
    ranges, checks = calibration[~held_out], calibration[held_out]
    ranges = ranges[: len(ranges) // _STEP * _STEP]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain = Path(folder, "float.onnx")
        onnx.save(model, plain)
        truth = _probabilities(plain, checks)

        def quantised(layers: list[str] | None = None) -> Path:
            return _quantise(plain, ranges, layers)

        def loss(file: Path) -> float:
            return float((_probabilities(file, checks) - truth).abs().sum(-1).mean() / 2)

        if (lost := loss(quantised())) <= max_loss:
            return onnx.load(quantised())
        names = [node.name for node in model.graph.node if node.op_type in _LAYERS]
        worst_first = sorted(names, key=lambda name: loss(quantised([name])), reverse=True)
        kept = 1
        while kept < len(names) and lost > max_loss:
            lost = loss(quantised(worst_first[kept:]))
            if lost <= max_loss:
                return onnx.load(quantised(worst_first[kept:]))
            kept *= 2
    raise ValueError(
        f"int8 moves the probabilities by {lost:.3f} on average, more than max_loss={max_loss}, whatever layers stay "
        "in float; choose fp16"
    )


def _quantise(plain: Path, ranges: Tensor, layers: list[str] | None) -> Path:
    """The file with those layers quantised, all for None. Ranges are collected once and kept beside the model."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    out = plain.with_name("int8.onnx")
    quantize_static(
        plain,
        out,
        _Reader(ranges, plain),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(_LAYERS),
        nodes_to_quantize=layers,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.Percentile,
        calibration_cache_path=plain.with_name("ranges.json"),
        extra_options={"MatMulConstBOnly": True, "CalibStridedMinMax": _STEP},
    )
    return out


class _Reader:
    """Images in the form that ONNX Runtime's calibration asks for."""

    def __init__(self, images: Tensor, model: Path) -> None:
        import onnx

        self._images = images
        self._name = onnx.load(model, load_external_data=False).graph.input[0].name
        self._pieces: Iterator[Tensor] = iter(())

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._pieces = iter([self._images[start_index:end_index]])

    def get_next(self) -> dict[str, Any] | None:
        piece = next(self._pieces, None)
        return None if piece is None else {self._name: piece.numpy()}


def _probabilities(model: Path, images: Tensor) -> Tensor:
    """Class probabilities ``(n, classes)``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    logits = [session.run(None, {name: piece.numpy()})[0] for piece in images.split(_STEP)]
    return torch.cat([torch.from_numpy(piece) for piece in logits]).softmax(-1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tool prints its progress and advises on the root logger: neither is for a user of ours."""
    logger = logging.getLogger()
    logger.addFilter(_no_advice)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.removeFilter(_no_advice)


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()
