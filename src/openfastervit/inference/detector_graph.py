"""Detectors as graphs of fixed shapes: one image of one size in, a fixed number of detections out.

torchvision's detectors decide in Python how many boxes go on, image by image and level by level, which no exporter
follows. Here every step has room for as many boxes as there can be at most, and places that stay empty score below 0:
the same boxes, scores, classes and masks as the network's, but for rounding.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign, box_convert

from openfastervit.inference.box_operations import EMPTY, kept_by_nms, pooled
from openfastervit.inference.folded_backbone import folded_backbone
from openfastervit.models.features import DenseNetwork
from openfastervit.tasks.detection.cascade import SMALLEST_SIDE, CascadeRoIHeads
from openfastervit.tasks.detection.detr import DetrDetector
from openfastervit.tasks.detection.rcnn import MAPS, RCNN, Pyramid

Size = tuple[int, int]


class DetectorGraph(nn.Module):
    """A detector for padded images of one size, in evaluation mode."""

    def __init__(self, score_threshold: float) -> None:
        super().__init__()
        self.score_threshold = score_threshold
        self.masks: nn.Module | None = None

    @property
    def outputs(self) -> list[str]:
        """Their names."""
        return ["boxes", "scores", "labels", "count", *([] if self.masks is None else ["masks"])]

    def find(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Boxes, scores (``EMPTY`` where there is none), labels and perhaps masks, without a threshold."""
        raise NotImplementedError

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """The detections of an image.

        Args:
            images: One ``(1, 3, H, W)``, normalised, in the upper left corner; the rest is 0.
            size: Height and width of that image ``(2,)``, int64.

        Returns:
            ``boxes`` ``(D, 4)`` in pixels of ``images``, ``scores`` ``(D,)`` that fall, ``labels`` ``(D,)`` from 1,
            ``count`` ``()``, and perhaps ``masks`` ``(D, M, M)``, the probabilities inside each box. The first
            ``count`` are those that the network gives; the rest scores below its threshold. Where there is no box,
            score and label are 0.
        """
        boxes, scores, labels, *masks = self.find(images, size)
        count = (scores > self.score_threshold).sum()
        return boxes, scores.clamp(min=0), torch.where(scores >= 0, labels, 0), count, *masks


def detector_graph(model: DenseNetwork, size: Size) -> DetectorGraph:
    """The graph of a detector, which is left as it is.

    Args:
        model: One of ``tasks.detection``.
        size: Height and width of the padded images, multiples of 32.

    Raises:
        ValueError: If the images are too small for the detector.
    """
    if isinstance(model, DetrDetector):
        return DetrGraph(model, size)
    assert isinstance(model, RCNN)
    return RCNNGraph(model, size)


# --- R-CNNs -----------------------------------------------------------------------------------------------------------


