"""A tiny network with several windows, and a look at its insides."""

from typing import Any

from torch import nn

from openfastervit import FasterViT
from openfastervit.layers import AttentionBlock, HierarchicalAttention

WINDOWED: dict[str, Any] = {"window_sizes": (7, 7, 4, 4), "img_size": 128, "depths": (1, 1, 3, 1)}


def stage_of(model: FasterViT) -> HierarchicalAttention:
    """Stage 2's attention."""
    stage = model.stages[2].attention
    assert isinstance(stage, HierarchicalAttention)
    return stage


def blocks_of(model: FasterViT) -> list[AttentionBlock]:
    """Its blocks."""
    return [block for block in stage_of(model).blocks if isinstance(block, AttentionBlock)]


def hooks(model: nn.Module) -> list[str]:
    """The modules that have hooks."""
    return [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
