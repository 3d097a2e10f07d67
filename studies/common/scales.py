"""The three scales of the studies that train FasterViTs.

``smoke`` shows that a study runs: a tiny network, a few images, one epoch; its figures mean nothing. ``cpu`` trains the
pocket network of ``studies.imagenette`` on two cores for about half an hour, ``gpu`` one of full width on a large GPU
for about ten minutes.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from studies.common.comparison import Scale
from studies.imagenette.networks import FULL, OURS, POCKET

RECIPES = Path(__file__).parents[2] / "recipes"
POCKET_RECIPE = RECIPES / "imagenette_pocket.yaml"
FULL_RECIPE = RECIPES / "imagenette_fastervit_0.yaml"

TINY: Mapping[str, Any] = MappingProxyType(
    {
        "img_size": 128,
        "window_sizes": [7, 7, 4, 4],
        "dim": 8,
        "stem_dim": 8,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 1, 2, 2],
    }
)
"""Of ``fastervit_0``, with the maps and windows of the pocket network."""

SMOKE_SETTINGS: Mapping[str, Any] = MappingProxyType({"epochs": 1, "warmup_epochs": 0.0, "batch_size": 8, "workers": 0})
FEW = (4, 2)
"""Images a class at the smallest scale."""


def network_options(table: Mapping[str, Any]) -> dict[str, Any]:
    """Of our network in a table of ``studies.imagenette``, as a recipe has them."""
    return {name: value for name, value in table[OURS].options.items() if name != "drop_path_rate"}


def fastervit_scales(*, cpu: Mapping[str, Any], gpu: Mapping[str, Any]) -> dict[str, Scale]:
    """The scales, with a study's own settings of two of them.

    All judge once, at the end, on all validation images.
    """
    once = {"eval_every": 10_000}
    # The recipe's augmentation is for 150 epochs: in some, it only delays.
    short = {"cooldown_epochs": 0, "mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "auto_augment": None}
    short |= {"color_jitter": 0.0, "batch_size": 128, "ema_decay": None, "ema_warmup": False}
    return {
        "smoke": Scale(POCKET_RECIPE, {**SMOKE_SETTINGS, **once, "model_options": dict(TINY)}, few=FEW),
        "cpu": Scale(POCKET_RECIPE, {**once, "model_options": network_options(POCKET), **cpu}),
        "gpu": Scale(FULL_RECIPE, {**once, **short, "model_options": network_options(FULL), **gpu}),
    }
