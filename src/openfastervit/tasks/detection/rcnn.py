"""R-CNNs on our backbones: Faster and Mask R-CNN as torchvision has them, and their cascades."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from openfastervit.models.features import STRIDES, Backbone, DenseNetwork
from openfastervit.tasks.detection.cascade import CascadeRoIHeads

Kind = Literal["cascade-mask-rcnn", "cascade-rcnn", "mask-rcnn", "faster-rcnn"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MIN_SIZES = tuple(range(480, 801, 32))
"""Short sides that training draws from: the paper's multi-scale training. The last one is that of evaluation."""
MAPS = tuple(str(i) for i in range(len(STRIDES)))
"""Names of the pyramid's maps that boxes are taken from."""


class Pyramid(nn.Module):
    """A backbone and a feature pyramid (arXiv 1612.03144) on its maps, as torchvision's detectors take them.

    Args:
        body: Gives maps of strides 4, 8, 16 and 32.
        channels: Of the pyramid's maps.

    Raises:
        ValueError: If the backbone has other strides.
    """

    def __init__(self, body: Backbone, channels: int) -> None:
        super().__init__()
        if tuple(body.strides) != STRIDES:
            raise ValueError(f"backbone gives maps of strides {body.strides}; an R-CNN takes those of {list(STRIDES)}")
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.channels, channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Of images ``(B, 3, H, W)`` maps ``(B, channels, H_i, W_i)`` named "0" to "3", and "pool" of stride 64."""
        maps: dict[str, Tensor] = self.fpn(OrderedDict(zip(MAPS, self.body(images), strict=True)))
        return maps


class RCNN(DenseNetwork, GeneralizedRCNN):
    """torchvision's ``GeneralizedRCNN`` on one of our backbones.

    In training mode it takes images and targets and gives named losses; in evaluation mode it takes images and gives a
    dict of each: ``boxes`` ``(N, 4)`` in its pixels, ``labels`` ``(N,)`` from 1, ``scores`` ``(N,)`` that fall and,
    if it has masks, ``masks`` ``(N, 1, H, W)``. It scales and normalises images itself (``transform``).

    Args:
        backbone: The pyramid.
        rpn: torchvision's ``RegionProposalNetwork``.
        roi_heads: torchvision's ``RoIHeads`` or ``CascadeRoIHeads``.
        transform: torchvision's ``GeneralizedRCNNTransform``.
        num_classes: Without the background.
    """

    backbone_name = "backbone.body"
    transform: GeneralizedRCNNTransform
    roi_heads: RoIHeads | CascadeRoIHeads

    def __init__(
        self,
        backbone: Pyramid,
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads | CascadeRoIHeads,
        transform: GeneralizedRCNNTransform,
        num_classes: int,
    ) -> None:
        super().__init__(backbone, rpn, roi_heads, transform)
        self.num_classes = num_classes
        predictors = [m for m in roi_heads.modules() if isinstance(m, FastRCNNPredictor | MaskRCNNPredictor)]
        for module in (rpn.head, *predictors):
            module.register_forward_hook(_in_float32)

    @property
    def masks(self) -> bool:
        """Whether it gives masks."""
        return bool(self.roi_heads.has_mask())

    def forward(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None) -> Any:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: Each ``(3, H, W)``, from 0 to 1, of any size.
            targets: Of each image in training: ``boxes`` ``(N, 4)`` of two corners in its pixels, ``labels`` ``(N,)``
                int64 from 1, and ``masks`` ``(N, H, W)`` if the network has masks. N may be 0.

        Raises:
            ValueError: If there are no images, one has another shape, or targets are missing or out of range.
        """
        self._check_images(images)
        if self.training:
            self._check_targets(images, targets)
        return super().forward(list(images), targets)

    def _check_images(self, images: Sequence[Tensor]) -> None:
        if len(images) == 0:
            raise ValueError("images is empty; give at least one image")
        longest = self.transform.max_size
        for i, image in enumerate(images):
            if image.ndim != 3:
                raise ValueError(f"image {i} has shape {list(image.shape)}; it must be (3, H, W)")
            height, width = image.shape[-2:]
            if min(height, width) * longest < max(height, width, 1):
                raise ValueError(
                    f"image {i} of {width}x{height} pixels has no short side left when its long one is scaled to "
                    f"{longest}; crop or pad it"
                )

    def _check_targets(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None) -> None:
        if targets is None or len(targets) != len(images):
            given = "none" if targets is None else len(targets)
            raise ValueError(f"targets of {given} of {len(images)} images; in training each image needs its target")
        for i, (image, target) in enumerate(zip(images, targets, strict=True)):
            missing = {"boxes", "labels", *(["masks"] if self.masks else [])} - target.keys()
            if missing:
                raise ValueError(f"target {i} lacks {', '.join(sorted(missing))}, which this network learns")
            boxes, labels = target["boxes"], target["labels"]
            count = len(boxes)
            shapes = {"boxes": (count, 4), "labels": (count,)}
            if self.masks:
                shapes["masks"] = (count, *image.shape[-2:])
            for name, shape in shapes.items():
                if target[name].shape != shape:
                    raise ValueError(f"{name} of target {i} have shape {tuple(target[name].shape)}, not {shape}")
            if not boxes.is_floating_point() or labels.dtype != torch.int64:
                raise ValueError(f"target {i} is {boxes.dtype} and {labels.dtype}; take float32 boxes, int64 labels")
        boxes = torch.cat([target["boxes"] for target in targets])
        labels = torch.cat([target["labels"] for target in targets])
        real = boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        if not real.all():
            raise ValueError(f"box {boxes[~real][0].tolist()} has no area, or no finite one; drop such boxes")
        known = (labels >= 1) & (labels <= self.num_classes)
        if not known.all():
            raise ValueError(f"label {int(labels[~known][0])} is none of the classes 1 to {self.num_classes}")


