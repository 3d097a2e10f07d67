"""Five corruptions at five strengths.

| corruption | strength is | 1 | 2 | 3 | 4 | 5 |
|---|---|---|---|---|---|---|
| noise | standard deviation of Gaussian noise, of values from 0 to 1 | 0.04 | 0.08 | 0.12 | 0.18 | 0.26 |
| blur | standard deviation of a Gaussian, pixels | 0.5 | 0.75 | 1 | 1.5 | 2 |
| jpeg | quality | 50 | 30 | 20 | 12 | 7 |
| contrast | factor | 0.6 | 0.45 | 0.3 | 0.2 | 0.1 |
| shift | pixels of a side of 128, in a direction of the image's own; what is uncovered is of the mean colour | 4 | 8 | 12 | 18 | 24 |

What is drawn follows from the image's number alone: each network sees the same images, and each strength the same
noise, more of it.
"""  # noqa: E501  # a table

import io
import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from torch import Tensor
from torchvision.transforms import v2

STRENGTHS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "noise": (0.04, 0.08, 0.12, 0.18, 0.26),
        "blur": (0.5, 0.75, 1.0, 1.5, 2.0),
        "jpeg": (50, 30, 20, 12, 7),
        "contrast": (0.6, 0.45, 0.3, 0.2, 0.1),
        "shift": (4, 8, 12, 18, 24),
    }
)


def corrupt(image: Tensor, kind: str, value: float, number: int) -> Tensor:
    """One image, corrupted.

    Args:
        image: ``(3, H, W)``, of bytes.
        kind: A key of ``STRENGTHS``.
        value: Its strength, one of the table or another.
        number: Of the image: it decides what is drawn.

    Returns:
        ``(3, H, W)``, of bytes.

    Raises:
        ValueError: If ``kind`` is unknown.
    """
    match kind:
        case "noise":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number)
                return v2.functional.to_dtype(
                    v2.GaussianNoise(sigma=value)(v2.functional.to_dtype(image, torch.float32, scale=True)),
                    torch.uint8,
                    scale=True,
                )
        case "blur":
            side = 2 * math.ceil(3 * value) + 1
            return v2.functional.gaussian_blur(image, [side, side], [value, value])
        case "jpeg":
            written = io.BytesIO()
            v2.functional.to_pil_image(image).save(written, "JPEG", quality=int(value))
            return v2.functional.pil_to_tensor(Image.open(written))
        case "contrast":
            return v2.functional.adjust_contrast(image, value)
        case "shift":
            angle = 2 * math.pi * float(torch.rand((), generator=torch.Generator().manual_seed(number)))
            far = value * image.shape[-1] / 128
            moved = [round(far * math.cos(angle)), round(far * math.sin(angle))]
            fill = [255 * mean for mean in IMAGENET_DEFAULT_MEAN]
            return v2.functional.affine(image, angle=0.0, translate=moved, scale=1.0, shear=[0.0, 0.0], fill=fill)
    raise ValueError(f"kind={kind!r} is no corruption; there is {', '.join(STRENGTHS)}")
