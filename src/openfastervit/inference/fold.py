"""A FasterViT made ready for inference: the same logits from fewer operations.

``fold`` computes once what training needs anew at every call, and puts it into a copy:

- batch norms go into the convolutions before them, the last one into the classifier;
- layer norms' factors go into the linear layers behind them, layer scales into those before them;
- ``1 / sqrt(head_dim)`` goes into the queries, and heads of a width that hardware dislikes are padded with zeros;
- for a given size of the images, position embeddings, attention biases and the pooling of carriers become constants;
- carriers are kept in the order of their windows, so that nothing is moved between the two attentions of a block;
- weights of convolutions lie channels-last in memory.

All of this is algebra, done in float64: results differ by rounding alone.

Shapes: ``B`` batch, ``C`` channels, ``n`` windows an image, ``K`` carriers and ``N`` tokens a window, ``T = K + N``.
"""

import copy
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.layers import (
    AbsolutePosition,
    Attention,
    AttentionBlock,
    CarrierInitialiser,
    ConvBlock,
    HierarchicalAttention,
    LayerNorm2d,
    LayerScale,
    RelativePositionBias,
    Stem,
    TransformerLayer,
    grid_geometry,
)
from openfastervit.layers.conv import check_images
from openfastervit.layers.windows import (
    block_order,
    carriers_to_windows,
    crop,
    map_to_windows,
    pad_to_windows,
    spread_carriers,
    window_counts,
    windows_to_map,
)
from openfastervit.models.fastervit import AttentionStage, ConvStage, FasterViT

HEAD_MULTIPLE = 8
"""Heads are padded to a multiple of this width: what fused attention takes on GPUs, and half a vector on CPUs."""

Activation = Literal["none", "relu", "gelu"]


@torch.no_grad()
def fold(
    model: FasterViT, size: int | Sequence[int] | None = None, *, head_multiple: int = HEAD_MULTIPLE
) -> "FoldedFasterViT":
    """A copy for inference, with the same logits but for rounding.

    Args:
        model: Left as it is; its weights may be of any precision and on any device.
        size: Side or (height, width) of the images. The copy then takes no other, and all that follows from the size
            is constant in it. None leaves the size open: the carriers' positions are computed at each call.
        head_multiple: Attention heads are padded to a multiple of this width.

    Raises:
        TypeError: If the model is not a FasterViT.
        ValueError: If the size is too small, or the multiple below 1.
    """
    if not isinstance(model, FasterViT):
        raise TypeError(f"only a FasterViT can be folded, this is a {type(model).__name__}")
    if head_multiple < 1:
        raise ValueError(f"head_multiple={head_multiple} must be at least 1")
    return FoldedFasterViT(model, None if size is None else _pair(size), head_multiple).eval()


