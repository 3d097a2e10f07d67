"""The demo's network and how its images are prepared: what the checkpoint keeps beside the weights."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from openfastervit.layers import HierarchicalAttention
from openfastervit.layers.windows import window_counts
from openfastervit.models import FasterViT, create_model
from openfastervit.models.fastervit import AttentionStage

MODEL = "fastervit_0"
SIDE = 128
"""Height and width of an image, in pixels: stage 2 has a map of 8 x 8 cells."""
CLASSES = tuple("0123456789")

OVERRIDES: dict[str, Any] = {
    "img_size": SIDE,
    "dim": 8,
    "stem_dim": 8,
    "depths": [1, 1, 3, 1],
    "num_heads": [1, 1, 2, 4],
    "window_sizes": [4, 4, 4, 4],  # stage 2: 2 x 2 windows, each with 2 x 2 carriers; stage 3: one window
    "drop_path_rate": 0.1,
    "in_chans": 1,
    "num_classes": len(CLASSES),
}
"""What makes FasterViT-0 a pocket network."""

INPUT: dict[str, Any] = {
    "size": [1, SIDE, SIDE],
    "mean": [0.5],
    "std": [0.5],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "squash",
}

METADATA: dict[str, Any] = {"model": MODEL, "overrides": OVERRIDES, "classes": list(CLASSES), "input": INPUT}
"""What ``fastervit predict`` reads from the checkpoint."""


class Stage(NamedTuple):
    """One stage of the network, as it runs at ``SIDE`` pixels."""

    kind: str
    blocks: int
    size: tuple[int, int]
    """Height and width of its map."""
    channels: int
    windows: tuple[int, int] | None
    """Windows down and across the map, for attention."""
    window: tuple[int, int] | None
    carriers: int
    """Carrier tokens on the map."""


def build(**changes: Any) -> FasterViT:
    """The network with fresh parameters, drawn from torch's global generator."""
    model = create_model(MODEL, **{**OVERRIDES, **changes})
    assert isinstance(model, FasterViT)
    return model


def attention_of(model: FasterViT) -> dict[int, HierarchicalAttention]:
    """The attention of each stage that has one, with carriers or without."""
    return {
        i: stage.attention
        for i, stage in enumerate(model.stages)
        if isinstance(stage, AttentionStage) and isinstance(stage.attention, HierarchicalAttention)
    }


@torch.no_grad()
def describe(model: FasterViT, images: Tensor) -> list[Stage]:
    """The stages as they are for ``images`` of ``(B, C, H, W)``.

    The demo is about hierarchical attention: that it is in use is asserted here.
    """
    attention = attention_of(model)
    stages = []
    for i, x in enumerate(model.forward_intermediates(images[:1], intermediates_only=True)):
        assert isinstance(x, Tensor)
        size = x.shape[2], x.shape[3]
        blocks = OVERRIDES["depths"][i]
        if i not in attention:
            stages.append(Stage("convolution", blocks, size, x.shape[1], None, None, 0))
            continue
        windows = window_counts(*size, attention[i].window_size)
        carriers = 0
        if attention[i].carrier_init is not None and windows[0] * windows[1] > 1:
            carriers = windows[0] * windows[1] * attention[i].carrier_size ** 2
        kind = "hierarchical attention" if carriers else "attention"
        stages.append(Stage(kind, blocks, size, x.shape[1], windows, attention[i].window_size, carriers))
    assert any(stage.carriers for stage in stages), "no stage uses carrier tokens"
    return stages
