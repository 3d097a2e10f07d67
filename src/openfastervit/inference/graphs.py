"""A network as a graph: of ``torch.export``, of ONNX, of OpenVINO. The batch is open; height and width may be."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from openfastervit.inference.engines.engine import DTYPES, in_channels

if TYPE_CHECKING:
    import openvino

OPEN_SIDES = (33, 16384)
"""Heights and widths that a graph of open size takes: at 32 and below, sizes decide which operations run."""


def to_program(
    network: nn.Module, size: tuple[int, int] | None, *, trace_size: tuple[int, int] = (224, 224)
) -> ExportedProgram:
    """A network in evaluation mode as ``torch.export`` sees it, for any batch.

    Args:
        network: From images to logits, as ``deployable`` makes it.
        size: Height and width of the images; None for any.
        trace_size: What an open size is traced at.
    """
    parameter = next(network.parameters())
    height, width = size or trace_size
    images = torch.zeros(2, in_channels(network), height, width, device=parameter.device, dtype=parameter.dtype)
    dims: dict[int, Dim] = {0: Dim("batch", min=1, max=65536)}
    if size is None:
        dims |= {2: Dim("height", min=OPEN_SIDES[0], max=OPEN_SIDES[1])}
        dims |= {3: Dim("width", min=OPEN_SIDES[0], max=OPEN_SIDES[1])}
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=(dims,))


def to_openvino(network: nn.Module, size: tuple[int, int] | None) -> "openvino.Model":
    """A network as an OpenVINO model in float32, for any batch."""
    import openvino

    program = to_program(network.to(DTYPES["fp32"]), size)
    model = openvino.convert_model(program)
    height, width = size or (-1, -1)
    model.reshape({model.inputs[0]: openvino.PartialShape([-1, in_channels(network), height, width])})
    model.inputs[0].get_tensor().set_names({"images"})
    model.outputs[0].get_tensor().set_names({"logits"})
    return model
