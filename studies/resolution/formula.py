"""Multiply-adds of a FasterViT, from its numbers alone: nothing is run.

A map of ``H x W`` tokens with ``C`` channels is cut into ``n`` windows of ``N`` tokens; each window has ``K`` carriers.
A block of attention costs, with an MLP ``r`` times as wide,

- inside windows, over ``T = N + K`` tokens: ``n * (T * (4 + 2r) * C^2 + 2 * T^2 * C)``;
- between carriers, over ``n * K`` of them: ``n*K * (4 + 2r) * C^2 + 2 * (n*K)^2 * C``.

The first grows as the number of pixels does, with windows of a given size (the paper's ``O(k^2 H W d)``); so does the
second but for its square, which is ``(K/N)^2`` of full attention's: 1/150 for 4 carriers in windows of 7 x 7. Full
attention is one window, ``n = 1, N = H * W``, without carriers: ``O(H^2 W^2 d)``.

What follows from positions is constant at a given size, and is not counted.
"""

import re
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from openfastervit import FasterViT
from openfastervit.layers import HierarchicalAttention
from openfastervit.models.fastervit import AttentionStage

MLP_RATIO = 4


@dataclass(frozen=True)
class Cost:
    """Of one image."""

    multiply_adds: int
    attention: int
    """Of those, what the products of queries with keys and of weights with values take."""
    bias_bytes: int
    """Of the position biases in float32, which a network that is made ready for one size keeps."""


def attention_stage(
    dim: int,
    heads: int,
    depth: int,
    height: int,
    width: int,
    window: tuple[int, int],
    carriers: int,
    ratio: float = MLP_RATIO,
) -> Cost:
    """A stage of attention, its downsampling not included.

    Args:
        dim: Channels.
        heads: Of attention.
        depth: Blocks.
        height: Of the map, in tokens.
        width: Of the map.
        window: Height and width; maps are padded to whole windows.
        carriers: Of a window; 0 for none. A map of one window does without.
        ratio: Width of the MLP over ``dim``.
    """
    n = -(-height // window[0]) * -(-width // window[1])
    k = carriers if n > 1 else 0
    tokens = window[0] * window[1] + k
    linear = int((4 + 2 * ratio) * dim**2)
    attention = 2 * dim * (n * tokens**2 + (n * k) ** 2)
    first = 9 * dim * n * window[0] * window[1] if k else 0  # the depthwise convolution that carriers come from
    biases = 4 * heads * (tokens**2 + (n * k) ** 2)
    return Cost(first + depth * ((n * tokens + n * k) * linear + attention), depth * attention, depth * biases)


def network(model: FasterViT, height: int, width: int) -> Cost:
    """All of a FasterViT for one image: convolutions, attention, classifier.

    Raises:
        ValueError: If its attention is another than hierarchical, or windows without carriers.
    """
    total = attention = biases = 0
    h, w = height, width
    channels = model.in_chans
    for conv in (model.stem.conv1, model.stem.conv2):
        h, w = -(-h // 2), -(-w // 2)
        total += 9 * channels * conv.out_channels * h * w
        channels = conv.out_channels
    for stage in model.stages:
        out = stage.attention.dim if isinstance(stage, AttentionStage) else stage.blocks[0].conv1.out_channels
        if out != channels or isinstance(stage, AttentionStage):
            h, w = -(-h // 2), -(-w // 2)
            total += 9 * channels * out * h * w
            channels = out
        if isinstance(stage, AttentionStage):
            layer = stage.attention
            if not isinstance(layer, HierarchicalAttention) or layer.carrier_levels > 1:
                raise ValueError(f"there is no formula for {type(layer).__name__} with its options")
            carriers = layer.carrier_size**2 if layer.carrier_init is not None else 0
            heads = layer.blocks[0].window.attn.num_heads
            ratio = layer.blocks[0].window.mlp.fc1.out_features / channels
            cost = attention_stage(channels, heads, len(layer.blocks), h, w, layer.window_size, carriers, ratio)
            total += cost.multiply_adds
            attention += cost.attention
            biases += cost.bias_bytes
        else:
            total += len(stage.blocks) * 2 * 9 * channels**2 * h * w
    total += channels * model.num_classes
    return Cost(total, attention, biases)


def counted(model: FasterViT, height: int, width: int) -> int:
    """Multiply-adds of one image, counted while a network without storage runs; positions are left out.

    Args:
        model: On the meta device.
        height: Of the image.
        width: Of the image.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, model.in_chans, height, width, device="meta"))
    positions = re.compile(r"\.blocks\.\d+\.((window|carrier|super)_position|(window|carrier|super_carrier)\.bias)$")
    known = sum(
        sum(operations.values()) for name, operations in counter.get_flop_counts().items() if positions.search(name)
    )
    return (counter.get_total_flops() - known) // 2
