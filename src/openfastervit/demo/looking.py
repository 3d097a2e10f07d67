"""What the network looks at in held-out digits: some to show, and means of its carriers over all."""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from openfastervit.inference.explain import (
    CarrierAttention,
    GradCam,
    WindowAttention,
    carrier_attention,
    grad_cam,
    window_attention,
)
from openfastervit.models import FasterViT

SHOWN = 4


@dataclass(frozen=True)
class Habit:
    """Means over images and carriers, for one block."""

    block: str
    elsewhere: float
    """Share of attention that goes to windows other than the carrier's own."""
    evenly: float
    """What that share would be if attention were spread evenly over the map."""
    ink: float
    """Ink where the attention goes, over ink where it would go if spread evenly."""


@dataclass(frozen=True)
class Looking:
    """Attention and evidence in held-out images."""

    shown: tuple[int, ...]
    """Positions of the images to show, among the held-out ones."""
    images: Tensor
    """``(shown, 1, H, W)``: those images, prepared."""
    blocks: tuple[CarrierAttention, ...]
    """Of those images."""
    windows: tuple[WindowAttention, ...]
    """Of those images, in the same blocks."""
    cam: GradCam
    """Of those images, for the classes they were read as."""
    habits: tuple[Habit, ...]
    """Of all held-out images, a block."""


def look(model: FasterViT, images: Tensor, labels: NDArray[np.int64]) -> Looking:
    """Look at all images ``(n, 1, H, W)``, in evaluation mode, and keep the first of each of a few digits."""
    _, first = np.unique(labels, return_index=True)
    shown = tuple(int(i) for i in np.sort(first)[:SHOWN])
    few = images[list(shown)]
    blocks = carrier_attention(model, few)
    names = [block.name for block in blocks]
    windows = tuple(block for block in window_attention(model, few) if block.name in names)
    habits = tuple(_habit(images, attention) for attention in carrier_attention(model, images))
    return Looking(shown, few, blocks, windows, grad_cam(model, few), habits)


def _habit(images: Tensor, attention: CarrierAttention) -> Habit:
    maps = attention.maps
    ink = F.avg_pool2d((images + 1) / 2, attention.stride)[:, 0]
    seen = (maps * ink[:, None, None]).sum(dim=(3, 4)).mean(dim=(1, 2))
    own_share = attention.window[0] * attention.window[1] / (maps.shape[3] * maps.shape[4])
    return Habit(
        block=attention.name,
        elsewhere=float(attention.elsewhere().mean()),
        evenly=1 - own_share,
        ink=float((seen / ink.mean(dim=(1, 2))).mean()),
    )
