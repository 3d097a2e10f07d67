"""What carrier tokens look at: their attention, laid out over the image.

In a block, carriers first attend to one another. What a carrier has to tell, it read from its own window a block
earlier, or, before the first block, from the cells it was pooled from. Composing the two (``composition.py``) gives,
for each carrier, a distribution over the cells of the stage's map: where what it hears in this block comes from.

    map of carrier q = sum over carriers k of  attention(q -> k)  *  what k read of the map

Attention is averaged over heads. What a carrier reads from its window is its attention to the window's tokens, without
that to the window's carriers, scaled to sum to 1. Attention says where a network looks, not what it makes of it:
values, residual paths and MLPs are left out, and so is the 3x3 convolution before the first pooling.

Shapes: ``B`` batch, ``H x W`` the stage's map, ``G_h x G_w`` its grid of carriers, ``n_h x n_w`` its windows.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openfastervit.inference.explain.composition import compose, pooling_footprint, recording
from openfastervit.inference.explain.subject import Mode, NothingToShowError, check_model, over_image, windowed_stages
from openfastervit.layers.windows import map_to_windows, pad_to_windows, window_counts

__all__ = ["CarrierAttention", "carrier_attention", "pooling_footprint"]


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

    def over_image(self, mode: Mode = "nearest") -> Tensor:
        """The maps in pixels, for display: ``(B, G_h, G_w, image height, image width)``, values as in ``maps``."""
        return over_image(self.maps, self.stride, self.image_size, mode)

    def windows(self) -> Tensor:
        """``(B, G_h, G_w, n_h, n_w)``: the share of its attention that each window feeds to a carrier, summing to 1."""
        batch, rows, columns, height, width = self.maps.shape
        counts = window_counts(height, width, self.window)
        maps = pad_to_windows(self.maps.view(batch, rows * columns, height, width), self.window, counts)
        shares = map_to_windows(maps, self.window, counts).sum(dim=1).view(batch, *counts, rows, columns)
        return shares.permute(0, 3, 4, 1, 2)

    def elsewhere(self) -> Tensor:
        """``(B, G_h, G_w)``: the share of its attention that a carrier gives to windows other than its own."""
        shares = self.windows()
        rows = torch.arange(shares.shape[1], device=shares.device)[:, None]
        columns = torch.arange(shares.shape[2], device=shares.device)[None, :]
        return 1 - shares[:, rows, columns, rows // self.carrier_size, columns // self.carrier_size]


def carrier_attention(model: nn.Module, images: Tensor) -> tuple[CarrierAttention, ...]:
    """What each carrier token of each attention block looks at. The model is left as it was.

    Args:
        model: A ``FasterViT`` in evaluation mode.
        images: ``(B, in_chans, H, W)``, prepared as for a prediction, of any height and width.

    Returns:
        One entry for each block with carriers, in the network's order, in float32.

    Raises:
        TypeError: If the model is not a FasterViT.
        ValueError: If it is in training mode.
        NothingToShowError: If it has no carriers at this image size. A ``ValueError``.
    """
    model = check_model(model)
    image_size = images.shape[2], images.shape[3]
    with torch.no_grad(), ExitStack() as stack:
        seen = [(index, stage, stack.enter_context(recording(stage))) for index, stage in windowed_stages(model)]
        model(images)
    found = tuple(
        CarrierAttention(
            name=f"stages.{index}.attention.blocks.{block}",
            maps=maps,
            padding=padding,
            window=stage.window_size,
            carrier_size=stage.carrier_size,
            stride=model.feature_info[index]["reduction"],
            image_size=image_size,
        )
        for index, stage, record in seen
        for block, (maps, padding) in enumerate(compose(stage, record))
    )
    if found:
        return found
    if any(stage.carrier_size and "carrier_attention" in stage.without for _, stage, _ in seen):
        raise NothingToShowError(
            'without=("carrier_attention",): the carriers of this network do not attend to one another, so there is '
            "nothing to show; take a network that has carrier attention"
        )
    if not any(stage.carrier_size for _, stage, _ in seen):
        raise NothingToShowError(
            "the network has no carrier tokens: none of its stages has hierarchical attention; take one that has"
        )
    raise NothingToShowError(
        f"the network uses no carrier tokens on images of {image_size[0]} x {image_size[1]}: no stage is both "
        "hierarchical and larger than one window; take larger images or a network with hierarchical stages"
    )
