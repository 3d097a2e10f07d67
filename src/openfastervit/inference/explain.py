"""What carrier tokens look at: their attention, laid out over the image.

In a block, carriers first attend to one another. What a carrier has to tell, it read from its own window a block
earlier, or, before the first block, from the cells it was pooled from. Composing the two gives, for each carrier, a
distribution over the cells of the stage's map: where what it hears in this block comes from.

    map of carrier q = sum over carriers k of  attention(q -> k)  *  what k read of the map

Attention is averaged over heads. What a carrier reads from its window is its attention to the window's tokens, without
that to the window's carriers, scaled to sum to 1. Attention says where a network looks, not what it makes of it:
values, residual paths and MLPs are left out, and so is the 3x3 convolution before the first pooling.

Shapes: ``B`` batch, ``H x W`` the stage's map, ``G_h x G_w`` its grid of carriers, ``K`` carriers and ``N`` tokens a
window.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.layers import Attention, AttentionBlock, HierarchicalAttention
from openfastervit.layers.windows import carriers_to_windows, window_counts, windows_to_map
from openfastervit.models.fastervit import AttentionStage, FasterViT


@dataclass(frozen=True)
class CarrierAttention:
    """What the carriers of one attention block look at, for a batch of images."""

    name: str
    """The block, as in ``model.get_submodule(name)``."""
    maps: Tensor
    """``(B, G_h, G_w, H, W)``: for each carrier a distribution over the cells of the map, summing to 1."""
    padding: Tensor
    """``(B, G_h, G_w)``: the share of attention that went to the map's padding, and that ``maps`` leaves out."""
    window: tuple[int, int]
    """Height and width of a window, in cells."""
    carrier_size: int
    """Each window has ``carrier_size x carrier_size`` neighbouring carriers of the grid."""
    stride: int
    """Height and width of a cell, in pixels of the image."""
    image_size: tuple[int, int]
    """Height and width of the images, in pixels."""

    def over_image(self, mode: Literal["nearest", "bilinear"] = "nearest") -> Tensor:
        """The maps in pixels, for display: ``(B, G_h, G_w, image height, image width)``, values as in ``maps``.

        ``"nearest"`` shows the cells as they are, ``"bilinear"`` blends neighbours.
        """
        batch, rows, columns, height, width = self.maps.shape
        size = [height * self.stride, width * self.stride]
        pixels = F.interpolate(self.maps.reshape(batch, rows * columns, height, width), size=size, mode=mode)
        pixels = pixels[:, :, : self.image_size[0], : self.image_size[1]]
        return pixels.reshape(batch, rows, columns, *self.image_size)

    def elsewhere(self) -> Tensor:
        """``(B, G_h, G_w)``: the share of its attention that a carrier gives to windows other than its own."""
        _, rows, columns, height, width = self.maps.shape
        device = self.maps.device
        own_rows = _same(_windows(rows, self.carrier_size, device), _windows(height, self.window[0], device))
        own_columns = _same(_windows(columns, self.carrier_size, device), _windows(width, self.window[1], device))
        own = torch.einsum("bghyx,gy,hx->bgh", self.maps, own_rows, own_columns)
        return 1 - own


def carrier_attention(model: nn.Module, images: Tensor) -> tuple[CarrierAttention, ...]:
    """What each carrier token of each attention block looks at. The model is left as it was.

    Args:
        model: A ``FasterViT`` in evaluation mode.
        images: ``(B, in_chans, H, W)``, prepared as for a prediction, of any height and width.

    Returns:
        One entry for each block with carriers, in the network's order, in float32.

    Raises:
        TypeError: If the model is not a FasterViT.
        ValueError: If it is in training mode, or has no carriers at this image size.
    """
    if not isinstance(model, FasterViT):
        raise TypeError(f"model is a {type(model).__name__}; carrier tokens are looked at in a FasterViT")
    if model.training:
        raise ValueError("the model is in training mode, where attention is not what it is in use; call model.eval()")
    with torch.no_grad(), ExitStack() as stack:
        recordings = [
            (f"stages.{index}.attention", stage.attention, stack.enter_context(_recording(stage.attention)), index)
            for index, stage in enumerate(model.stages)
            if isinstance(stage, AttentionStage)
        ]
        model(images)
    image_size = images.shape[2], images.shape[3]
    found = tuple(
        CarrierAttention(
            name=f"{name}.blocks.{block}",
            maps=maps,
            padding=padding,
            window=stage.window_size,
            carrier_size=stage.carrier_size,
            stride=model.feature_info[index]["reduction"],
            image_size=image_size,
        )
        for name, stage, recording, index in recordings
        if recording.carrier
        for block, (maps, padding) in enumerate(_compose(stage, recording))
    )
    if not found:
        raise ValueError(
            f"the network uses no carrier tokens on images of {image_size[0]} x {image_size[1]}: no stage is both "
            "hierarchical and larger than one window; take larger images or a network with hierarchical stages"
        )
    return found


