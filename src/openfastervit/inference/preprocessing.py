"""Normalisation inside of a network: 8-bit pixels in, as cameras and decoders give them."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from openfastervit.inference.engines.engine import Engine, EngineError, Precision

_WHOLE = 0.01
"""How far from whole numbers pixels may lie that are computed back from a normalised image."""


class FromPixels(nn.Module):
    """A network that normalises its images itself.

    It subtracts and divides, and leaves the first convolution as it is: that pads with zeros behind the normalisation,
    which no weights for raw pixels could give at the borders.

    Args:
        network: From normalised images to logits.
        mean: Of each channel, for pixels in 0 to 1.
        std: Of each channel.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, C, H, W)`` in uint8, RGB in that order, to logits."""
        return cast(Tensor, self.network((pixels.float() - cast(Tensor, self.mean)) / cast(Tensor, self.std)))


class PixelEngine:
    """An engine for 8-bit pixels as one for normalised images, so that it fits where engines do. See ``Engine``.

    Args:
        engine: Takes pixels.
        mean: With which the images are normalised.
        std: The same.
    """

    def __init__(self, engine: Engine, mean: Sequence[float], std: Sequence[float]) -> None:
        self._engine = engine
        self.name = engine.name
        self.precision: Precision = engine.precision
        self.device = engine.device
        self._mean = torch.tensor(mean, device=self.device).view(-1, 1, 1) * 255
        self._std = torch.tensor(std, device=self.device).view(-1, 1, 1) * 255

    def __call__(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or images.dtype == torch.uint8:
            return self._engine(images)
        if images.dim() != 4 or images.shape[1] != len(self._mean):
            raise ValueError(f"{self.name}: expected images (B, {len(self._mean)}, H, W), got {list(images.shape)}")
        exact = images.to(self.device).float() * self._std + self._mean
        pixels = exact.round()
        if not bool(((exact - pixels).abs() <= _WHOLE).all() and (pixels >= 0).all() and (pixels <= 255).all()):
            raise EngineError(
                "this model takes 8-bit pixels, and these images are none, normalised by its mean and std; "
                "give the pixels, or export it without --preprocessing"
            )
        return self._engine(pixels.to(torch.uint8))

    def close(self) -> None:
        self._engine.close()