def _in_float32(module: nn.Module, args: Any, outputs: Any) -> Any:
    """A hook. torchvision decodes boxes in the type of the regression: in bfloat16 they would be 8 pixels coarse."""
    half = (torch.bfloat16, torch.float16)
    return tree_map_only(Tensor, lambda each: each.float() if each.dtype in half else each, outputs)


def create_rcnn(
    kind: Kind,
    backbone: Backbone,
    num_classes: int,
    *,
    min_size: Sequence[int] = MIN_SIZES,
    max_size: int = 1333,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    fpn_channels: int = 256,
    representation: int = 1024,
    mask_channels: int = 256,
    anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    box_samples: int = 512,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 100,
) -> RCNN:
    """An R-CNN on a backbone; its own parts have random first weights.

    Args:
        kind: Plain kinds are torchvision's; in cascades ``CascadeRoIHeads`` stand for its ``RoIHeads``.
        backbone: Gives maps of strides 4, 8, 16 and 32.
        num_classes: Without the background.
        min_size: Short sides of images in pixels, of which training draws one for each; evaluation takes the last.
        max_size: Longest side of images: one that would become longer is made smaller.
        mean: Of each channel, of values from 0 to 1.
        std: Of each channel.
        fpn_channels: Of the pyramid's maps.
        representation: Width of the two layers of each box head.
        mask_channels: Of the mask head's convolutions.
        anchor_sizes: Side of the anchors on each level of the pyramid, in pixels.
        aspect_ratios: Of the anchors, height to width.
        box_samples: Boxes an image that each box head learns from, a quarter of them with objects.
        score_threshold: Detections below it are dropped.
        nms_threshold: IoU from which on the worse of two boxes of a class is dropped.
        detections_per_image: At most so many are kept.

    Raises:
        ValueError: If an option is out of range, or the backbone has other strides.
    """
    _check_options(locals())
    pyramid = Pyramid(backbone, fpn_channels)
    cascade, masks = kind.startswith("cascade"), "mask" in kind
    box_pool = _roi_pool(7)
    options: dict[str, Any] = {
        "min_size": tuple(min_size),
        "max_size": max_size,
        "image_mean": list(mean),
        "image_std": list(std),
        "rpn_anchor_generator": AnchorGenerator(
            tuple((size,) for size in anchor_sizes), (tuple(aspect_ratios),) * len(anchor_sizes)
        ),
        "box_roi_pool": box_pool,
        "box_head": nn.Identity() if cascade else TwoMLPHead(fpn_channels * 7 * 7, representation),
        "box_predictor": nn.Identity() if cascade else FastRCNNPredictor(representation, num_classes + 1),
        "box_batch_size_per_image": box_samples,
        "box_score_thresh": score_threshold,
        "box_nms_thresh": nms_threshold,
        "box_detections_per_img": detections_per_image,
    }
    if masks:
        options |= {
            "mask_roi_pool": _roi_pool(14),
            "mask_head": MaskRCNNHeads(fpn_channels, (mask_channels,) * 4, dilation=1),
            "mask_predictor": MaskRCNNPredictor(mask_channels, mask_channels, num_classes + 1),
        }
    plain = (MaskRCNN if masks else FasterRCNN)(pyramid, **options)
    heads: RoIHeads | CascadeRoIHeads = plain.roi_heads
    if cascade:
        heads = CascadeRoIHeads(
            box_pool,
            fpn_channels,
            num_classes,
            representation=representation,
            box_samples=box_samples,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            detections_per_image=detections_per_image,
            **{part: getattr(plain.roi_heads, part) for part in ("mask_roi_pool", "mask_head", "mask_predictor")},
        )
    return RCNN(pyramid, plain.rpn, heads, plain.transform, num_classes)


