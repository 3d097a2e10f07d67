"""Detectors as graphs of fixed shapes: one image of one size in, a fixed number of detections out.

torchvision's detectors decide in Python how many boxes go on, image by image and level by level, which no exporter
follows. Here every step has room for as many boxes as there can be at most, and places that stay empty carry a score
below 0: the same boxes, scores, classes and masks, but for rounding.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign, nms, roi_align

from openfastervit.inference.folded_backbone import folded_backbone
from openfastervit.tasks.detection.cascade import SMALLEST_SIDE, CascadeRoIHeads
from openfastervit.tasks.detection.rcnn import MAPS, RCNN

EMPTY = -1.0
"""The score of a place without a box. Scores are probabilities, which no box has below 0."""


class RCNNGraph(nn.Module):
    """An R-CNN for images of one size, in evaluation mode.

    All suppression is done without a threshold for scores, which may be put afterwards: a box is only ever suppressed
    by one that scores higher, so that those above a threshold are the same either way.

    Args:
        model: Left as it is.
        size: Height and width of the padded images, multiples of 32.
    """

    def __init__(self, model: RCNN, size: tuple[int, int]) -> None:
        super().__init__()
        heads = model.roi_heads
        self.body = folded_backbone(model.feature_backbone, size)
        self.fpn = copy.deepcopy(model.backbone.fpn)
        with torch.no_grad():
            maps = self._maps(torch.zeros(1, 3, *size))
        self.proposals = _Proposals(model.rpn, size, list(maps.values()))
        stages = list(heads.stages) if isinstance(heads, CascadeRoIHeads) else [heads]
        self.boxes = _BoxHeads(cast("list[RoIHeads]", stages))
        self.masks = _MaskHead(heads) if heads.has_mask() else None
        self.eval().requires_grad_(False)

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.fpn(OrderedDict(zip(MAPS, self.body(images), strict=True)))
        return maps

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """The detections of an image.

        Args:
            images: One ``(1, 3, H, W)``, normalised, in the upper left corner; the rest is 0.
            size: Height and width of that image ``(2,)``, int64.

        Returns:
            ``boxes`` ``(D, 4)``, ``scores`` ``(D,)`` that fall, ``labels`` ``(D,)`` from 1, and perhaps ``masks``
            ``(D, M, M)``, the probabilities inside each box. D is fixed; places without a detection have the score 0
            and the label 0.
        """
        maps = self._maps(images)
        height, width = size.to(images.dtype).unbind()
        corner = torch.stack((width, height, width, height))
        boxes, real = self.proposals(list(maps.values()), corner)
        pooled_from = [maps[name] for name in MAPS]
        boxes, scores, labels = self.boxes(pooled_from, boxes, real, corner)
        masks = [] if self.masks is None else [self.masks(pooled_from, boxes, labels)]
        found = scores >= 0
        return boxes, scores.clamp(min=0), torch.where(found, labels, 0), *masks


class _Proposals(nn.Module):
    """torchvision's ``RegionProposalNetwork``, with anchors that are there already."""

    def __init__(self, rpn: RegionProposalNetwork, size: tuple[int, int], maps: Sequence[Tensor]) -> None:
        super().__init__()
        self.head = copy.deepcopy(rpn.head)
        self.decode: Callable[[Tensor, Tensor], Tensor] = rpn.box_coder.decode_single
        self.most_before = rpn._pre_nms_top_n["testing"]
        self.most = rpn._post_nms_top_n["testing"]
        self.iou = rpn.nms_thresh
        self.least_score, self.least_side = rpn.score_thresh, rpn.min_size
        (anchors,) = rpn.anchor_generator(ImageList(torch.zeros(1, 3, *size), [size]), list(maps))
        each = rpn.anchor_generator.num_anchors_per_location()
        counts = [n * one.shape[2] * one.shape[3] for n, one in zip(each, maps, strict=True)]
        self.levels = len(counts)
        for level, part in enumerate(anchors.split(counts)):
            self.register_buffer(f"anchors{level}", part, persistent=False)

    def forward(self, maps: list[Tensor], corner: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes ``(P, 4)``, the best first, and which of them there are ``(P,)``."""
        all_boxes, all_scores = [], []
        for level, (logits, deltas) in enumerate(zip(*self.head(maps), strict=True)):
            anchors = self.get_buffer(f"anchors{level}")
            logits = logits.permute(0, 2, 3, 1).flatten()
            deltas = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4)
            best = logits.topk(min(self.most_before, len(anchors)))
            boxes = _clipped(self.decode(deltas[best.indices], anchors[best.indices]), corner)
            scores = best.values.sigmoid()
            real = _has_sides(boxes, self.least_side) & (scores >= self.least_score)
            scores = torch.where(real, scores, EMPTY)
            kept = kept_by_nms(boxes[None], scores[None], self.iou, self.most)[0]
            all_boxes.append(boxes)
            all_scores.append(torch.where(kept, scores, EMPTY))
        scores = torch.cat(all_scores)
        best = scores.topk(min(self.most, len(scores)))
        return torch.cat(all_boxes)[best.indices], best.values >= 0


class _BoxHeads(nn.Module):
    """One box head, torchvision's, or several in a row, those of a cascade."""

    def __init__(self, stages: Sequence[RoIHeads]) -> None:
        super().__init__()
        last = stages[-1]
        self.pool = _Pool(last.box_roi_pool)
        self.heads = nn.ModuleList(copy.deepcopy(stage.box_head) for stage in stages)
        self.predictors = nn.ModuleList(copy.deepcopy(stage.box_predictor) for stage in stages)
        self.decoders: list[Callable[[Tensor, Tensor], Tensor]] = [stage.box_coder.decode_single for stage in stages]
        self.iou, self.most = last.nms_thresh, last.detections_per_img

    def forward(self, maps: list[Tensor], boxes: Tensor, real: Tensor, corner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of proposals ``(P, 4)`` the detections: boxes ``(D, 4)``, scores and labels ``(D,)``."""
        probabilities = []
        for head, predictor, decode in zip(self.heads, self.predictors, self.decoders, strict=True):
            logits, deltas = predictor(head(self.pool(maps, boxes)))
            probabilities.append(logits.softmax(-1))
            decoded = _clipped(decode(deltas, boxes).unflatten(1, (-1, 4)), corner)
            boxes = decoded[:, 0]  # in a cascade there is one for all classes
        scores = torch.stack(probabilities).mean(0)[:, 1:].T  # (K, P), without the background
        by_class = decoded[:, 1:] if decoded.shape[1] > 1 else decoded.expand(-1, len(scores), -1)
        by_class = by_class.transpose(0, 1)  # (K, P, 4)
        scores = torch.where(real & _has_sides(by_class, SMALLEST_SIDE), scores, EMPTY)
        kept = kept_by_nms(by_class, scores, self.iou, self.most)
        scores = torch.where(kept, scores, EMPTY).flatten()
        best = scores.topk(min(self.most, len(scores)))
        labels = best.indices.div(kept.shape[1], rounding_mode="floor") + 1
        return by_class.reshape(-1, 4)[best.indices], best.values, labels


class _MaskHead(nn.Module):
    """torchvision's, for the class that was found."""

    def __init__(self, heads: RoIHeads | CascadeRoIHeads) -> None:
        super().__init__()
        self.pool = _Pool(cast(MultiScaleRoIAlign, heads.mask_roi_pool))
        self.head, self.predictor = copy.deepcopy(heads.mask_head), copy.deepcopy(heads.mask_predictor)

    def forward(self, maps: list[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Probabilities ``(D, M, M)``."""
        logits = self.predictor(self.head(self.pool(maps, boxes)))
        own = labels.view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
        return logits.gather(1, own)[:, 0].sigmoid()


class _Pool(nn.Module):
    """torchvision's ``MultiScaleRoIAlign``."""

    def __init__(self, pool: MultiScaleRoIAlign) -> None:
        super().__init__()
        self.map_levels: Callable[[list[Tensor]], Tensor] = pool.map_levels
        self.scales = [float(scale) for scale in pool.scales]
        self.height, self.width = pool.output_size
        self.samples = pool.sampling_ratio

    def forward(self, maps: list[Tensor], boxes: Tensor) -> Tensor:
        """What is in boxes ``(N, 4)``: ``(N, C, height, width)``."""
        levels = self.map_levels([boxes])
        return cast(Tensor, pooled(maps, boxes, levels, self.scales, self.height, self.width, self.samples))


def _clipped(boxes: Tensor, corner: Tensor) -> Tensor:
    """Boxes ``(..., 4)`` inside an image whose width, height, width and height are ``corner``."""
    return torch.minimum(boxes.clamp(min=0), corner)


def _has_sides(boxes: Tensor, least: float) -> Tensor:
    """Which boxes ``(..., 4)`` have sides of at least so many pixels."""
    return (boxes[..., 2:] - boxes[..., :2] >= least).all(-1)


# --- Steps inside which there are no fixed shapes ----------------------------------------------------------------------


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


@pooled.register_fake
def _(
    maps: list[Tensor], boxes: Tensor, levels: Tensor, scales: list[float], height: int, width: int, samples: int
) -> Tensor:
    return boxes.new_empty(len(boxes), maps[0].shape[1], height, width)


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


@kept_by_nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def translations() -> dict[Any, Any]:
    """Into ONNX, for torch's exporter."""
    import onnxscript

    op: Any = onnxscript.opset20

    def kept(boxes: Any, scores: Any, iou: float, most: int) -> Any:
        groups, places = (int(side) for side in scores.shape)
        limits = op.Constant(value_ints=[most]), op.Constant(value_floats=[iou]), op.Constant(value_floats=[EMPTY / 2])
        chosen = op.NonMaxSuppression(boxes, op.Unsqueeze(scores, op.Constant(value_ints=[1])), *limits)
        # Rows of group, class (there is one), place. A row more, of no group: runtimes dislike to write nothing.
        spare = op.Reshape(op.Constant(value_ints=[groups, 0]), op.Constant(value_ints=[1, 2]))
        rows = op.Concat(op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1), spare, axis=0)
        ones = op.Expand(op.Constant(value_floats=[1.0]), op.Shape(rows, start=0, end=1))
        nothing = op.Expand(op.Constant(value_floats=[0.0]), op.Constant(value_ints=[groups + 1, places]))
        marked = op.ScatterND(nothing, rows, ones)
        first, last = op.Constant(value_ints=[0]), op.Constant(value_ints=[groups])
        return op.Cast(op.Slice(marked, first, last, first), to=9)  # bool

    def pool(
        maps: Sequence[Any], boxes: Any, levels: Any, scales: Sequence[float], height: int, width: int, samples: int
    ) -> Any:
        first = op.Constant(value_ints=[0])
        places, rows = [], []
        for level, (one, scale) in enumerate(zip(maps, scales, strict=True)):
            here = op.Squeeze(op.NonZero(op.Equal(levels, op.Constant(value_int=level))), first)
            image = op.Expand(first, op.Shape(here))
            places.append(here)
            rows.append(
                op.RoiAlign(
                    one,
                    op.Gather(boxes, here),
                    image,
                    coordinate_transformation_mode="output_half_pixel",
                    output_height=height,
                    output_width=width,
                    sampling_ratio=samples,
                    spatial_scale=scale,
                )
            )
        count = int(boxes.shape[0])
        numbers = op.Constant(value_ints=list(range(count)))
        rank = op.ScatterElements(numbers, op.Concat(*places, axis=0), numbers, axis=0)
        return op.Gather(op.Concat(*rows, axis=0), rank)

    return {
        torch.ops.openfastervit.kept_by_nms.default: kept,
        torch.ops.openfastervit.pooled.default: pool,
    }
