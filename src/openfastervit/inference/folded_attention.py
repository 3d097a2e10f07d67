"""A stage of hierarchical attention made ready for inference.

Norms, layer scales and ``1 / sqrt(head_dim)`` are in the weights; carriers are kept in the order of their windows; for
maps of one size, positions and the pooling of carriers are constants.

Shapes: ``B`` batch, ``C`` channels, ``n`` windows an image, ``K`` carriers and ``N`` tokens a window, ``T = K + N``.
"""

from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.inference.fused import FusedLinear, float64_weights, frozen, fused_linear, set_weights
from openfastervit.layers import (
    AbsolutePosition,
    Attention,
    AttentionBlock,
    CarrierInitialiser,
    HierarchicalAttention,
    LayerScale,
    RelativePositionBias,
    TransformerLayer,
    grid_geometry,
)
from openfastervit.layers.carriers import pool_aligned
from openfastervit.layers.windows import (
    block_order,
    carriers_to_windows,
    crop,
    exporting,
    map_to_windows,
    pad_to_windows,
    spread_carriers,
    window_counts,
    windows_to_map,
)

HEAD_MULTIPLE = 8
"""Heads are padded to a multiple of this width: what fused attention takes on GPUs, and half a vector on CPUs."""
_UNHEARD = -1e4
"""Added to an attention weight's logarithm: exp of it is 0 in every precision, and it is a number in float16."""


def foldable(attention: nn.Module) -> TypeGuard[HierarchicalAttention]:
    """Whether ``FoldedAttention`` can be made of a stage's attention.

    It can of ``HierarchicalAttention`` as released, with either pooling: not with two levels of carriers, masked
    padding or parts left out, and not of another attention, subclasses included.
    """
    if type(attention) is not HierarchicalAttention:
        return False
    one_level = attention.carrier_init is None or attention.carrier_levels == 1
    return one_level and not attention.mask_padding and not attention.without


