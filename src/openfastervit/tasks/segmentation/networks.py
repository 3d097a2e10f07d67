"""Segmenters of Hugging Face's transformers on our backbones: UPerNet and Mask2Former."""

import importlib.util
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.data.label_maps import IGNORE
from openfastervit.layers.conv import MIN_SIZE
from openfastervit.models.features import STRIDES, Backbone, DenseNetwork

Kind = Literal["upernet", "mask2former"]


class Segmenter(DenseNetwork):
    """A network of transformers that gives each pixel scores of the classes.

    Args:
        network: With our backbone in it.
        backbone_name: Where in ``network`` that is.
    """

    def __init__(self, network: nn.Module, backbone_name: str) -> None:
        super().__init__()
        self.network: Any = network
        self.backbone_name = f"network.{backbone_name}"

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor] | Tensor:
        """Losses in training mode with labels, else scores.

        Args:
            images: ``(B, 3, H, W)``, normalised, of any size; without labels those below 32 pixels are padded.
            labels: ``(B, H, W)``, classes from 0; 255 is ignored.

        Returns:
            Named losses, whose sum is to be trained on; or scores ``(B, K, H, W)``, the highest of which tells a
            pixel's class.

        Raises:
            ValueError: If the labels are not of the images' size.
        """
        if labels is not None and labels.shape != (len(images), *images.shape[-2:]):
            raise ValueError(
                f"labels of shape {list(labels.shape)} do not fit images of shape {list(images.shape)}; they must be "
                f"{[len(images), *images.shape[-2:]]}"
            )
        if self.training and labels is not None:
            return self.losses(images, labels)
        height, width = images.shape[-2:]
        if min(height, width) >= MIN_SIZE:
            return self.scores(images)
        # Backbones take no smaller images; a folder of photographs may have some all the same.
        padded = F.pad(images, (0, max(0, MIN_SIZE - width), 0, max(0, MIN_SIZE - height)))
        return self.scores(padded)[..., :height, :width]

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Named losses."""
        raise NotImplementedError

    def scores(self, images: Tensor) -> Tensor:
        """Scores ``(B, K, H, W)``."""
        raise NotImplementedError


class UPerNet(Segmenter):
    """UPerNet (Xiao et al., arXiv 1807.10221) with an auxiliary head of convolutions (FCN) on the map of stride 16."""

    def scores(self, images: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)``."""
        self._check_batch(images)
        return _resize(self.network.decode_head(self.feature_backbone(images)), images)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of both heads, that of the auxiliary one weighted."""
        self._check_batch(images)
        maps = self.feature_backbone(images)
        found = {"loss_decode": _cross_entropy(_resize(self.network.decode_head(maps), images), labels)}
        if self.network.auxiliary_head is not None:
            loss = _cross_entropy(_resize(self.network.auxiliary_head(maps), images), labels)
            found["loss_auxiliary"] = self.network.config.auxiliary_loss_weight * loss
        return found

    def _check_batch(self, images: Tensor) -> None:
        """Refuse what torch's ``BatchNorm2d`` would refuse in the pooled map of one cell, and say why."""
        if not self.training or len(images) > 1:
            return
        for block in self.network.decode_head.psp_modules.blocks:
            pool, convolution = block.layers
            norm = convolution.batch_norm
            if pool.output_size == 1 and type(norm) is nn.BatchNorm2d and norm.training:
                raise ValueError(
                    "a batch of one image: UPerNet pools the image to one cell, and batch norm learns nothing from one "
                    "value; give batches of two or more (drop a last one of one), or leave 1 out of pool_scales"
                )


