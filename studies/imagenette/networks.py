"""The networks of the study: a FasterViT and three peers, all within 10 % of its multiply-adds at 128 x 128.

Two scales: ``FULL`` for a GPU, ``POCKET`` for a CPU. Each has timm's ResNet-50, Swin-T and ConvNeXt-T beside ours.

Our windows are 4. The maps of the two attention stages are 8 x 8 and 4 x 4: four windows with carriers, then one
window, and nothing is padded. The windows of 7 of the released networks would pad both maps to whole windows of 7, for
twice the multiply-adds. Swin-T gets windows of 4 for the same reason.

``FULL``, FasterViT-0 with its depths and widths as published, 1242 M multiply-adds:

- ResNet-50 as published: it is within 10 % (+7 %).
- Swin-T with width 90 for 96; the heads stay, so that a head has 30 channels for 32.
- ConvNeXt-T with width 88 for 96.

``POCKET``, a FasterViT with width 16 for 64 and about a third of the blocks, (1, 1, 2, 1) for (2, 3, 6, 5), 34 M
multiply-adds. Peers of full depth would have 8 to 14 channels, too few to learn with in some epochs, so their depths
are cut alike and the width decides the cost:

- ResNet-50 with a third of the blocks, (1, 1, 2, 1) for (3, 4, 6, 3), and width 14 for 64. timm cannot narrow its 7 x 7
  stem, which would cost more than all of our network: three narrow 3 x 3 convolutions are there, as in ResNet-50-D.
- Swin-T with (2, 2, 2, 2) blocks for (2, 2, 6, 2), since its unit is a pair, plain and shifted windows, and width 18
  for 96.
- ConvNeXt-T with a third of the blocks, (1, 1, 3, 1) for (3, 3, 9, 3), and width 24 for 96.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import timm
from torch import nn

import openfastervit  # noqa: F401  # registers our networks with timm

IMAGE_SIZE = 128
"""Side of the images, pixels."""

CLASSES = 10
"""Classes of Imagenette."""

TOLERANCE = 0.1
"""Largest share by which a peer's multiply-adds differ from those of the FasterViT."""


@dataclass(frozen=True)
class StudyNetwork:
    """A network of the study."""

    name: str
    """As tables and figures call it."""
    model: str
    """timm's name; ours are registered there."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``timm.create_model``, plain data, all but ``num_classes``."""


def _table(*networks: StudyNetwork, drop_path_rate: float) -> Mapping[str, StudyNetwork]:
    """The networks by name. All get the same drop path: timm's defaults differ, from 0 to 0.2."""
    return MappingProxyType(
        {
            network.name: replace(network, options={**network.options, "drop_path_rate": drop_path_rate})
            for network in networks
        }
    )


def _widths(width: int) -> list[int]:
    """Channels of four stages, each twice those of the one before."""
    return [width, 2 * width, 4 * width, 8 * width]


OURS = "fastervit"
"""Name of our network in both tables."""

FULL = _table(
    StudyNetwork(OURS, "fastervit_0", {"img_size": IMAGE_SIZE, "window_sizes": [7, 7, 4, 4]}),
    StudyNetwork("resnet", "resnet50"),
    StudyNetwork("swin", "swin_tiny_patch4_window7_224", {"img_size": IMAGE_SIZE, "window_size": 4, "embed_dim": 90}),
    StudyNetwork("convnext", "convnext_tiny", {"dims": _widths(88)}),
    drop_path_rate=0.1,
)
"""For a GPU: 1.23 to 1.33 G multiply-adds."""

POCKET = _table(
    StudyNetwork(
        OURS,
        "fastervit_0",
        {
            "img_size": IMAGE_SIZE,
            "window_sizes": [7, 7, 4, 4],
            "dim": 16,
            "stem_dim": 16,
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 1, 2, 4],
        },
    ),
    StudyNetwork(
        "resnet",
        "resnet50",
        {"layers": [1, 1, 2, 1], "channels": _widths(14), "stem_type": "deep", "stem_width": 8},
    ),
    StudyNetwork(
        "swin",
        "swin_tiny_patch4_window7_224",
        {
            "img_size": IMAGE_SIZE,
            "window_size": 4,
            "embed_dim": 18,
            "depths": [2, 2, 2, 2],
            "num_heads": [1, 2, 4, 8],
        },
    ),
    StudyNetwork("convnext", "convnext_tiny", {"depths": [1, 1, 3, 1], "dims": _widths(24)}),
    drop_path_rate=0.0,
)
"""For a CPU: 33 to 37 M multiply-adds."""


def build(network: StudyNetwork, **more: Any) -> nn.Module:
    """A network with fresh weights, for 10 classes.

    Args:
        network: An entry of ``FULL`` or ``POCKET``; the module's docstring says how each was scaled.
        **more: Further arguments of ``timm.create_model``, or other values for those of the table.
    """
    return timm.create_model(network.model, **{"num_classes": CLASSES, **network.options, **more})
