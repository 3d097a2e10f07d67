"""An image on disk to what a network takes: decoded, scaled, cropped, normalised."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor

from openfastervit.data.images import ImageError, ImageMode, open_image

_MODES: dict[int, ImageMode] = {1: "L", 3: "RGB"}
_MAX_PIXELS = 89_000_000
"""Largest picture a transform may make on its way, the size that Pillow warns of."""


class Preparation:
    """How images become a network's input. Pixels stay 8-bit until whole batches are normalised, where they are used.

    Args:
        transform: From a Pillow image, RGB or grayscale, to 8-bit pixels ``(C, H, W)`` as tensor or array, of one size.
        img_size: That size: height and width.
        mean: Of each channel, for pixels in 0 to 1: one is for grayscale, three are for RGB.
        std: Of each channel.

    Raises:
        ValueError: If there are neither 1 nor 3 channels.
    """

    def __init__(
        self,
        transform: Callable[[Image.Image], Any],
        img_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        if len(mean) not in _MODES:
            raise ValueError(f"the network takes {len(mean)} channels; images have 3, or 1 in grayscale")
        self.transform = transform
        self.img_size = img_size
        self.mode = _MODES[len(mean)]
        self._mean = torch.tensor(mean).view(-1, 1, 1) * 255
        self._std = torch.tensor(std).view(-1, 1, 1) * 255

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Preparation":
        """From arguments of ``timm.data.create_transform``, as ``load_classifier`` gives them.

        Raises:
            ValueError: If there are neither 1 nor 3 channels.
        """
        transform = create_transform(**told, is_training=False, normalize=False)
        return cls(transform, told["input_size"][1:], told["mean"], told["std"])

    def load(self, path: Path) -> Tensor | ImageError:
        """8-bit pixels ``(C, H, W)``, or why there are none. Called from many threads."""
        try:
            return self.pixels(open_image(path, self.mode))
        except ImageError as error:
            return error

    def pixels(self, image: Image.Image) -> Tensor:
        """8-bit pixels ``(C, H, W)`` of an image of ``mode``. Called from many threads.

        Raises:
            ImageError: If it is too thin a strip to scale.
        """
        # Transforms scale the short side first: a thin strip of few pixels may grow to more than memory holds.
        scale = max(self.img_size) / min(image.size)
        if scale * image.width * scale * image.height > _MAX_PIXELS:
            raise ImageError(f"{image.width} x {image.height} pixels are too thin a strip to scale")
        return torch.as_tensor(self.transform(image))

    def normalised(self, pixels: Sequence[Tensor], device: torch.device) -> Tensor:
        """A batch ``(B, C, H, W)`` in float32 on a device."""
        batch = torch.stack(list(pixels))
        if device.type == "cuda":
            batch = batch.pin_memory()
        # The bytes go to the device, a quarter of what floats would be.
        batch = batch.to(device, non_blocking=True).float()
        return (batch - self._mean.to(device)) / self._std.to(device)