class FoldedAttention(nn.Module):
    """A stage of hierarchical attention made ready for inference: a map in, a map out.

    Args:
        stage: One that is ``foldable``. Left as it is.
        map_size: Height and width of the maps, or None for any.
        head_multiple: Heads are padded to a multiple of this width.
    """

    def __init__(
        self, stage: HierarchicalAttention, map_size: tuple[int, int] | None, *, head_multiple: int = HEAD_MULTIPLE
    ) -> None:
        super().__init__()
        self.window = stage.window_size
        self.map_size = map_size
        self.counts = None if map_size is None else window_counts(*map_size, self.window)
        self.carrier_size = 0
        self.carrier_init: nn.Module | None = None
        if stage.carrier_init is not None and self.counts != (1, 1):
            self.carrier_size = stage.carrier_size
            if stage.carrier_init.pooling == "aligned":
                self.carrier_init = _AlignedCarriers(stage.carrier_init, self.window)
            elif self.counts is None:
                self.carrier_init = _OpenCarriers(stage.carrier_init, self.window)
            else:
                self.carrier_init = _FixedCarriers(stage.carrier_init, self.window, self.counts)
        self.blocks = nn.ModuleList(
            FoldedBlock(
                block, window=self.window, counts=self.counts, carrier_size=self.carrier_size, multiple=head_multiple
            )
            for block in cast("list[AttentionBlock]", stage.blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        if self.counts is not None and self.map_size is not None:
            return self._fixed(x, self.map_size, self.counts)
        height, width = x.shape[2], x.shape[3]
        counts = window_counts(height, width, self.window)
        x = pad_to_windows(x, self.window, counts)
        carriers, heard = None, None
        if self.carrier_init is not None:
            if exporting():
                # A graph cannot branch on the number of windows, and runtimes of ONNX and OpenVINO would not check it.
                # So it has carriers at every size; where a map is one window, which has none, nobody hears them.
                carriers = self.carrier_init(x, counts)
                heard = (torch.ones(counts[0] * counts[1], device=x.device).sum() > 1.5).to(x.dtype)
            elif counts[0] * counts[1] > 1:
                carriers = self.carrier_init(x, counts)
        x = map_to_windows(x, self.window, counts)
        for block in self.blocks:
            x, carriers = block(x, carriers, counts, heard)
        return crop(windows_to_map(x, self.window, counts), height, width)

    def _fixed(self, x: Tensor, size: tuple[int, int], counts: tuple[int, int]) -> Tensor:
        """The same where only the batch is open: plain reshapes, in exported graphs too."""
        batch, channels = x.shape[0], x.shape[1]
        h, w = self.window
        below, right = counts[0] * h - size[0], counts[1] * w - size[1]
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        carriers = None if self.carrier_init is None else self.carrier_init(x, counts)
        x = x.permute(0, 2, 3, 1)
        if counts[1] > 1:  # one window across: rows of windows lie in memory as the map does
            x = x.reshape(batch, counts[0], h, counts[1], w, channels).transpose(2, 3)
        x = x.reshape(-1, h * w, channels)
        for block in self.blocks:
            x, carriers = block(x, carriers, counts)
        if counts[1] > 1:
            x = x.reshape(-1, counts[0], counts[1], h, w, channels).transpose(2, 3)
        x = x.reshape(-1, counts[0] * h, counts[1] * w, channels)
        if below or right:
            x = x[:, : size[0], : size[1]]
        return x.permute(0, 3, 1, 2)


class _FixedCarriers(nn.Module):
    """First carriers of maps of one size, pooled as in the released networks.

    A depthwise convolution and the pooling behind it are one convolution: both pad with nothing but the zeros that the
    first one pads with, so a sum over a cell of sums over 3 x 3 is a weighted sum over a cell that is 2 larger.
    """

    def __init__(self, initialiser: CarrierInitialiser, window: tuple[int, int], counts: tuple[int, int]) -> None:
        super().__init__()
        conv, c = initialiser.conv, initialiser.carrier_size
        stride = window[0] // c, window[1] // c
        kernel = [n * side - (c * n - 1) * s for n, side, s in zip(counts, window, stride, strict=True)]
        mean = torch.full((1, 1, *kernel), 1 / (kernel[0] * kernel[1]), dtype=torch.float64, device=conv.weight.device)
        # A convolution of kernels: padding makes F.conv2d, which slides without turning, give all of it.
        weight = F.conv2d(conv.weight.double().flip(2, 3), mean, padding=[side - 1 for side in kernel]).flip(2, 3)
        channels = conv.in_channels
        self.conv = nn.Conv2d(
            channels, channels, (kernel[0] + 2, kernel[1] + 2), stride=stride, padding=1, groups=channels
        ).to(conv.weight)
        set_weights(self.conv, weight, conv.bias)
        order = block_order((c, c), counts, conv.weight.device)
        self.register_buffer("order", order, persistent=False)
        self.in_order = bool((order == torch.arange(len(order), device=order.device)).all())

    def forward(self, x: Tensor, counts: tuple[int, int]) -> Tensor:
        """``(B, C, n_h*h, n_w*w) -> (B, n*K, C)``, carriers in the order of their windows."""
        x = self.conv(x).flatten(2).transpose(1, 2)
        return x if self.in_order else x.index_select(1, cast(Tensor, self.order))


class _AlignedCarriers(nn.Module):
    """First carriers of maps of any size, each pooled over its own part of its own window."""

    def __init__(self, initialiser: CarrierInitialiser, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window
        self.conv = frozen(initialiser.conv)
        # What each cell of a window adds to each of its carriers, as the pooling of such windows tells.
        cells = torch.eye(window[0] * window[1], dtype=torch.float64, device=initialiser.conv.weight.device)
        parts = pool_aligned(cells.view(-1, 1, *window), initialiser.carrier_size, window, (1, 1)).flatten(1)
        parts = parts.transpose(0, 1).to(initialiser.conv.weight.dtype).contiguous()
        self.register_buffer("parts", parts, persistent=False)

    def forward(self, x: Tensor, counts: tuple[int, int]) -> Tensor:
        """``(B, C, n_h*h, n_w*w) -> (B, n*K, C)``, carriers in the order of their windows."""
        parts = cast(Tensor, self.parts)
        carriers = parts @ map_to_windows(self.conv(x), self.window, counts)
        return carriers.view(x.shape[0], counts[0] * counts[1] * len(parts), x.shape[1])


class _OpenCarriers(nn.Module):
    """First carriers of maps of any size, pooled as in the released networks."""

    def __init__(self, initialiser: CarrierInitialiser, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window
        self.initialiser = cast(CarrierInitialiser, frozen(initialiser))

    def forward(self, x: Tensor, counts: tuple[int, int]) -> Tensor:
        """``(B, C, n_h*h, n_w*w) -> (B, n*K, C)``, carriers in the order of their windows."""
        carriers = self.initialiser(x, self.window, counts)
        batch, count, channels = carriers.shape
        return carriers_to_windows(carriers, self.initialiser.carrier_size, counts).reshape(batch, count, channels)


class FoldedBlock(nn.Module):
    """Carriers attend to one another, then each window inside itself; positions are constants or follow the size."""

    def __init__(
        self,
        block: AttentionBlock,
        *,
        window: tuple[int, int],
        counts: tuple[int, int] | None,
        carrier_size: int,
        multiple: int,
    ) -> None:
        super().__init__()
        self.window = window
        self.carrier_size = carrier_size
        self.attend = FoldedLayer(block.window, multiple)
        like = block.window.attn.qkv.weight
        assert block.window_position is not None
        assert block.window.bias is not None
        position, bias = _positions(block.window_position, block.window.bias, window, like)
        self.register_buffer("position", position, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.carriers_attend: FoldedLayer | None = None
        self.carrier_positions: nn.Module | None = None
        self.propagate = False
        if carrier_size > 0:
            assert block.carrier_position is not None
            assert isinstance(block.carrier, TransformerLayer)
            assert block.carrier.bias is not None
            self.carriers_attend = FoldedLayer(block.carrier, multiple)
            positions = _OpenPositions(block.carrier_position, block.carrier.bias, carrier_size)
            self.carrier_positions = positions if counts is None else _FixedPositions(positions, counts, like)
            self.propagate = block.propagate_carriers
            if self.propagate:
                self.carrier_scale = frozen(block.carrier.scale1)
        if carrier_size > 0 and counts is not None:
            k = carrier_size**2
            self.register_buffer("bias", F.pad(bias, (k, 0, k, 0)), persistent=False)
        self.fixed = counts is not None

    def forward(
        self, x: Tensor, carriers: Tensor | None, counts: tuple[int, int], heard: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Windows ``(B*n, N, C)`` and carriers ``(B, n*K, C)``, or None: the same out.

        ``heard`` is 1 where windows attend to their carriers and 0 where they do not, None for 1.
        """
        x = x + cast(Tensor, self.position)
        bias = cast(Tensor, self.bias)
        if carriers is None or self.carriers_attend is None or self.carrier_positions is None:
            return self.attend(x, bias), carriers
        c = self.carrier_size
        k, channels, batch = c * c, x.shape[2], carriers.shape[0]
        carrier_position, carrier_bias = self.carrier_positions(counts, x)
        carriers = self.carriers_attend(carriers + carrier_position, carrier_bias)
        if not self.fixed:
            bias = F.pad(bias, (k, 0, k, 0))
        if heard is not None:
            bias = bias + F.pad(((1 - heard) * _UNHEARD).expand(k), (0, x.shape[1]))
        x = torch.cat((carriers.reshape(-1, k, channels), x), dim=1)
        x = self.attend(x, bias)
        local, x = x[:, :k], x[:, k:]
        if self.propagate:
            spread = self.carrier_scale(spread_carriers(local, c, self.window))
            x = x + (spread if heard is None else heard * spread)
        return x, local.reshape(batch, counts[0] * counts[1] * k, channels)


class _OpenPositions(nn.Module):
    """Carriers' position embedding and attention bias for any number of windows, in the order of the windows."""

    def __init__(self, position: AbsolutePosition, bias: RelativePositionBias, carrier_size: int) -> None:
        super().__init__()
        self.position = cast(AbsolutePosition, frozen(position))
        self.bias = cast(RelativePositionBias, frozen(bias))
        self.carrier_size = carrier_size

    def forward(self, counts: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """``(n*K, C)`` and ``(heads, n*K, n*K)``, in the precision and on the device of ``like``."""
        c = self.carrier_size
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        geometry = grid_geometry(c * counts[0], c * counts[1], dtype, like.device)
        order = block_order((c, c), counts, like.device)
        position = self.position.mlp(geometry.coordinates).index_select(0, order)
        bias = self.bias(geometry, 0).index_select(1, order).index_select(2, order)
        return position.to(like.dtype), bias.to(like.dtype)


class _FixedPositions(nn.Module):
    """The same for one number of windows."""

    def __init__(self, positions: _OpenPositions, counts: tuple[int, int], like: Tensor) -> None:
        super().__init__()
        position, bias = positions(counts, like.double())
        self.register_buffer("position", position.to(like.dtype), persistent=False)
        self.register_buffer("bias", bias.to(like.dtype).contiguous(), persistent=False)

    def forward(self, counts: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        return cast(Tensor, self.position), cast(Tensor, self.bias)


class FoldedLayer(nn.Module):
    """Attention and MLP of a block, each with its norm and its way past."""

    def __init__(self, layer: TransformerLayer, multiple: int) -> None:
        super().__init__()
        self.eps1, self.eps2 = layer.norm1.eps, layer.norm2.eps
        attention = layer.attn
        dim, self.num_heads = attention.proj.in_features, attention.num_heads
        width = dim // self.num_heads
        self.head_dim = -(-width // multiple) * multiple
        self.qkv, self.proj = _padded_attention(attention, layer.norm1, _scale(layer.scale1), self.head_dim)
        self.fc1 = fused_linear(
            layer.mlp.fc1, in_scale=layer.norm2.weight, in_shift=layer.norm2.bias, activation="gelu"
        )
        self.fc2 = fused_linear(layer.mlp.fc2, out_scale=_scale(layer.scale2))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """``(B, T, C) -> (B, T, C)`` with a bias ``(heads, T, T)``."""
        batch, tokens, channels = x.shape
        qkv = self.qkv(F.layer_norm(x, (channels,), eps=self.eps1))
        # OpenVINO 2026.4 mistakes an axis of a transposition of all three for another where windows have as many tokens
        # as there are heads, and its logits are wrong.
        q, k, v = qkv.view(batch, tokens, 3 * self.num_heads, self.head_dim).transpose(1, 2).chunk(3, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0), scale=1.0)
        x = self.proj(y.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.head_dim), x)
        return cast(Tensor, self.fc2(self.fc1(F.layer_norm(x, (channels,), eps=self.eps2)), x))


def _padded_attention(
    attention: Attention, norm: nn.LayerNorm, out_scale: Tensor | None, head_dim: int
) -> tuple[FusedLinear, FusedLinear]:
    """``qkv`` and ``proj`` of heads ``head_dim`` wide: added queries, keys and values are 0 and change nothing."""
    dim, heads = attention.proj.in_features, attention.num_heads
    width = dim // heads
    more = head_dim - width
    weight, bias = float64_weights(attention.qkv, norm.weight, norm.bias)
    weight, bias = weight.view(3, heads, width, dim).clone(), bias.view(3, heads, width).clone()
    weight[0] *= width**-0.5
    bias[0] *= width**-0.5
    qkv = FusedLinear(dim, 3 * heads * head_dim, attention.qkv)
    set_weights(qkv, F.pad(weight, (0, 0, 0, more)).reshape(-1, dim), F.pad(bias, (0, more)).reshape(-1))
    weight, bias = float64_weights(attention.proj, out_scale=out_scale)
    proj = FusedLinear(heads * head_dim, dim, attention.proj)
    set_weights(proj, F.pad(weight.view(dim, heads, width), (0, more)).reshape(dim, -1), bias)
    return qkv, proj


def _scale(module: nn.Module) -> Tensor | None:
    return module.gamma if isinstance(module, LayerScale) else None


def _positions(
    position: AbsolutePosition, bias: RelativePositionBias, window: tuple[int, int], like: Tensor
) -> tuple[Tensor, Tensor]:
    """Embedding ``(N, C)`` and bias ``(heads, N, N)`` of a window's tokens."""
    geometry = grid_geometry(*window, torch.float64, like.device)
    return position.mlp(geometry.coordinates).to(like.dtype), bias(geometry, 0).to(like.dtype).contiguous()