class Mask2Former(Segmenter):
    """Mask2Former (Cheng et al., arXiv 2112.01527): queries that each find a mask and its class."""

    def scores(self, images: Tensor) -> Tensor:
        """``(B, K, H, W)``: over all queries, the sum of a class's probability times the mask's.

        MaskFormer's semantic inference (arXiv 2107.06278, section 3.4), on masks scaled to the images.
        """
        outputs = self.network(pixel_values=images)
        classes = outputs.class_queries_logits.softmax(dim=-1)[..., :-1]  # the last one is no object
        masks = _resize(outputs.masks_queries_logits, images).sigmoid()
        return torch.einsum("bqk,bqhw->bkhw", classes, masks)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The library's losses, summed over the decoder's layers. Images of which all is ignored are left out."""
        from openfastervit.models.transformers_compat import sum_over_layers

        classes, masks = _class_masks(labels, self.network.config.num_labels)
        outputs = self.network(pixel_values=images, output_auxiliary_logits=True)
        used = [i for i, found in enumerate(classes) if len(found)]
        weight = 1.0
        if not used:
            # The library counts masks over all processes: this one must take part, if only for nothing.
            used, weight = [0], 0.0
            classes[0], masks[0] = labels.new_zeros(1), images.new_zeros(1, *labels.shape[1:])
        picked = used if len(used) < len(images) else slice(None)
        layers = [
            {name: layer[name][picked] for name in ("masks_queries_logits", "class_queries_logits")}
            for layer in [*outputs.auxiliary_logits, outputs]
        ]
        losses = self.network.get_loss_dict(
            **layers[-1],
            mask_labels=[masks[i] for i in used],
            class_labels=[classes[i] for i in used],
            auxiliary_predictions=layers[:-1],
        )
        return {name: weight * loss for name, loss in sum_over_layers(losses).items()}


def create_segmenter(
    kind: Kind, backbone: Backbone, num_classes: int, *, options: Mapping[str, Any] | None = None
) -> Segmenter:
    """A segmenter on a backbone, whose weights and batch norm stay as they are; the rest is random.

    Args:
        kind: Which one.
        backbone: With maps of strides 4, 8, 16 and 32.
        num_classes: Without what is ignored.
        options: By their names in transformers' configuration (UPerNet: ``hidden_size``, 512 channels of the head, and
            ``auxiliary_channels``, 256; Mask2Former: ``hidden_dim``, ``num_queries``, ...).

    Raises:
        ValueError: If the kind or an option is unknown, the backbone has other maps, or a library is missing.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} is unknown; there is {', '.join(get_args(Kind))}")
    if tuple(backbone.strides) != STRIDES:
        raise ValueError(f"{kind} takes maps of strides {list(STRIDES)}, not {backbone.strides}; create_backbone such")
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} must be at least 2")
    # First: it says what to install where the library is missing.
    from openfastervit.models.transformers_compat import build_around, make_config

    # isort: split
    import transformers as hf

    given = dict(options or {})
    fixed: dict[str, Any] = {"num_labels": num_classes}
    if kind == "upernet":
        fixed |= {"loss_ignore_index": IGNORE}
        return UPerNet(
            *build_around(
                backbone,
                lambda config: hf.UperNetForSemanticSegmentation(
                    make_config(hf.UperNetConfig, given, backbone_config=config, **fixed)
                ),
            )
        )
    if importlib.util.find_spec("scipy") is None:
        raise ValueError("mask2former needs scipy to learn; install it with: pip install 'openfastervit[detection]'")
    fixed |= {"feature_strides": backbone.strides, "ignore_value": IGNORE}
    return Mask2Former(
        *build_around(
            backbone,
            lambda config: hf.Mask2FormerForUniversalSegmentation(
                make_config(hf.Mask2FormerConfig, given, backbone_config=config, **fixed)
            ),
        )
    )


def _resize(maps: Tensor, images: Tensor) -> Tensor:
    """Maps ``(B, C, h, w)`` at the size of images ``(B, 3, H, W)``."""
    return F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the pixels that count; 0 where none does, with gradients of 0."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def _class_masks(labels: Tensor, num_classes: int) -> tuple[list[Tensor], list[Tensor]]:
    """For each image of labels ``(B, H, W)`` the classes in it, ``(N,)``, and a mask of each, ``(N, H, W)``."""
    classes: list[Tensor] = []
    masks: list[Tensor] = []
    for image in labels:
        found = image.unique()
        found = found[found != IGNORE]
        bad = found[(found < 0) | (found >= num_classes)]
        if len(bad):
            raise ValueError(f"the label {int(bad[0])} is neither a class, from 0 to {num_classes - 1}, nor {IGNORE}")
        classes.append(found)
        masks.append((image == found[:, None, None]).float())
    return classes, masks


__all__ = ["Mask2Former", "Segmenter", "UPerNet", "create_segmenter"]
