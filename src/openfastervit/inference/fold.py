"""A FasterViT made ready for inference: the same logits from fewer operations.

``fold`` computes once what training needs anew at every call, and puts it into a copy:

- batch norms go into the convolutions before them, the last one into the classifier;
- layer norms' factors go into the linear layers behind them, layer scales into those before them;
- ``1 / sqrt(head_dim)`` goes into the queries, and heads of a width that hardware dislikes are padded with zeros;
- for a given size of the images, position embeddings, attention biases and the pooling of carriers become constants;
- carriers are kept in the order of their windows, so that nothing is moved between the two attentions of a block;
- weights of convolutions lie channels-last in memory.

All of this is algebra, done in float64: results differ by rounding alone. A stage whose attention ``foldable`` says no
to keeps it as it is; all around it is folded.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from openfastervit.inference.folded_attention import HEAD_MULTIPLE, FoldedAttention, foldable
from openfastervit.inference.fused import affine, frozen, fused_convolution, fused_linear
from openfastervit.layers import ConvBlock, LayerNorm2d, Stem
from openfastervit.layers.conv import check_images
from openfastervit.models.fastervit import AttentionStage, ConvStage, FasterViT


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
                attention: nn.Module = stage.attention
                if foldable(attention):
                    attention = FoldedAttention(attention, map_size, head_multiple=head_multiple)
                else:
                    attention = frozen(attention)
                stages.append(nn.Sequential(FoldedDownsample(stage.downsample), attention))
            else:
                stage = cast(ConvStage, stage)
                downsample = [] if isinstance(stage.downsample, nn.Identity) else [FoldedDownsample(stage.downsample)]
                stages.append(nn.Sequential(*downsample, *map(_FoldedConvBlock, cast("list[ConvBlock]", stage.blocks))))
        self.stages = nn.Sequential(*stages)
        self.norm: nn.Module = nn.Identity()
        pool = model.head.global_pool
        pools_linearly = getattr(pool, "pool_type", "") in ("avg", "fast", "fastavg")
        if isinstance(model.norm, nn.BatchNorm2d) and isinstance(model.head.fc, nn.Linear) and pools_linearly:
            # The mean over a map and an affine map of its channels may change places.
            scale, shift = affine(model.norm)
            self.fc: nn.Module = fused_linear(model.head.fc, in_scale=scale, in_shift=shift)
        else:
            self.norm = frozen(model.norm)
            self.fc = frozen(model.head.fc)
        self.pool = _Mean() if pools_linearly else frozen(pool)
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


class _FoldedStem(nn.Module):
    def __init__(self, stem: Stem) -> None:
        super().__init__()
        self.conv1 = fused_convolution(stem.conv1, stem.norm1, "relu")
        self.conv2 = fused_convolution(stem.conv2, stem.norm2, "relu")

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv2(self.conv1(x)))


class _FoldedConvBlock(nn.Module):
    def __init__(self, block: ConvBlock) -> None:
        super().__init__()
        self.conv1 = fused_convolution(block.conv1, block.norm1, "gelu")
        self.conv2 = fused_convolution(block.conv2, block.norm2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv2(self.conv1(x), x))


class FoldedDownsample(nn.Module):
    def __init__(self, downsample: nn.Module) -> None:
        super().__init__()
        norm = cast(LayerNorm2d, downsample.norm)
        self.norm = LayerNorm2d(norm.normalized_shape[0], eps=norm.eps).to(norm.weight)
        self.norm.load_state_dict(norm.state_dict())
        self.conv = fused_convolution(cast(nn.Conv2d, downsample.conv))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise ValueError(f"size={size!r} is neither a side nor (height, width)")
    return pair