@dataclass
class _Recording:
    """What one stage did in a call."""

    size: tuple[int, int] = (0, 0)
    """Height and width of its map."""
    carrier: list[Tensor] = field(default_factory=list)
    """A block: carriers to carriers ``(B, G_h*G_w, G_h*G_w)``, in row-major order over the map."""
    window: list[Tensor] = field(default_factory=list)
    """A block: carriers to their window's tokens ``(B*n_h*n_w, K, N)``, rows summing to 1."""


@contextmanager
def _recording(stage: HierarchicalAttention) -> Iterator[_Recording]:
    """Record what a stage does, by hooks that are gone afterwards, whatever happens."""
    recording = _Recording()
    carriers = stage.carrier_size**2

    def see_map(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        recording.size = inputs[0].shape[2], inputs[0].shape[3]

    def see_carriers(attention: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(attention, Attention)
        recording.carrier.append(attention.weights(*inputs).mean(dim=1))

    def see_window(attention: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(attention, Attention)
        tokens = attention.weights(*inputs).mean(dim=1)[:, :carriers, carriers:]
        recording.window.append(_to_one(tokens))

    with ExitStack() as stack:
        stack.callback(stage.register_forward_pre_hook(see_map).remove)
        for block in stage.blocks:
            assert isinstance(block, AttentionBlock)
            if block.carrier is not None:
                stack.callback(block.carrier.attn.register_forward_pre_hook(see_carriers).remove)
                stack.callback(block.window.attn.register_forward_pre_hook(see_window).remove)
        yield recording


def _compose(stage: HierarchicalAttention, recording: _Recording) -> Iterator[tuple[Tensor, Tensor]]:
    """A block: maps ``(B, G_h, G_w, H, W)`` and the share of padding ``(B, G_h, G_w)``."""
    height, width = recording.size
    window, c = stage.window_size, stage.carrier_size
    counts = window_counts(height, width, window)
    grid = c * counts[0], c * counts[1]
    for block, attention in enumerate(recording.carrier):
        batch, carriers, _ = attention.shape
        if block == 0:
            read = pooling_footprint((counts[0] * window[0], counts[1] * window[1]), grid).to(attention)
            maps = (attention @ read.flatten(0, 1).flatten(1)).view(batch, carriers, *read.shape[2:])
        else:
            # (B, queries, keys) -> the keys by window, as (B*n_h*n_w, K, queries): a product inside each window.
            by_window = carriers_to_windows(attention.transpose(1, 2), c, counts)
            maps = windows_to_map(recording.window[block - 1].transpose(1, 2) @ by_window, window, counts)
        real = maps[:, :, :height, :width]
        padding = 1 - real.sum(dim=(2, 3))
        yield (
            _to_one(real.flatten(2)).view(batch, *grid, height, width),
            padding.clamp(0, 1).view(batch, *grid),
        )


def pooling_footprint(size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """What ``CarrierInitialiser`` pools: ``(G_h, G_w, H, W)``, for each carrier its weights on an ``H x W`` map."""
    rows, columns = (_axis_footprint(*axis) for axis in zip(size, grid, strict=True))
    return torch.einsum("gy,hx->ghyx", rows, columns)


def _axis_footprint(length: int, cells: int) -> Tensor:
    stride = length // cells
    kernel = length - (cells - 1) * stride
    start = torch.arange(cells)[:, None] * stride
    position = torch.arange(length)[None, :]
    return ((position >= start) & (position < start + kernel)).float() / kernel


def _to_one(rows: Tensor) -> Tensor:
    """Scale the last axis to sum to 1."""
    return rows / rows.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def _windows(length: int, side: int, device: torch.device) -> Tensor:
    """For each position of an axis the window it lies in."""
    return torch.arange(length, device=device) // side


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None] == b[None, :]).float()
