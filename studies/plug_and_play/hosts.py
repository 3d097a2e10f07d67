"""Hierarchical attention in three networks of others, as docs/plug-and-play.md shows it: a test holds the two alike."""

import timm
from torch import Tensor, nn
from torchvision.ops import Permute

from openfastervit.layers import HierarchicalAttention
from studies.plug_and_play.unet import UNet


def plug_into_swin(swin: timm.models.SwinTransformer) -> None:
    for stage in swin.layers:
        first, many = stage.blocks[0], stage is not swin.layers[-1]  # at 224 the last map is a single window
        heads, window, depth = first.attn.num_heads, first.window_size, len(stage.blocks)
        new = HierarchicalAttention(first.dim, heads, window_size=window, depth=depth, hierarchical=many)
        for block, old in zip(new.blocks, stage.blocks, strict=True):
            block.window.load_state_dict(old.state_dict(), strict=False)  # all but Swin's table of position biases
        stage.blocks = nn.Sequential(Permute([0, 3, 1, 2]), new, Permute([0, 2, 3, 1]))


class Bottleneck(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def plug_into_resnet(resnet: timm.models.ResNet) -> None:
    for stage, dim, many in ((resnet.layer3, 256, True), (resnet.layer4, 512, False)):  # many windows at 224, or one
        down, up = nn.Conv2d(4 * dim, dim, 1), nn.Conv2d(dim, 4 * dim, 1, bias=False)
        nn.init.zeros_(up.weight)  # the network answers as before until training changes it
        stage.append(Bottleneck(down, HierarchicalAttention(dim, dim // 32, hierarchical=many), up))


def plug_into_unet(unet: UNet) -> None:
    unet.bottleneck.append(HierarchicalAttention(512, 16, window_size=8, layer_scale=1e-5))
