"""Building blocks: tensors in, tensors out, torch alone."""

from openfastervit.layers.attention import Attention
from openfastervit.layers.conv import ConvBlock, Downsample, LayerNorm2d, Stem
from openfastervit.layers.drop_path import DropPath
from openfastervit.layers.hat import (
    MLP,
    AttentionBlock,
    CarrierInitialiser,
    HierarchicalAttention,
    LayerScale,
    TransformerLayer,
    init_linear,
    window_pair,
)
from openfastervit.layers.position import (
    AbsolutePosition,
    GridGeometry,
    PositionMLP,
    RelativePositionBias,
    grid_geometry,
)

__all__ = [
    "MLP",
    "AbsolutePosition",
    "Attention",
    "AttentionBlock",
    "CarrierInitialiser",
    "ConvBlock",
    "Downsample",
    "DropPath",
    "GridGeometry",
    "HierarchicalAttention",
    "LayerNorm2d",
    "LayerScale",
    "PositionMLP",
    "RelativePositionBias",
    "Stem",
    "TransformerLayer",
    "grid_geometry",
    "init_linear",
    "window_pair",
]