class FoldedFasterViT(nn.Module):
    """What ``fold`` makes of a FasterViT: images in, logits out. It can be exported, compiled and copied; not trained.

    ``forward_maps`` gives the maps of the stages, at strides 4, 8, 16 and 32.
    """

    def __init__(self, model: FasterViT, size: tuple[int, int] | None, head_multiple: int) -> None:
        super().__init__()
        self.size = size
        self.in_chans = model.in_chans
        self.num_classes = model.num_classes
        self.stem = _FoldedStem(model.stem)
        if size is not None:
            check_images(torch.empty(1, self.in_chans, *size, device="meta"), self.in_chans)
        stages: list[nn.Module] = []
        for i, stage in enumerate(model.stages):
            map_size = None if size is None else (-(-size[0] // (4 * 2**i)), -(-size[1] // (4 * 2**i)))
            if isinstance(stage, AttentionStage):
                attention = FoldedAttention(stage.attention, map_size, head_multiple=head_multiple)
                stages.append(nn.Sequential(_FoldedDownsample(stage.downsample), attention))
            else:
                stage = cast(ConvStage, stage)
                downsample = [] if isinstance(stage.downsample, nn.Identity) else [_FoldedDownsample(stage.downsample)]
                stages.append(nn.Sequential(*downsample, *map(_FoldedConvBlock, cast("list[ConvBlock]", stage.blocks))))
        self.stages = nn.Sequential(*stages)
        self.norm: nn.Module = nn.Identity()
        pool = model.head.global_pool
        pools_linearly = getattr(pool, "pool_type", "") in ("avg", "fast", "fastavg")
        if isinstance(model.norm, nn.BatchNorm2d) and isinstance(model.head.fc, nn.Linear) and pools_linearly:
            # The mean over a map and an affine map of its channels may change places.
            scale, shift = _affine(model.norm)
            self.fc: nn.Module = _linear(model.head.fc, in_scale=scale, in_shift=shift)
        else:
            self.norm = _frozen(model.norm)
            self.fc = _frozen(model.head.fc)
        self.pool = _Mean() if pools_linearly else _frozen(pool)
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward_maps(self, x: Tensor) -> list[Tensor]:
        """Images ``(B, in_chans, H, W)`` to the maps of all stages, before the final norm."""
        self._check(x)
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, H, W)`` to logits ``(B, num_classes)``.

        Raises:
            ValueError: If the images are not of the size that the network was folded for.
        """
        self._check(x)
        return self.fc(self.pool(self.norm(self.stages(self.stem(x)))))

    def _check(self, x: Tensor) -> None:
        check_images(x, self.in_chans)
        if self.size is not None and (x.shape[2], x.shape[3]) != self.size:
            raise ValueError(
                f"images are {x.shape[2]} x {x.shape[3]}, the network was folded for {self.size[0]} x {self.size[1]}; "
                "fold it for that size, or for any with size=None"
            )


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C)``."""
        return x.mean((2, 3))


class FusedConv2d(nn.Conv2d):
    """``activation(conv(x)) + residual``: what a backend may compute at once."""

    def __init__(self, like: nn.Conv2d, activation: Activation = "none", *, bias: bool = True) -> None:
        super().__init__(
            like.in_channels,
            like.out_channels,
            cast("tuple[int, int]", like.kernel_size),
            stride=cast("tuple[int, int]", like.stride),
            padding=cast("tuple[int, int]", like.padding),
            groups=like.groups,
            bias=bias,
            device=like.weight.device,
            dtype=like.weight.dtype,
        )
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = _activate(super().forward(x), self.activation)
        return x if residual is None else residual + x


class FusedLinear(nn.Linear):
    """``activation(linear(x)) + residual``: what a backend may compute at once."""

    def __init__(self, in_features: int, out_features: int, like: nn.Linear, activation: Activation = "none") -> None:
        super().__init__(in_features, out_features, device=like.weight.device, dtype=like.weight.dtype)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = _activate(super().forward(x), self.activation)
        return x if residual is None else residual + x


def _activate(x: Tensor, activation: Activation) -> Tensor:
    if activation == "none":
        return x
    return F.gelu(x) if activation == "gelu" else F.relu(x)


class _FoldedStem(nn.Module):
    def __init__(self, stem: Stem) -> None:
        super().__init__()
        self.conv1 = _convolution(stem.conv1, stem.norm1, "relu")
        self.conv2 = _convolution(stem.conv2, stem.norm2, "relu")

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv2(self.conv1(x)))


class _FoldedConvBlock(nn.Module):
    def __init__(self, block: ConvBlock) -> None:
        super().__init__()
        self.conv1 = _convolution(block.conv1, block.norm1, "gelu")
        self.conv2 = _convolution(block.conv2, block.norm2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv2(self.conv1(x), x))


