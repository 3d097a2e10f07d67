"""Backbones: networks, ours or timm's, that give the maps of their stages to heads of detection and segmentation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import timm
from timm.models import group_parameters
from torch import nn

from openfastervit.models.factory import create_model, is_timms, resolve_name
from openfastervit.models.fastervit import FasterViT
from openfastervit.models.timm_compat import FeatureGetterNet

STRIDES = (4, 8, 16, 32)
"""Of the maps of our stages: a pyramid's usual ones."""


class Backbone(FeatureGetterNet):
    """A network without its classifier: images ``(B, in_chans, H, W)`` to a list of maps ``(B, C_i, H_i, W_i)``.

    timm's ``FeatureGetterNet`` around the network, which keeps the names of its parameters below ``model.``:
    ``feature_info.channels()`` and ``feature_info.reduction()`` tell channels and strides of the maps.

    Args:
        model: A network with timm's ``forward_intermediates``; what the maps do not need is taken off it.
        strides: Which maps, by how many pixels lie between two cells of them.

    Raises:
        ValueError: If the network gives no maps, or none of such a stride.
    """

    def __init__(self, model: nn.Module, strides: Sequence[int] = STRIDES) -> None:
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(f"{type(model).__name__} gives no maps of its stages; choose a network that does")
        found = {info["reduction"]: i for i, info in enumerate(cast(list[dict[str, Any]], model.feature_info))}
        missing = [stride for stride in strides if stride not in found]
        if missing:
            raise ValueError(f"{type(model).__name__} has no map of stride {missing[0]}, but of {sorted(found)}")
        super().__init__(model, out_indices=tuple(found[stride] for stride in strides))

    @property
    def channels(self) -> list[int]:
        """Of the maps, in their order."""
        return list(self.feature_info.channels())

    @property
    def strides(self) -> list[int]:
        """Of the maps: pixels from one cell to the next."""
        return list(self.feature_info.reduction())

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        cast(Callable[[bool], None], self.model.set_grad_checkpointing)(enable)

    def no_weight_decay(self) -> set[str]:
        """Names, in this module, of parameters that weight decay should leave alone."""
        if not hasattr(self.model, "no_weight_decay"):
            return set()
        return {f"model.{name}" for name in cast(Callable[[], set[str]], self.model.no_weight_decay)()}

    def layers(self) -> dict[str, int]:
        """The depth of each parameter, by its name in this module: 0 for the stem, and so on up.

        Raises:
            ValueError: If the network does not tell (timm's ``group_matcher``).
        """
        if not hasattr(self.model, "group_matcher"):
            raise ValueError(f"layer_decay: {type(self.model).__name__} does not tell the depth of its layers")
        matcher = cast(Callable[..., Any], self.model.group_matcher)(coarse=False)
        depths = group_parameters(self.model, matcher, reverse=True)
        return {f"model.{name}": int(depth) for name, depth in depths.items()}


class DenseNetwork(nn.Module):
    """What networks with a backbone and a head of their own share: how optimisers and the training loop see them.

    ``backbone_name`` says where the ``Backbone`` is: the name of a submodule.
    """

    backbone_name = "backbone"

    @property
    def feature_backbone(self) -> Backbone:
        """The part that a classifier's weights go into."""
        found = self.get_submodule(self.backbone_name)
        assert isinstance(found, Backbone)
        return found

    def head_parts(self) -> nn.ModuleList:
        """All modules beside the backbone, the outermost ones."""
        parts: list[nn.Module] = []

        def descend(module: nn.Module, path: str) -> None:
            for name, child in module.named_children():
                inner = f"{path}{name}"
                if self.backbone_name == inner:
                    continue
                if self.backbone_name.startswith(f"{inner}."):
                    descend(child, f"{inner}.")
                else:
                    parts.append(child)

        descend(self, "")
        return nn.ModuleList(parts)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass instead of keeping their activations."""
        self.feature_backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone."""
        return {f"{self.backbone_name}.{name}" for name in self.feature_backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """For layer-wise learning rates: a parameter's depth by its name; all of the head is above the backbone."""
        depths = {f"{self.backbone_name}.{name}": depth for name, depth in self.feature_backbone.layers().items()}
        top = max(depths.values()) + 1
        return lambda name: depths.get(name, top)


def create_backbone(
    name: str,
    *,
    pretrained: bool = False,
    weights: str | None = None,
    options: Mapping[str, Any] | None = None,
    strides: Sequence[int] = STRIDES,
    img_size: Sequence[int] | None = None,
    windows: Literal["pad", "fit"] = "pad",
) -> Backbone:
    """A backbone with its first weights, on the CPU.

    Args:
        name: One of ours, or of timm's.
        pretrained: Download its released weights (ours: for non-commercial use only).
        weights: A classifier's checkpoint to start from instead, for one of ours.
        options: Other options of the network.
        strides: Of the maps.
        img_size: Height and width that windows are chosen for; others work too. timm's networks of one fixed size are
            built for it.
        windows: As ``FasterViT.set_input_size`` takes it.

    Raises:
        UnknownModelError: If neither we nor timm know its name.
        TypeError, ValueError: If it does not take an option.
        CheckpointError: If the weights cannot be had or do not fit it.
    """
    given = dict(options or {})
    if not is_timms(name):
        if weights is not None:
            given["num_classes"] = 0  # a backbone has none, however many classes the file is for
        model = create_model(resolve_name(name), pretrained, weights, **given)
        assert isinstance(model, FasterViT)
        if img_size is not None:
            model.set_input_size([int(side) for side in img_size], windows)
        return Backbone(model, strides)
    if weights is not None:
        raise ValueError(f"weights={weights}: first weights from a file are for networks of ours; {name} is timm's")
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        given = {"img_size": tuple(img_size or (224, 224)), **given}
        try:  # Swin and its kin then take other sizes too
            model = timm.create_model(name, pretrained=pretrained, strict_img_size=False, **given)
        except TypeError as error:
            if "strict_img_size" not in str(error):
                raise
            model = timm.create_model(name, pretrained=pretrained, **given)
        return Backbone(model, strides)
    return Backbone(timm.create_model(name, pretrained=pretrained, **given), strides)


__all__ = ["STRIDES", "Backbone", "DenseNetwork", "create_backbone"]
