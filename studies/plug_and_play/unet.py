"""A plain U-Net (Ronneberger et al., arXiv 1505.04597), a host for hierarchical attention.

As it is mostly written today: the paper's levels, at half its widths, with padded convolutions and batch norm. Written
for this project; there is none in timm or torchvision.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _double_conv(in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (in_channels, channels):
        layers += [nn.Conv2d(before, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Images to a map of logits of the same size, any size of which the smaller side has at least 16 pixels.

    Args:
        in_channels: Of the images.
        classes: Logits a pixel.
        channels: Of each level from the top; the last are the bottleneck's.
    """

    def __init__(
        self, in_channels: int = 3, classes: int = 1, channels: Sequence[int] = (32, 64, 128, 256, 512)
    ) -> None:
        super().__init__()
        *upper, bottom = channels
        self.encoders = nn.ModuleList(
            _double_conv(before, after) for before, after in zip([in_channels, *upper], upper, strict=False)
        )
        self.bottleneck = _double_conv(upper[-1], bottom)
        below = [*upper[1:], bottom]
        self.ups = nn.ModuleList(
            nn.Conv2d(lower, level, 3, padding=1) for lower, level in zip(below, upper, strict=True)
        )
        self.decoders = nn.ModuleList(_double_conv(2 * level, level) for level in upper)
        self.head = nn.Conv2d(upper[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W) -> (B, classes, H, W)``."""
        skips: list[Tensor] = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for skip, up, decoder in zip(reversed(skips), reversed(self.ups), reversed(self.decoders), strict=True):
            x = up(F.interpolate(x, size=skip.shape[2:]))
            x = decoder(torch.cat((skip, x), dim=1))
        return self.head(x)