class _FoldedDownsample(nn.Module):
    def __init__(self, downsample: nn.Module) -> None:
        super().__init__()
        norm = cast(LayerNorm2d, downsample.norm)
        self.norm = LayerNorm2d(norm.normalized_shape[0], eps=norm.eps).to(norm.weight)
        self.norm.load_state_dict(norm.state_dict())
        self.conv = _convolution(cast(nn.Conv2d, downsample.conv))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class FoldedAttention(nn.Module):
    """A stage of hierarchical attention made ready for inference: a map in, a map out.

    Args:
        stage: Left as it is.
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
            if self.counts is None:
                self.carrier_init = _OpenCarriers(stage.carrier_init)
            else:
                self.carrier_init = _FixedCarriers(stage.carrier_init, self.window, self.counts)
        self.blocks = nn.ModuleList(
            _FoldedBlock(
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
        carriers = None
        if self.carrier_init is not None and counts[0] * counts[1] > 1:
            carriers = self.carrier_init(x, self.window, counts)
        x = map_to_windows(x, self.window, counts)
        for block in self.blocks:
            x, carriers = block(x, carriers, counts)
        return crop(windows_to_map(x, self.window, counts), height, width)

    def _fixed(self, x: Tensor, size: tuple[int, int], counts: tuple[int, int]) -> Tensor:
        """The same where only the batch is open: plain reshapes, in exported graphs too."""
        batch, channels = x.shape[0], x.shape[1]
        h, w = self.window
        below, right = counts[0] * h - size[0], counts[1] * w - size[1]
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        carriers = None if self.carrier_init is None else self.carrier_init(x)
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
    """First carriers of maps of one size. A depthwise convolution and the pooling behind it are one convolution.

    Both pad with nothing but the zeros that the first one pads with, so a sum over a cell of sums over 3 x 3 is a
    weighted sum over a cell that is 2 larger.
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
        _set(self.conv, weight, conv.bias)
        order = block_order((c, c), counts, conv.weight.device)
        self.register_buffer("order", order, persistent=False)
        self.in_order = bool((order == torch.arange(len(order), device=order.device)).all())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, n_h*h, n_w*w) -> (B, n*K, C)``, carriers in the order of their windows."""
        x = self.conv(x).flatten(2).transpose(1, 2)
        return x if self.in_order else x.index_select(1, cast(Tensor, self.order))


class _OpenCarriers(nn.Module):
    """First carriers of maps of any size."""

    def __init__(self, initialiser: CarrierInitialiser) -> None:
        super().__init__()
        self.initialiser = cast(CarrierInitialiser, _frozen(initialiser))

    def forward(self, x: Tensor, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
        """``(B, C, n_h*h, n_w*w) -> (B, n*K, C)``, carriers in the order of their windows."""
        carriers = self.initialiser(x, window, counts)
        batch, count, channels = carriers.shape
        return carriers_to_windows(carriers, self.initialiser.carrier_size, counts).reshape(batch, count, channels)


class _FoldedBlock(nn.Module):
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
        self.attend = _FoldedLayer(block.window, multiple)
        like = block.window.attn.qkv.weight
        position, bias = _positions(block.window_position, block.window.bias, window, like)
        self.register_buffer("position", position, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.carriers_attend: _FoldedLayer | None = None
        self.carrier_positions: nn.Module | None = None
        self.propagate = False
        if carrier_size > 0:
            assert block.carrier is not None
            assert block.carrier_position is not None
            self.carriers_attend = _FoldedLayer(block.carrier, multiple)
            positions = _OpenPositions(block.carrier_position, block.carrier.bias, carrier_size)
            self.carrier_positions = positions if counts is None else _FixedPositions(positions, counts, like)
            self.propagate = block.propagate_carriers
            if self.propagate:
                self.carrier_scale = _frozen(block.carrier.scale1)
        if carrier_size > 0 and counts is not None:
            k = carrier_size**2
            self.register_buffer("bias", F.pad(bias, (k, 0, k, 0)), persistent=False)
        self.fixed = counts is not None

    def forward(self, x: Tensor, carriers: Tensor | None, counts: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Windows ``(B*n, N, C)`` and carriers ``(B, n*K, C)``, or None: the same out."""
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
        x = torch.cat((carriers.reshape(-1, k, channels), x), dim=1)
        x = self.attend(x, bias)
        local, x = x[:, :k], x[:, k:]
        if self.propagate:
            x = x + self.carrier_scale(spread_carriers(local, c, self.window))
        return x, local.reshape(batch, counts[0] * counts[1] * k, channels)


class _OpenPositions(nn.Module):
    """Carriers' position embedding and attention bias for any number of windows, in the order of the windows."""

    def __init__(self, position: AbsolutePosition, bias: RelativePositionBias, carrier_size: int) -> None:
        super().__init__()
        self.position = cast(AbsolutePosition, _frozen(position))
        self.bias = cast(RelativePositionBias, _frozen(bias))
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


class _FoldedLayer(nn.Module):
    """Attention and MLP of a block, each with its norm and its way past."""

    def __init__(self, layer: TransformerLayer, multiple: int) -> None:
        super().__init__()
        self.eps1, self.eps2 = layer.norm1.eps, layer.norm2.eps
        attention = layer.attn
        dim, self.num_heads = attention.proj.in_features, attention.num_heads
        width = dim // self.num_heads
        self.head_dim = -(-width // multiple) * multiple
        self.qkv, self.proj = _padded_attention(attention, layer.norm1, _scale(layer.scale1), self.head_dim)
        self.fc1 = _linear(layer.mlp.fc1, in_scale=layer.norm2.weight, in_shift=layer.norm2.bias, activation="gelu")
        self.fc2 = _linear(layer.mlp.fc2, out_scale=_scale(layer.scale2))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """``(B, T, C) -> (B, T, C)`` with a bias ``(heads, T, T)``."""
        batch, tokens, channels = x.shape
        qkv = self.qkv(F.layer_norm(x, (channels,), eps=self.eps1))
        qkv = qkv.view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0), scale=1.0)
        x = self.proj(y.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.head_dim), x)
        return cast(Tensor, self.fc2(self.fc1(F.layer_norm(x, (channels,), eps=self.eps2)), x))


