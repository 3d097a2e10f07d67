"""timm's training transforms, mended where a newer Pillow stops them."""

from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageOps
from timm.data import auto_augment, create_transform


def create_training_transform(input_size: tuple[int, int, int], **options: Any) -> Any:
    """``timm.data.create_transform`` for training, with the same options.

    RandAugment's posterisation with increasing strength may ask for 0 bits (at magnitude 10, which noise reaches from
    9). Pillow used to give a black image for it and now raises; here it is black again, as when the recipes were made.
    """
    transform = create_transform(input_size, is_training=True, **options)
    for operation in _operations(getattr(transform, "transforms", [])):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize
    return transform


def _operations(value: Any) -> Iterator[Any]:
    """The single operations in timm's policies, however deep."""
    if isinstance(value, auto_augment.AugmentOp):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _operations(item)
    else:
        for name in ("ops", "policy"):
            yield from _operations(getattr(value, name, None) or [])


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)
