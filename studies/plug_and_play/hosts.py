"""Hierarchical attention in three networks of others, as docs/plug-and-play.md shows it: a test holds the two alike."""

import timm
from torch import Tensor, nn

from openfastervit.layers import HierarchicalAttention
from studies.plug_and_play.unet import UNet


class ChannelsLast(HierarchicalAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def plug_into_swin(swin: timm.models.SwinTransformer) -> None:
    for stage in swin.layers:
        first, many = stage.blocks[0], stage is not swin.layers[-1]  # the last map is a single window at 224
        new = ChannelsLast(
            first.dim, first.attn.num_heads, window_size=first.window_size, depth=len(stage.blocks), hierarchical=many
        )
        for block, old in zip(new.blocks, stage.blocks, strict=True):
            block.window.load_state_dict(old.state_dict(), strict=False)
        stage.blocks = nn.Sequential(new)


class Bottleneck(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def plug_into_resnet(resnet: timm.models.ResNet) -> None:
    for stage, many in ((resnet.layer3, True), (resnet.layer4, False)):  # layer4's map is a single window at 224
        channels = stage[-1].conv3.out_channels
        dim = channels // 4
        attention = HierarchicalAttention(dim, dim // 32, hierarchical=many)
        down, up = nn.Conv2d(channels, dim, 1), nn.Conv2d(dim, channels, 1, bias=False)
        nn.init.zeros_(up.weight)  # at the start the network answers as it did
        stage.append(Bottleneck(down, attention, up))


def plug_into_unet(unet: UNet) -> None:
    dim = unet.head  # replaced below
