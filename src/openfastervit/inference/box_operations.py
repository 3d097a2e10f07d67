"""Steps of detectors inside which shapes follow from the image, as single operations of fixed shapes around them.

torch runs them as torchvision does; ``translations`` tells torch's exporter what they are in ONNX.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms, roi_align

EMPTY = -1.0
"""The score of a place without a box. Scores are probabilities: no box has one below 0."""


@torch.library.custom_op("openfastervit::kept_by_nms", mutates_args=())
def kept_by_nms(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """Non-maximum suppression in each group by itself.

    Args:
        boxes: ``(G, P, 4)``.
        scores: ``(G, P)``, below 0 where there is no box.
        iou: Above it the lower of two boxes goes.
        most: At most so many, the best ones, are kept in each group.

    Returns:
        Which boxes are kept ``(G, P)``.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group in range(len(scores)):
        (real,) = torch.where(scores[group] >= 0)
        kept[group, real[nms(boxes[group, real], scores[group, real], iou)[:most]]] = True
    return kept


@torch.library.custom_op("openfastervit::pooled", mutates_args=())
def pooled(
    maps: list[Tensor], boxes: Tensor, levels: Tensor, scales: list[float], height: int, width: int, samples: int
) -> Tensor:
    """RoIAlign, each box on the map of its level.

    Args:
        maps: ``(1, C, H_i, W_i)``.
        boxes: ``(N, 4)``, in pixels.
        levels: Which of the maps, ``(N,)``.
        scales: Cells a pixel, of each map.
        height: Of the result, in cells.
        width: Of the result.
        samples: In a cell of the result, down and across.

    Returns:
        ``(N, C, height, width)``.
    """
    found = boxes.new_zeros(len(boxes), maps[0].shape[1], height, width)
    for level, (one, scale) in enumerate(zip(maps, scales, strict=True)):
        (here,) = torch.where(levels == level)
        found[here] = roi_align(one, [boxes[here]], (height, width), scale, samples)
    return found


@kept_by_nms.register_fake
def _kept_shape(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


@pooled.register_fake
def _pooled_shape(
    maps: list[Tensor], boxes: Tensor, levels: Tensor, scales: list[float], height: int, width: int, samples: int
) -> Tensor:
    return boxes.new_empty(len(boxes), maps[0].shape[1], height, width)


def translations() -> dict[Any, Any]:
    """Into ONNX, for torch's exporter."""
    import onnx_ir
    import onnxscript

    op: Any = onnxscript.opset20

    def whole(*values: int) -> Any:
        return op.Constant(value_ints=values)

    def real(*values: float) -> Any:
        return op.Constant(value_floats=values)

    def suppress(boxes: Any, scores: Any, iou: float, most: int) -> Any:
        groups, places = (int(side) for side in scores.shape)
        chosen = op.NonMaxSuppression(
            boxes, op.Unsqueeze(scores, whole(1)), whole(most), real(iou), real(EMPTY / 2)
        )  # rows of group, class (there is one) and place
        # One row more, in a group that is cut off again: there may be none, and not every runtime writes nothing.
        spare = op.Reshape(whole(groups, 0), whole(1, 2))
        rows = op.Concat(op.Gather(chosen, whole(0, 2), axis=1), spare, axis=0)
        marks = op.Expand(real(1.0), op.Shape(rows, start=0, end=1))
        marked = op.ScatterND(op.Expand(real(0.0), whole(groups + 1, places)), rows, marks)
        return op.Cast(op.Slice(marked, whole(0), whole(groups), whole(0)), to=onnx_ir.DataType.BOOL)

    def pool(
        maps: Sequence[Any], boxes: Any, levels: Any, scales: Sequence[float], height: int, width: int, samples: int
    ) -> Any:
        numbers, found = [], []
        for level, (one, scale) in enumerate(zip(maps, scales, strict=True)):
            here = op.Squeeze(op.NonZero(op.Equal(levels, op.Constant(value_int=level))), whole(0))
            numbers.append(here)
            found.append(
                op.RoiAlign(
                    one,
                    op.Gather(boxes, here),
                    op.Expand(whole(0), op.Shape(here)),
                    coordinate_transformation_mode="output_half_pixel",
                    output_height=height,
                    output_width=width,
                    sampling_ratio=samples,
                    spatial_scale=scale,
                )
            )
        # Where in the levels' rows, one after the other, each box has come to lie.
        counted = whole(*range(int(boxes.shape[0])))
        place = op.ScatterElements(counted, op.Concat(*numbers, axis=0), counted, axis=0)
        return op.Gather(op.Concat(*found, axis=0), place)

    def all_true(values: Any) -> Any:
        """D-FINE's: a check that torch's exporter knows no operation for."""
        least = op.ReduceMin(op.Cast(values, to=onnx_ir.DataType.INT64), keepdims=0)
        return op.Cast(least, to=onnx_ir.DataType.BOOL)

    return {
        torch.ops.openfastervit.kept_by_nms.default: suppress,
        torch.ops.openfastervit.pooled.default: pool,
        torch.ops.aten._is_all_true.default: all_true,
    }