def _roi_pool(size: int) -> MultiScaleRoIAlign:
    """torchvision's, told the strides.

    Else it would guess them from the sizes of the first images that it sees and keep the guess, which is wrong where
    padding to multiples of 32 lengthens a side by half: 66x1333 pixels become 96x1344.
    """
    pool = MultiScaleRoIAlign(list(MAPS), output_size=size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in STRIDES]
    levels = [stride.bit_length() - 1 for stride in STRIDES]
    pool.map_levels = LevelMapper(levels[0], levels[-1], pool.canonical_scale, pool.canonical_level)
    return pool


def _check_options(given: Mapping[str, Any]) -> None:
    def require(fits: bool, name: str, mend: str) -> None:
        if not fits:
            raise ValueError(f"{name}={given[name]!r} {mend}")

    require(given["kind"] in KINDS, "kind", f"is none of {', '.join(KINDS)}")
    for name in ("num_classes", "fpn_channels", "representation", "mask_channels", "box_samples"):
        require(given[name] >= 1, name, "must be at least 1")
    require(given["detections_per_image"] >= 1, "detections_per_image", "must be at least 1")
    sizes = given["min_size"]
    require(len(sizes) > 0 and min(sizes) >= 1, "min_size", "must be one short side or more, in pixels")
    require(given["max_size"] >= max(sizes), "max_size", f"must be at least the largest of min_size, {max(sizes)}")
    require(len(given["mean"]) == len(given["std"]), "mean", f"must have as many numbers as std={given['std']!r}")
    require(min(given["std"]) > 0, "std", "must be above 0")
    levels = len(STRIDES) + 1
    sides = given["anchor_sizes"]
    require(len(sides) == levels and min(sides) > 0, "anchor_sizes", f"must be {levels} sides, one a level")
    ratios = given["aspect_ratios"]
    require(len(ratios) > 0 and min(ratios) > 0, "aspect_ratios", "must be one number or more, above 0")
    require(0 <= given["score_threshold"] < 1, "score_threshold", "must be at least 0, below 1")
    require(0 < given["nms_threshold"] <= 1, "nms_threshold", "must be above 0, at most 1")


__all__ = ["KINDS", "MIN_SIZES", "RCNN", "Kind", "Pyramid", "create_rcnn"]
