"""Backbones of dense networks made ready for inference: the same maps from fewer operations."""

from torch import Tensor, nn

from openfastervit.inference.engines.engine import deployable
from openfastervit.inference.fold import FoldedFasterViT
from openfastervit.models.features import STRIDES, Backbone


def folded_backbone(backbone: Backbone, size: tuple[int, int]) -> nn.Module:
    """A copy for inference, from images ``(B, 3, *size)`` to the list of maps: a FasterViT's is folded."""
    found = deployable(backbone.model, size)
    if not isinstance(found, FoldedFasterViT):
        return deployable(backbone, size)
    return _FoldedBackbone(found, backbone.strides)


class _FoldedBackbone(nn.Module):
    def __init__(self, network: FoldedFasterViT, strides: list[int]) -> None:
        super().__init__()
        self.network = network
        self.strides = strides

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.network.forward_maps(images)
        return [maps[STRIDES.index(stride)] for stride in self.strides]
