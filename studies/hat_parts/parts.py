"""The parts, and what each change is compared with.

A change is compared with the variant that differs from it in that change alone. There are four bases:

- ``hat``: windows of 4 in stage 2, on a map of 8 x 8: four windows with 2 x 2 carriers each, and no padding. Most
  changes are of it.
- ``carriers-3x3``: 3 does not divide a window of 4, so the released pooling of carriers drifts off the windows. Where
  the side divides the window, released and aligned pooling are the same: aligned pooling is compared here.
- ``window-5``: windows of 5 pad 8 x 8 to 10 x 10, again four windows: more than a third of the tokens are padding.
  Masking it, and ``windows: fit`` (which takes windows of 4 here), are compared with it.
- ``no-carriers``: windows alone, of 4; those of 7 and 14 are compared with it. They do not divide the map, so they are
  padded, and mask it: a window of 7 leaves the last row and column to windows of their own, one of 14 holds all.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from studies.common.comparison import Scale, Variant
from studies.common.scales import fastervit_scales

PLAIN = [False, False, False, False]


def _part(name: str, base: str | None, change: str, *, windows: str = "pad", **options: Any) -> Variant:
    return Variant(name, {"model_options": options, "windows": windows}, base, {"change": change})


def _windows(side: int) -> list[int]:
    """Of stage 2; stage 3 keeps one window as large as its map."""
    return [7, 7, side, 4]


VARIANTS = (
    _part("hat", None, "the network as released, windows of 4"),
    _part("no-carriers", "hat", "no carriers: plain windows", hierarchical=PLAIN),
    _part("no-carrier-attention", "hat", "carriers of other windows are not heard", without=["carrier_attention"]),
    _part("carriers-1x1", "hat", "1 carrier a window, not 4", carrier_size=1),
    _part("carriers-3x3", "hat", "9 carriers a window, not 4", carrier_size=3),
    _part("no-window-position", "hat", "no position embedding in windows", without=["window_position"]),
    _part("no-window-bias", "hat", "no relative bias in windows", without=["window_bias"]),
    _part("no-carrier-position", "hat", "no position embedding of carriers", without=["carrier_position"]),
    _part("no-carrier-bias", "hat", "no relative bias between carriers", without=["carrier_bias"]),
    _part("propagation", "hat", "carriers are added to their windows at the end", propagate_carriers=True),
    _part("aligned", "carriers-3x3", "aligned pooling of carriers", carrier_size=3, carrier_pooling="aligned"),
    _part("window-5", "hat", "windows of 5, padded", window_sizes=_windows(5)),
    _part("window-5-masked", "window-5", "padding is masked", window_sizes=_windows(5), mask_padding=True),
    _part("window-5-fit", "window-5", "windows fitted to the map", window_sizes=_windows(5), windows="fit"),
    _part("plain-7", "no-carriers", "windows of 7", hierarchical=PLAIN, mask_padding=True, window_sizes=_windows(7)),
    _part("plain-14", "no-carriers", "windows of 14", hierarchical=PLAIN, mask_padding=True, window_sizes=_windows(14)),
)

SCALES: Mapping[str, Scale] = MappingProxyType(
    fastervit_scales(cpu={"epochs": 1, "warmup_epochs": 0.2}, gpu={"epochs": 5, "warmup_epochs": 1})
)
