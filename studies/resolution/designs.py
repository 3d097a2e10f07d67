"""What is compared as images grow: six designs of attention, and hierarchical attention with two levels of carriers."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

DESIGNS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "hat": {},
        "hat-2-levels": {"carrier_levels": 2, "carrier_pooling": "aligned"},
        "window": {"hierarchical": (False,) * 4},
        "shifted-window": {"attention": "shifted-window"},
        "twins": {"attention": "twins"},
        "edgevit": {"attention": "edgevit"},
        "global": {},
    }
)
"""Options of the network, in stage 2; those of "global", in stages 2 and 3, depend on the size. The others have windows
in stage 3."""

FOLDED = ("hat", "window", "global")
"""Those that are made ready for a size as a whole; of the others, attention stays as it is in training."""

FORMULA = ("hat", "window", "global")
"""Those whose multiply-adds a formula gives."""


def network_options(design: str, side: int) -> dict[str, Any]:
    """Of the network's constructor, for one design at one size.

    Full attention is written as windows as large as the map, which is the same network and can be folded.
    """
    if design == "global":
        return {
            "img_size": side,
            "hierarchical": (False,) * 4,
            "window_sizes": (7, 7, -(-side // 16), -(-side // 32)),
        }
    return {"img_size": side, **DESIGNS[design]}
