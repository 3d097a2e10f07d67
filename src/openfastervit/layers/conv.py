"""The convolutional parts: stem, residual block, downsampling. Maps are ``(B, C, H, W)``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.layers.drop_path import DropPath

MIN_SIZE = 32
"""Smallest height and width of an image: one cell of the last map."""


def check_images(x: Tensor, in_chans: int) -> None:
    """Raise ``ValueError`` unless ``x`` is ``(B, in_chans, H, W)`` with H and W of at least 32."""
    if x.dim() != 4:
        raise ValueError(f"expected images (B, {in_chans}, H, W), got {x.dim()} dimensions: {list(x.shape)}")
    if x.shape[1] != in_chans:
        raise ValueError(
            f"images have {x.shape[1]} channels, the network takes {in_chans}; "
            f"convert the images or build the network with in_chans={x.shape[1]}"
        )
    if x.shape[2] < 32 or x.shape[3] < 32:
        raise ValueError(f"images are {x.shape[2]} x {x.shape[3]}; height and width must be at least 32")


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channel axis of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Stem(nn.Module):
    """Two strided 3x3 convolutions, each with batch norm and ReLU: image to map at stride 4 (paper, section 3.3)."""

    def __init__(
        self,
        in_chans: int,
        *,
        stem_dim: int,
        dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, stem_dim, 3, stride=2, padding=1, bias=False, device=device, dtype=dtype)
        self.norm1 = nn.BatchNorm2d(stem_dim, eps=1e-4, device=device, dtype=dtype)
        self.conv2 = nn.Conv2d(stem_dim, dim, 3, stride=2, padding=1, bias=False, device=device, dtype=dtype)
        self.norm2 = nn.BatchNorm2d(dim, eps=1e-4, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W) -> (B, dim, ceil(H/4), ceil(W/4))``; see ``check_images`` for what is refused."""
        check_images(x, self.conv1.in_channels)
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class ConvBlock(nn.Module):
    """Residual block ``x + BN(conv(GELU(BN(conv(x)))))`` (paper, equation 1)."""

    def __init__(
        self,
        dim: int,
        *,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, device=device, dtype=dtype)
        self.norm1 = nn.BatchNorm2d(dim, device=device, dtype=dtype)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, device=device, dtype=dtype)
        self.norm2 = nn.BatchNorm2d(dim, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        y = F.gelu(self.norm1(self.conv1(x)))
        return x + self.drop_path(self.norm2(self.conv2(y)))


class Downsample(nn.Module):
    """Layer norm over channels, then a 3x3 convolution with stride 2 that doubles the channels."""

    def __init__(self, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim, eps=1e-6, device=device, dtype=dtype)
        self.conv = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, 2C, ceil(H/2), ceil(W/2))``."""
        return self.conv(self.norm(x))
