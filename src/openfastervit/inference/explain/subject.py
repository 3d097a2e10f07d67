"""The network that is looked at, and how maps over its cells lie over the image."""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.layers import HierarchicalAttention
from openfastervit.models.fastervit import AttentionStage, FasterViT

Mode = Literal["nearest", "bilinear"]
"""``"nearest"`` shows the cells as they are, ``"bilinear"`` blends neighbours."""


class NothingToShowError(ValueError):
    """The network has not, on these images, what is asked for; the message says why."""


def check_model(model: nn.Module) -> FasterViT:
    """The model, if it can be looked at.

    Raises:
        TypeError: If it is not a FasterViT.
        ValueError: If it is in training mode.
    """
    if not isinstance(model, FasterViT):
        raise TypeError(f"model is a {type(model).__name__}; what is looked at is a FasterViT")
    if model.training:
        raise ValueError("the model is in training mode, where attention is not what it is in use; call model.eval()")
    return model


def windowed_stages(model: FasterViT) -> Iterator[tuple[int, HierarchicalAttention]]:
    """The stages whose tokens attend inside windows, with or without carriers, and their places."""
    for index, stage in enumerate(model.stages):
        if isinstance(stage, AttentionStage) and isinstance(stage.attention, HierarchicalAttention):
            yield index, stage.attention


def over_image(maps: Tensor, stride: int, image_size: tuple[int, int], mode: Mode = "nearest") -> Tensor:
    """Maps over cells as maps over pixels: ``(..., H, W)`` to ``(..., image height, image width)``.

    Args:
        maps: In any number of leading axes.
        stride: Height and width of a cell, in pixels.
        image_size: The last cells may reach beyond it.
        mode: How the pixels of a cell get their values.
    """
    height, width = maps.shape[-2:]
    flat = maps.reshape(1, -1, height, width)
    pixels = F.interpolate(flat, size=[height * stride, width * stride], mode=mode)
    pixels = pixels[:, :, : image_size[0], : image_size[1]]
    return pixels.reshape(*maps.shape[:-2], *image_size)


def to_one(rows: Tensor) -> Tensor:
    """Scale the last axis to sum to 1; one of zeros stays."""
    return rows / rows.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
