"""Building blocks: tensors in, tensors out, torch alone."""

from openfastervit.layers.attention import Attention, use_kernels
from openfastervit.layers.carriers import CarrierInitialiser
from openfastervit.layers.conv import ConvBlock, Downsample, LayerNorm2d, Stem
from openfastervit.layers.drop_path import DropPath
from openfastervit.layers.edgevit import EdgeViTAttention
from openfastervit.layers.global_attention import GlobalAttention
from openfastervit.layers.hat import AttentionBlock, HierarchicalAttention
from openfastervit.layers.mixer import TokenMixer, window_pair
from openfastervit.layers.position import (
    AbsolutePosition,
    GridGeometry,
    PositionMLP,
    RelativePositionBias,
    grid_geometry,
)
from openfastervit.layers.shifted_window import ShiftedWindowAttention
from openfastervit.layers.transformer import MLP, LayerScale, MLPLayer, TransformerLayer, init_linear
from openfastervit.layers.twins import TwinsAttention

__all__ = [
    "MLP",
    "AbsolutePosition",
    "Attention",
    "AttentionBlock",
    "CarrierInitialiser",
    "ConvBlock",
    "Downsample",
    "DropPath",
    "EdgeViTAttention",
    "GlobalAttention",
    "GridGeometry",
    "HierarchicalAttention",
    "LayerNorm2d",
    "LayerScale",
    "MLPLayer",
    "PositionMLP",
    "RelativePositionBias",
    "ShiftedWindowAttention",
    "Stem",
    "TokenMixer",
    "TransformerLayer",
    "TwinsAttention",
    "grid_geometry",
    "init_linear",
    "use_kernels",
    "window_pair",
]
