"""The heads of Cascade R-CNN, which torchvision lacks, built of what it has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, remove_small_boxes

SMALLEST_SIDE = 1e-2
"""Of a box, in pixels: below it torchvision takes a detection for an empty one, and so does a stage its box."""


@dataclass(frozen=True)
class Stage:
    """The settings of one stage."""

    iou: float
    """With an object, from which on a box is one of the object."""
    weights: tuple[float, float, float, float]
    """What the four numbers of a regression (x, y, width, height) are multiplied by."""
    loss_weight: float
    """Of its losses in the sum."""


STAGES = (
    Stage(0.5, (10.0, 10.0, 5.0, 5.0), 1.0),
    Stage(0.6, (20.0, 20.0, 10.0, 10.0), 0.5),
    Stage(0.7, (30.0, 30.0, 15.0, 15.0), 0.25),
)
"""The paper's three. Boxes get better from stage to stage, so that what is left to regress is scaled up."""


class ClassAgnosticPredictor(FastRCNNPredictor):
    """Class logits ``(N, classes + 1)``, the background first, and one box for all classes ``(N, 4)``."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(channels, num_classes + 1)
        self.bbox_pred = nn.Linear(channels, 4)


class CascadeRoIHeads(nn.Module):
    """Cascade R-CNN (Cai & Vasconcelos, arXiv 1906.09756): box heads in a row, each on the boxes of the one before.

    It takes the place of torchvision's ``RoIHeads`` in a ``GeneralizedRCNN``. Every stage is itself such an
    ``RoIHeads``, which matches, samples and decodes with the stage's settings.

    Training: a stage matches its boxes, the objects' own among them, anew with its IoU, and samples of them. What it
    makes of the sample goes on to the next stage: detached, clipped to the image, without what has become empty.

    Inference: the boxes are those of the last stage. The probabilities are the mean over the classifiers, each on the
    boxes that came to its stage. The paper averages them too, but has all classifiers look once more at the last
    stage's boxes (table 2 of arXiv 1712.00726); Detectron2 and MMDetection spare that second pass, and so does this.

    Masks: one head, the simplest of the paper's three ways. It learns from the first stage's positive boxes and is
    applied to the final ones.

    Args:
        box_roi_pool: Takes what is in a box out of the pyramid, for all stages.
        channels: Of the pyramid's maps.
        num_classes: Without the background.
        stages: The settings of each.
        representation: Width of the two layers of a stage's head.
        box_samples: Boxes an image that a stage learns from.
        positive_fraction: At most so many of these are boxes of objects.
        score_threshold: Detections below it are dropped.
        nms_threshold: IoU from which on the worse of two boxes of a class is dropped.
        detections_per_image: At most so many are kept.
        mask_roi_pool: As ``box_roi_pool``, for masks. It, the head and the predictor are torchvision's; without them
            there are no masks.
        mask_head: From what is in a box to features.
        mask_predictor: From features to the logits of a mask for each class.

    Raises:
        ValueError: If there is no stage, or its settings are out of range.
    """

    def __init__(
        self,
        box_roi_pool: MultiScaleRoIAlign,
        channels: int,
        num_classes: int,
        *,
        stages: Sequence[Stage] = STAGES,
        representation: int = 1024,
        box_samples: int = 512,
        positive_fraction: float = 0.25,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        mask_roi_pool: MultiScaleRoIAlign | None = None,
        mask_head: nn.Module | None = None,
        mask_predictor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        _check(stages)
        self.loss_weights = [stage.loss_weight for stage in stages]
        height, width = box_roi_pool.output_size
        self.stages = nn.ModuleList(
            RoIHeads(
                box_roi_pool,
                TwoMLPHead(channels * height * width, representation),
                ClassAgnosticPredictor(representation, num_classes),
                fg_iou_thresh=stage.iou,
                bg_iou_thresh=stage.iou,
                batch_size_per_image=box_samples,
                positive_fraction=positive_fraction,
                bbox_reg_weights=stage.weights,
                score_thresh=score_threshold,
                nms_thresh=nms_threshold,
                detections_per_img=detections_per_image,
            )
            for stage in stages
        )
        self.mask_roi_pool = mask_roi_pool
        self.mask_head = mask_head
        self.mask_predictor = mask_predictor

    def has_mask(self) -> bool:
        """Whether there are masks."""
        return None not in (self.mask_roi_pool, self.mask_head, self.mask_predictor)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections in evaluation mode, losses in training mode, as torchvision's ``RoIHeads`` gives them.

        Args:
            features: The pyramid's maps ``(B, channels, H_i, W_i)`` by name.
            proposals: Boxes ``(P, 4)`` of each image, in pixels.
            image_shapes: Height and width of each image, without the padding of the batch.
            targets: Of each image in training: boxes ``(N, 4)``, labels ``(N,)``, masks ``(N, H, W)`` if there are any.

        Returns:
            Boxes ``(N, 4)``, labels ``(N,)``, scores ``(N,)`` and perhaps masks ``(N, 1, M, M)`` of each image, and the
            losses, each times its stage's weight, by name: ``loss_classifier_1``, ``loss_box_reg_1`` and so on, and
            ``loss_mask``. One of the two is empty.

        Raises:
            ValueError: If there are no targets in training, or they lack boxes, labels or masks.
        """
        if self.training:
            if self.has_mask() and not all("masks" in target for target in targets or ()):
                raise ValueError("targets lack masks, which this network learns; give each image its masks")
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detections(features, proposals, image_shapes), {}

    def _losses(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None,
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for number, (stage, weight) in enumerate(zip(self._stages(), self.loss_weights, strict=True), start=1):
            boxes, objects, labels, regression = stage.select_training_samples(boxes, targets)
            logits, deltas = _predict(stage, features, boxes, image_shapes)
            classification_loss, box_loss = _box_losses(logits, deltas, labels, regression)
            losses[f"loss_classifier_{number}"] = weight * classification_loss
            losses[f"loss_box_reg_{number}"] = weight * box_loss
            if number == 1 and self.has_mask():
                assert targets is not None
                losses["loss_mask"] = self._mask_loss(features, boxes, objects, labels, image_shapes, targets)
            refined = _refine(stage, deltas, boxes, image_shapes)
            boxes = [each[remove_small_boxes(each, SMALLEST_SIDE)] for each in refined]
        return losses

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        boxes: Sequence[Tensor],
        objects: Sequence[Tensor],
        labels: Sequence[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Sequence[Mapping[str, Tensor]],
    ) -> Tensor:
        positive = [torch.where(each > 0)[0] for each in labels]
        boxes = [each[index] for each, index in zip(boxes, positive, strict=True)]
        objects = [each[index] for each, index in zip(objects, positive, strict=True)]
        logits = self._mask_logits(features, boxes, image_shapes)
        masks, labels = [target["masks"] for target in targets], [target["labels"] for target in targets]
        loss = maskrcnn_loss(logits, boxes, masks, labels, objects)
        assert isinstance(loss, Tensor)
        return loss

    def _detections(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        stages = self._stages()
        refined, probabilities = boxes, []
        for stage in stages:
            boxes = refined
            logits, deltas = _predict(stage, features, boxes, image_shapes)
            probabilities.append(logits.softmax(-1))
            refined = _refine(stage, deltas, boxes, image_shapes)
        mean = torch.stack(probabilities).mean(0)
        # torchvision takes logits, and a box for each class; the softmax of logarithms that add up to 1 undoes them.
        found = stages[-1].postprocess_detections(mean.log(), _for_each_class(deltas, mean), boxes, image_shapes)
        detections = [
            {"boxes": boxes, "labels": labels, "scores": scores} for boxes, scores, labels in zip(*found, strict=True)
        ]
        if self.has_mask():
            logits = self._mask_logits(features, [found["boxes"] for found in detections], image_shapes)
            masks = maskrcnn_inference(logits, [found["labels"] for found in detections])
            for found, mask in zip(detections, masks, strict=True):
                found["masks"] = mask
        return detections

    def _mask_logits(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        assert self.mask_roi_pool is not None
        assert self.mask_head is not None
        assert self.mask_predictor is not None
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
        assert isinstance(logits, Tensor)
        return logits

    def _stages(self) -> list[RoIHeads]:
        return list(self.stages)


def _check(stages: Sequence[Stage]) -> None:
    if not stages:
        raise ValueError("stages is empty; give the settings of at least one")
    for stage in stages:
        if not 0 < stage.iou < 1 or min(stage.weights) <= 0 or stage.loss_weight < 0:
            raise ValueError(f"{stage} is out of range: iou lies between 0 and 1, weights are above 0")


def _predict(
    stage: RoIHeads, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Logits ``(N, K + 1)`` and regression ``(N, 4)`` of all boxes, image after image."""
    logits, deltas = stage.box_predictor(stage.box_head(stage.box_roi_pool(features, boxes, image_shapes)))
    return logits, deltas


def _refine(stage: RoIHeads, deltas: Tensor, boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> list[Tensor]:
    """What a stage's regression makes of the boxes of each image, inside the image; no gradient goes through it."""
    counts = [each.shape[0] for each in boxes]  # len would be a constant in a traced graph
    refined = stage.box_coder.decode(deltas.detach(), boxes).reshape(-1, 4).split(counts)
    return [clip_boxes_to_image(each, shape) for each, shape in zip(refined, image_shapes, strict=True)]


def _box_losses(
    logits: Tensor, deltas: Tensor, labels: list[Tensor], regression: list[Tensor]
) -> tuple[Tensor, Tensor]:
    if len(logits) == 0:  # no image has an object or a proposal: a mean over none would be NaN
        return logits.sum(), deltas.sum()
    classification_loss, box_loss = fastrcnn_loss(logits, _for_each_class(deltas, logits), labels, regression)
    return classification_loss, box_loss


def _for_each_class(deltas: Tensor, logits: Tensor) -> Tensor:
    """The one regression ``(N, 4)`` as that of every class ``(N, (K + 1) * 4)``, as torchvision wants it."""
    return deltas.repeat(1, logits.shape[1])


__all__ = ["STAGES", "CascadeRoIHeads", "ClassAgnosticPredictor", "Stage"]
