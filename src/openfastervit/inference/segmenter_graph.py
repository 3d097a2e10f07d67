"""Segmenters as graphs, for images of one size."""

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.inference.folded_backbone import folded_backbone
from openfastervit.models.features import DenseNetwork
from openfastervit.tasks.segmentation.networks import Mask2Former, UPerNet


def segmenter_graph(model: DenseNetwork, size: tuple[int, int]) -> nn.Module:
    """A segmenter for images ``(B, 3, *size)``, in evaluation mode, with the same scores but for rounding."""
    body = folded_backbone(model.feature_backbone, size)
    if isinstance(model, UPerNet):
        return _UPerNetGraph(body, model).eval().requires_grad_(False)
    assert isinstance(model, Mask2Former)
    copied = copy.deepcopy(model)
    copied.set_submodule(model.backbone_name, body)
    return copied.eval().requires_grad_(False)


class _UPerNetGraph(nn.Module):
    """Without the auxiliary head, which only learns."""

    def __init__(self, body: nn.Module, model: UPerNet) -> None:
        super().__init__()
        self.body, self.head = body, copy.deepcopy(model.network.decode_head)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.head(self.body(images))
        return F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)