class RCNNGraph(DetectorGraph):
    """An R-CNN, plain or a cascade.

    All suppression is done without the threshold for scores, which is put afterwards: only a box that scores higher
    ever suppresses another, so that those above a threshold are the same either way. So there is no bound on how many
    candidates there may be.
    """

    def __init__(self, model: RCNN, size: Size) -> None:
        heads = model.roi_heads
        stages: list[RoIHeads] = [*heads.stages] if isinstance(heads, CascadeRoIHeads) else [heads]
        super().__init__(stages[-1].score_thresh)
        self.body = folded_backbone(model.feature_backbone, size)
        self.fpn = copy.deepcopy(cast(Pyramid, model.backbone).fpn)
        with torch.no_grad():
            maps = self._maps(torch.zeros(1, 3, *size))
        self.proposals = _Proposals(model.rpn, size, list(maps.values()))
        self.boxes = _BoxHeads(stages)
        self.masks = _MaskHead(heads) if heads.has_mask() else None
        self.eval().requires_grad_(False)

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.fpn(OrderedDict(zip(MAPS, self.body(images), strict=True)))
        return maps

    def find(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """As ``DetectorGraph.find`` says."""
        maps = self._maps(images)
        corner = _corner(size, images)
        boxes, real = self.proposals(list(maps.values()), corner)
        pooled_from = [maps[name] for name in MAPS]
        boxes, scores, labels = self.boxes(pooled_from, boxes, real, corner)
        masks = [] if self.masks is None else [self.masks(pooled_from, boxes, labels)]
        return boxes, scores, labels, *masks


class _Proposals(nn.Module):
    """torchvision's ``RegionProposalNetwork``, with anchors that are there already."""

    def __init__(self, rpn: RegionProposalNetwork, size: Size, maps: Sequence[Tensor]) -> None:
        super().__init__()
        self.head = copy.deepcopy(rpn.head)
        self.decode: Callable[[Tensor, Tensor], Tensor] = rpn.box_coder.decode_single
        self.most_before, self.most = rpn._pre_nms_top_n["testing"], rpn._post_nms_top_n["testing"]
        self.iou, self.least_score, self.least_side = rpn.nms_thresh, rpn.score_thresh, rpn.min_size
        (anchors,) = rpn.anchor_generator(ImageList(torch.zeros(1, 3, *size), [size]), list(maps))
        each = rpn.anchor_generator.num_anchors_per_location()
        counts = [number * one.shape[2] * one.shape[3] for number, one in zip(each, maps, strict=True)]
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
    """torchvision's box head, or several in a row, those of a cascade."""

    def __init__(self, stages: Sequence[RoIHeads]) -> None:
        super().__init__()
        last = stages[-1]
        self.pool = _Pool(last.box_roi_pool)
        self.heads = nn.ModuleList(copy.deepcopy(stage.box_head) for stage in stages)
        self.predictors = nn.ModuleList(copy.deepcopy(stage.box_predictor) for stage in stages)
        self.decoders: list[Callable[[Tensor, Tensor], Tensor]] = [stage.box_coder.decode_single for stage in stages]
        self.iou, self.most = last.nms_thresh, last.detections_per_img

    def forward(self, maps: list[Tensor], boxes: Tensor, real: Tensor, corner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of proposals ``(P, 4)``, those that are ``real``, detections: boxes ``(D, 4)``, scores, labels ``(D,)``."""
        probabilities = []
        for head, predictor, decode in zip(self.heads, self.predictors, self.decoders, strict=True):
            logits, deltas = predictor(head(self.pool(maps, boxes)))
            probabilities.append(logits.softmax(-1))
            decoded = _clipped(decode(deltas, boxes).unflatten(1, (-1, 4)), corner)
            boxes = decoded[:, 0]  # in a cascade it is that of all classes
        scores = torch.stack(probabilities).mean(0)[:, 1:].T  # (K, P), without the background
        by_class = decoded[:, 1:] if decoded.shape[1] > 1 else decoded.expand(-1, len(scores), -1)
        by_class = by_class.transpose(0, 1)  # (K, P, 4)
        scores = torch.where(real & _has_sides(by_class, SMALLEST_SIDE), scores, EMPTY)
        kept = kept_by_nms(by_class, scores, self.iou, self.most)
        best = torch.where(kept, scores, EMPTY).flatten().topk(min(self.most, scores.numel()))
        labels = best.indices.div(scores.shape[1], rounding_mode="floor") + 1
        return by_class.reshape(-1, 4)[best.indices], best.values, labels


class _MaskHead(nn.Module):
    """torchvision's, for the class that was found."""

    def __init__(self, heads: RoIHeads | CascadeRoIHeads) -> None:
        super().__init__()
        self.pool = _Pool(cast(MultiScaleRoIAlign, heads.mask_roi_pool))
        self.head = cast(nn.Module, copy.deepcopy(heads.mask_head))
        self.predictor = cast(nn.Module, copy.deepcopy(heads.mask_predictor))

    def forward(self, maps: list[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Probabilities ``(D, M, M)``."""
        logits = self.predictor(self.head(self.pool(maps, boxes)))
        own = labels.view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
        return cast(Tensor, logits.gather(1, own)[:, 0].sigmoid())


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
        return pooled(maps, boxes, levels, self.scales, self.height, self.width, self.samples)


# --- Detection transformers -------------------------------------------------------------------------------------------


class DetrGraph(DetectorGraph):
    """A detection transformer. It has no suppression, and fixed shapes by itself."""

    def __init__(self, model: DetrDetector, size: Size) -> None:
        super().__init__(model.score_threshold)
        model._check_cells(size)
        copied = copy.deepcopy(model)
        copied.set_submodule(model.backbone_name, folded_backbone(model.feature_backbone, size))
        self.network = copied.network
        self.sees_padding = model.sees_padding
        self.most = model.detections_per_image
        self.eval().requires_grad_(False)

    def find(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """As ``DetectorGraph.find`` says."""
        corner = _corner(size, images)
        height, width = images.shape[-2:]
        inputs = {"pixel_values": images}
        unit = images.new_tensor([width, height, width, height])
        if self.sees_padding:
            unit = corner
            inside = (torch.arange(height)[:, None] < size[0]) & (torch.arange(width) < size[1])
            inputs["pixel_mask"] = inside[None].long()
        found = self.network(**inputs)
        scores = found.logits[0].sigmoid()
        best = scores.flatten().topk(min(self.most, scores.numel()))
        classes = scores.shape[1]
        boxes = box_convert(found.pred_boxes[0][best.indices.div(classes, rounding_mode="floor")], "cxcywh", "xyxy")
        return _clipped(boxes * unit, corner), best.values, best.indices % classes + 1


# --- Boxes ------------------------------------------------------------------------------------------------------------


def _corner(size: Tensor, images: Tensor) -> Tensor:
    """The lower right corner, twice, of an image of a height and width: what its boxes are bounded by."""
    height, width = size.to(images.dtype).unbind()
    return torch.stack((width, height, width, height))


def _clipped(boxes: Tensor, corner: Tensor) -> Tensor:
    """Boxes ``(..., 4)`` inside an image with that corner."""
    return torch.minimum(boxes.clamp(min=0), corner)


def _has_sides(boxes: Tensor, least: float) -> Tensor:
    """Which boxes ``(..., 4)`` have sides of at least so many pixels."""
    return (boxes[..., 2:] - boxes[..., :2] >= least).all(-1)


__all__ = ["DetectorGraph", "DetrGraph", "RCNNGraph", "detector_graph"]
