"""Tiny detectors and segmenters in which every layer matters to what they find."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from openfastervit.models.features import STRIDES, Backbone, DenseNetwork
from openfastervit.tasks.detection.detr import DetrDetector, create_detr
from openfastervit.tasks.detection.rcnn import RCNN, create_rcnn
from openfastervit.tasks.segmentation.networks import Segmenter, create_segmenter
from tests.inference.lively import lively

CLASSES = ("red", "green", "blue")
CATEGORY_IDS = (2, 5, 9)
COLOURS: dict[str, list[float]] = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
BACKBONE: dict[str, Any] = {"dim": 8, "stem_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
RCNN_OPTIONS: dict[str, Any] = {
    "fpn_channels": 16,
    "representation": 32,
    "mask_channels": 8,
    "anchor_sizes": (16, 32, 48, 64, 96),
}
DETR_OPTIONS: dict[str, Any] = {
    "d_model": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_layers": 2,
    "encoder_layers": 1,
    "num_queries": 12,
}
SEGMENTER_OPTIONS: dict[str, dict[str, Any]] = {
    "upernet": {"hidden_size": 16, "auxiliary_channels": 8},
    "mask2former": {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 32,
        "dim_feedforward": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 4,
        "num_queries": 6,
    },
}


def rcnn(kind: Any = "cascade-mask-rcnn", *, proposals: int = 200, **options: Any) -> RCNN:
    """An R-CNN in evaluation mode, whose boxes, scores and classes are spread."""
    sizes = {"min_size": (96,), "max_size": 128, **COLOURS}
    model = create_rcnn(kind, _backbone(), len(CLASSES), **{**sizes, **RCNN_OPTIONS, **options})
    _wake(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bbox_pred.weight"):
                parameter *= 0.5
            elif name.endswith("cls_score.weight"):
                parameter *= 3
    model.rpn._pre_nms_top_n["testing"] = proposals + 50
    model.rpn._post_nms_top_n["testing"] = proposals
    return model.eval()


def detr(kind: Any, **options: Any) -> DetrDetector:
    """A detection transformer in evaluation mode."""
    own = {name: value for name, value in DETR_OPTIONS.items() if kind == "deformable-detr" or name != "encoder_layers"}
    sizes = {"min_size": 96, "max_size": 128, **COLOURS, **options}
    model = create_detr(kind, _backbone((8, 16, 32)), len(CLASSES), options=own, **sizes)
    _wake(model)
    return model.eval()


def segmenter(kind: Any) -> Segmenter:
    """A segmenter in evaluation mode."""
    model = create_segmenter(kind, _backbone(), len(CLASSES) + 1, options=SEGMENTER_OPTIONS[kind])
    _wake(model)
    return model.eval()


def image(size: tuple[int, int], inner: tuple[int, int], seed: int = 3) -> Tensor:
    """Noise ``(1, 3, *inner)`` in the corner of nothing ``(1, 3, *size)``."""
    images = torch.zeros(1, 3, *size)
    images[:, :, : inner[0], : inner[1]] = torch.randn(1, 3, *inner, generator=torch.Generator().manual_seed(seed))
    return images


@torch.no_grad()
def plain(model: RCNN, images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """What torchvision's parts find, one after the other, in an image of a size within a padded one."""
    maps = model.backbone(images)
    proposals, _ = model.rpn(ImageList(images, [size]), maps)
    (found,), _ = model.roi_heads(maps, proposals, [size])
    return found


def _backbone(strides: tuple[int, ...] = STRIDES) -> Backbone:
    return Backbone(lively("fastervit_0", **BACKBONE), strides)


def _wake(model: DenseNetwork) -> None:
    """Weights of unit gain, and batch norms that have seen something, in all but the backbone."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in model.head_parts():
            for module in part.modules():
                if isinstance(module, nn.BatchNorm2d):
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.normal_(0, 0.1, generator=generator)
                    module.running_var.uniform_(0.8, 1.5, generator=generator)
                elif isinstance(module, nn.Conv2d | nn.Linear):
                    module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)