# --- The algebra ----------------------------------------------------------------------------------------------------


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and shift, in float64, that a batch norm is in evaluation mode."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            "a batch norm without running statistics takes them from each batch and cannot be folded; "
            "use track_running_stats=True"
        )
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _convolution(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, activation: Activation = "none") -> FusedConv2d:
    """A convolution and the batch norm behind it as one, channels-last."""
    weight = conv.weight.double()
    bias = None if conv.bias is None else conv.bias.double()
    if norm is not None:
        scale, shift = _affine(norm)
        weight = weight * scale[:, None, None, None]
        bias = shift if bias is None else bias * scale + shift
    folded = FusedConv2d(conv, activation, bias=bias is not None)
    _set(folded, weight, bias)
    return folded.to(memory_format=torch.channels_last)


def _linear(
    linear: nn.Linear,
    *,
    in_scale: Tensor | None = None,
    in_shift: Tensor | None = None,
    out_scale: Tensor | None = None,
    activation: Activation = "none",
) -> FusedLinear:
    """``out_scale * linear(in_scale * x + in_shift)`` as one linear layer."""
    weight, bias = _weights(linear, in_scale, in_shift, out_scale)
    folded = FusedLinear(linear.in_features, linear.out_features, linear, activation)
    _set(folded, weight, bias)
    return folded


def _weights(
    linear: nn.Linear,
    in_scale: Tensor | None = None,
    in_shift: Tensor | None = None,
    out_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as weight and bias in float64."""
    weight = linear.weight.double()
    bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.double()
    if in_shift is not None:
        bias = bias + weight @ in_shift.double()
    if in_scale is not None:
        weight = weight * in_scale.double()
    if out_scale is not None:
        weight, bias = weight * out_scale.double()[:, None], bias * out_scale.double()
    return weight, bias


def _padded_attention(
    attention: Attention, norm: nn.LayerNorm, out_scale: Tensor | None, head_dim: int
) -> tuple[FusedLinear, FusedLinear]:
    """``qkv`` and ``proj`` of heads ``head_dim`` wide: added queries, keys and values are 0 and change nothing."""
    dim, heads = attention.proj.in_features, attention.num_heads
    width = dim // heads
    more = head_dim - width
    weight, bias = _weights(attention.qkv, norm.weight, norm.bias)
    weight, bias = weight.view(3, heads, width, dim).clone(), bias.view(3, heads, width).clone()
    weight[0] *= width**-0.5
    bias[0] *= width**-0.5
    qkv = FusedLinear(dim, 3 * heads * head_dim, attention.qkv)
    _set(qkv, F.pad(weight, (0, 0, 0, more)).reshape(-1, dim), F.pad(bias, (0, more)).reshape(-1))
    weight, bias = _weights(attention.proj, out_scale=out_scale)
    proj = FusedLinear(heads * head_dim, dim, attention.proj)
    _set(proj, F.pad(weight.view(dim, heads, width), (0, more)).reshape(dim, -1), bias)
    return qkv, proj


def _scale(module: nn.Module) -> Tensor | None:
    return module.gamma if isinstance(module, LayerScale) else None


def _positions(
    position: AbsolutePosition, bias: RelativePositionBias, window: tuple[int, int], like: Tensor
) -> tuple[Tensor, Tensor]:
    """Embedding ``(N, C)`` and bias ``(heads, N, N)`` of a window's tokens."""
    geometry = grid_geometry(*window, torch.float64, like.device)
    return position.mlp(geometry.coordinates).to(like.dtype), bias(geometry, 0).to(like.dtype).contiguous()


def _set(module: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    module.weight.copy_(weight)
    if module.bias is not None:
        assert bias is not None
        module.bias.copy_(bias)


def _frozen(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).eval()


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise ValueError(f"size={size!r} is neither a side nor (height, width)")
    return pair
