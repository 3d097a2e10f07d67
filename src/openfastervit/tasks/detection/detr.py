"""Detection transformers of Hugging Face's transformers, with the manners of torchvision's detectors.

RT-DETR (Zhao et al., arXiv 2304.08069), D-FINE (Peng et al., arXiv 2410.13842) and Deformable DETR (Zhu et al., arXiv
2010.04159): networks, matching and losses are the library's.
"""

import contextlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_convert, clip_boxes_to_image

from openfastervit.models.features import Backbone, DenseNetwork

Kind = Literal["rt-detr", "d-fine", "deformable-detr"]

MAPS = (8, 16, 32)
"""Strides of the backbone's maps that all of them take."""

Size = tuple[int, int]


class DetrDetector(DenseNetwork):
    """A detection transformer that takes and gives what torchvision's detectors do.

    Args:
        network: One of transformers' ``...ForObjectDetection``, with our backbone in it.
        backbone_name: Where in ``network`` that is.
        transform: Scales, normalises and batches images.
        sees_padding: The network is told which pixels are padding, and its boxes are relative to the image; others
            take padding for a part of the image, and theirs are relative to the padded one.
        queries_from_maps: It chooses its queries among the cells of its maps, so that there must be enough.
        weights: Of the losses by their names, where the network gives them unweighted; others are not trained on.
        detections_per_image: At most so many, the best ones.
        score_threshold: Detections score above it.
    """

    def __init__(
        self,
        network: nn.Module,
        backbone_name: str,
        transform: GeneralizedRCNNTransform,
        *,
        sees_padding: bool,
        queries_from_maps: bool,
        weights: Mapping[str, float] | None = None,
        detections_per_image: int = 100,
        score_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.config: Any = network.config
        self.transform = transform
        self.backbone_name = f"network.{backbone_name}"
        self.sees_padding = sees_padding
        self.queries_from_maps = queries_from_maps
        self.weights = weights
        self.detections_per_image = detections_per_image
        self.score_threshold = score_threshold

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Losses of the decoder's layers and of denoising queries are summed under one name, so that names are the same
        for every batch.

        Args:
            images: ``(3, H, W)`` each, from 0 to 1, of any sizes.
            targets: In training, for each image ``boxes`` ``(N, 4)``, corners in its pixels, and ``labels`` ``(N,)``
                from 1. N may be 0.

        Returns:
            Named losses, whose sum is the library's loss; or for each image ``boxes`` ``(N, 4)`` in its pixels and
            within it, ``scores`` and ``labels`` ``(N,)``, by falling score.

        Raises:
            ValueError: If there are no images, in training no targets or senseless ones, or fewer cells than queries.
        """
        if not images:
            raise ValueError("images is empty; a batch needs one image or more")
        given = [_size(image) for image in images]
        if self.training:
            if targets is None:
                raise ValueError("targets=None: in training mode give the objects of each image, or call eval() first")
            self._check(images, targets)
            targets = [dict(target) for target in targets]
        batch, scaled = self.transform(list(images), targets if self.training else None)
        pixels = batch.tensors
        self._check_cells(_size(pixels))
        # What 1 stands for in the network's boxes, in pixels of its input.
        units = batch.image_sizes if self.sees_padding else [_size(pixels)] * len(given)
        inputs = {"pixel_values": pixels}
        if self.sees_padding:
            inputs["pixel_mask"] = _mask(pixels, batch.image_sizes)
        if self.training:
            assert scaled is not None
            return self._losses(inputs, [_labels(target, unit) for target, unit in zip(scaled, units, strict=True)])
        # Boxes of a network that computes in bfloat16 are off by up to two pixels in 640.
        with _full_precision(pixels.device):
            outputs = self.network(**inputs)
        units = [
            (unit[0] * size[0] / resized[0], unit[1] * size[1] / resized[1])
            for unit, size, resized in zip(units, given, batch.image_sizes, strict=True)
        ]
        return self._detections(outputs.logits, outputs.pred_boxes, units, given)

    def _losses(self, inputs: dict[str, Tensor], labels: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        from openfastervit.models.transformers_compat import sum_over_layers

        losses = sum_over_layers(self.network(**inputs, labels=labels).loss_dict)
        if self.weights is not None:
            losses = {name: weight * losses[name] for name, weight in self.weights.items()}
        denoising = getattr(self.network.model, "denoising_class_embed", None)
        if denoising is not None and not any(len(label["boxes"]) for label in labels):
            # Without objects it is not used, and processes that wait for its gradient would wait for ever.
            first = next(iter(losses))
            losses[first] = losses[first] + 0 * cast(Tensor, denoising.weight).sum()
        return losses

    def _detections(
        self, logits: Tensor, boxes: Tensor, units: Sequence[tuple[float, float]], sizes: Sequence[Size]
    ) -> list[dict[str, Tensor]]:
        """Detections of images of ``sizes`` from logits ``(B, Q, K)`` and relative boxes ``(B, Q, 4)``, centres first.

        They are the best pairs of a query and a class: each class has a sigmoid of its own.
        """
        queries, classes = logits.shape[1:]
        scores, places = logits.sigmoid().flatten(1).topk(min(self.detections_per_image, queries * classes))
        corners = box_convert(boxes, "cxcywh", "xyxy")
        found = []
        for i, (height, width) in enumerate(units):
            keep = scores[i] > self.score_threshold
            place = places[i][keep]
            picked = corners[i][place // classes] * corners.new_tensor([width, height, width, height])
            found.append(
                {
                    "boxes": clip_boxes_to_image(picked, sizes[i]),
                    "scores": scores[i][keep],
                    "labels": place % classes + 1,
                }
            )
        return found

    def _check(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> None:
        if len(targets) != len(images):
            raise ValueError(f"there are {len(images)} images and {len(targets)} targets; give one for each image")
        classes = self.config.num_labels
        for i, target in enumerate(targets):
            boxes, labels = target["boxes"], target["labels"]
            if boxes.shape != (len(labels), 4):
                raise ValueError(
                    f"targets[{i}]: boxes of shape {list(boxes.shape)} with {len(labels)} labels; it must be "
                    f"[{len(labels)}, 4]"
                )
            bad = ~(boxes[:, 2:] > boxes[:, :2]).all(1) | ~boxes.isfinite().all(1)
            if bad.any():
                raise ValueError(f"targets[{i}]: the box {boxes[bad][0].tolist()} has no area; leave it out")
            bad = (labels < 1) | (labels > classes)
            if bad.any():
                raise ValueError(f"targets[{i}]: the label {int(labels[bad][0])} is not from 1 to {classes}")

    def _check_cells(self, size: Size) -> None:
        if not self.queries_from_maps:
            return
        strides = [MAPS[0] * 2**level for level in range(self.config.num_feature_levels)]
        cells = sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides)
        if cells < self.config.num_queries:
            raise ValueError(
                f"num_queries={self.config.num_queries} are more than the {cells} cells that the maps of images of "
                f"{size[0]} x {size[1]} pixels have; lower it, or scale images up by min_size or fixed_size"
            )


def create_detr(
    kind: Kind,
    backbone: Backbone,
    num_classes: int,
    *,
    min_size: int | Sequence[int],
    max_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    detections_per_image: int = 100,
    score_threshold: float = 0.0,
    fixed_size: int | Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> DetrDetector:
    """A detection transformer on a backbone, whose weights and batch norm stay as they are; the rest is random.

    Args:
        kind: Which one.
        backbone: With maps of strides 8, 16 and 32.
        num_classes: Without a background.
        min_size: Short sides of the images, in pixels: one of them is drawn in training, evaluation takes the last.
        max_size: Longest side.
        mean: Of each channel, for images from 0 to 1.
        std: Of each channel.
        detections_per_image: At most so many, the best ones.
        score_threshold: Detections score above it.
        fixed_size: Side, or height and width, that all images are stretched to instead; 640 is usual for RT-DETR and
            D-FINE.
        options: Of the network, by their names in transformers' configuration (``d_model``, ``num_queries``, ...).

    Raises:
        ValueError: If the kind or an option is unknown, the backbone has other maps, or a library is missing.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} is unknown; there is {', '.join(get_args(Kind))}")
    if tuple(backbone.strides) != MAPS:
        raise ValueError(f"{kind} takes maps of strides {list(MAPS)}, not {backbone.strides}; create_backbone such")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1")
    if importlib.util.find_spec("scipy") is None:
        raise ValueError(f"{kind} needs scipy to learn; install it with: pip install 'openfastervit[detection]'")
    masked = kind == "deformable-detr"
    network, backbone_name = _build(kind, backbone, num_classes, dict(options or {}))
    config: Any = network.config
    detector = DetrDetector(
        network,
        backbone_name,
        GeneralizedRCNNTransform(
            min_size if isinstance(min_size, int) else tuple(min_size),
            max_size,
            list(mean),
            list(std),
            size_divisible=MAPS[-1],
            fixed_size=_width_height(fixed_size),
        ),
        sees_padding=masked,
        queries_from_maps=not masked,
        weights=(
            {"loss_ce": 1.0, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
            if masked
            else None
        ),
        detections_per_image=detections_per_image,
        score_threshold=score_threshold,
    )
    for module in detector.head_parts().modules():
        if isinstance(module, nn.BatchNorm2d):
            # transformers, made for loading weights, draws RT-DETR's from N(0, 0.01): maps would all but vanish.
            nn.init.ones_(module.weight)
    return detector


def _build(kind: Kind, backbone: Backbone, num_classes: int, options: dict[str, Any]) -> tuple[nn.Module, str]:
    """The network in transformers, and where in it the backbone is."""
    # First: it says what to install where the library is missing.
    from openfastervit.models.transformers_compat import build_around, make_config

    # isort: split
    import transformers as hf

    if kind != "rt-detr" and options.get("decoder_layers", 2) < 2:
        raise ValueError(
            f"decoder_layers={options['decoder_layers']}: transformers makes no {kind} with fewer than 2; take more"
        )
    if kind == "deformable-detr":
        if options.get("two_stage"):
            raise ValueError(
                "two_stage=True: transformers has no loss for the proposals, which would not learn; leave it out"
            )
        options = {"auxiliary_loss": True, "disable_custom_kernels": True, **options}
        return build_around(
            backbone,
            lambda config: hf.DeformableDetrForObjectDetection(
                make_config(hf.DeformableDetrConfig, options, backbone_config=config, num_labels=num_classes)
            ),
        )
    if "d_model" in options:
        options = {"encoder_hidden_dim": options["d_model"], **options}
    config_class = hf.RTDetrConfig if kind == "rt-detr" else hf.DFineConfig
    network_class: Any = hf.RTDetrForObjectDetection if kind == "rt-detr" else hf.DFineForObjectDetection
    fixed = {
        "num_labels": num_classes,
        "freeze_backbone_batch_norms": False,
        "encoder_in_channels": backbone.channels,
        "feat_strides": backbone.strides,
        "decoder_in_channels": [options.get("encoder_hidden_dim", 256)] * len(MAPS),
    }
    return build_around(
        backbone, lambda config: network_class(make_config(config_class, options, backbone_config=config, **fixed))
    )


def _width_height(size: int | Sequence[int] | None) -> Size | None:
    """A size as torchvision's transform takes it."""
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) not in (1, 2) or min(sides) < MAPS[-1]:
        raise ValueError(f"fixed_size={size} must be one side, or height and width, of at least {MAPS[-1]} pixels")
    return int(sides[-1]), int(sides[0])


def _size(image: Tensor) -> Size:
    height, width = image.shape[-2:]
    return height, width


def _mask(pixels: Tensor, sizes: Sequence[Size]) -> Tensor:
    """``(B, H, W)``: 1 where there is an image, 0 where there is padding."""
    mask = torch.zeros(len(sizes), *_size(pixels), dtype=torch.long, device=pixels.device)
    for i, (height, width) in enumerate(sizes):
        mask[i, :height, :width] = 1
    return mask


def _labels(target: Mapping[str, Tensor], unit: Size) -> dict[str, Tensor]:
    """A target as the networks' losses take it: classes from 0, relative boxes, centres first."""
    height, width = unit
    boxes = target["boxes"] / target["boxes"].new_tensor([width, height, width, height])
    return {"class_labels": target["labels"] - 1, "boxes": box_convert(boxes, "xyxy", "cxcywh")}


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


__all__ = ["DetrDetector", "create_detr"]
